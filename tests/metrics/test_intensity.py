import numpy as np
import pandas as pd
import pytest

import stdenoise as st


@pytest.fixture
def slide():
    """Six spots of diameter 40 on an image of 300 x 200, each with a colour of its own, stored at full and half size."""
    adata = st.datasets.tissue(n_spots=6, n_genes=5)
    adata.obsm["spatial"] = np.array([[50, 50], [150, 50], [250, 50], [50, 150], [150, 150], [250, 150]], dtype=float)
    row, col = np.mgrid[:200, :300]
    image = np.zeros((200, 300, 2), dtype=np.uint8)
    for i, (x, y) in enumerate(adata.obsm["spatial"]):
        image[np.hypot(col - x, row - y) <= 22, 1] = 10 * (i + 1)
    image[..., 0] = 7
    adata.uns["spatial"] = {
        "slice1": {
            "images": {"fullres": image, "hires": image[::2, ::2] / 255},
            "scalefactors": {
                "tissue_fullres_scalef": 1.0,
                "tissue_hires_scalef": 0.5,
                "spot_diameter_fullres": 40.0,
            },
        }
    }
    return adata


@pytest.mark.parametrize(("key", "unit"), [("fullres", 1), ("hires", 255)])
def test_discs_have_their_colour(slide, key, unit, unchanged):
    with unchanged(slide):
        found = st.metrics.spot_intensity(slide, channel=1, image_key=key)
    assert found.index.equals(slide.obs_names)
    np.testing.assert_allclose(found * unit, [10, 20, 30, 40, 50, 60], rtol=1e-12)


def test_an_image_at_hand(slide):
    stored = st.metrics.spot_intensity(slide, channel=1)
    image = slide.uns["spatial"]["slice1"]["images"]["hires"]
    handed = st.metrics.spot_intensity(slide, image=image[..., 1], scale_factor=0.5)
    pd.testing.assert_series_equal(handed, stored)
    del slide.uns["spatial"]
    alone = st.metrics.spot_intensity(slide, image=image, channel=1, scale_factor=0.5, diameter=40)
    pd.testing.assert_series_equal(alone, stored)


def test_a_wider_disc_takes_in_its_surroundings(slide):
    whole = st.metrics.spot_intensity(slide, channel=1, image_key="fullres", diameter=44)
    wide = st.metrics.spot_intensity(slide, channel=1, image_key="fullres", diameter=60)
    np.testing.assert_allclose(whole, [10, 20, 30, 40, 50, 60])
    np.testing.assert_allclose(wide / whole, (22 / 30) ** 2, rtol=0.02)


def test_background_is_a_percentile_of_the_whole_image(slide):
    image = np.random.default_rng(0).uniform(0, 10, size=(200, 300))
    options = {"image": image, "diameter": 5}
    plain = st.metrics.spot_intensity(slide, background_percentile=None, **options)
    found = st.metrics.spot_intensity(slide, background_percentile=50, **options)
    np.testing.assert_allclose(found, np.maximum(plain - np.median(image), 0))
    assert (found == 0).any()
    default = st.metrics.spot_intensity(slide, **options)
    np.testing.assert_allclose(default, np.maximum(plain - np.percentile(image, 5), 0))


def test_spots_at_and_beyond_the_rim(slide):
    slide.obsm["spatial"] = slide.obsm["spatial"].copy()
    slide.obsm["spatial"][0] = [-10, 50]
    slide.obsm["spatial"][1] = [-100, 50]
    image = np.full((200, 300), 3.0)
    found = st.metrics.spot_intensity(slide, image=image, background_percentile=None)
    assert found.iloc[0] == 3
    assert np.isnan(found.iloc[1])
    image[:] = np.arange(300)
    intensity = st.metrics.spot_intensity(slide, image=image, background_percentile=None)
    table = st.metrics.gene_protein_correlation(slide, "gene0", protein=intensity, n_bootstrap=0, scale="stored")
    assert (table["n_dropped"] == 1).all()


def test_x_and_y_are_not_mixed_up(slide):
    row, col = np.mgrid[:200, :300].astype(float)
    for axis, image in enumerate((col, row)):
        found = st.metrics.spot_intensity(slide, image=image, background_percentile=None)
        np.testing.assert_allclose(found, slide.obsm["spatial"][:, axis])


def test_libraries(slide):
    slide.uns["spatial"]["slice2"] = slide.uns["spatial"]["slice1"]
    with pytest.raises(ValueError, match=r"has the libraries \['slice1', 'slice2'\]; choose one with library_id="):
        st.metrics.spot_intensity(slide)
    assert st.metrics.spot_intensity(slide, channel=1, library_id="slice2").iloc[0] * 255 == pytest.approx(10)


@pytest.mark.parametrize(
    ("change", "error", "words"),
    [
        ({"channel": 2}, ValueError, "channel=2 is not in the image, which has 2"),
        ({"channel": "DAPI"}, TypeError, "channel must be an integer"),
        ({"library_id": "slice3"}, KeyError, "Did you mean 'slice1'"),
        ({"image_key": "lowres"}, KeyError, "'lowres' is not in"),
        ({"image": np.zeros(5)}, ValueError, "image must have shape"),
        ({"image": np.full((5, 5), "a")}, TypeError, "image must hold real numbers"),
        ({"diameter": 0}, ValueError, "diameter must be"),
        ({"scale_factor": -1.0}, ValueError, "scale_factor must be"),
        ({"scale_factor": 50.0, "diameter": 1.0}, ValueError, "no spot lies on the image of 150 x 100 pixels"),
        ({"background_percentile": 101}, ValueError, "must be at most 100"),
        ({"spatial_key": "xy"}, KeyError, "'xy' is not in adata.obsm"),
    ],
)
def test_bad_input(slide, change, error, words):
    with pytest.raises(error, match=words):
        st.metrics.spot_intensity(slide, **change)


def test_without_an_image(slide, volume):
    del slide.uns["spatial"]
    with pytest.raises(KeyError, match="Pass image= and diameter="):
        st.metrics.spot_intensity(slide)
    with pytest.raises(ValueError, match="an image needs x and y"):
        st.metrics.spot_intensity(volume, image=np.zeros((5, 5)), diameter=3)
