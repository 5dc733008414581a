"""Running a method again on altered counts: what held-out, masking and null tests have in common."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import pandas as pd
import torch
from scipy import sparse
from tqdm import tqdm

from stdenoise.methods._base import Method
from stdenoise.methods.baselines import GeneMean
from stdenoise.spatial.normalize import TARGET_SUM
from stdenoise.spatial.results import Array, Block
from stdenoise.spatial.spots import Tissue
from stdenoise.stats import deviance


@dataclass(frozen=True)
class Trial:
    """A section on which methods are run, with the same genes and graph each time.

    Parameters
    ----------
    counts
        Whole counts of all genes, CSR, shape `(n_spots, n_all_genes)`.
    genes
        Names of all genes.
    positions
        Columns to model and score; `None` for all.
    tissue
        What is known of the spots beside their counts.
    device
        Where methods run.
    """

    counts: sparse.csr_matrix
    genes: tuple[str, ...]
    positions: np.ndarray | None
    tissue: Tissue
    device: torch.device

    @classmethod
    def of(cls, section: Any, methods: Sequence[Method], device: torch.device) -> Trial:
        """Return an opened section as one to run methods on; a trained network has seen what is held out."""
        for method in methods:
            if method.genes is not None:
                raise TypeError(
                    f"{method.label} is trained already: give the method itself, which is trained on what is not held out."
                )
        counts = section.counts()
        if not counts.has_canonical_format:
            counts = counts.copy()
            counts.sum_duplicates()
        return cls(counts, section.genes, section.positions, section.tissue(device), device)

    def with_counts(self, counts: sparse.csr_matrix) -> Trial:
        """Return the same section with other counts."""
        return replace(self, counts=counts)

    def without_edges(self) -> Trial:
        """Return the same section, each spot on its own."""
        return replace(self, tissue=self.tissue.without_neighbors(self.counts.shape[0]))

    def modelled(self, counts: sparse.csr_matrix) -> sparse.csr_matrix:
        """Columns of the modelled genes."""
        return counts if self.positions is None else counts[:, self.positions]

    @property
    def modelled_genes(self) -> list[str]:
        """Names of the modelled genes."""
        return list(self.genes) if self.positions is None else [self.genes[i] for i in self.positions]

    def fit(self, method: Method, *, seed: int, progress: bool) -> Block:
        """Run a method on these counts."""
        spots = self.tissue.with_counts(self.counts, self.genes, positions=self.positions, device=self.device)
        return method.fit(spots, seed=seed, progress=progress)

    def expected(self, result: Block) -> Array:
        """Expected counts of the modelled genes, at the depth that these have in each spot, shape `(n_spots, n_genes)`."""
        depth = np.asarray(self.modelled(self.counts).sum(axis=1, dtype=np.float64)).ravel()
        return result.expected(torch.from_numpy(depth / TARGET_SUM))

    def thinned(self, fraction: float, seed: int) -> tuple[Trial, sparse.csr_matrix]:
        """Return the section without a share of its molecules, and the held-out counts of all genes."""
        rest, held_out = deviance.thin(self.counts, fraction, np.random.default_rng(seed))
        return self.with_counts(rest), held_out

    def deviance(self, expected: Array, held_out: sparse.csr_matrix, fraction: float) -> deviance.Deviance:
        """Deviance of held-out counts of all genes under the expectation from the rest.

        Spots without any remaining count are not scored: nothing is known about their depth.
        """
        train = self.modelled(self.counts)
        total = np.asarray(self.counts.sum(axis=1, dtype=np.float64)).ravel()
        rows = np.flatnonzero(total > 0)
        depth = total[rows] / np.median(total[rows])
        profile = deviance.mean_profile(train[rows], depth)
        odds = fraction / (1 - fraction)
        return deviance.count_deviance(
            expected,
            self.modelled(held_out)[rows],
            spots=rows,
            odds=odds,
            depth=depth * odds,
            profile=profile,
            # The dispersion around the means belongs to the gene and does not change with depth.
            dispersion=deviance.moment_dispersion(train[rows], depth, profile),
        )


def held_out_scores(
    trial: Trial,
    methods: Sequence[Method],
    *,
    fraction: float,
    n_splits: int,
    seed: int,
    progress: bool,
) -> pd.DataFrame:
    """Score methods on the same held-out molecules; one row per split and method.

    Split `i` is drawn with `seed + i`, which is the seed of the methods too.
    """
    rows = []
    with tqdm(total=n_splits * len(methods), desc="held out", unit="fit", disable=not progress) as bar:
        for split in range(n_splits):
            rest, held_out = trial.thinned(fraction, seed + split)
            constant = rest.deviance(rest.expected(rest.fit(GeneMean(), seed=seed, progress=False)), held_out, fraction)
            for method in methods:
                bar.set_postfix_str(method.label)
                start = time.perf_counter()
                result = rest.fit(method, seed=seed + split, progress=False)
                seconds = time.perf_counter() - start
                score = rest.deviance(rest.expected(result), held_out, fraction)
                rows.append(
                    {
                        "method": method.label,
                        "split": split,
                        "seed": seed + split,
                        "fraction": fraction,
                        "poisson_deviance": score.poisson,
                        "nb_deviance": score.negative_binomial,
                        "poisson_gene_mean": constant.poisson,
                        "nb_gene_mean": constant.negative_binomial,
                        "explained": 1 - score.poisson / constant.poisson,
                        "floored": score.floored,
                        "n_molecules": int(trial.modelled(held_out).sum()),
                        "seconds": seconds,
                    }
                )
                bar.update()
    return pd.DataFrame(rows)


def check_fraction(name: str, value: Any) -> None:
    """Raise unless the value lies strictly between 0 and 1."""
    if isinstance(value, bool) or not isinstance(value, int | float | np.floating) or not 0 < value < 1:
        raise ValueError(f"{name} must be a number between 0 and 1, both excluded, not {value!r}.")
