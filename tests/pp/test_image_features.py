import sys

import numpy as np
import pandas as pd
import pytest

import stdenoise as st

PLACES = np.array([[50, 50], [150, 50], [250, 50], [50, 150], [150, 150], [250, 150]], dtype=float)


@pytest.fixture
def slide():
    """Six spots of diameter 40 on an image of 300 x 200 and three channels, each with a colour of its own, stored at two sizes."""
    adata = st.datasets.tissue(n_spots=6, n_genes=5)
    adata.obsm["spatial"] = PLACES.copy()
    row, col = np.mgrid[:200, :300]
    image = np.zeros((200, 300, 3), dtype=np.uint8)
    for i, (x, y) in enumerate(PLACES):
        image[np.hypot(col - x, row - y) <= 22] = [10 * (i + 1), 200 - i, 7]
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


COLOURS = np.column_stack([np.arange(10, 70, 10), 200 - np.arange(6), np.full(6, 7)])


def noise(adata, seed=0):
    """Replace the image by noise."""
    image = np.random.default_rng(seed).integers(0, 256, size=(200, 300, 3), dtype=np.uint8)
    adata.uns["spatial"]["slice1"]["images"]["fullres"] = image
    return image


def centre(tiles):
    return tiles[:, tiles.shape[1] // 2, tiles.shape[2] // 2]


@pytest.mark.parametrize(("key", "unit"), [("fullres", 1), ("hires", 255)])
def test_mean_colours(slide, key, unit):
    st.pp.image_features(slide, image_key=key)
    found = slide.obsm["image_features"]
    assert found.dtype == np.float32
    np.testing.assert_allclose(found * unit, COLOURS, rtol=1e-6)


def test_mean_colours_are_the_intensities_of_the_metric(slide):
    noise(slide)
    st.pp.image_features(slide, image_key="fullres")
    for channel in range(3):
        intensity = st.metrics.spot_intensity(slide, channel=channel, image_key="fullres", background_percentile=None)
        np.testing.assert_allclose(slide.obsm["image_features"][:, channel], intensity, rtol=1e-6)


def test_quantiles(slide):
    image = noise(slide)
    st.pp.image_features(slide, extractor="intensity_quantiles", image_key="fullres")
    found = slide.obsm["image_features"]
    assert found.shape == (6, 18)
    row, col = np.mgrid[:200, :300]
    for spot, (x, y) in enumerate(PLACES):
        pixels = image[np.hypot(col - x, row - y) <= 20]
        expected = [np.quantile(pixels[:, c], q) for c in range(3) for q in (0.2, 0.3, 0.4, 0.5, 0.6, 0.7)]
        np.testing.assert_allclose(found[spot], expected, rtol=1e-6)


def test_a_function_sees_the_tiles(slide):
    seen = []

    def function(tiles):
        seen.append(tiles)
        return centre(tiles)

    st.pp.image_features(slide, extractor=function, image_key="fullres", crop_size=9, batch_size=4)
    assert [tiles.shape for tiles in seen] == [(4, 9, 9, 3), (2, 9, 9, 3)]
    assert seen[0].dtype == np.uint8
    np.testing.assert_array_equal(slide.obsm["image_features"], COLOURS)
    record = slide.uns["image_features"]
    assert (record["extractor"], record["crop_size"], record["scale_factor"]) == ("function", 9, 1.0)


def test_tiles_are_in_pixels_of_the_image(slide):
    st.pp.image_features(slide, extractor=lambda tiles: tiles.mean((1, 2)), crop_size=10)
    np.testing.assert_allclose(slide.obsm["image_features"] * 255, COLOURS, rtol=1e-5)


def test_an_image_at_hand(slide):
    st.pp.image_features(slide)
    image = slide.uns["spatial"]["slice1"]["images"]["hires"]
    del slide.uns["spatial"]
    st.pp.image_features(slide, image=image, scale_factor=0.5, diameter=40, key_added="again")
    np.testing.assert_array_equal(slide.obsm["again"], slide.obsm["image_features"])
    # Tiles need no diameter.
    st.pp.image_features(slide, image=image, scale_factor=0.5, extractor=centre, key_added="tiles")
    # One channel is one feature.
    st.pp.image_features(slide, image=image[..., 0], scale_factor=0.5, diameter=40, key_added="grey")
    np.testing.assert_array_equal(slide.obsm["grey"], slide.obsm["again"][:, :1])


def test_spots_at_the_rim(slide):
    slide.obsm["spatial"][0] = [-15, 50]
    image = np.tile(np.arange(300.0)[None, :, None], (200, 1, 1))
    st.pp.image_features(slide, image=image)
    assert 0 <= slide.obsm["image_features"][0, 0] <= 5
    st.pp.image_features(slide, image=image, extractor=centre, crop_size=40)
    assert slide.obsm["image_features"][0, 0] == 0


@pytest.mark.parametrize("extractor", ["mean_color", "intensity_quantiles", centre])
def test_spots_beside_the_image(slide, extractor, unchanged):
    slide.obsm["spatial"][:2] = [[-100, 50], [50, 500]]
    with (
        unchanged(slide),
        pytest.raises(ValueError, match="2 of 6 spots are not on the image of 150 x 100 pixels: with scale_factor=0.5"),
    ):
        st.pp.image_features(slide, extractor=extractor)
    slide.obsm["spatial"][:] = 1e6
    with pytest.raises(ValueError, match="6 of 6 spots are not on the image"):
        st.pp.image_features(slide, extractor=extractor)


@pytest.fixture
def two(slide):
    """The same spots in two libraries, whose images differ."""
    other = {**slide.uns["spatial"]["slice1"]}
    other["images"] = {name: image[::-1, ::-1] for name, image in other["images"].items()}
    slide.uns["spatial"]["slice2"] = other
    slide.obs["library"] = pd.Categorical(["slice1", "slice2"] * 3)
    return slide


def test_libraries_have_images_of_their_own(two):
    st.pp.image_features(two, library_key="library", image_key="fullres")
    for name in ("slice1", "slice2"):
        st.pp.image_features(two, library_id=name, image_key="fullres", key_added=name)
        rows = (two.obs["library"] == name).to_numpy()
        np.testing.assert_array_equal(two.obsm["image_features"][rows], two.obsm[name][rows])
    assert not np.array_equal(two.obsm["slice1"], two.obsm["slice2"])
    record = two.uns["image_features"]
    assert list(record["libraries"]) == ["slice1", "slice2"]
    np.testing.assert_array_equal(record["scale_factor"], [1, 1])


def test_a_library_without_an_image(two):
    two.obs["library"] = two.obs["library"].cat.rename_categories({"slice2": "slice3"})
    with pytest.raises(KeyError, match=r"'slice3' is not in adata.uns\['spatial'\], which has 'slice1', 'slice2'"):
        st.pp.image_features(two, library_key="library")


def test_libraries_of_different_channels(two):
    two.uns["spatial"]["slice2"]["images"]["hires"] = two.uns["spatial"]["slice2"]["images"]["hires"][..., 0]
    with pytest.raises(ValueError, match=r"different numbers of features, \[1, 3\]"):
        st.pp.image_features(two, library_key="library")


def test_several_libraries_and_no_choice(two):
    with pytest.raises(ValueError, match=r"has the libraries \['slice1', 'slice2'\]; choose one with library_id="):
        st.pp.image_features(two)


def test_copies_and_reloads(slide, unchanged, reload, assert_same):
    with unchanged(slide):
        copied = st.pp.image_features(slide, copy=True)
    assert st.pp.image_features(slide, diameter=30.0) is None
    assert_same(copied.obsm["image_features"], slide.obsm["image_features"])
    for suffix in (".h5ad", ".zarr"):
        again = reload(slide, suffix)
        assert_same(again.obsm["image_features"], slide.obsm["image_features"])
        assert again.uns["image_features"]["diameter"] == 30


def test_libraries_survive_the_disk(two, reload):
    st.pp.image_features(two, library_key="library")
    assert list(reload(two, ".h5ad").uns["image_features"]["libraries"]) == ["slice1", "slice2"]


def test_a_view_is_written_like_an_anndata(slide):
    view = slide[:3]
    st.pp.image_features(view)
    assert view.obsm["image_features"].shape == (3, 3)
    assert "image_features" not in slide.obsm


def test_it_writes_over_its_own_results_only(slide):
    for key in ("spatial", "image_features"):
        slide.obsm.setdefault(key, np.zeros((6, 2)))
        with pytest.raises(ValueError, match=f"{key}.*exists and was not written by image_features"):
            st.pp.image_features(slide, key_added=key)
    del slide.obsm["image_features"]
    st.pp.image_features(slide)
    st.pp.image_features(slide, extractor="intensity_quantiles")
    assert slide.obsm["image_features"].shape == (6, 18)


def test_methods_read_them(slide):
    from stdenoise.methods.sme import SME

    st.pp.image_features(slide)
    st.tl.denoise(slide, SME(weights="physical_morphology"), features_key="image_features")
    assert np.isfinite(slide.layers["sme_mean"]).all()


def test_the_progress_bar(slide, capfd):
    st.pp.image_features(slide, extractor=centre, progress=False)
    assert capfd.readouterr().err == ""
    st.pp.image_features(slide, extractor=centre, progress=True)
    assert "6/6" in capfd.readouterr().err


@pytest.mark.parametrize(
    ("change", "error", "words"),
    [
        ({"extractor": "mean_colour"}, ValueError, "extractor='mean_colour' is not valid.*Did you mean 'mean_color'"),
        ({"extractor": 3}, ValueError, "extractor=3 is not valid"),
        ({"crop_size": 20}, ValueError, "crop_size=20 does not apply to extractor='mean_color'"),
        ({"batch_size": 2}, ValueError, "batch_size=2 does not apply"),
        ({"weights": "w.pt"}, ValueError, "weights='w.pt' does not apply"),
        ({"device": "cpu", "extractor": centre}, ValueError, "device='cpu' does not apply"),
        ({"diameter": 3.0, "extractor": centre}, ValueError, "diameter=3.0 does not apply"),
        ({"architecture": "resnet18"}, ValueError, "architecture='resnet18' does not apply"),
        ({"extractor": "torchvision"}, ValueError, "needs weights=, a file with a state dict; nothing is downloaded"),
        (
            {"extractor": "torchvision", "weights": "w.pt", "architecture": "vgg16"},
            ValueError,
            "architecture='vgg16' is not valid",
        ),
        ({"extractor": centre, "crop_size": 0}, ValueError, "crop_size must be an integer >= 1"),
        ({"extractor": centre, "batch_size": 1.5}, TypeError, "batch_size must be an integer >= 1"),
        ({"extractor": np.size}, ValueError, r"must return numbers of shape \(6, n_features\) for 6 tiles"),
        ({"extractor": lambda t: centre(t)[:2]}, ValueError, r"must return numbers of shape \(6, n_features\)"),
        ({"extractor": lambda t: centre(t) * np.nan}, ValueError, "returned NaN or infinite features"),
        (
            {"extractor": lambda t: np.ones((len(t), len(t))), "batch_size": 4},
            ValueError,
            "different numbers of features for different tiles",
        ),
        ({"image_key": "lowres"}, KeyError, "'lowres' is not in"),
        ({"library_id": "slice3"}, KeyError, "Did you mean 'slice1'"),
        ({"library_key": "library"}, KeyError, "'library' is not in adata.obs"),
        ({"library_key": "l", "library_id": "slice1"}, ValueError, "library_key='l' and library_id exclude each other"),
        ({"library_key": "l", "image": np.zeros((5, 5))}, ValueError, "library_key='l' and image exclude each other"),
        ({"image": np.zeros(5)}, ValueError, "image must have shape"),
        ({"image": np.full((200, 300), np.nan)}, ValueError, "the image has NaN or infinite pixels"),
        ({"diameter": 0}, ValueError, "diameter must be"),
        ({"scale_factor": -1.0}, ValueError, "scale_factor must be"),
        ({"spatial_key": "xy"}, KeyError, "'xy' is not in adata.obsm"),
        ({"key_added": ""}, TypeError, "key_added must be a name"),
        ({"progress": "yes"}, TypeError, "progress must be True, False or None"),
    ],
)
def test_bad_input(slide, change, error, words, unchanged):
    with unchanged(slide), pytest.raises(error, match=words):
        st.pp.image_features(slide, **change)


def test_without_an_image(slide, volume):
    del slide.uns["spatial"]
    with pytest.raises(KeyError, match="Pass image="):
        st.pp.image_features(slide)
    with pytest.raises(ValueError, match="an image needs x and y"):
        st.pp.image_features(volume, image=np.zeros((5, 5)), diameter=3)


def test_torchvision_is_missing(slide, monkeypatch, tmp_path):
    monkeypatch.setitem(sys.modules, "torchvision", None)
    monkeypatch.setitem(sys.modules, "torchvision.models", None)
    with pytest.raises(ImportError, match="needs torchvision"):
        st.pp.image_features(slide, extractor="torchvision", weights=tmp_path / "weights.pt")


def test_a_network_gets_tiles_and_its_weights(slide, monkeypatch):
    import torch

    from stdenoise.pp import _image_features

    asked = []

    def load(path, architecture):
        asked.append((path, architecture))
        network = torch.nn.Sequential(torch.nn.Conv2d(3, 5, 1), torch.nn.AdaptiveAvgPool2d(1), torch.nn.Flatten())
        with torch.no_grad():
            network[0].weight.copy_(torch.arange(15.0).reshape(5, 3, 1, 1))
            network[0].bias.zero_()
        return network

    monkeypatch.setattr(_image_features, "load_resnet", load)
    options = {"image_key": "fullres", "crop_size": 9, "batch_size": 4, "device": "cpu"}
    st.pp.image_features(slide, extractor="torchvision", weights="folder/w.pt", **options)
    assert asked == [("folder/w.pt", "resnet50")]
    normalised = (COLOURS / 255 - [0.485, 0.456, 0.406]) / [0.229, 0.224, 0.225]
    expected = normalised @ np.arange(15.0).reshape(5, 3).T
    np.testing.assert_allclose(slide.obsm["image_features"], expected, rtol=1e-3, atol=1e-3)
    record = slide.uns["image_features"]
    assert (record["extractor"], record["architecture"], record["weights"]) == ("torchvision", "resnet50", "w.pt")


def test_a_network_with_weights_at_hand(slide, tmp_path):
    models = pytest.importorskip("torchvision.models")
    import torch

    with torch.random.fork_rng():
        torch.save(models.resnet18(weights=None).state_dict(), tmp_path / "weights.pt")
    st.pp.image_features(
        slide, extractor="torchvision", weights=tmp_path / "weights.pt", architecture="resnet18", batch_size=4
    )
    assert slide.obsm["image_features"].shape == (6, 512)
    assert slide.uns["image_features"]["weights"] == "weights.pt"
