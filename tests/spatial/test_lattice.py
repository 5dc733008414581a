import numpy as np

from stdenoise.spatial.lattice import find_lattice


def lattice(height, width):
    row, col = (x.ravel() for x in np.mgrid[:height, :width])
    return np.column_stack([col, row]).astype(float)


ROW, COLUMN = np.mgrid[:12, :12].reshape(2, -1)
RANDOM = np.random.default_rng(0)
NO_LATTICES = {
    "hexagonal": np.column_stack([COLUMN + 0.5 * (ROW % 2), ROW * 0.75**0.5]),
    "scattered": RANDOM.uniform(size=(100, 2)),
    "in space": RANDOM.integers(3, size=(30, 3)).astype(float),
    "on a line": np.column_stack([np.arange(20.0), np.zeros(20)]),
    "twice in one place": np.vstack([lattice(4, 4), lattice(4, 4)]),
    "jittered": lattice(6, 7) * [219.0, 170.0] + RANDOM.uniform(-20, 20, size=(42, 2)),
    "off by a hundredth": lattice(6, 7) * [219.0, 170.0] + RANDOM.uniform(-1, 1, size=(42, 2)),
    "two patches far apart": np.vstack([lattice(4, 4), lattice(4, 4) + 500]),
    "without neighbours": lattice(6, 6)[[0, 1, 6, 8, 13, 16, 22, 27, 30, 33, 35]],
    "three spots": lattice(1, 3),
}


def test_where_there_is_a_lattice():
    assert [name for name, xy in NO_LATTICES.items() if find_lattice(xy) is not None] == []
    # Two spacings, and rounding.
    found = find_lattice(np.rint(lattice(6, 7) * [219.3, 170.4]))
    assert found.shape == (6, 7)
    np.testing.assert_array_equal(found.cell, np.arange(42))
