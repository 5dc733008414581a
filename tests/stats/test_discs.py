import numpy as np
import pytest

from stdenoise.stats.discs import disc_means, disc_quantiles

QUANTILES = [0.2, 0.5, 1.0]


@pytest.mark.parametrize("radius", [0.2, 1.0, 7.3])
def test_means_and_quantiles_equal_those_of_a_mask_of_the_whole_image(radius):
    rng = np.random.default_rng(0)
    # Bytes: a sum of them would overflow.
    image = rng.integers(100, 256, size=(40, 50, 2), dtype=np.uint8)
    centres = rng.uniform(-3, 53, size=(60, 2))
    means, quantiles = disc_means(image, centres, radius), disc_quantiles(image, centres, radius, QUANTILES)
    np.testing.assert_array_equal(disc_means(image[..., 1], centres, radius), means[:, 1])
    row, col = np.mgrid[:40, :50]
    for (x, y), mean, quantile in zip(centres, means, quantiles, strict=True):
        pixels = image[np.hypot(col - x, row - y) <= radius]
        if not len(pixels) and -0.5 < x < 49.5 and -0.5 < y < 39.5:
            pixels = image[round(y), round(x)][None]
        if len(pixels):
            np.testing.assert_allclose(mean, pixels.mean(axis=0), rtol=1e-12)
            np.testing.assert_allclose(quantile, np.quantile(pixels, QUANTILES, axis=0).T, rtol=1e-12)
        else:
            assert np.isnan(mean).all()
            assert np.isnan(quantile).all()


def test_a_disc_larger_than_the_image_takes_all_of_it():
    image = np.random.default_rng(0).uniform(size=(20, 30))
    found = disc_means(image, np.array([[5.0, 5.0], [1e5, 5.0], [1e9, 1e9]]), 9e4)
    assert found[0] == pytest.approx(image.mean(), rel=1e-12)
    assert np.isnan(found[1:]).all()
