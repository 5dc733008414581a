"""A denoised result as an AnnData of its own."""

from __future__ import annotations

from typing import TYPE_CHECKING

from stdenoise._io.write import read_denoised

if TYPE_CHECKING:
    from anndata import AnnData


def denoised(adata: AnnData, key: str = "dusted") -> AnnData:
    """Return the denoised expression of the modelled genes.

    Parameters
    ----------
    adata
        Annotated data after `stdenoise.tl.denoise`.
    key
        Its `key_added`.

    Returns
    -------
    A new AnnData: the modelled genes, `X` the denoised mean on the scale named in `uns[key]["scale"]`, `layers["dispersion"]`
    and `layers["dropout"]` where the model has them, `obs`, `obsm["spatial"]`, the latent representation and `uns[key]`.

    Raises
    ------
    KeyError
        There is no result under this key.

    Examples
    --------
    >>> import stdenoise as st
    >>> adata = st.datasets.tissue(n_spots=100, n_genes=20)
    >>> st.pp.spatial_graph(adata)
    >>> st.tl.denoise(adata, genes=["gene0", "gene3"], n_epochs=2)
    >>> list(st.get.denoised(adata).var_names)
    ['gene0', 'gene3']
    """
    return read_denoised(adata, key)
