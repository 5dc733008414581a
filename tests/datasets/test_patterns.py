import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as some
from scipy.spatial import cKDTree

from stdenoise.datasets._patterns import (
    EXTENT,
    PATTERNS,
    fix_composition,
    gaussian_field,
    label_bands,
    lay_out,
    type_sizes,
)


def test_bands_of_the_worked_example_whose_highest_value_gets_any_type():
    field = np.array([[0.3, -1.2, 0.7], [1.5, 0.1, -0.4], [-0.9, 2, 0.5]])
    drawn = np.array([label_bands(field, np.array([5, 3, 2]), np.random.default_rng(seed)) for seed in range(30)])
    assert set(drawn[:, 2, 1]) == {0, 1, 2}
    a, b, c = range(3)
    drawn[:, 2, 1] = b
    np.testing.assert_array_equal(drawn, np.tile([[b, a, b], [c, a, a], [a, b, b]], (30, 1, 1)))


@pytest.mark.parametrize(
    ("name", "sizes"),
    [
        ("P1", [334, 333, 333]),
        ("P2", [375] * 4),
        ("P3", [475] * 4 + [100]),
        ("P4", [334, 334, 333, 333, 333, 333]),
        ("P5", [625, 450, 375, 300, 250, 250, 250]),
        ("P6", [600] * 5),
    ],
)
def test_sizes_composition_and_domains(name, sizes):
    pattern = PATTERNS[name]
    assert type_sizes(pattern.n_spots, pattern.shares).tolist() == sizes
    positions, types = lay_out(pattern, pattern.n_spots, np.random.default_rng(4))
    assert np.bincount(types).tolist() == sizes
    assert positions.shape == (pattern.n_spots, 2)
    assert positions.min() >= 0
    assert positions.max() < EXTENT
    # Share of cells whose nearest neighbours have their type.
    neighbours = cKDTree(positions).query(positions, k=7)[1][:, 1:]
    alike = (types[neighbours] == types[:, None]).mean(axis=1)
    if name == "P1":
        assert alike.mean() > 0.75
    if name == "P6":
        # Two mixed types of equal size share one domain: no more than about half of the neighbours are alike.
        mixed = alike[types >= 3].mean()
        assert alike[types < 3].mean() > mixed + 0.1
        assert mixed < 0.5


@given(some.integers(7, 400), some.sampled_from(sorted(PATTERNS)))
def test_every_number_of_cells_is_shared_out(n_cells, name):
    sizes = type_sizes(n_cells, PATTERNS[name].shares)
    assert sizes.sum() == n_cells
    assert sizes.min() >= 1
    assert (np.abs(sizes - n_cells * np.array(PATTERNS[name].shares)) < 2).all()


def test_too_few_cells():
    with pytest.raises(ValueError, match="n_spots .* 7.* 6"):
        type_sizes(6, PATTERNS["P5"].shares)


@given(some.lists(some.integers(0, 3), min_size=4, max_size=50), some.integers(0, 2**31))
def test_composition_is_fixed_by_moving_only_what_is_too_much(labels, seed):
    labels = np.array(labels)
    sizes = type_sizes(len(labels), (0.4, 0.3, 0.2, 0.1))
    fixed = fix_composition(labels, sizes, np.random.default_rng(seed))
    assert np.bincount(fixed, minlength=4).tolist() == sizes.tolist()
    before = np.bincount(labels, minlength=4)
    assert (fixed != labels).sum() == np.maximum(before - sizes, 0).sum()


def test_covariance_of_the_field():
    rng = np.random.default_rng(2)
    draws = np.array([gaussian_field(12, 5.0, rng) for _ in range(4000)])
    assert draws.mean() == pytest.approx(0, abs=0.05)
    corner = draws[:, 0, 0]
    for i, j in [(0, 0), (0, 3), (2, 2), (5, 0), (11, 11)]:
        expected = np.exp(-(i**2 + j**2) / 25)
        assert (corner * draws[:, i, j]).mean() == pytest.approx(expected, abs=4 * np.sqrt(2 / 4000))
