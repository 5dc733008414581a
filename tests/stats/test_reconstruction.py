import numpy as np
import pytest
import torch
from skimage.metrics import structural_similarity

from stdenoise.spatial.lattice import find_lattice
from stdenoise.stats.reconstruction import cosine, ssim


def lattice(height, width):
    row, col = (x.ravel() for x in np.mgrid[:height, :width])
    return np.column_stack([col, row]).astype(float)


def test_ssim_equals_scikit_image_where_the_window_fits():
    rng = np.random.default_rng(0)
    truth = rng.gamma(2, size=(17, 20, 3))
    predicted = 0.7 * truth + rng.gamma(1, size=truth.shape)
    grid = find_lattice(lattice(17, 20))
    assert grid.shape == (17, 20)
    found = ssim(torch.tensor(predicted.reshape(-1, 3)), torch.tensor(truth.reshape(-1, 3)), grid)
    found = found.numpy().reshape(17, 20, 3)[5:-5, 5:-5]
    options = {"gaussian_weights": True, "sigma": 1.5, "use_sample_covariance": False, "full": True}
    for gene in range(3):
        p, t = predicted[..., gene], truth[..., gene]
        inner, full = structural_similarity(p, t, data_range=np.ptp(t), **options)
        np.testing.assert_allclose(found[..., gene], full[5:-5, 5:-5], atol=1e-12)
        assert found[..., gene].mean() == pytest.approx(inner, abs=1e-12)


def test_ssim_of_a_ragged_tissue_in_any_order_equals_a_loop():
    rng = np.random.default_rng(1)
    xy = lattice(9, 8)[rng.permutation(72)[:50]]
    truth, predicted = rng.normal(size=(2, 50))
    # Genes: the one that is checked, the truth itself, and a truth that is constant.
    sides = [np.column_stack(side) for side in ([predicted, truth, truth], [truth, truth, np.full(50, 3.0)])]
    found = ssim(*map(torch.tensor, sides), find_lattice(xy * 3.5 + 100)).numpy()
    np.testing.assert_allclose(found[:, 1], 1, atol=1e-12)
    assert np.isnan(found[:, 2]).all()
    c1, c2 = (0.01 * np.ptp(truth)) ** 2, (0.03 * np.ptp(truth)) ** 2
    for spot in range(50):
        offset = xy - xy[spot]
        weight = np.exp(-0.5 * (offset**2).sum(1) / 1.5**2) * (np.abs(offset).max(1) <= 5)
        weight /= weight.sum()
        p, t = weight @ predicted, weight @ truth
        vp, vt, c = weight @ (predicted - p) ** 2, weight @ (truth - t) ** 2, weight @ ((predicted - p) * (truth - t))
        expected = (2 * p * t + c1) * (2 * c + c2) / ((p**2 + t**2 + c1) * (vp + vt + c2))
        assert found[spot, 0] == pytest.approx(expected, abs=1e-10)


def test_cosine():
    left, right = np.random.default_rng(0).normal(size=(2, 9, 3))
    left[:, 2] = 0
    expected = [left[:, j] @ right[:, j] / np.linalg.norm(left[:, j]) / np.linalg.norm(right[:, j]) for j in (0, 1)]
    np.testing.assert_allclose(cosine(torch.tensor(left), torch.tensor(right)), [*expected, np.nan], rtol=1e-12)
