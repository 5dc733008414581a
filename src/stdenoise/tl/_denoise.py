"""The verb that runs every denoising method."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict
from typing import TYPE_CHECKING, Any

from stdenoise import _keys
from stdenoise._random import check_seed
from stdenoise._settings import settings
from stdenoise._validate import check_anndata, check_unique_genes, output_of

if TYPE_CHECKING:
    from anndata import AnnData

    from stdenoise.methods import Denoiser


def denoise(
    adata: AnnData,
    method: str | Denoiser = "dusted",
    *,
    layer: str | None = None,
    genes: str | Sequence[str] | None = None,
    graph_key: str = _keys.SPATIAL,
    library_key: str | None = None,
    spatial_key: str = _keys.SPATIAL,
    features_key: str | None = None,
    key_added: str | None = None,
    check_counts: bool = True,
    device: str = "auto",
    seed: int = 0,
    progress: bool | None = None,
    copy: bool = False,
    **params: Any,
) -> AnnData | None:
    """Denoise the counts of a tissue section.

    Parameters
    ----------
    adata
        Annotated data: raw counts of shape `(n_spots, n_genes)`, dense or sparse, and for graph methods a spatial graph
        (see `stdenoise.pp.spatial_graph`; squidpy's graphs are read too). `X`, `raw` and existing layers are not changed.
    method
        Name of a method, see `stdenoise.methods.table`, or a configured one such as
        `stdenoise.methods.DUSTED(n_epochs=200)`.
    layer
        Layer with the raw counts; `X` if not given.
    genes
        Genes to model: all of them, `"highly_variable"` (the column of `var`), or a list of names. Size factors are
        computed over all genes of `adata` in any case, so choose genes here rather than by slicing `adata`.
    graph_key
        Key of the spatial graph: `obsp["<graph_key>_connectivities"]`.
    library_key
        Column of `obs` naming the section of each spot. An edge between two sections is an error.
    spatial_key
        Key of the coordinates in `obsm`, for methods that need them.
    features_key
        Key of image features in `obsm`, for methods that can use them (see `stdenoise.pp.image_features`); none if not given.
    key_added
        Prefix of the results; the name of the method if not given.
    check_counts
        Refuse fractional and log-transformed values. With `False` fractional values are taken as they are.
    device
        `"auto"` (see `stdenoise.settings`), `"cpu"`, `"cuda"` or `"cuda:<i>"`.
    seed
        The same seed gives the same bits on one machine and device.
    progress
        Show a progress bar on standard error; by default only on a terminal.
    copy
        Return a changed copy instead of changing `adata`.
    **params
        Parameters of the method, for DUSTED the fields of `stdenoise.methods.DUSTEDConfig` and `preset`.

    Returns
    -------
    `None`, or with `copy=True` an AnnData. Sets the following fields, where `dusted` stands for `key_added`:

    `layers["dusted_mean"]`
        Denoised expression, on the scale named in `uns["dusted"]["scale"]`: for `"counts"` an expected count at the depth
        of the spot, to be normalised like counts.
    `layers["dusted_dispersion"]`, `layers["dusted_dropout"]`
        Inverse dispersion and dropout probability, where the model has them.
    `obsm["X_dusted"]`
        Latent representation, shape `(n_spots, n_latent)`.
    `uns["dusted"]`
        Method, parameters, scale, genes, seed, device, versions and training history.

    With a gene subset, the first three are DataFrames in `obsm` under the same names, and `var["dusted_modelled"]` marks the
    genes; `stdenoise.get.denoised` returns an AnnData of them. With `return_attention=True`, `obsp["dusted_attention"]`
    holds the first layer's attention weights, self loops included.

    Raises
    ------
    ValueError, KeyError, TypeError
        The input or a parameter is not valid. Nothing is written then.
    FloatingPointError
        Training diverged. Nothing is written then.

    Examples
    --------
    >>> import stdenoise as st
    >>> adata = st.datasets.tissue(n_spots=100, n_genes=20)
    >>> st.pp.spatial_graph(adata)
    >>> st.tl.denoise(adata, method="dusted", n_epochs=5)
    >>> adata.layers["dusted_mean"].shape
    (100, 20)
    """
    from stdenoise.methods._registry import check_features_key, make_method

    denoiser = make_method(method, params)
    check_seed(seed)
    check_anndata(adata)
    check_unique_genes(adata)
    show_progress = settings.show_progress(progress)
    key = denoiser.info.name if key_added is None else key_added
    if not isinstance(key, str) or not key:
        raise TypeError(f"key_added must be a name or None, not {key_added!r}.")

    from stdenoise import _spots
    from stdenoise._device import resolve_device

    check_features_key(features_key, [denoiser])
    positions = _spots.select_genes(adata, genes)
    _spots.check_key_is_free(adata, key)
    target = resolve_device(device)
    spots = _spots.read_spots(
        adata,
        layer=layer,
        positions=positions,
        graph_key=graph_key if "graph" in denoiser.info.needs else None,
        library_key=library_key,
        spatial_key=spatial_key if "coordinates" in denoiser.info.needs else None,
        features_key=features_key,
        allow_fractions=not check_counts,
        device=target,
    )
    result = denoiser.fit(spots, seed=seed, progress=show_progress)
    out = output_of(adata, copy=copy)
    _spots.write_denoised(
        out,
        result,
        key=key,
        positions=positions,
        provenance={
            "method": denoiser.info.name,
            # A list survives the disk, a tuple does not.
            "params": {k: list(v) if isinstance(v, tuple) else v for k, v in asdict(denoiser.config).items()},
            "layer": layer or "X",
            "graph_key": graph_key,
            "library_key": library_key or "",
            "spatial_key": spatial_key,
            "features_key": features_key or "",
            "seed": seed,
            "device": str(target),
        },
    )
    return out if copy else None
