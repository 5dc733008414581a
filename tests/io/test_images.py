import numpy as np
import pytest

import stdenoise as st
from stdenoise._io.images import SpotImage, on_image, read_image, tiles


def test_tiles_equal_slices_of_a_padded_image():
    rng = np.random.default_rng(0)
    pixels = rng.integers(0, 256, size=(12, 15, 3), dtype=np.uint8)
    centres = rng.uniform(-6, 20, size=(40, 2))
    padded = np.pad(pixels, ((50, 50), (50, 50), (0, 0)), mode="edge")
    for size in (1, 4, 5, 20):
        found = tiles(pixels, centres, size)
        assert found.shape == (40, size, size, 3)
        assert found.dtype == np.uint8
        for tile, (x, y) in zip(found, centres, strict=True):
            left, top = (round(centre - (size - 1) / 2) + 50 for centre in (x, y))
            np.testing.assert_array_equal(tile, padded[top : top + size, left : left + size])
    odd = tiles(np.arange(25.0).reshape(5, 5, 1), np.array([[2.0, 3.0]]), 3)
    assert odd[0, :, :, 0].tolist() == [[11, 12, 13], [16, 17, 18], [21, 22, 23]]


def test_tiles_that_touch_the_image_are_on_it():
    centres = np.array([[5.0, 5.0], [-2.0, 5.0], [-3.0, 5.0], [21.0, 5.0], [22.0, 5.0], [5.0, 11.0], [5.0, 12.0]])
    found = on_image(np.zeros((10, 20, 1)), centres, 5).tolist()
    assert found == [True, True, False, True, False, True, False]


def test_a_diameter_is_in_pixels_of_the_full_image_and_looked_up_only_where_needed():
    assert SpotImage(np.zeros((2, 2, 1)), 0.25, 40).radius == 5
    adata = st.datasets.tissue(n_spots=6, n_genes=5)
    options = {"library_id": None, "image_key": "hires", "scale_factor": None, "diameter": None}
    image = read_image(adata, image=np.zeros((4, 5)), need_diameter=False, **options)
    assert image.pixels.shape == (4, 5, 1)
    assert image.scale_factor == 1
    assert np.isnan(image.radius)
    with pytest.raises(KeyError, match="Pass image= and diameter="):
        read_image(adata, image=np.zeros((4, 5)), **options)
