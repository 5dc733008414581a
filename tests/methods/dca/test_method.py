import numpy as np
import pytest
import torch
from scipy import sparse

import stdenoise as st
from stdenoise.methods.dca import DCA, DCAConfig
from stdenoise.methods.dca.batches import Batches
from stdenoise.methods.dca.config import LIKELIHOODS
from stdenoise.spatial.spots import Context, make_spots
from stdenoise.train.run import Run

SMALL = {"hidden": (8, 3, 8), "n_epochs": 3, "batch_size": 8}


def spots_of(counts, context=None):
    counts = sparse.csr_matrix(counts, dtype=np.float32)
    genes = [f"g{j}" for j in range(counts.shape[1])]
    return make_spots(counts, genes, positions=None, context=context or Context(), device=torch.device("cpu"))


def fit(counts, seed=0, context=None, **params):
    return DCA(**{**SMALL, **params}).fit(spots_of(counts, context), seed=seed, progress=False)


def test_defaults_are_those_of_the_published_code():
    config = DCA().config
    assert config.likelihood == "nb-conddisp"
    assert (config.hidden, config.batch_size, config.n_epochs) == ((64, 32, 64), 32, 300)
    assert (config.lr, config.clip, config.reduce_lr, config.early_stop) == (1e-3, 5.0, 10, 15)
    assert (config.validation_fraction, config.ridge, config.restore_best) == (0.1, 0.0, False)
    assert DCA().label == "dca"
    assert DCA(hidden=[9, 4, 9]).label == "dca(hidden=(9, 4, 9))"


@pytest.mark.parametrize("likelihood", LIKELIHOODS)
def test_empty_spots_and_genes_stay_finite(irregular, likelihood):
    result = fit(irregular.X, likelihood=likelihood)
    arrays = [x for x in (result.mean, result.dispersion, result.dropout) if x is not None]
    assert len(arrays) == (1 if likelihood == "poisson" else 3 if likelihood.startswith("zinb") else 2)
    for array in arrays:
        assert array.shape == irregular.shape
        assert array.isfinite().all()
        assert (array > 0).all()
    assert result.latent.shape == (41, 3)
    assert result.scale == "counts"
    assert set(result.history) == {"loss", "validation_loss", "lr"}


def test_dispersions_are_free_per_gene_or_spot_where_the_name_says_so(irregular):
    per_gene, per_spot = (fit(irregular.X, likelihood=name).dispersion for name in ("zinb", "zinb-shared"))
    torch.testing.assert_close(per_gene, per_gene[:1].expand_as(per_gene))
    assert per_gene[0].unique().numel() > 5
    torch.testing.assert_close(per_spot, per_spot[:, :1].expand_as(per_spot))
    assert per_spot[:, 0].unique().numel() > 20


def test_the_mean_has_the_depth_of_the_spot():
    # The same profile at several depths: only the size factor tells the spots apart.
    counts = np.outer([1, 2, 4, 8] * 10, [1, 3, 5])
    mean = fit(counts).mean
    torch.testing.assert_close(mean / mean[:1], torch.tensor(counts / counts[:1]).float())


def test_spots_are_split_once_and_shuffled_every_epoch(irregular, monkeypatch):
    training, validation = [], []
    take = Batches.take

    def watched(self, rows):
        (training if torch.is_grad_enabled() else validation).append(rows.tolist())
        return take(self, rows)

    monkeypatch.setattr(Batches, "take", watched)
    params = {**SMALL, "n_epochs": 2, "batch_size": 16, "validation_fraction": 0.1}
    DCA(**params).train(spots_of(irregular.X), Run())
    nonempty = np.flatnonzero(np.asarray(irregular.X.sum(1)).ravel()).tolist()
    assert [len(rows) for rows in training] == [16, 16, 4] * 2
    epochs = [sum(training[:3], []), sum(training[3:], [])]
    assert len(validation[0]) == 4
    assert validation[0] == validation[1]
    for order in epochs:
        assert sorted(order + validation[0]) == nonempty
        assert order != sorted(order)
    assert epochs[0] != epochs[1]


@pytest.mark.parametrize("likelihood", LIKELIHOODS)
def test_prediction_in_blocks_equals_that_of_the_whole(irregular, likelihood, monkeypatch):
    whole = fit(irregular.X, likelihood=likelihood)
    # Blocks of three spots, the last one shorter.
    monkeypatch.setattr("stdenoise.methods.dca.method.BLOCK_ENTRIES", 3 * irregular.n_vars)
    model = DCA(**SMALL, likelihood=likelihood).train(spots_of(irregular.X), Run())
    blocks = list(DCA(**SMALL, likelihood=likelihood).predict(model, spots_of(irregular.X), Run()))
    assert [len(rows) for rows, _ in blocks] == [3] * 13 + [2]
    for name in ("mean", "dispersion", "dropout", "latent"):
        if getattr(whole, name) is not None:
            torch.testing.assert_close(torch.cat([getattr(block, name) for _, block in blocks]), getattr(whole, name))


def test_validation_fraction_zero_trains_on_all(irregular):
    assert set(fit(irregular.X, validation_fraction=0).history) == {"loss", "lr"}


def test_the_loss_goes_down_and_training_stops_early(hexagonal):
    history = fit(hexagonal.X, n_epochs=300, early_stop=5, lr=1e-2).history
    assert min(history["validation_loss"]) < 0.9 * history["validation_loss"][0]
    assert len(history["loss"]) < 300
    assert min(history["validation_loss"]) == min(history["validation_loss"][:-5])


def test_the_same_seed_gives_the_same_bits(irregular):
    first, again, other = (fit(irregular.X, seed=seed) for seed in (4, 4, 5))
    assert torch.equal(first.mean, again.mean)
    assert torch.equal(first.latent, again.latent)
    assert not torch.equal(first.mean, other.mean)


def test_two_libraries_are_treated_as_one_set_of_spots(irregular):
    context = Context(libraries=torch.tensor(irregular.obs["library"].cat.codes.to_numpy().copy()))
    alone = Context(libraries=torch.arange(41))
    plain = fit(irregular.X).mean
    assert torch.equal(fit(irregular.X, context=context).mean, plain)
    assert torch.equal(fit(irregular.X, context=alone).mean, plain)


@pytest.mark.parametrize("likelihood", LIKELIHOODS)
@pytest.mark.parametrize(
    "counts",
    [
        [[3.0]],
        [[0.0, 2.0, 1.0]],
        [[4.0], [0.0], [1.0]],
        [[1.0, 2.0], [0.0, 3.0]],
        [[1e6, 0.0, 3.0], [2.0, 1e6, 0.0], [1e6, 1e6, 1e6]],
        np.full((12, 4), 7.0),
    ],
    ids=["one entry", "one spot", "one gene", "two spots", "large", "constant"],
)
def test_tiny_data(counts, likelihood):
    result = fit(np.array(counts), likelihood=likelihood)
    assert result.mean.shape == np.shape(counts)
    assert result.mean.isfinite().all()


def test_divergence_stops_with_advice(hexagonal):
    with pytest.raises(FloatingPointError, match="dca: the loss is nan at epoch 1; try a learning rate below 5e"):
        fit(hexagonal.X, lr=1e38)


def test_behind_the_verb(hexagonal, unchanged):
    with unchanged(hexagonal):
        out = st.tl.denoise(hexagonal, DCA(**SMALL, likelihood="zinb"), copy=True)
    assert {"dca_mean", "dca_dispersion", "dca_dropout"} <= set(out.layers)
    assert out.obsm["X_dca"].shape == (61, 3)
    chosen = list(hexagonal.var_names[:5])
    st.tl.denoise(hexagonal, DCA(**SMALL, likelihood="poisson"), genes=chosen)
    assert st.get.denoised(hexagonal, "dca").shape == (61, 5)


@pytest.mark.parametrize(
    ("params", "message"),
    [
        ({"likelihood": "nb-fork"}, "likelihood='nb-fork' is not valid; choose from .*'zinb-elempi', 'poisson'"),
        ({"hidden": ()}, r"hidden must be a list of one or more widths, not \(\)"),
        ({"hidden": 64}, "hidden must be a list of one or more widths, not 64"),
        ({"hidden": (64, 0, 64)}, "each width in hidden must be an integer >= 1, not 0"),
        ({"batch_size": 0}, "batch_size must be an integer >= 1, not 0"),
        ({"n_epochs": 2.5}, "n_epochs must be an integer >= 1, not 2.5"),
        ({"lr": 0}, "lr must be a number > 0, not 0"),
        ({"clip": -1}, "clip must be a number > 0, not -1"),
        ({"reduce_lr": 0}, "reduce_lr must be an integer >= 1"),
        ({"early_stop": None}, "early_stop must be an integer >= 1, not None"),
        ({"validation_fraction": 1}, "validation_fraction must be below 1, not 1"),
        ({"validation_fraction": -0.1}, "validation_fraction must be a number >= 0"),
        ({"ridge": 0.1}, "ridge=0.1 needs a zero-inflated likelihood, not 'nb-conddisp'"),
        ({"restore_best": "yes"}, "restore_best='yes' is not valid"),
        ({"dropout": 0.1}, "dca has no parameter 'dropout'"),
    ],
)
def test_bad_parameters_are_refused(params, message):
    with pytest.raises((ValueError, TypeError), match=message):
        DCA(**params)


def test_hyperparameters_do_not_change():
    widths = [8, 3, 8]
    config = DCAConfig(hidden=widths)
    widths.append(9)
    assert config.hidden == (8, 3, 8)
    with pytest.raises(AttributeError):
        config.lr = 1.0
