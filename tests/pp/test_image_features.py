import sys

import numpy as np
import pandas as pd
import pytest
import torch

import stdenoise as st

PLACES = np.array([[50, 50], [150, 50], [250, 50], [50, 150], [150, 150], [250, 150]], dtype=float)
COLOURS = np.column_stack([np.arange(10, 70, 10), 200 - np.arange(6), np.full(6, 7)])


@pytest.fixture
def slide():
    """Six spots of diameter 40 on an image of 300 x 200 and three channels, each with a colour of its own, stored at two sizes."""
    adata = st.datasets.tissue(n_spots=6, n_genes=5)
    adata.obsm["spatial"] = PLACES.copy()
    row, col = np.mgrid[:200, :300]
    image = np.zeros((200, 300, 3), dtype=np.uint8)
    for (x, y), colour in zip(PLACES, COLOURS, strict=True):
        image[np.hypot(col - x, row - y) <= 22] = colour
    factors = {"tissue_fullres_scalef": 1.0, "tissue_hires_scalef": 0.5, "spot_diameter_fullres": 40.0}
    images = {"fullres": image, "hires": image[::2, ::2] / 255}
    adata.uns["spatial"] = {"slice1": {"images": images, "scalefactors": factors}}
    return adata


@pytest.fixture
def two(slide):
    """The same spots in two libraries, whose images differ."""
    other = {**slide.uns["spatial"]["slice1"]}
    other["images"] = {name: image[::-1, ::-1] for name, image in other["images"].items()}
    slide.uns["spatial"]["slice2"] = other
    slide.obs["library"] = pd.Categorical(["slice1", "slice2"] * 3)
    return slide


def centre(tiles):
    return tiles[:, tiles.shape[1] // 2, tiles.shape[2] // 2]


def test_colours_and_their_quantiles(slide):
    for key, unit in (("fullres", 1), ("hires", 255)):
        assert st.pp.image_features(slide, image_key=key) is None
        assert slide.obsm["image_features"].dtype == np.float32
        np.testing.assert_allclose(slide.obsm["image_features"] * unit, COLOURS, rtol=1e-6)
    # The same over noise, from the pixels of each disc.
    image = np.random.default_rng(0).integers(0, 256, size=(200, 300, 3), dtype=np.uint8)
    slide.uns["spatial"]["slice1"]["images"]["fullres"] = image
    st.pp.image_features(slide, image_key="fullres")
    st.pp.image_features(slide, extractor="intensity_quantiles", image_key="fullres", key_added="quantiles")
    assert slide.obsm["quantiles"].shape == (6, 18)
    row, col = np.mgrid[:200, :300]
    for (x, y), mean, found in zip(PLACES, slide.obsm["image_features"], slide.obsm["quantiles"], strict=True):
        pixels = image[np.hypot(col - x, row - y) <= 20]
        np.testing.assert_allclose(mean, pixels.mean(axis=0), rtol=1e-6)
        expected = [np.quantile(pixels[:, c], q) for c in range(3) for q in (0.2, 0.3, 0.4, 0.5, 0.6, 0.7)]
        np.testing.assert_allclose(found, expected, rtol=1e-6)


def test_a_function_sees_the_tiles(slide, capfd):
    seen = []

    def function(tiles):
        seen.append(tiles)
        return centre(tiles)

    options = {"extractor": function, "image_key": "fullres", "crop_size": 9, "batch_size": 4}
    st.pp.image_features(slide, **options, progress=False)
    assert capfd.readouterr().err == ""
    assert [tiles.shape for tiles in seen] == [(4, 9, 9, 3), (2, 9, 9, 3)]
    assert seen[0].dtype == np.uint8
    np.testing.assert_array_equal(slide.obsm["image_features"], COLOURS)
    record = slide.uns["image_features"]
    assert (record["extractor"], record["crop_size"], record["scale_factor"]) == ("function", 9, 1.0)
    # Tiles are in pixels of the image.
    st.pp.image_features(slide, extractor=lambda tiles: tiles.mean((1, 2)), crop_size=10, progress=True)
    np.testing.assert_allclose(slide.obsm["image_features"] * 255, COLOURS, rtol=1e-5)
    assert "6/6" in capfd.readouterr().err


def test_an_image_at_hand(slide):
    st.pp.image_features(slide)
    image = slide.uns["spatial"]["slice1"]["images"]["hires"]
    del slide.uns["spatial"]
    st.pp.image_features(slide, image=image, scale_factor=0.5, diameter=40, key_added="again")
    np.testing.assert_array_equal(slide.obsm["again"], slide.obsm["image_features"])
    assert slide.uns["again"]["diameter"] == 40
    # Tiles need no diameter, and one channel is one feature.
    st.pp.image_features(slide, image=image, scale_factor=0.5, extractor=centre, key_added="tiles")
    st.pp.image_features(slide, image=image[..., 0], scale_factor=0.5, diameter=40, key_added="grey")
    np.testing.assert_array_equal(slide.obsm["grey"], slide.obsm["again"][:, :1])
    with pytest.raises(KeyError, match="image="):
        st.pp.image_features(slide)


@pytest.mark.parametrize("extractor", ["mean_color", "intensity_quantiles", centre])
def test_spots_at_the_rim_and_beside_the_image(slide, extractor, unchanged):
    tiles = {"crop_size": 40} if callable(extractor) else {}
    slide.obsm["spatial"][0] = [-15, 50]
    image = np.tile(np.arange(300.0)[None, :, None], (200, 1, 1))
    st.pp.image_features(slide, image=image, extractor=extractor, key_added="rim", **tiles)
    assert (slide.obsm["rim"][0] >= 0).all()
    # A tile repeats the pixels of the rim, of a disc the part inside counts.
    assert (slide.obsm["rim"][0] <= (0 if tiles else 5)).all()
    slide.obsm["spatial"][:2] = [[-100, 50], [50, 500]]
    with unchanged(slide), pytest.raises(ValueError, match="2 of 6 spots .* 150 x 100 .* scale_factor=0.5"):
        st.pp.image_features(slide, extractor=extractor)
    slide.obsm["spatial"][:] = 1e6
    with pytest.raises(ValueError, match="6 of 6 spots"):
        st.pp.image_features(slide, extractor=extractor)


def test_libraries_have_images_of_their_own(two, reload):
    st.pp.image_features(two, library_key="library", image_key="fullres")
    for name in ("slice1", "slice2"):
        st.pp.image_features(two, library_id=name, image_key="fullres", key_added=name)
        rows = (two.obs["library"] == name).to_numpy()
        np.testing.assert_array_equal(two.obsm["image_features"][rows], two.obsm[name][rows])
    assert not np.array_equal(two.obsm["slice1"], two.obsm["slice2"])
    record = reload(two, ".h5ad").uns["image_features"]
    assert list(record["libraries"]) == ["slice1", "slice2"]
    np.testing.assert_array_equal(record["scale_factor"], [1, 1])
    with pytest.raises(ValueError, match=r"\['slice1', 'slice2'\].* library_id="):
        st.pp.image_features(two)
    images = two.uns["spatial"]["slice2"]["images"]
    images["hires"] = images["hires"][..., 0]
    with pytest.raises(ValueError, match=r"\[1, 3\]"):
        st.pp.image_features(two, library_key="library")
    two.obs["library"] = two.obs["library"].cat.rename_categories({"slice2": "slice3"})
    with pytest.raises(KeyError, match="'slice3'.* 'slice1', 'slice2'"):
        st.pp.image_features(two, library_key="library")


def test_copies_views_and_reloads(slide, unchanged, reload, assert_same):
    with unchanged(slide):
        copied = st.pp.image_features(slide, copy=True)
        view = slide[:3]
        st.pp.image_features(view)
    st.pp.image_features(slide)
    for suffix in (".h5ad", ".zarr"):
        again = reload(slide, suffix)
        for part in ("obsm", "uns"):
            for other in (again, copied):
                assert_same(getattr(other, part)["image_features"], getattr(slide, part)["image_features"])
    assert_same(view.obsm["image_features"], slide.obsm["image_features"][:3])


def test_methods_read_its_results_and_it_writes_over_none_but_its_own(slide):
    for key in ("spatial", "image_features"):
        slide.obsm.setdefault(key, np.zeros((6, 2)))
        with pytest.raises(ValueError, match=f"{key}.* was not written by image_features"):
            st.pp.image_features(slide, key_added=key)
    del slide.obsm["image_features"]
    st.pp.image_features(slide)
    st.pp.image_features(slide, extractor="intensity_quantiles")
    assert slide.obsm["image_features"].shape == (6, 18)
    st.tl.denoise(slide, "sme", weights="physical_morphology", features_key="image_features")
    assert np.isfinite(slide.layers["sme_mean"]).all()


def test_bad_input(slide, unchanged, volume):
    vgg = {"extractor": "torchvision", "weights": "w.pt", "architecture": "vgg16"}
    with unchanged(slide):
        for change, error, words in [
            ({"extractor": "mean_colour"}, ValueError, "'mean_colour'.* 'mean_color'"),
            ({"extractor": 3}, ValueError, "extractor=3"),
            ({"crop_size": 20}, ValueError, "crop_size=20 .*'mean_color'"),
            ({"batch_size": 2}, ValueError, "batch_size=2 does not apply"),
            ({"weights": "w.pt"}, ValueError, "weights='w.pt' does not apply"),
            ({"device": "cpu", "extractor": centre}, ValueError, "device='cpu' does not apply"),
            ({"diameter": 3.0, "extractor": centre}, ValueError, "diameter=3.0 does not apply"),
            ({"architecture": "resnet18"}, ValueError, "architecture='resnet18' does not apply"),
            ({"extractor": "torchvision"}, ValueError, "weights="),
            (vgg, ValueError, "'vgg16'"),
            ({"extractor": centre, "crop_size": 0}, ValueError, "crop_size"),
            ({"extractor": centre, "batch_size": 1.5}, TypeError, "batch_size"),
            ({"extractor": np.size}, ValueError, r"\(6, n_features\)"),
            ({"extractor": lambda t: centre(t)[:2]}, ValueError, r"\(6, n_features\)"),
            ({"extractor": lambda t: centre(t) * np.nan}, ValueError, "NaN"),
            ({"extractor": lambda t: np.ones((len(t), len(t))), "batch_size": 4}, ValueError, "different numbers"),
            ({"image_key": "lowres"}, KeyError, "'lowres'"),
            ({"library_id": "slice3"}, KeyError, "'slice1'"),
            ({"library_key": "library"}, KeyError, "'library'"),
            ({"library_key": "l", "library_id": "slice1"}, ValueError, "'l' and library_id exclude"),
            ({"library_key": "l", "image": np.zeros((5, 5))}, ValueError, "'l' and image exclude"),
            ({"image": np.zeros(5)}, ValueError, "image .* shape"),
            ({"image": np.full((200, 300), np.nan)}, ValueError, "image has NaN"),
            ({"diameter": 0}, ValueError, "diameter"),
            ({"scale_factor": -1.0}, ValueError, "scale_factor"),
            ({"spatial_key": "xy"}, KeyError, "'xy'"),
            ({"key_added": ""}, TypeError, "key_added"),
            ({"progress": "yes"}, TypeError, "progress"),
        ]:
            with pytest.raises(error, match=words):
                st.pp.image_features(slide, **change)
    with pytest.raises(ValueError, match="x and y"):
        st.pp.image_features(volume, image=np.zeros((5, 5)), diameter=3)


def test_torchvision_is_missing(slide, monkeypatch, tmp_path):
    monkeypatch.setitem(sys.modules, "torchvision", None)
    monkeypatch.setitem(sys.modules, "torchvision.models", None)
    with pytest.raises(ImportError, match="torchvision"):
        st.pp.image_features(slide, extractor="torchvision", weights=tmp_path / "weights.pt")


def test_a_network_gets_tiles_and_its_weights(slide, monkeypatch):
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
    path = tmp_path / "weights.pt"
    with torch.random.fork_rng():
        torch.save(models.resnet18(weights=None).state_dict(), path)
    st.pp.image_features(slide, extractor="torchvision", weights=path, architecture="resnet18", batch_size=4)
    assert slide.obsm["image_features"].shape == (6, 512)
    assert slide.uns["image_features"]["weights"] == "weights.pt"
