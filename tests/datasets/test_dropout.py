import numpy as np
import pytest
from scipy import sparse

from stdenoise.datasets._dropout import SETTINGS, drop_out, dropout_rates

GRID = np.stack(np.meshgrid(*2 * [np.arange(0.05, 30, 0.1)]), axis=-1).reshape(-1, 2)


@pytest.mark.parametrize(("setting", "area"), [(1, 0.0), (2, 0.36), (3, 0.5556), (4, 0.64)])
def test_area_of_the_band(setting, area):
    assert dropout_rates(GRID, setting, "absolute")[1].mean() == pytest.approx(area, abs=1e-4)


@pytest.mark.parametrize(
    ("setting", "mode", "mean"),
    [
        (1, "absolute", 0), (2, "absolute", 0.136), (3, "absolute", 0.211), (4, "absolute", 0.392),
        (1, "additive", 0), (2, "additive", 0.172), (3, "additive", 0.267), (4, "additive", 0.520),
    ],
)  # fmt: skip
def test_mean_rate(setting, mode, mean):
    assert dropout_rates(GRID, setting, mode)[0].mean() == pytest.approx(mean, abs=6e-4)


def test_rates_of_single_spots():
    spots = np.array([[15, 15], [15, 0.5], [29.9, 15], [3.0, 15], [2.9, 15]])
    rate, band = dropout_rates(spots, 2, "absolute")
    assert band.tolist() == [False, True, True, False, True]
    assert rate.tolist() == [0.1, 0.2, 0.2, 0.1, 0.2]
    assert dropout_rates(spots, 2, "additive")[0] == pytest.approx([0.1, 0.3, 0.3, 0.1, 0.3])


def test_the_published_settings():
    assert [(s.overall, s.edge, s.width) for s in SETTINGS.values()] == [
        (0, 0, 0), (0.1, 0.2, 3), (0.1, 0.3, 5), (0.2, 0.5, 6),
    ]  # fmt: skip


@pytest.mark.parametrize("rate", [0.0, 0.2, 0.5, 1.0])
def test_each_count_is_lost_as_a_whole(rate):
    rng = np.random.default_rng(0)
    counts = sparse.csr_matrix(rng.poisson(1.0, size=(300, 200)), dtype=np.float32)
    kept, mask = drop_out(counts, np.full(300, rate), rng)
    assert (kept.toarray() == np.where(mask.toarray(), 0, counts.toarray())).all()
    assert (mask.toarray() <= (counts.toarray() > 0)).all()
    assert mask.nnz == pytest.approx(rate * counts.nnz, abs=3 * np.sqrt(counts.nnz * rate * (1 - rate)))
    assert mask.dtype == bool
    assert kept.nnz + mask.nnz == counts.nnz
