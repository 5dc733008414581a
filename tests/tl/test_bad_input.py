"""Input that is refused, each with its message and without a trace, and odd input that is taken."""

import anndata as ad
import numpy as np
import pandas as pd
import pytest
import torch
from scipy import sparse

import stdenoise as st


def refused(adata, unchanged, error, message, **arguments):
    with unchanged(adata), pytest.raises(error, match=message):
        st.tl.denoise(adata, **arguments)


def with_counts(adata, change, dense=False):
    matrix = adata.X.toarray()
    change(matrix)
    adata.X = matrix if dense else sparse.csr_matrix(matrix)
    return adata


# The object


@pytest.mark.parametrize("bad", [None, np.ones((3, 3)), pd.DataFrame({"gene0": [1]})], ids=["None", "array", "frame"])
def test_not_an_anndata(bad):
    with pytest.raises(TypeError, match=f"adata must be an AnnData, not {type(bad).__name__}"):
        st.tl.denoise(bad)


@pytest.mark.parametrize(
    ("cut", "message"),
    [
        (lambda a: a[:0], "adata is empty: 0 spots x 12 genes"),
        (lambda a: a[:, :0], "adata is empty: 61 spots x 0 genes"),
        (lambda a: a[:0, :0], "adata is empty: 0 spots x 0 genes"),
    ],
)
def test_no_spots_or_no_genes(hexagonal, unchanged, small, cut, message):
    refused(cut(hexagonal).copy(), unchanged, ValueError, message, **small)


def test_backed(hexagonal, unchanged, small, tmp_path):
    hexagonal.write_h5ad(tmp_path / "backed.h5ad")
    backed = ad.read_h5ad(tmp_path / "backed.h5ad", backed="r")
    message = r"adata is backed by '.*backed.h5ad'; load it first: adata = adata.to_memory\(\)"
    refused(backed, unchanged, ValueError, message, **small)
    backed.file.close()


def test_no_coordinates_and_no_graph(hexagonal, unchanged, small):
    del hexagonal.obsm["spatial"], hexagonal.obsp
    message = r"'spatial_connectivities' is not in adata.obsp, which has nothing.*st.pp.spatial_graph\(adata\)"
    refused(hexagonal, unchanged, KeyError, message, **small)


def test_no_graph_but_distances(hexagonal, unchanged, small):
    del hexagonal.obsp["spatial_connectivities"]
    message = "not in adata.obsp, which has 'spatial_distances'.*Build the graph first"
    refused(hexagonal, unchanged, KeyError, message, **small)


@pytest.mark.parametrize("shape", [(3, 3), (61, 60), (62, 62)])
def test_graph_of_another_size(hexagonal, unchanged, small, monkeypatch, shape):
    # AnnData itself keeps such a graph out, so stand in for the attribute.
    with unchanged(hexagonal), monkeypatch.context() as patch:
        patch.setattr(ad.AnnData, "obsp", {"spatial_connectivities": sparse.csr_matrix(shape)})
        message = rf"obsp\['spatial_connectivities'\] has shape \({shape[0]}, {shape[1]}\), but adata has 61 spots"
        with pytest.raises(ValueError, match=message):
            st.tl.denoise(hexagonal, **small)


def test_gene_names_that_occur_twice(hexagonal, unchanged, small):
    hexagonal.var_names = ["a", "a", "b", "b", "b", *"cdefghi"[:7]]
    message = r"2 gene names occur more than once, such as \['a', 'b'\]; call adata.var_names_make_unique\(\)"
    refused(hexagonal, unchanged, ValueError, message, **small)


@pytest.mark.parametrize("genes", [["c", "d"], "highly_variable"])
def test_gene_names_that_occur_twice_with_a_choice_of_genes(hexagonal, unchanged, small, genes):
    hexagonal.var_names = ["a", "a", "b", "b", "b", *"cdefghi"[:7]]
    hexagonal.var["highly_variable"] = [True, False] * 6
    refused(hexagonal, unchanged, ValueError, "2 gene names occur more than once", genes=genes, **small)


# The counts


def set_one(value):
    def change(matrix):
        matrix[2, 3] = value

    return change


@pytest.mark.parametrize("dense", [False, True])
@pytest.mark.parametrize(
    ("value", "message"),
    [
        (-3, r"adata.X has negative values \(smallest -3\); raw counts are >= 0"),
        (np.nan, "adata.X has 1 NaN or infinite values; raw counts are finite"),
        (np.inf, "adata.X has 1 NaN or infinite values"),
        (-np.inf, "adata.X has 1 NaN or infinite values"),
        (
            20.5,
            "adata.X does not hold raw counts: 1 of .* are fractional, such as 20.5. Pass the layer with raw counts",
        ),
    ],
)
def test_values_that_are_no_counts(hexagonal, unchanged, small, value, message, dense):
    refused(with_counts(hexagonal, set_one(value), dense), unchanged, ValueError, message, **small)


@pytest.mark.parametrize("value", [-3, np.nan, np.inf])
def test_values_that_no_override_allows(hexagonal, unchanged, small, value):
    adata = with_counts(hexagonal, set_one(value))
    with st.settings.override(check_counts=False):
        refused(adata, unchanged, ValueError, "adata.X has", **small)


def test_the_layer_with_bad_counts_is_named(hexagonal, unchanged, small):
    hexagonal.layers["broken"] = -hexagonal.X
    refused(hexagonal, unchanged, ValueError, r"adata.layers\['broken'\] has negative", layer="broken", **small)


@pytest.mark.parametrize("dense", [False, True])
def test_logged_counts(hexagonal, unchanged, small, dense):
    def log(matrix):
        matrix[:] = np.log1p(1e4 * matrix / matrix.sum(axis=1, keepdims=True))

    adata = with_counts(hexagonal, log, dense)
    message = "adata.X looks log-transformed, not raw counts: .* Pass the layer with raw counts .*check_counts"
    refused(adata, unchanged, ValueError, message, **small)


def test_logged_and_fractional_counts_are_taken_with_the_override(hexagonal, small):
    adata = with_counts(hexagonal, lambda matrix: np.log1p(matrix, out=matrix))
    with st.settings.override(check_counts=False):
        st.tl.denoise(adata, **small)
    assert np.isfinite(adata.layers["dusted_mean"]).all()


@pytest.mark.parametrize("dtype", [bool, object, np.complex64])
def test_counts_that_are_no_numbers(hexagonal, unchanged, small, dtype):
    hexagonal.layers["odd"] = hexagonal.X.toarray().astype(dtype)
    message = r"adata.layers\['odd'\] must hold numbers, not"
    refused(hexagonal, unchanged, TypeError, message, layer="odd", **small)


def test_no_counts_at_all(hexagonal, unchanged, small):
    hexagonal.layers["raw_counts"] = hexagonal.X
    hexagonal.X = None
    refused(
        hexagonal, unchanged, ValueError, r"adata.X is None; pass layer=, one of \['true_mean', 'raw_counts'\]", **small
    )


@pytest.mark.parametrize("empty", [sparse.csr_matrix, np.zeros], ids=["sparse", "dense"])
def test_all_spots_empty(hexagonal, unchanged, small, empty):
    hexagonal.X = empty((61, 12))
    refused(hexagonal, unchanged, ValueError, "all 61 spots are empty: there is nothing to model", **small)


# Arguments

ARGUMENTS = [
    (
        {"method": "dustd"},
        ValueError,
        r"method='dustd' is not valid; choose from \['dusted', 'stagate', .*\]. Did you mean 'dusted'\?",
    ),
    ({"method": 5}, TypeError, "method must be a name or a configured method, not 5"),
    (
        {"spatial_key": "spatail"},
        KeyError,
        "'spatail' is not in adata.obsm, which has 'spatial'. Did you mean 'spatial'",
    ),
    ({"graph_key": 5}, TypeError, "graph_key must be a string, not 5"),
    ({"spatial_key": 5}, TypeError, "a key of adata.obsm must be a string, not 5"),
    ({"method": st.methods.DUSTED}, TypeError, "method must be a name or a configured method"),
    (
        {"layer": "true_maen"},
        KeyError,
        "'true_maen' is not in adata.layers, which has 'true_mean'. Did you mean 'true_mean'",
    ),
    ({"layer": 5}, TypeError, "a key of adata.layers must be a string, not 5"),
    ({"graph_key": "spatail"}, KeyError, "'spatail_connectivities' is not in adata.obsp, which has 'spatial_connect"),
    ({"library_key": "regoin"}, KeyError, "'regoin' is not in adata.obs, which has 'region'. Did you mean 'region'"),
    ({"genes": "foo"}, ValueError, r"genes='foo' is not valid; choose None \(all genes\), 'highly_variable' or a list"),
    ({"genes": "highly_variable"}, KeyError, "'highly_variable' is not in adata.var.*sc.pp.highly_variable_genes"),
    (
        {"genes": ["gene1", "gnee2", "x"]},
        KeyError,
        r"2 of 3 genes are not in .*\['gnee2', 'x'\].* Did you mean 'gene2'",
    ),
    ({"genes": ["gene1", "gene2", "gene1"]}, ValueError, "genes lists 1 names twice"),
    ({"genes": []}, ValueError, r"genes=\[\] selects no gene"),
    ({"genes": 5}, TypeError, "genes"),
    ({"device": "gpu0"}, ValueError, r"device='gpu0' is not available; choose from \['auto', 'cpu'"),
    ({"device": "cuda:99"}, ValueError, "device='cuda:99' is not available"),
    ({"device": None}, ValueError, "device=None is not available"),
    ({"seed": -1}, ValueError, "seed must be an integer >= 0, not -1"),
    ({"seed": 1.5}, TypeError, "seed must be an integer >= 0, not 1.5"),
    ({"seed": "1"}, TypeError, "seed must be an integer >= 0, not '1'"),
    ({"seed": True}, TypeError, "seed must be an integer >= 0, not True"),
    ({"seed": None}, TypeError, "seed must be an integer >= 0, not None"),
    ({"seed": 2**64}, ValueError, "seed must be .*18446744073709551616"),
    ({"key_added": 5}, TypeError, "key_added"),
    ({"progress": "yes"}, TypeError, "progress must be True, False or None"),
    ({"epochs": 3}, TypeError, r"dusted has no parameter 'epochs'; it has \[.*\]. Did you mean 'n_epochs'\?"),
    ({"zebra": 3}, TypeError, r"dusted has no parameter 'zebra'; it has \['likelihood', .*, 'preset'\]\.$"),
    ({"preset": "visium"}, ValueError, r"preset='visium' is not valid; choose from \['dlpfc', 'hocwta', 'simulated'\]"),
    ({"preset": "simulatd"}, ValueError, "Did you mean 'simulated'"),
]


@pytest.mark.parametrize(("arguments", "error", "message"), ARGUMENTS, ids=[str(case[0]) for case in ARGUMENTS])
def test_bad_arguments(hexagonal, unchanged, small, arguments, error, message):
    refused(hexagonal, unchanged, error, message, **{**small, **arguments})


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a CUDA device")
@pytest.mark.parametrize("device", ["cuda", "cuda:0"])
def test_cuda_where_there_is_none(hexagonal, unchanged, small, device):
    message = rf"device='{device}' is not available \(torch sees no CUDA device\); choose from \['auto', 'cpu'\]"
    refused(hexagonal, unchanged, ValueError, message, device=device, **small)


CONFIG = [
    *[
        ({name: value}, error, f"{name} must be an integer >= 1, not")
        for name in ("gate_reduction", "n_hidden", "n_latent", "n_epochs")
        for value, error in [(0, ValueError), (-2, ValueError), (2.0, TypeError), ("3", TypeError), (True, TypeError)]
    ],
    *[
        ({name: value}, error, f"{name} must be a number > 0, not")
        for name in ("lr", "clip")
        for value, error in [
            (0, ValueError),
            (-1.0, ValueError),
            (np.nan, ValueError),
            (np.inf, ValueError),
            ("1", TypeError),
        ]
    ],
    *[
        ({name: value}, error, f"{name} must be a number >= 0, not")
        for name in ("alpha", "weight_decay")
        for value, error in [
            (-0.1, ValueError),
            (np.nan, ValueError),
            (None, TypeError),
            ([1.0], TypeError),
            (1j, TypeError),
        ]
    ],
    *[
        ({name: value}, ValueError, rf"{name}={value!r} is not valid; choose from \[True, False\]")
        for name in ("gene_attention", "restore_best", "return_attention")
        for value in ("true", 2, None)
    ],
    ({"likelihood": "poisson"}, ValueError, r"likelihood='poisson' is not valid; choose from \['zinb', 'nb'\]"),
    ({"likelihood": "zimb"}, ValueError, "Did you mean 'zinb'"),
    ({"reduction": "sum"}, ValueError, r"reduction='sum' is not valid; choose from \[None, 'published', 'mean'\]"),
    ({"alpha": np.complex128(1)}, TypeError, "alpha must be a number >= 0"),
]


@pytest.mark.parametrize(("arguments", "error", "message"), CONFIG, ids=[str(case[0]) for case in CONFIG])
def test_bad_parameters_of_dusted(hexagonal, unchanged, small, arguments, error, message):
    refused(hexagonal, unchanged, error, message, **{**small, **arguments})


def test_parameters_beside_a_configured_method(hexagonal, unchanged):
    method = st.methods.DUSTED(n_epochs=2)
    message = r"parameters \['n_epochs', 'lr'\] belong into the method object, DUSTED\(\.\.\.\)"
    refused(hexagonal, unchanged, TypeError, message, method=method, n_epochs=3, lr=1.0)


@pytest.mark.parametrize("values", [[True, np.nan] * 6, [True, None] * 6], ids=["NaN", "None"])
def test_highly_variable_with_missing_values(hexagonal, unchanged, small, values):
    hexagonal.var["highly_variable"] = pd.Series(values, index=hexagonal.var_names, dtype=object)
    refused(hexagonal, unchanged, (ValueError, TypeError), "highly_variable", genes="highly_variable", **small)


def test_no_gene_is_highly_variable(hexagonal, unchanged, small):
    hexagonal.var["highly_variable"] = False
    refused(hexagonal, unchanged, ValueError, "selects no gene", genes="highly_variable", **small)


def test_training_that_diverges(hexagonal, unchanged, small):
    small["lr"] = 1e30
    message = "the loss is nan at epoch 2; try a learning rate below 5e[+]29"
    refused(hexagonal, unchanged, FloatingPointError, message, **small)


# Odd input that is taken


def assert_finite(adata):
    for name in ("dusted_mean", "dusted_dispersion", "dusted_dropout"):
        assert np.isfinite(adata.layers[name]).all()
    assert np.isfinite(adata.obsm["X_dusted"]).all()


def test_an_empty_spot_is_kept(hexagonal, small):
    def clear(matrix):
        matrix[[0, 60]] = 0

    adata = with_counts(hexagonal, clear)
    st.tl.denoise(adata, **small)
    assert adata.layers["dusted_mean"].shape == (61, 12)
    assert_finite(adata)


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
    assert_finite(both)


def test_an_empty_gene(hexagonal, small):
    def clear(matrix):
        matrix[:, [0, 5]] = 0

    adata = with_counts(hexagonal, clear)
    st.tl.denoise(adata, **small)
    assert_finite(adata)


def test_chosen_genes_without_any_count(hexagonal, small):
    def clear(matrix):
        matrix[:, [0, 5]] = 0

    adata = with_counts(hexagonal, clear)
    st.tl.denoise(adata, genes=["gene0", "gene5"], **small)
    assert np.isfinite(adata.obsm["dusted_mean"].to_numpy()).all()


@pytest.mark.filterwarnings("ignore:spots have 0 neighbours")
@pytest.mark.parametrize("likelihood", ["zinb", "nb"])
def test_one_spot(hexagonal, small, likelihood):
    adata = hexagonal[:1].copy()
    st.pp.spatial_graph(adata)
    st.tl.denoise(adata, likelihood=likelihood, **small)
    assert np.isfinite(adata.layers["dusted_mean"]).all()


@pytest.mark.parametrize("likelihood", ["zinb", "nb"])
def test_one_gene(hexagonal, small, likelihood):
    # Chosen so that some spots have counts in it, and some none.
    adata = hexagonal[:, ["gene7"]].copy()
    st.tl.denoise(adata, likelihood=likelihood, **small)
    assert adata.layers["dusted_mean"].shape == (61, 1)
    assert np.isfinite(adata.layers["dusted_mean"]).all()


@pytest.mark.filterwarnings("ignore:spots have")
def test_isolated_spots(irregular, small):
    st.pp.spatial_graph(irregular, radius=0.5)
    assert irregular.uns["spatial_neighbors"]["stats"]["n_isolated"] > 20
    st.tl.denoise(irregular, **small)
    assert_finite(irregular)


def test_every_oddity_at_once(irregular, small):
    st.tl.denoise(irregular, **small)
    assert_finite(irregular)


@pytest.mark.parametrize(
    "form",
    [
        lambda x: x.astype(np.int32),
        lambda x: x.toarray(),
        lambda x: np.asfortranarray(x.toarray()),
        lambda x: x.toarray().astype(np.uint16),
    ],
    ids=["integer", "dense", "fortran", "dense integer"],
)
def test_forms_of_counts(hexagonal, small, form, freeze):
    hexagonal.X = form(hexagonal.X)
    before = freeze(hexagonal)["X"]
    st.tl.denoise(hexagonal, **small)
    assert_finite(hexagonal)
    assert freeze(hexagonal)["X"] == before


def test_very_large_counts(hexagonal, small):
    hexagonal.X = hexagonal.X * 1e6
    st.tl.denoise(hexagonal, **small)
    assert_finite(hexagonal)


def test_a_view_is_read_without_its_parent(hexagonal, small, unchanged):
    with unchanged(hexagonal):
        view = hexagonal[5:40, 1:]
        denoised = st.tl.denoise(view, copy=True, **small)
        assert view.is_view
    assert_finite(denoised)
