import numpy as np
import pytest
from scipy import sparse, stats

from stdenoise.datasets._kinetics import Kinetics, true_counts
from stdenoise.datasets._sequencing import (
    Protocol,
    _amplify_fragments,
    _preamplify,
    capture_molecules,
    draw_cells,
    draw_genes,
    sequence,
)

UMI = Protocol(umi=True, capture=0.05, capture_sd=0.02, depth=5e4)
READS = Protocol(umi=False, capture=0.1, capture_sd=0.05, depth=1e5)


@pytest.fixture(scope="module")
def true():
    counts, _ = true_counts(np.arange(200) % 5, 500, Kinetics(), np.random.default_rng(0))
    return sparse.csr_matrix(counts)


def run(true, protocol, seed=1, **changes):
    rng = np.random.default_rng(seed)
    capture, depth = draw_cells(true.shape[0], protocol, rng)
    length, rate = draw_genes(true.shape[1], rng)
    captured = capture_molecules(true, changes.get("capture", capture), rng)
    depth = changes.get("depth", depth)
    return captured, sequence(captured, umi=protocol.umi, depth=depth, length=length, rate=rate, rng=rng)


def sums(counts):
    return np.asarray(counts.sum(axis=1)).ravel()


@pytest.mark.parametrize(("capture", "zeros"), [(0.02, 0.60), (0.05, 0.45), (0.10, 0.34)])
def test_molecules_are_lost_and_never_gained(true, capture, zeros):
    captured, observed = run(true, Protocol(umi=True, capture=capture, capture_sd=0.4 * capture, depth=5e4))
    assert 1 - observed.nnz / np.prod(observed.shape) == pytest.approx(zeros, abs=0.04)
    assert (captured.toarray() <= true.toarray()).all()
    assert (observed.toarray() <= captured.toarray()).all()
    assert 0 < observed.sum() < captured.sum() < true.sum()
    if capture == 0.05:
        # At 17 reads per captured molecule hardly any goes unseen.
        assert observed.sum() > 0.9 * captured.sum()
        # Few reads see few molecules.
        _, observed = run(true, UMI, depth=np.full(200, 500.0))
        assert (sums(observed) <= 600).all()


def test_capture_keeps_the_share_of_each_cell(true):
    share = np.array([0.0005, 0.05, 0.5, 1.0])
    captured = capture_molecules(true[:4], share, np.random.default_rng(1))
    total = sums(true[:4])
    assert (np.abs(sums(captured) - total * share) <= 4 * np.sqrt(total * share * (1 - share))).all()


@pytest.mark.parametrize("protocol", [UMI, READS], ids=["umi", "reads"])
def test_a_cell_with_nothing_captured_has_an_empty_row(true, protocol):
    few = true[:6, :40].toarray()
    few[[0, 3, 5]] = 0
    _, observed = run(sparse.csr_matrix(few), protocol)
    assert (sums(observed) > 0).tolist() == [False, True, True, False, True, False]
    _, observed = run(sparse.csr_matrix((3, 20), dtype=np.int64), protocol)
    assert observed.shape == (3, 20)
    assert observed.nnz == 0


def test_reads_add_up_to_the_depth(true):
    depth = np.linspace(1e5, 2e5, 200)
    _, observed = run(true, READS, depth=depth)
    np.testing.assert_allclose(sums(observed), depth, rtol=4 / np.sqrt(1e5))


def test_growth():
    for rate in (0.6, 1.0):
        copies = _preamplify(np.full(60_000, rate), np.random.default_rng(2))
        expected = (1 + rate) * (1 + rate / 2) ** 15
        assert copies.mean() == pytest.approx(expected, abs=4 * copies.std() / np.sqrt(60_000))
        assert copies.min() >= 1
    grown = _amplify_fragments(np.full(20_000, 100), 3, np.random.default_rng(3))
    assert grown.mean() == pytest.approx(100 * 1.8**5, rel=0.005)
    assert _amplify_fragments(np.array([0]), 3, np.random.default_rng(3))[0] == 0


def test_capture_and_depth_are_truncated_normal():
    protocol = Protocol(umi=True, capture=0.05, capture_sd=0.05, depth=1000, depth_sd=1000)
    capture, depth = draw_cells(50_000, protocol, np.random.default_rng(4))
    wanted = stats.truncnorm(-0.99, 19, loc=0.05, scale=0.05)
    assert stats.kstest(capture, wanted.cdf).pvalue > 1e-3
    assert stats.kstest(depth, stats.truncnorm(-0.8, np.inf, loc=1000, scale=1000).cdf).pvalue > 1e-3
    assert capture.min() >= 0.0005
    assert depth.min() >= 200


def test_long_genes_are_amplified_less():
    length, rate = draw_genes(4000, np.random.default_rng(5))
    np.testing.assert_allclose(np.quantile(length, [0.05, 0.5, 0.95]), [116, 960, 6172], rtol=0.12)
    order = np.argsort(length, kind="stable")
    bias = rate[order].reshape(20, 200) - 0.8
    np.testing.assert_allclose(bias.mean(axis=1), 0.19 - 0.02 * np.arange(20), atol=0.002)
    assert (np.abs(bias - bias.mean(axis=1, keepdims=True)) < 0.0125).all()
