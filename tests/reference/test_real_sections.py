"""Facts about public sections; skipped where the folder named by STDENOISE_DATA does not hold them."""

import os
from pathlib import Path

import anndata as ad
import numpy as np
import pytest

import stdenoise as st

pytestmark = pytest.mark.data


@pytest.fixture(scope="module")
def load():
    folder = Path(os.environ.get("STDENOISE_DATA", "no folder"))

    def read(name):
        path = folder / f"{name}.h5ad"
        if not path.exists():
            pytest.skip(f"STDENOISE_DATA={str(folder)!r} does not hold {path.name}")
        return ad.read_h5ad(path)

    return read


@pytest.mark.parametrize("name", ["dlpfc_151673", "dlpfc_151676", "hcc_visium", "visium_mbrain_withbackground"])
def test_the_graph_of_visium(load, name):
    adata = load(name)
    st.pp.spatial_graph(adata)
    stats = adata.uns["spatial_neighbors"]["stats"]
    assert 5.5 <= stats["mean_degree"] <= 6
    assert np.diff(adata.obsp["spatial_connectivities"].indptr).max() == 6
    if name == "dlpfc_151673":
        # The published graph.
        st.pp.spatial_graph(adata, radius=150)
        stats = adata.uns["spatial_neighbors"]["stats"]
        assert stats["n_edges"] == 21124
        assert stats["mean_degree"] == pytest.approx(5.8049, abs=5e-5)


@pytest.mark.parametrize("name", ["starmap_mpfc_BZ5", "osmfish_ssctx", "her2st_C1"])
def test_denoising_sections_of_other_technologies(load, name):
    adata = load(name)
    adata.var_names_make_unique()
    st.pp.spatial_graph(adata)
    genes = list(adata.var_names[:100])
    st.tl.denoise(adata, genes=genes, n_epochs=15, lr=3e-3)
    loss = adata.uns["dusted"]["history"]["loss"]
    assert loss[-1] < 0.9 * loss[0]
    assert np.isfinite(adata.obsm["dusted_mean"].to_numpy()).all()
