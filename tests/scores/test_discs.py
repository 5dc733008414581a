import numpy as np
import pytest

from stdenoise.scores.discs import disc_means


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
