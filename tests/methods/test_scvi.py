import logging
import os
import random
import sys

import numpy as np
import pytest
import torch
from scipy import sparse

import stdenoise as st
from stdenoise._io.read import layers_of
from stdenoise.methods.scvi import SCVI, _batch_size

SMALL = {"n_epochs": 2, "n_hidden": 8, "n_latent": 3}


def test_without_scvi_tools_the_error_says_what_to_install(hexagonal, unchanged, monkeypatch):
    monkeypatch.setitem(sys.modules, "scvi", None)
    with unchanged(hexagonal), pytest.raises(ImportError, match=r"stdenoise\[scvi\]"):
        st.tl.denoise(hexagonal, SCVI())


def test_no_batch_has_one_or_two_spots():
    for n_spots in (2, 3, 4, 5, 127, 128, 129, 130, 131, 3639, 16257):
        for wanted in (2, 3, 128):
            size = _batch_size(n_spots, wanted)
            assert size == n_spots or (n_spots % size not in (1, 2) and size > 1)
            if n_spots % wanted not in (1, 2) and n_spots >= wanted:
                assert size == wanted


# With scvi-tools


@pytest.fixture(scope="module")
def scvi():
    return pytest.importorskip("scvi")


@pytest.mark.parametrize(
    ("likelihood", "layers"),
    [("zinb", {"mean", "dispersion", "dropout"}), ("nb", {"mean", "dispersion"}), ("poisson", {"mean"})],
)
def test_arrays_of_the_likelihood(scvi, irregular, likelihood, layers):
    st.tl.denoise(irregular, SCVI(gene_likelihood=likelihood, **SMALL))
    assert set(layers_of(irregular)) == {f"scvi_{name}" for name in layers}
    for values in layers_of(irregular).values():
        assert np.isfinite(values).all()
        assert (values >= 0).all()
    assert irregular.obsm["X_scvi"].shape == (41, 3)
    assert len(irregular.uns["scvi"]["history"]["loss"]) == 2
    # Expected counts add up to the library size.
    total = irregular.X.toarray().sum(1)
    np.testing.assert_allclose(irregular.layers["scvi_mean"].sum(1), total, rtol=1e-4)
    empty = irregular.obs_names.get_loc("spot7")
    assert total[empty] == 0
    assert (irregular.obsm["X_scvi"][empty] == 0).all()


def test_agrees_with_scvi_tools(scvi, hexagonal):
    scvi.settings.seed = 5
    other = hexagonal.copy()
    other.obs["library"] = 0
    scvi.model.SCVI.setup_anndata(other, batch_key="library")
    model = scvi.model.SCVI(other, n_hidden=8, n_latent=3)
    model.train(30, accelerator="cpu", train_size=1.0, batch_size=128, enable_progress_bar=False)
    scvi.settings.seed = None
    st.tl.denoise(hexagonal, SCVI(n_epochs=30, n_hidden=8, n_latent=3), seed=5, device="cpu")
    np.testing.assert_allclose(hexagonal.obsm["X_scvi"], model.get_latent_representation(), rtol=1e-4, atol=1e-5)
    # The average over draws of the latent variables comes close to the value at their mean.
    expected = model.get_normalized_expression(library_size="latent", n_samples=200, return_numpy=True)
    assert np.corrcoef(np.log(hexagonal.layers["scvi_mean"]).ravel(), np.log(expected).ravel())[0, 1] > 0.99


def test_libraries_are_batches(scvi, irregular):
    without = st.tl.denoise(irregular, SCVI(**SMALL), copy=True).layers["scvi_mean"]
    st.tl.denoise(irregular, SCVI(**SMALL), library_key="library")
    assert (irregular.layers["scvi_mean"] != without).any()
    irregular.obs["library"] = [str(i) for i in range(41)]
    del irregular.obsp
    st.tl.denoise(irregular, SCVI(**SMALL), library_key="library")
    assert np.isfinite(irregular.layers["scvi_mean"]).all()


def test_nothing_global_is_changed(scvi, irregular):
    st.tl.denoise(irregular, SCVI(**SMALL), seed=1)
    random.seed(9)
    before = dict(os.environ), scvi.settings.seed, random.getstate(), torch.backends.cudnn.deterministic
    level = logging.getLogger("lightning.pytorch").level
    state = torch.get_rng_state(), np.random.get_state()[1].copy()  # noqa: NPY002
    managers = len(scvi.model.SCVI._setup_adata_manager_store)
    st.tl.denoise(irregular, SCVI(**SMALL), seed=2**63 - 1)
    assert (dict(os.environ), scvi.settings.seed, random.getstate(), torch.backends.cudnn.deterministic) == before
    assert logging.getLogger("lightning.pytorch").level == level
    assert torch.equal(torch.get_rng_state(), state[0])
    np.testing.assert_array_equal(np.random.get_state()[1], state[1])  # noqa: NPY002
    assert len(scvi.model.SCVI._setup_adata_manager_store) == managers


def test_training_that_diverges(scvi, hexagonal, unchanged, monkeypatch):
    def diverge(self, *args, **kwargs):
        torch.distributions.Normal(torch.tensor(float("nan")), 1.0, validate_args=True)

    monkeypatch.setattr(scvi.model.SCVI, "train", diverge)
    with unchanged(hexagonal), pytest.raises(FloatingPointError, match="scvi: .*diverged"):
        st.tl.denoise(hexagonal, SCVI(**SMALL))


def test_counts_stay_sparse(scvi, hexagonal, monkeypatch):
    seen = []
    setup = scvi.model.SCVI.setup_anndata
    monkeypatch.setattr(
        scvi.model.SCVI, "setup_anndata", lambda adata, **kwargs: (seen.append(adata.X), setup(adata, **kwargs))
    )
    st.tl.denoise(hexagonal, SCVI(**SMALL))
    assert sparse.isspmatrix_csr(seen[0])
    assert (seen[0] != hexagonal.X).nnz == 0
