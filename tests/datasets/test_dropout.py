import numpy as np
import pytest
from scipy import sparse

from stdenoise.datasets._dropout import SETTINGS, drop_out, dropout_rates

GRID = np.stack(np.meshgrid(*2 * [np.arange(0.05, 30, 0.1)]), axis=-1).reshape(-1, 2)


@pytest.mark.parametrize(
    ("setting", "published", "area", "absolute", "additive"),
    [
        (1, (0, 0, 0), 0.0, 0, 0),
        (2, (0.1, 0.2, 3), 0.36, 0.136, 0.172),
        (3, (0.1, 0.3, 5), 0.5556, 0.211, 0.267),
        (4, (0.2, 0.5, 6), 0.64, 0.392, 0.520),
    ],
)
def test_the_published_settings_their_bands_and_mean_rates(setting, published, area, absolute, additive):
    dropout = SETTINGS[setting]
    assert (dropout.overall, dropout.edge, dropout.width) == published
    assert len(SETTINGS) == 4
    for mode, mean in (("absolute", absolute), ("additive", additive)):
        rate, band = dropout_rates(GRID, setting, mode)
        assert band.mean() == pytest.approx(area, abs=1e-4)
        assert rate.mean() == pytest.approx(mean, abs=6e-4)


def test_rates_of_single_spots():
    spots = np.array([[15, 15], [15, 0.5], [29.9, 15], [3.0, 15], [2.9, 15]])
    rate, band = dropout_rates(spots, 2, "absolute")
    assert band.tolist() == [False, True, True, False, True]
    assert rate.tolist() == [0.1, 0.2, 0.2, 0.1, 0.2]
    assert dropout_rates(spots, 2, "additive")[0] == pytest.approx([0.1, 0.3, 0.3, 0.1, 0.3])


def test_each_count_is_lost_as_a_whole_with_the_rate_of_its_spot():
    rng = np.random.default_rng(0)
    counts = sparse.csr_matrix(rng.poisson(1.0, size=(600, 200)), dtype=np.float32)
    before = counts.copy()
    kept, mask = drop_out(counts, np.repeat([0.0, 0.2, 1.0], 200), rng)
    assert (counts != before).nnz == 0
    assert (kept.toarray() == np.where(mask.toarray(), 0, counts.toarray())).all()
    assert (mask.toarray() <= (counts.toarray() > 0)).all()
    assert mask.dtype == bool
    assert kept.nnz + mask.nnz == counts.nnz
    for start, rate in ((0, 0.0), (200, 0.2), (400, 1.0)):
        n = counts[start : start + 200].nnz
        assert mask[start : start + 200].nnz == pytest.approx(rate * n, abs=3 * np.sqrt(n * rate * (1 - rate)))
