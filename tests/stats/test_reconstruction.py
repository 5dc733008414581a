import numpy as np
import pytest
import torch
from skimage.metrics import structural_similarity

from stdenoise.stats.reconstruction import cosine, find_grid, ssim


def lattice(height, width):
    row, col = (x.ravel() for x in np.mgrid[:height, :width])
    return np.column_stack([col, row]).astype(float)


def reference_ssim(predicted, truth, **options):
    return structural_similarity(
        predicted,
        truth,
        data_range=np.ptp(truth),
        gaussian_weights=True,
        sigma=1.5,
        use_sample_covariance=False,
        **options,
    )


def test_ssim_equals_scikit_image_where_the_window_fits():
    rng = np.random.default_rng(0)
    truth = rng.gamma(2, size=(17, 20, 3))
    predicted = 0.7 * truth + rng.gamma(1, size=truth.shape)
    grid = find_grid(lattice(17, 20))
    assert grid.shape == (17, 20)
    found = ssim(torch.tensor(predicted.reshape(-1, 3)), torch.tensor(truth.reshape(-1, 3)), grid)
    found = found.numpy().reshape(17, 20, 3)
    for gene in range(3):
        _, full = reference_ssim(predicted[..., gene], truth[..., gene], full=True)
        np.testing.assert_allclose(found[5:-5, 5:-5, gene], full[5:-5, 5:-5], atol=1e-12)
        inner = reference_ssim(predicted[..., gene], truth[..., gene])
        assert found[5:-5, 5:-5, gene].mean() == pytest.approx(inner, abs=1e-12)


def test_ssim_of_a_ragged_tissue_equals_a_loop():
    rng = np.random.default_rng(1)
    xy = lattice(9, 8)[rng.permutation(72)[:50]]
    truth, predicted = rng.normal(size=(2, 50))
    grid = find_grid(xy * 3.5 + 100)
    found = ssim(torch.tensor(predicted)[:, None], torch.tensor(truth)[:, None], grid).numpy()[:, 0]
    c1, c2 = (0.01 * np.ptp(truth)) ** 2, (0.03 * np.ptp(truth)) ** 2
    for spot in range(50):
        offset = xy - xy[spot]
        weight = np.exp(-0.5 * (offset**2).sum(1) / 1.5**2) * (np.abs(offset).max(1) <= 5)
        weight /= weight.sum()
        p, t = weight @ predicted, weight @ truth
        vp, vt, c = weight @ (predicted - p) ** 2, weight @ (truth - t) ** 2, weight @ ((predicted - p) * (truth - t))
        expected = (2 * p * t + c1) * (2 * c + c2) / ((p**2 + t**2 + c1) * (vp + vt + c2))
        assert found[spot] == pytest.approx(expected, abs=1e-10)


def test_ssim_of_the_truth_is_one_and_of_a_constant_undefined():
    truth = torch.tensor(np.random.default_rng(2).normal(size=(30, 2)))
    truth[:, 1] = 3.0
    found = ssim(truth, truth, find_grid(lattice(5, 6)))
    torch.testing.assert_close(found[:, 0], torch.ones(30).double())
    assert found[:, 1].isnan().all()


def test_ssim_does_not_depend_on_the_order_of_spots():
    rng = np.random.default_rng(3)
    values, order = rng.normal(size=(2, 30, 2)), rng.permutation(30)
    straight = ssim(*torch.tensor(values), find_grid(lattice(5, 6)))
    mixed = ssim(*torch.tensor(values[:, order]), find_grid(lattice(5, 6)[order]))
    torch.testing.assert_close(mixed, straight[order])


def hexagonal(n):
    row, col = (x.ravel() for x in np.mgrid[:n, :n])
    return np.column_stack([col + 0.5 * (row % 2), row * 0.75**0.5])


NO_GRIDS = {
    "hexagonal": hexagonal(12),
    "scattered": np.random.default_rng(0).uniform(size=(100, 2)),
    "in space": np.random.default_rng(0).integers(3, size=(30, 3)).astype(float),
    "on a line": np.column_stack([np.arange(20.0), np.zeros(20)]),
    "twice in one place": np.vstack([lattice(4, 4), lattice(4, 4)]),
    "jittered": lattice(6, 6) + np.random.default_rng(0).uniform(-0.1, 0.1, size=(36, 2)),
    "two patches far apart": np.vstack([lattice(4, 4), lattice(4, 4) + 500]),
    "three spots": lattice(1, 3),
}


@pytest.mark.parametrize("name", NO_GRIDS)
def test_no_grid(name):
    assert find_grid(NO_GRIDS[name]) is None


def test_a_grid_may_have_two_spacings_and_rounding():
    xy = lattice(6, 7) * [219.0, 170.0] + np.random.default_rng(0).uniform(-1, 1, size=(42, 2))
    grid = find_grid(np.rint(lattice(6, 7) * [219.3, 170.4]))
    assert grid.shape == (6, 7)
    np.testing.assert_array_equal(grid.cell, np.arange(42))
    assert find_grid(xy) is None


def test_cosine():
    left, right = np.random.default_rng(0).normal(size=(2, 9, 3))
    left[:, 2] = 0
    expected = [left[:, j] @ right[:, j] / np.linalg.norm(left[:, j]) / np.linalg.norm(right[:, j]) for j in (0, 1)]
    found = cosine(torch.tensor(left), torch.tensor(right)).numpy()
    np.testing.assert_allclose(found[:2], expected, rtol=1e-12)
    assert np.isnan(found[2])
