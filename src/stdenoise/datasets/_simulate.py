"""Simulated tissues whose true counts are known, with a technology's losses and a damaged edge."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from itertools import product
from typing import Any

import numpy as np
import pandas as pd
from anndata import AnnData
from scipy import sparse

from stdenoise._base import keys as _keys
from stdenoise._base.checks import check_choice, check_number
from stdenoise._base.random import check_seed
from stdenoise.datasets._dropout import EDGE_MODES, SETTINGS, drop_out, dropout_rates
from stdenoise.datasets._kinetics import Kinetics, true_counts
from stdenoise.datasets._patterns import EXTENT, PATTERNS, lay_out, type_sizes
from stdenoise.datasets._sequencing import capture_molecules, draw_cells, draw_genes, sequence


def simulate(
    pattern: str = "P1",
    *,
    setting: int = 1,
    seed: int = 0,
    replicate: int = 0,
    edge_mode: str = "absolute",
    n_spots: int | None = None,
    n_genes: int | None = None,
) -> AnnData:
    """Simulate a tissue whose true counts are known.

    True counts come from promoters that switch on and off, with rates like those of real genes, and differ between cell
    types. Molecules are then captured, amplified and sequenced, cell types are laid out in bands on a square of side 30, and
    counts are lost at random, more of them near the edge. The settings of one pattern and replicate share cells, truth and
    sequencing and differ only in the last step.

    Parameters
    ----------
    pattern
        `"P1"` to `"P6"`: number of cells, genes and cell types, their layout, and the sequencing protocol. `"P6"` counts
        reads, the others molecules.
    setting
        Share of the counts that are lost, overall and within a distance of the edge: 1 is none, 2 is 0.1 and 0.2 within 3, 3
        is 0.1 and 0.3 within 5, and 4 is 0.2 and 0.5 within 6.
    seed
        The same seed gives the same tissue.
    replicate
        Another tissue of the same kind.
    edge_mode
        `"absolute"`: the share given for the edge is what is lost there. `"additive"`: it comes on top of the overall one.
    n_spots, n_genes
        Size; the pattern's own if not given.

    Returns
    -------
    AnnData with the following fields:

    `X`
        Observed counts (CSR, float32).
    `layers["true_counts"]`
        Molecules in the cell (CSR, float32).
    `layers["observed_before_dropout"]`
        Counts after sequencing (CSR, float32).
    `layers["dropout_mask"]`
        The positive counts that were lost (CSR, bool).
    `obs["cell_type"]`, `obs["dropout_rate"]`, `obs["in_edge_band"]`
        Type, the chance of each count to be lost, and whether the spot is near the edge.
    `obs["capture_rate"]`, `obs["depth"]`, `var["length"]`, `var["highly_expressed"]`
        What was drawn for each cell and gene.
    `obsm["spatial"]`
        Positions, from 0 to 30.
    `uns["simulation"]`
        Every parameter and seed.

    Raises
    ------
    ValueError, TypeError
        A parameter is not valid.

    References
    ----------
    Zhang, Xu and Yosef (2019), SymSim, Nature Communications 10:2611, for the counts; Qian et al. (2024), scCube, Nature
    Communications 15:5021, for the layout. The patterns P1 to P6 are this package's own.

    Examples
    --------
    >>> import stdenoise as st
    >>> adata = st.datasets.simulate("P1", setting=3, n_spots=200, n_genes=60)
    >>> adata.shape
    (200, 60)
    """
    check_choice("setting", setting, list(SETTINGS))
    _check(pattern, seed=seed, edge_mode=edge_mode, n_spots=n_spots, n_genes=n_genes)
    check_number("replicate", replicate, minimum=0, integer=True)
    tissue = _make_tissue(pattern, seed=seed, replicate=replicate, n_spots=n_spots, n_genes=n_genes)
    return _observe(tissue, setting=setting, edge_mode=edge_mode)


def simulated_benchmark(
    *,
    seed: int = 0,
    n_replicates: int = 1,
    edge_mode: str = "absolute",
    patterns: Sequence[str] | None = None,
    settings: Sequence[int] | None = None,
    n_spots: int | None = None,
    n_genes: int | None = None,
) -> Iterator[tuple[str, AnnData]]:
    """Simulate the 24 tissues of the benchmark, six patterns under four dropout settings, one at a time.

    Parameters
    ----------
    seed
        The same seed gives the same tissues; they equal those of `stdenoise.datasets.simulate`.
    n_replicates
        Tissues of each kind.
    edge_mode
        See `stdenoise.datasets.simulate`.
    patterns
        Names of patterns; all six if not given.
    settings
        Dropout settings; all four if not given.
    n_spots, n_genes
        Size of all of them, for quick trials; each pattern's own if not given.

    Returns
    -------
    An iterator over names, as `stdenoise.datasets.simulated_names` lists them, and AnnData as
    `stdenoise.datasets.simulate` returns them. A tissue is made when the iterator reaches it.

    Raises
    ------
    ValueError, TypeError
        A parameter is not valid.

    Examples
    --------
    >>> import stdenoise as st
    >>> tissues = st.datasets.simulated_benchmark(patterns=["P1"], settings=[1, 4], n_spots=50, n_genes=20)
    >>> [name for name, adata in tissues]
    ['P1-1', 'P1-4']
    """
    patterns, settings = _choose(patterns, settings, n_replicates)
    for pattern in patterns:
        _check(pattern, seed=seed, edge_mode=edge_mode, n_spots=n_spots, n_genes=n_genes)

    def make() -> Iterator[tuple[str, AnnData]]:
        for replicate, pattern in product(range(n_replicates), patterns):
            tissue = _make_tissue(pattern, seed=seed, replicate=replicate, n_spots=n_spots, n_genes=n_genes)
            for setting in settings:
                yield _name(pattern, setting, replicate), _observe(tissue, setting=setting, edge_mode=edge_mode)

    return make()


def simulated_names(
    *, n_replicates: int = 1, patterns: Sequence[str] | None = None, settings: Sequence[int] | None = None
) -> list[str]:
    """List the tissues of the benchmark, without making them.

    Parameters
    ----------
    n_replicates
        Tissues of each kind.
    patterns
        Names of patterns; all six if not given.
    settings
        Dropout settings; all four if not given.

    Returns
    -------
    Names such as `"P1-4"`, pattern and setting, or from the second replicate on `"P1-4-r1"`.

    Examples
    --------
    >>> import stdenoise as st
    >>> st.datasets.simulated_names(patterns=["P1"])
    ['P1-1', 'P1-2', 'P1-3', 'P1-4']
    """
    patterns, settings = _choose(patterns, settings, n_replicates)
    return [_name(pattern, setting, r) for r, pattern, setting in product(range(n_replicates), patterns, settings)]


def _choose(
    patterns: Sequence[str] | None, settings: Sequence[int] | None, n_replicates: int
) -> tuple[list[str], list[int]]:
    check_number("n_replicates", n_replicates, minimum=1, integer=True)
    chosen = list(PATTERNS if patterns is None else [patterns] if isinstance(patterns, str) else patterns)
    for pattern in chosen:
        check_choice("pattern", pattern, list(PATTERNS))
    numbers = list(SETTINGS if settings is None else settings)
    for setting in numbers:
        check_choice("setting", setting, list(SETTINGS))
    return chosen, numbers


def _check(pattern: str, *, seed: int, edge_mode: str, n_spots: int | None, n_genes: int | None) -> None:
    check_choice("pattern", pattern, list(PATTERNS))
    check_seed(seed)
    check_choice("edge_mode", edge_mode, EDGE_MODES)
    for name, size in (("n_spots", n_spots), ("n_genes", n_genes)):
        if size is not None:
            check_number(name, size, minimum=1, integer=True)
    type_sizes(n_spots or PATTERNS[pattern].n_spots, PATTERNS[pattern].shares)


def _name(pattern: str, setting: int, replicate: int) -> str:
    return f"{pattern}-{setting}" + (f"-r{replicate}" if replicate else "")


@dataclass(frozen=True)
class _Tissue:
    """What the dropout settings of one pattern and replicate share."""

    pattern: str
    seed: int
    replicate: int
    positions: np.ndarray
    true: sparse.csr_matrix
    sequenced: sparse.csr_matrix
    obs: pd.DataFrame
    var: pd.DataFrame


def _entropy(pattern: str, *, seed: int, setting: int, replicate: int) -> np.random.SeedSequence:
    """Seed of one tissue; setting 0 stands for what the settings share."""
    return np.random.SeedSequence([int(seed), list(PATTERNS).index(pattern) + 1, int(setting), int(replicate)])


def _make_tissue(pattern: str, *, seed: int, replicate: int, n_spots: int | None, n_genes: int | None) -> _Tissue:
    plan = PATTERNS[pattern]
    n_cells, n_genes = n_spots or plan.n_spots, n_genes or plan.n_genes
    streams = _entropy(pattern, seed=seed, setting=0, replicate=replicate).spawn(4)
    layout_rng, count_rng, capture_rng, read_rng = (np.random.default_rng(stream) for stream in streams)

    positions, types = lay_out(plan, n_cells, layout_rng)
    counts, high = true_counts(types, n_genes, Kinetics(), count_rng)
    true = sparse.csr_matrix(counts)
    capture, depth = draw_cells(n_cells, plan.protocol, capture_rng)
    length, rate = draw_genes(n_genes, capture_rng)
    captured = capture_molecules(true, capture, capture_rng)
    sequenced = sequence(captured, umi=plan.protocol.umi, depth=depth, length=length, rate=rate, rng=read_rng)
    names = pd.Index([f"type{i + 1}" for i in range(len(plan.shares))])
    return _Tissue(
        pattern,
        int(seed),
        int(replicate),
        positions,
        true.astype(np.float32),
        sequenced.astype(np.float32),
        pd.DataFrame(
            {
                "cell_type": pd.Categorical.from_codes(types.tolist(), categories=names),
                "capture_rate": capture,
                "depth": depth,
            },
            index=[f"spot{i}" for i in range(n_cells)],
        ),
        pd.DataFrame({"length": length, "highly_expressed": high}, index=[f"gene{j}" for j in range(n_genes)]),
    )


def _observe(tissue: _Tissue, *, setting: int, edge_mode: str) -> AnnData:
    rate, in_band = dropout_rates(tissue.positions, setting, edge_mode)
    seeds = _entropy(tissue.pattern, seed=tissue.seed, setting=setting, replicate=tissue.replicate)
    observed, mask = drop_out(tissue.sequenced, rate, np.random.default_rng(seeds))
    return AnnData(
        X=observed,
        obs=tissue.obs.assign(dropout_rate=rate, in_edge_band=in_band),
        var=tissue.var.copy(),
        layers={
            "true_counts": tissue.true.copy(),
            "observed_before_dropout": tissue.sequenced.copy(),
            "dropout_mask": mask,
        },
        obsm={_keys.SPATIAL: tissue.positions.copy()},
        uns={"simulation": _record(tissue, setting=setting, edge_mode=edge_mode)},
    )


def _record(tissue: _Tissue, *, setting: int, edge_mode: str) -> dict[str, Any]:
    plan = asdict(PATTERNS[tissue.pattern])
    return {
        "name": _name(tissue.pattern, setting, tissue.replicate),
        "pattern": tissue.pattern,
        "setting": int(setting),
        "seed": tissue.seed,
        "replicate": tissue.replicate,
        "edge_mode": edge_mode,
        "dropout": asdict(SETTINGS[setting]),
        "layout": {
            "extent": EXTENT,
            "correlation_length": plan["correlation_length"],
            "purity": plan["purity"],
            "n_patterned": plan["n_patterned"],
            "sizes": tissue.obs["cell_type"].value_counts(sort=False).to_numpy(),
        },
        "kinetics": asdict(Kinetics()),
        "protocol": plan["protocol"],
    }
