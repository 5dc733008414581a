import numpy as np
import pytest

from stdenoise.stats.discs import disc_means, disc_pixels, disc_quantiles


@pytest.mark.parametrize("radius", [0.2, 1.0, 2.5, 7.3])
def test_means_equal_a_mask_of_the_whole_image(radius):
    rng = np.random.default_rng(0)
    image = rng.uniform(size=(40, 50))
    centres = rng.uniform(-3, 53, size=(60, 2))
    found = disc_means(image, centres, radius)
    row, col = np.mgrid[:40, :50]
    for (x, y), mean in zip(centres, found, strict=True):
        distance = np.hypot(col - x, row - y)
        inside = distance <= radius
        if inside.any():
            assert mean == pytest.approx(image[inside].mean(), rel=1e-12)
        elif -0.5 < x < 49.5 and -0.5 < y < 39.5:
            assert mean == image[round(y), round(x)]
        else:
            assert np.isnan(mean)


def test_integers_do_not_overflow():
    image = np.full((30, 30), 255, dtype=np.uint8)
    np.testing.assert_array_equal(disc_means(image, np.array([[15.0, 15.0], [0.0, 0.0]]), 9), 255)


def test_a_disc_larger_than_the_image_takes_all_of_it():
    image = np.random.default_rng(0).uniform(size=(20, 30))
    found = disc_means(image, np.array([[5.0, 5.0], [1e5, 5.0], [1e9, 1e9]]), 9e4)
    assert found[0] == pytest.approx(image.mean(), rel=1e-12)
    assert np.isnan(found[1:]).all()


def test_channels_are_averaged_one_by_one():
    rng = np.random.default_rng(1)
    image = rng.uniform(size=(30, 40, 3))
    centres = rng.uniform(-9, 45, size=(50, 2))
    found = disc_means(image, centres, 3.5)
    for channel in range(3):
        np.testing.assert_allclose(found[:, channel], disc_means(image[..., channel], centres, 3.5), rtol=1e-12)


def test_quantiles_are_those_of_the_pixels():
    rng = np.random.default_rng(2)
    image = rng.integers(0, 256, size=(30, 40, 2), dtype=np.uint8)
    centres = np.array([[10.0, 12.0], [-1.0, 3.0], [60.0, 3.0]])
    found = disc_quantiles(image, centres, 4.0, [0.2, 0.5, 1.0])
    row, col = np.mgrid[:30, :40]
    for spot in (0, 1):
        inside = np.hypot(col - centres[spot, 0], row - centres[spot, 1]) <= 4
        for channel in (0, 1):
            expected = np.quantile(image[inside][:, channel], [0.2, 0.5, 1.0])
            np.testing.assert_allclose(found[spot, channel], expected, rtol=1e-12)
    assert np.isnan(found[2]).all()


def test_discs_outside_the_image_are_left_out():
    image = np.zeros((10, 10))
    centres = np.array([[5.0, 5.0], [50.0, 5.0], [9.0, 9.0]])
    assert [spot for spot, _ in disc_pixels(image, centres, 2)] == [0, 2]
