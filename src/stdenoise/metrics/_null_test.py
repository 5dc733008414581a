"""What a method finds where there is nothing to find."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd
from anndata import AnnData
from tqdm import tqdm

from stdenoise._base import keys as _keys
from stdenoise._base.device import resolve_device
from stdenoise._base.keys import SCALES, GraphKeys
from stdenoise._base.random import check_seed
from stdenoise._base.settings import settings
from stdenoise._io.section import open_section
from stdenoise.methods._registry import inputs_of, make_method
from stdenoise.methods._trial import Trial, check_fraction
from stdenoise.methods.baselines import GeneMean
from stdenoise.metrics._autocorrelation import morans_i
from stdenoise.metrics._smoothing import smoothing
from stdenoise.stats.nulls import permute_spots, redraw

if TYPE_CHECKING:
    from scipy import sparse

    from stdenoise.methods import Method
    from stdenoise.spatial.results import Array


def null_test(
    adata: AnnData,
    method: str | Method = "dusted",
    *,
    fraction: float = 0.1,
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
    """Run a method on the tissue and on two nulls of it, and measure the structure it returns.

    *Permuted*: the spots exchange their places within each library. Genes still go together, but not with space: a method
    should leave Moran's I near 0, and the graph should not cost it held-out molecules. *Redrawn*: the counts are drawn anew
    from each gene's mean and each spot's size factor. Nothing is left to find: no variance should be kept, no genes
    correlated, and the gene mean is the best prediction. What a method shows on a null it invents, and the same amount of
    it is to be expected in what it shows on the tissue.

    Each run hides a share of the molecules as `stdenoise.metrics.held_out` does, and all scores are of that run. The
    permuted null hides the same molecules as the real run.

    Parameters
    ----------
    adata
        Annotated data with raw counts and a spatial graph; not changed.
    method
        Name of a method or a configured one; it is run three times, and once more without edges if it uses the graph.
    fraction
        Share of hidden molecules, between 0 and 1.
    layer
        Layer with the raw counts; `X` if not given.
    genes
        Genes to model and to score: all, `"highly_variable"` or a list of names.
    graph_key
        Key of the spatial graph.
    library_key
        Column of `obs` naming the section of each spot, within which spots are permuted.
    spatial_key
        Key of the coordinates in `obsm`, for methods that read them.
    features_key
        Key of image features in `obsm`, for methods that can use them (see `stdenoise.pp.image_features`); none if not given.
    device
        `"auto"` (see `stdenoise.settings`), `"cpu"`, `"cuda"` or `"cuda:<i>"`.
    seed
        Of the nulls, the hidden molecules and the runs.
    progress
        Show a progress bar on standard error; by default only on a terminal.
    **params
        Parameters of the method.

    Returns
    -------
    DataFrame with the rows `real`, `permuted` and `redrawn`, and the columns:

    `poisson_deviance`, `poisson_gene_mean`
        Held-out Poisson deviance per entry of the method and of the gene means.
    `poisson_no_graph`
        The same of the method run without edges. It sees no places, so that it is the same for the real and the permuted
        spots; NaN for the redrawn counts, and for methods without a graph.
    `morans_i_before`, `morans_i_after`
        Median Moran's I over genes, of the counts and of the result.
    `variance_kept`, `correlation_before`, `correlation_after`
        See `stdenoise.metrics.smoothing`. A constant result keeps no variance and has no correlations (NaN).

    Moran's I, variance and correlations are those of `log1p` of counts per 10 000.

    Raises
    ------
    ValueError, KeyError, TypeError
        The input or a parameter is not valid.

    Examples
    --------
    >>> import stdenoise as st
    >>> adata = st.datasets.tissue(n_spots=200, n_genes=50)
    >>> st.pp.spatial_graph(adata)
    >>> table = st.metrics.null_test(adata, "neighbor_mean")
    >>> bool(table.loc["permuted", "morans_i_after"] > 0.2)  # the mean of neighbours invents structure
    True
    """
    denoiser = make_method(method, params)
    check_fraction("fraction", fraction)
    check_seed(seed)
    on = resolve_device(device)
    section = open_section(
        adata,
        inputs_of([denoiser], with_graph=True),
        layer=layer,
        genes=genes,
        graph_key=graph_key,
        library_key=library_key,
        spatial_key=spatial_key,
        features_key=features_key,
    )
    trial = Trial.of(section, [denoiser], on)
    rng = np.random.default_rng([seed, 1])
    codes = trial.tissue.libraries
    libraries = np.zeros(adata.n_obs, dtype=np.int64) if codes is None else codes.cpu().numpy()
    order = permute_spots(libraries, rng)
    rest, held = trial.thinned(fraction, seed)
    noise, noise_held = trial.with_counts(redraw(trial.counts, rng)).thinned(fraction, seed)
    runs = {
        "real": (rest, held),
        "permuted": (rest.with_counts(rest.counts[order]), held[order]),
        "redrawn": (noise, noise_held),
    }
    uses_graph = bool({"graph", "coordinates"} & set(denoiser.info.needs))
    rows = {}
    total = len(runs) + uses_graph
    with tqdm(total=total, desc="null test", unit="fit", disable=not settings.show_progress(progress)) as bar:

        def expected(tissue: Trial, by: Method) -> Array:
            return tissue.expected(tissue.fit(by, seed=seed, progress=False))

        no_graph = np.nan
        if uses_graph:
            no_graph = rest.deviance(expected(rest.without_edges(), denoiser), held, fraction).poisson
            bar.update()
        for name, (tissue, hidden) in runs.items():
            values = expected(tissue, denoiser)
            rows[name] = {
                "poisson_deviance": tissue.deviance(values, hidden, fraction).poisson,
                "poisson_gene_mean": tissue.deviance(expected(tissue, GeneMean()), hidden, fraction).poisson,
                "poisson_no_graph": np.nan if name == "redrawn" else no_graph,
                **_structure(tissue, values, device),
            }
            bar.update()
    return pd.DataFrame.from_dict(rows, orient="index").rename_axis("run")


def _structure(section: Trial, values: Array, device: str) -> dict[str, float]:
    """Score the structure of a result against that of the counts it came from."""
    counts: sparse.csr_matrix = section.modelled(section.counts)
    graph = section.tissue.graph
    adata = AnnData(
        counts,
        var=pd.DataFrame(index=section.modelled_genes),
        layers={"after": values[:].cpu().numpy()},
        obsp={GraphKeys("spatial").connectivities: graph.to_scipy()},
        uns={SCALES: {"after": "counts"}},
    )
    smooth = smoothing(adata, "after", device=device)
    return {
        **{
            f"morans_i_{when}": float(
                morans_i(adata, layer=name, scale="log1p", device=device)["morans_i"].dropna().median()
            )
            for when, name in (("before", None), ("after", "after"))
        },
        **{name: float(smooth[name]) for name in ("variance_kept", "correlation_before", "correlation_after")},
    }
