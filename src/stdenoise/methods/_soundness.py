"""A look at every result of a network, on a sample of spots and genes: a low loss does not tell a collapsed one."""

from __future__ import annotations

import logging
import math
from collections.abc import Iterable, Iterator, Mapping
from typing import Any

import numpy as np
import torch
from scipy import sparse
from torch import Tensor

from stdenoise.spatial.graph import SpatialGraph, select_rows
from stdenoise.spatial.normalize import TARGET_SUM, lognorm
from stdenoise.spatial.results import Block
from stdenoise.spatial.spots import Spots
from stdenoise.stats.soundness import components, gene_correlations
from stdenoise.train.run import Run

logger = logging.getLogger("stdenoise")

_SPOTS, _GENES = 2000, 500
_LEAST_GENES = 20
"""Of fewer genes a rank says little."""
_LOW_RANK, _LOW_CORRELATION = 1.6, 0.15
"""On a section of cortex with all genes, a result that had lost the layers had rank 1.2, and sound ones 2.2 to 2.4, whose first two
components held 90 %. The correlation did not tell them apart (.64 and .61): it is low where a training has hardly begun."""


class Soundness:
    """Watches the blocks of a result pass by.

    Parameters
    ----------
    spots
        What the network was given.
    """

    def __init__(self, spots: Spots) -> None:
        rng = np.random.default_rng(0)
        nonempty = np.flatnonzero(spots.nonempty.cpu().numpy())
        self._rows = np.sort(rng.choice(nonempty, min(_SPOTS, len(nonempty)), replace=False))
        sample = select_rows(spots.counts, torch.from_numpy(self._rows).to(spots.counts.device))
        n_genes = spots.counts.shape[1]
        detected = torch.bincount(sample.col_indices().long(), minlength=n_genes)
        # Of the most widely expressed genes something is known.
        self._genes = torch.sort(detected.argsort(descending=True, stable=True)[:_GENES]).values.cpu()
        self._place = torch.full((len(spots.nonempty),), -1)
        self._place[self._rows] = torch.arange(len(self._rows))
        self._denoised = torch.zeros(len(self._rows), len(self._genes))
        self._spots = spots

    def watch(self, blocks: Iterable[tuple[Tensor, Block]]) -> Iterator[tuple[Tensor, Block]]:
        """Hand on the blocks, and keep the sample."""
        for rows, block in blocks:
            place = self._place[rows.cpu()]
            mine = (place >= 0).nonzero().squeeze(1)
            values = block.mean[mine.to(block.mean.device)]
            if block.scale == "counts":
                values = (values * (TARGET_SUM / values.sum(1, keepdim=True))).log1p()
            self._denoised[place[mine]] = values[:, self._genes.to(values.device)].cpu().float()
            yield rows, block

    def report(self, ending: Mapping[str, Any], run: Run, *, label: str) -> dict[str, float]:
        """Return what was seen, for the record; log it, as a warning where it looks like a collapse."""
        # Each process has seen its share of the spots.
        run.add_up([self._denoised])
        first_two, rank = components(self._denoised)
        found = {"effective_rank": rank, "first_two_components": first_two}
        if self._spots.has("graph"):
            correlations = gene_correlations(self._denoised, self._neighbor_mean(self._spots.graph))
            found["neighbor_correlation"] = float(correlations.nanmedian())
        names = ("held_out_explained", "held_out_explained_median_gene")
        found |= {name: float(ending[name]) for name in names if name in ending}
        found = {name: value for name, value in found.items() if math.isfinite(value)}
        text = ", ".join(f"{name.replace('_', ' ')} {value:.3g}" for name, value in found.items())
        problems = [
            f"its genes follow {rank:.1f} patterns (effective rank) and no more" if rank < _LOW_RANK else "",
            f"its median gene correlates with the mean over two hops of the counts at {r:.2f} only"
            if (r := found.get("neighbor_correlation", 1.0)) < _LOW_CORRELATION
            else "",
        ]
        problems = [problem for problem in problems if problem]
        if problems and len(self._genes) >= _LEAST_GENES and run.is_first:
            logger.warning(
                "%s: the result may have lost the tissue: %s. Plot genes of known place (st.pl.compare) and compare with "
                "method='neighbor_mean'. Try fewer genes (genes='highly_variable'), more epochs, another seed, or, for DUSTED, "
                "schedule='paper'. (%s)",
                label,
                ", and ".join(problems),
                text,
            )
        else:
            logger.info("%s: %s", label, text)
        return found

    def _neighbor_mean(self, graph: SpatialGraph) -> Tensor:
        """Log-normalised counts of the sample, averaged over two hops."""
        loops = sparse.csr_array(graph.to_scipy()) + sparse.eye_array(graph.n_spots, dtype=np.float32)
        mean = sparse.diags_array(1 / loops.sum(axis=1)) @ loops
        weights = mean[self._rows] @ mean
        near = np.unique(weights.indices)
        counts = self._spots.counts
        expression = lognorm(select_rows(counts, torch.from_numpy(near).long().to(counts.device))).cpu()
        parts = (expression.values().numpy(), expression.col_indices().numpy(), expression.crow_indices().numpy())
        chosen = sparse.csc_array(sparse.csr_array(parts, shape=tuple(expression.shape)))[:, self._genes.numpy()]
        return torch.from_numpy((weights[:, near] @ chosen).toarray())
