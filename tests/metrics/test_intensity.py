import numpy as np
import pandas as pd
import pytest

import stdenoise as st

PLACES = np.array([[50, 50], [150, 50], [250, 50], [50, 150], [150, 150], [250, 150]], dtype=float)


@pytest.fixture
def slide():
    """Six spots of diameter 40 on an image of 300 x 200, each with a colour of its own, stored at full and half size."""
    adata = st.datasets.tissue(n_spots=6, n_genes=5)
    adata.obsm["spatial"] = PLACES.copy()
    row, col = np.mgrid[:200, :300]
    image = np.zeros((200, 300, 2), dtype=np.uint8)
    for i, (x, y) in enumerate(PLACES):
        image[np.hypot(col - x, row - y) <= 22, 1] = 10 * (i + 1)
    image[..., 0] = 7
    factors = {"tissue_fullres_scalef": 1.0, "tissue_hires_scalef": 0.5, "spot_diameter_fullres": 40.0}
    images = {"fullres": image, "hires": image[::2, ::2] / 255}
    adata.uns["spatial"] = {"slice1": {"images": images, "scalefactors": factors}}
    return adata


@pytest.mark.parametrize(("key", "unit"), [("fullres", 1), ("hires", 255)])
def test_discs_have_their_colour(slide, key, unit, unchanged):
    with unchanged(slide):
        found = st.metrics.spot_intensity(slide, channel=1, image_key=key)
    assert found.index.equals(slide.obs_names)
    np.testing.assert_allclose(found * unit, [10, 20, 30, 40, 50, 60], rtol=1e-12)
    # A wider disc takes in its surroundings.
    wide = st.metrics.spot_intensity(slide, channel=1, image_key="fullres", diameter=60)
    np.testing.assert_allclose(wide / (found * unit), (22 / 30) ** 2, rtol=0.02)


def test_an_image_at_hand_and_one_of_several_libraries(slide):
    stored = st.metrics.spot_intensity(slide, channel=1)
    image = slide.uns["spatial"]["slice1"]["images"]["hires"]
    handed = st.metrics.spot_intensity(slide, image=image[..., 1], scale_factor=0.5)
    pd.testing.assert_series_equal(handed, stored)
    slide.uns["spatial"]["slice0"] = {**slide.uns["spatial"]["slice1"], "images": {"hires": image[::-1]}}
    pd.testing.assert_series_equal(st.metrics.spot_intensity(slide, channel=1, library_id="slice1"), stored)
    with pytest.raises(ValueError, match=r"\['slice1', 'slice0'\].* library_id="):
        st.metrics.spot_intensity(slide)
    del slide.uns["spatial"]
    alone = st.metrics.spot_intensity(slide, image=image, channel=1, scale_factor=0.5, diameter=40)
    pd.testing.assert_series_equal(alone, stored)
    with pytest.raises(KeyError, match="image= and diameter="):
        st.metrics.spot_intensity(slide)


def test_background_is_a_percentile_of_the_whole_image(slide):
    image = np.random.default_rng(0).uniform(0, 10, size=(200, 300))
    options = {"image": image, "diameter": 5}
    plain = st.metrics.spot_intensity(slide, background_percentile=None, **options)
    found = st.metrics.spot_intensity(slide, background_percentile=50, **options)
    np.testing.assert_allclose(found, np.maximum(plain - np.median(image), 0))
    assert (found == 0).any()
    default = st.metrics.spot_intensity(slide, **options)
    np.testing.assert_allclose(default, np.maximum(plain - np.percentile(image, 5), 0))


def test_x_and_y_are_not_mixed_up_and_spots_beyond_the_rim_have_no_value(slide):
    slide.obsm["spatial"][0] = [-100, 50]
    for axis, image in enumerate(np.mgrid[:200, :300].astype(float)[::-1]):
        found = st.metrics.spot_intensity(slide, image=image, background_percentile=None)
        np.testing.assert_allclose(found, [np.nan, *PLACES[1:, axis]])
    table = st.metrics.gene_protein_correlation(slide, "gene0", protein=found, n_bootstrap=0, scale="stored")
    assert (table["n_dropped"] == 1).all()
    slide.obsm["spatial"][0] = [-10, 50]
    at_the_rim = st.metrics.spot_intensity(slide, image=np.full((200, 300), 3.0), background_percentile=None)
    assert at_the_rim.iloc[0] == 3


def test_bad_input(slide, volume):
    for change, error, words in [
        ({"channel": 2}, ValueError, "channel=2 .* 2"),
        ({"channel": "DAPI"}, TypeError, "channel"),
        ({"library_id": "slice3"}, KeyError, "'slice1'"),
        ({"image_key": "lowres"}, KeyError, "'lowres'"),
        ({"image": np.zeros(5)}, ValueError, "image .* shape"),
        ({"image": np.full((5, 5), "a")}, TypeError, "image .* numbers"),
        ({"diameter": 0}, ValueError, "diameter"),
        ({"scale_factor": -1.0}, ValueError, "scale_factor"),
        ({"scale_factor": 50.0, "diameter": 1.0}, ValueError, "no spot .* 150 x 100"),
        ({"background_percentile": 101}, ValueError, "100"),
        ({"background_percentile": -1}, ValueError, "background_percentile"),
        ({"spatial_key": "xy"}, KeyError, "'xy'"),
    ]:
        with pytest.raises(error, match=words):
            st.metrics.spot_intensity(slide, **change)
    with pytest.raises(ValueError, match="x and y"):
        st.metrics.spot_intensity(volume, image=np.zeros((5, 5)), diameter=3)
