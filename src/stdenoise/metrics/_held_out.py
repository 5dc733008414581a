"""The fair loss: molecules that no method has seen."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from stdenoise._base import keys as _keys
from stdenoise._base.checks import check_number
from stdenoise._base.device import resolve_device
from stdenoise._base.random import check_seed
from stdenoise._base.settings import settings
from stdenoise._io.section import open_section
from stdenoise.methods._registry import inputs_of, make_method
from stdenoise.methods._trial import Trial, check_fraction, held_out_scores

if TYPE_CHECKING:
    import pandas as pd
    from anndata import AnnData

    from stdenoise.methods import Method


def held_out(
    adata: AnnData,
    method: str | Method = "dusted",
    *,
    fraction: float = 0.1,
    n_splits: int = 1,
    layer: str | None = None,
    genes: str | Sequence[str] | None = None,
    graph_key: str = _keys.SPATIAL,
    library_key: str | None = None,
    spatial_key: str = _keys.SPATIAL,
    features_key: str | None = None,
    device: str = "auto",
    seed: int = 0,
    progress: bool | None = None,
    **params: Any,
) -> pd.DataFrame:
    """Hide a share of the molecules, run a method on the rest, and measure how well it expects the hidden ones.

    Every molecule is hidden with probability `fraction` (binomial thinning). Under Poisson sampling both parts are
    independent measurements of one tissue, so the method cannot win by remembering noise, nor by smoothing away what is
    there. Its expected counts are scaled by `fraction / (1 - fraction)` and compared with the hidden counts. With zero
    inflation the expected count is the mean x (1 - dropout).

    Parameters
    ----------
    adata
        Annotated data with raw counts and, for graph methods, a spatial graph; not changed.
    method
        Name of a method or a configured one; it is run again on the thinned counts.
    fraction
        Share of hidden molecules, between 0 and 1.
    n_splits
        Number of independent splits.
    layer
        Layer with the raw counts; `X` if not given.
    genes
        Genes to model and to score: all, `"highly_variable"` or a list of names.
    graph_key
        Key of the spatial graph.
    library_key
        Column of `obs` that no edge may cross.
    spatial_key
        Key of the coordinates in `obsm`, for methods that read them.
    features_key
        Key of image features in `obsm`, for methods that can use them (see `stdenoise.pp.image_features`); none if not given.
    device
        `"auto"` (see `stdenoise.settings`), `"cpu"`, `"cuda"` or `"cuda:<i>"`.
    seed
        Of the first split and its run; the following ones count up.
    progress
        Show a progress bar on standard error; by default only on a terminal.
    **params
        Parameters of the method.

    Returns
    -------
    DataFrame with one row per split:

    `poisson_deviance`, `nb_deviance`
        Mean deviance per spot and gene; smaller is better. The negative binomial one takes one dispersion per gene, by
        moments around the gene's mean on the remaining counts, the same for every method. Expected counts are raised
        to at least 0.001 of what the gene's mean predicts, since a wrong 0 would cost infinitely much; `floored` is the
        share of entries where that happened.
    `poisson_gene_mean`, `nb_gene_mean`
        The same for a prediction without any structure.
    `explained`
        Share of the gene mean's Poisson deviance that the method explains; negative if it does worse.
    `method`, `split`, `seed`, `fraction`, `n_molecules`, `seconds`
        What was run, on how many hidden molecules, and how long.

    Raises
    ------
    ValueError, KeyError, TypeError
        The input or a parameter is not valid.

    References
    ----------
    Batson, Royer and Webber, "Molecular cross-validation for single-cell RNA-seq", bioRxiv 2019.

    Examples
    --------
    >>> import stdenoise as st
    >>> adata = st.datasets.tissue(n_spots=200, n_genes=50)
    >>> st.pp.spatial_graph(adata)
    >>> score = st.metrics.held_out(adata, "neighbor_mean", n_hops=2)
    >>> bool(score["explained"].item() > 0)
    True
    """
    denoiser = make_method(method, params)
    check_fraction("fraction", fraction)
    check_number("n_splits", n_splits, minimum=1, integer=True)
    check_seed(seed)
    on = resolve_device(device)
    section = open_section(
        adata,
        inputs_of([denoiser]),
        layer=layer,
        genes=genes,
        graph_key=graph_key,
        library_key=library_key,
        spatial_key=spatial_key,
        features_key=features_key,
    )
    trial = Trial.of(section, [denoiser], on)
    return held_out_scores(
        trial,
        [denoiser],
        fraction=fraction,
        n_splits=n_splits,
        seed=seed,
        progress=settings.show_progress(progress),
    )
