"""Input that is refused, with the offending value and without a trace, and odd input that is taken."""

import re

import anndata as ad
import numpy as np
import pandas as pd
import pytest
import torch
from scipy import sparse

import stdenoise as st

ALL = slice(None)


def refused(adata, unchanged, error, fragment, **arguments):
    with unchanged(adata), pytest.raises(error, match=fragment):
        st.tl.denoise(adata, **arguments)


def with_counts(adata, rows, columns, value, form=sparse.csr_matrix):
    """A copy with this value at these places."""
    adata = adata.copy()
    matrix = adata.X.toarray()
    matrix[rows, columns] = value
    adata.X = form(matrix)
    return adata


# The object


def test_what_is_no_section(hexagonal, unchanged, small, tmp_path):
    for bad in (None, np.ones((3, 3)), pd.DataFrame({"gene0": [1]})):
        with pytest.raises(TypeError, match=f"adata must be an AnnData, not {type(bad).__name__}"):
            st.tl.denoise(bad)
    refused(hexagonal[:0].copy(), unchanged, ValueError, "empty: 0 spots x 12 genes", **small)
    refused(hexagonal[:, :0].copy(), unchanged, ValueError, "empty: 61 spots x 0 genes", **small)
    hexagonal.write_h5ad(tmp_path / "backed.h5ad")
    backed = ad.read_h5ad(tmp_path / "backed.h5ad", backed="r")
    refused(backed, unchanged, ValueError, r"backed.h5ad'.*to_memory\(\)", **small)
    backed.file.close()


def test_a_graph_that_is_not_there(hexagonal, unchanged, small):
    fragment = r"spatial_connectivities.* 'spatial_distances'.*st.pp.spatial_graph\(adata\)"
    del hexagonal.obsp["spatial_connectivities"]
    refused(hexagonal, unchanged, KeyError, fragment, **small)
    del hexagonal.obsm["spatial"], hexagonal.obsp
    refused(hexagonal, unchanged, KeyError, "spatial_connectivities.* has nothing", **small)


@pytest.mark.parametrize("shape", [(61, 60), (62, 62)])
def test_a_graph_of_another_size(hexagonal, unchanged, small, monkeypatch, shape):
    # AnnData itself keeps such a graph out, so stand in for the attribute.
    with unchanged(hexagonal), monkeypatch.context() as patch:
        patch.setattr(ad.AnnData, "obsp", {"spatial_connectivities": sparse.csr_matrix(shape)})
        with pytest.raises(ValueError, match=rf"shape \({shape[0]}, {shape[1]}\), but adata has 61 spots"):
            st.tl.denoise(hexagonal, **small)


def test_gene_names_that_occur_twice(hexagonal, unchanged, small):
    hexagonal.var_names = ["a", "a", "b", "b", "b", *"cdefghi"[:7]]
    hexagonal.var["highly_variable"] = [True, False] * 6
    for genes in (None, ["c", "d"], "highly_variable"):
        refused(hexagonal, unchanged, ValueError, r"2 gene names .*\['a', 'b'\]", genes=genes, **small)


# The counts


@pytest.mark.parametrize("form", [sparse.csr_matrix, np.asarray], ids=["sparse", "dense"])
def test_values_that_are_no_counts(hexagonal, unchanged, small, form):
    for value, fragment, is_never_taken in (
        (-1, r"adata.X .*negative.*-1\)", True),
        (np.nan, "adata.X has 1 NaN", True),
        (np.inf, "adata.X has 1 NaN or infinite", True),
        (-np.inf, "adata.X has 1 NaN or infinite", True),
        (20.5, "adata.X .*raw counts: 1 of .* 20.5.*layer", False),
    ):
        adata = with_counts(hexagonal, 2, 3, value, form)
        refused(adata, unchanged, ValueError, fragment, **small)
        with st.settings.override(check_counts=False):
            if is_never_taken:
                refused(adata, unchanged, ValueError, fragment, **small)
    refused(with_counts(hexagonal, ALL, ALL, 0, form), unchanged, ValueError, "all 61 spots are empty", **small)
    logged = hexagonal.copy()
    logged.X = form(np.log1p(hexagonal.X.toarray()))
    refused(logged, unchanged, ValueError, "adata.X looks log-transformed.*check_counts", **small)
    with st.settings.override(check_counts=False):
        st.tl.denoise(logged, **small)
    assert np.isfinite(logged.layers["dusted_mean"]).all()


def test_layers_and_types_that_are_no_counts(hexagonal, unchanged, small):
    hexagonal.layers["broken"] = -hexagonal.X
    refused(hexagonal, unchanged, ValueError, r"layers\['broken'\] has negative", layer="broken", **small)
    for dtype in (bool, object, np.complex64):
        hexagonal.layers["odd"] = hexagonal.X.toarray().astype(dtype)
        refused(hexagonal, unchanged, TypeError, rf"layers\['odd'\].* {np.dtype(dtype)}", layer="odd", **small)
    hexagonal.X = None
    refused(hexagonal, unchanged, ValueError, r"adata.X is None.*\['true_mean', 'broken', 'odd'\]", **small)


# Arguments


def test_bad_arguments(hexagonal, unchanged, small):
    for arguments, error, fragment in [
        ({"method": "dustd"}, ValueError, r"'dustd' .*\['dusted', 'stagate', .*\].* mean 'dusted'"),
        ({"method": 5}, TypeError, "method .*not 5"),
        ({"method": st.methods.DUSTED}, TypeError, "configured method"),
        ({"method": st.methods.DUSTED(), "lr": 1.0}, TypeError, r"\['n_hidden', .*'lr'.*\] .*DUSTED\(\.\.\.\)"),
        ({"spatial_key": "spatail"}, KeyError, "'spatail' .* adata.obsm, .* mean 'spatial'"),
        ({"spatial_key": 5}, TypeError, "adata.obsm .*not 5"),
        ({"graph_key": "spatail"}, KeyError, "'spatail_connectivities' .* adata.obsp"),
        ({"graph_key": 5}, TypeError, "graph_key .*not 5"),
        ({"layer": "true_maen"}, KeyError, "'true_maen' .* adata.layers, .* mean 'true_mean'"),
        ({"layer": 5}, TypeError, "adata.layers .*not 5"),
        ({"library_key": "regoin"}, KeyError, "'regoin' .* adata.obs, .* mean 'region'"),
        ({"genes": "foo"}, ValueError, "genes='foo'"),
        ({"genes": "highly_variable"}, KeyError, "adata.var.*sc.pp.highly_variable_genes"),
        ({"genes": ["gene1", "gnee2", "x"]}, KeyError, r"2 of 3 .*\['gnee2', 'x'\].* mean 'gene2'"),
        ({"genes": ["gene1", "gene2", "gene1"]}, ValueError, "genes lists 1 names twice"),
        ({"genes": []}, ValueError, r"genes=\[\]"),
        ({"genes": 5}, TypeError, "genes .*not 5"),
        ({"device": "gpu0"}, ValueError, r"device='gpu0' .*\['auto', 'cpu'"),
        ({"device": "cuda:99"}, ValueError, "device='cuda:99'"),
        ({"device": None}, ValueError, "device=None"),
        ({"seed": -1}, ValueError, "seed .*not -1"),
        ({"seed": 2**64}, ValueError, "seed .*18446744073709551616"),
        ({"seed": 1.5}, TypeError, "seed .*not 1.5"),
        ({"seed": True}, TypeError, "seed .*not True"),
        ({"copy": 1}, TypeError, "copy .*not 1"),
        ({"key_added": 5}, TypeError, "key_added"),
        ({"progress": "yes"}, TypeError, "progress .*'yes'"),
        ({"epochs": 3}, TypeError, "'epochs'.* mean 'n_epochs'"),
        ({"zebra": 3}, TypeError, r"'zebra'; it has \['likelihood', .*, 'preset'\]\.$"),
        ({"preset": "simulatd"}, ValueError, r"'simulatd' .*\['dlpfc', 'hocwta', 'simulated'\].* mean 'simulated'"),
    ]:
        refused(hexagonal, unchanged, error, fragment, **{**small, **arguments})


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a CUDA device")
def test_cuda_where_there_is_none(hexagonal, unchanged, small):
    for device in ("cuda", "cuda:0"):
        fragment = rf"device='{device}' .*sees no CUDA.*\['auto', 'cpu'\]"
        refused(hexagonal, unchanged, ValueError, fragment, device=device, **small)


def test_bad_parameters_of_dusted(hexagonal, unchanged, small):
    nan, inf = np.nan, np.inf
    for names, wrong in (
        (("gate_reduction", "n_hidden", "n_latent", "n_epochs"), (0, -2, 2.0, "3", True)),
        (("lr", "clip"), (0, -1.0, nan, inf, "1")),
        (("alpha", "weight_decay"), (-0.1, nan, None, [1.0], 1j)),
    ):
        for name in names:
            for value in wrong:
                with pytest.raises(ValueError, match=re.escape(f"{name}={value!r} must be")):
                    st.methods.DUSTED(**{name: value})
    # All that is wrong, at once; what numpy counts with is right.
    with pytest.raises(
        ValueError,
        match=r"likelihood='znb' .*; alpha=-1 must be >= 0; n_latent=True must be an integer",
    ):
        st.methods.DUSTED(alpha=-1, n_latent=True, likelihood="znb")
    config = st.methods.DUSTED(n_latent=np.int64(3), alpha=np.float32(2), gene_attention=np.bool_(False)).config
    assert (config.n_latent, config.alpha, config.gene_attention) == (3, 2.0, False)
    for name in ("gene_attention", "restore_best", "return_attention"):
        for value in ("true", 1, None):
            with pytest.raises(ValueError, match=f"{name}={value!r}"):
                st.methods.DUSTED(**{name: value})
    refused(hexagonal, unchanged, ValueError, "n_latent", **{**small, "n_latent": 0})
    refused(hexagonal, unchanged, ValueError, "'zimb' .*'zinb' or 'nb'.* mean 'zinb'", likelihood="zimb", **small)
    refused(hexagonal, unchanged, ValueError, "reduction='sum'", reduction="sum", **small)


def test_highly_variable_genes_that_are_none_or_unknown(hexagonal, unchanged, small):
    for missing in (np.nan, None):
        hexagonal.var["highly_variable"] = pd.Series([True, missing] * 6, index=hexagonal.var_names, dtype=object)
        refused(hexagonal, unchanged, ValueError, "6 missing", genes="highly_variable", **small)
    hexagonal.var["highly_variable"] = False
    refused(hexagonal, unchanged, ValueError, "'highly_variable' selects no gene", genes="highly_variable", **small)


def test_training_that_diverges(hexagonal, unchanged, small):
    small["lr"] = 1e30
    refused(hexagonal, unchanged, FloatingPointError, "nan at epoch 2; .* 5e[+]29", **small)


# Odd input that is taken


def test_one_gene_with_the_other_likelihood(hexagonal, small):
    # Chosen so that some spots have counts in it, and some none.
    adata = hexagonal[:, ["gene7"]].copy()
    st.tl.denoise(adata, likelihood="nb", **small)
    assert np.isfinite(adata.layers["dusted_mean"]).all()


def test_an_empty_spot_without_neighbours_changes_nothing_else(hexagonal, small):
    lone = ad.AnnData(
        X=sparse.csr_matrix((1, 12), dtype=np.float32), var=hexagonal.var, obsm={"spatial": np.array([[9e3, 9e3]])}
    )
    both = ad.concat([hexagonal, lone])
    st.pp.spatial_graph(both, radius=120)
    small |= {"gene_attention": False, "n_epochs": 10}  # the gate pools over all spots
    alone = st.tl.denoise(hexagonal, copy=True, **small)
    st.tl.denoise(both, **small)
    np.testing.assert_allclose(both.uns["dusted"]["history"]["loss"], alone.uns["dusted"]["history"]["loss"], rtol=1e-5)
    np.testing.assert_allclose(both.layers["dusted_mean"][:61], alone.layers["dusted_mean"], rtol=1e-3)
    assert np.isfinite(both.layers["dusted_mean"]).all()
