from typing import get_args, get_type_hints

import numpy as np
import pytest
import torch

from stdenoise.methods.dca import DCA, DCAConfig, method
from stdenoise.methods.dca.batches import make_batch
from stdenoise.train.run import Run

LIKELIHOODS = get_args(get_type_hints(DCAConfig)["likelihood"])
SMALL = {"hidden": (8, 3, 8), "n_epochs": 3, "batch_size": 8}


@pytest.fixture(scope="session")
def trained(fit):
    return lambda counts, seed=0, **params: fit(DCA(**{**SMALL, **params}), counts, seed=seed)


def test_defaults_are_those_of_the_published_code_and_do_not_change():
    config = DCA().config
    assert config.likelihood == "nb-conddisp"
    assert (config.hidden, config.batch_size, config.n_epochs) == ((64, 32, 64), 32, 300)
    assert (config.lr, config.clip, config.reduce_lr, config.early_stop) == (1e-3, 5.0, 10, 15)
    assert (config.validation_fraction, config.ridge, config.restore_best) == (0.1, 0.0, False)
    widths = [8, 3, 8]
    config = DCAConfig(hidden=widths)
    widths.append(9)
    assert config.hidden == (8, 3, 8)


@pytest.mark.parametrize("likelihood", LIKELIHOODS)
def test_arrays_are_those_of_the_likelihood_block_by_block(irregular, trained, spots_of, monkeypatch, likelihood):
    result = trained(irregular.X, likelihood=likelihood)
    names = [name for name in ("mean", "dispersion", "dropout", "latent") if getattr(result, name) is not None]
    assert tuple(names) == DCA(likelihood=likelihood).writes
    assert len(names) == (2 if likelihood == "poisson" else 4 if likelihood.startswith("zinb") else 3)
    for name in names[:-1]:
        array = getattr(result, name)
        assert array.shape == irregular.shape
        assert array.isfinite().all()
        assert (array > 0).all()
    assert result.latent.shape == (41, 3)
    assert result.scale == "counts"
    assert set(result.history) == {"loss", "validation_loss", "lr"}
    if likelihood in ("nb", "zinb"):
        # A dispersion per gene, or per spot.
        torch.testing.assert_close(result.dispersion, result.dispersion[:1].expand(41, 10))
        assert result.dispersion[0].unique().numel() > 5
    elif likelihood.endswith("shared"):
        torch.testing.assert_close(result.dispersion, result.dispersion[:, :1].expand(41, 10))
        assert result.dispersion[:, 0].unique().numel() > 20
    # Blocks of three spots, the last one shorter.
    monkeypatch.setattr("stdenoise.methods.dca.method.BLOCK_ENTRIES", 3 * irregular.n_vars)
    method, spots = DCA(**SMALL, likelihood=likelihood), spots_of(irregular.X)
    blocks = list(method.predict(method.train(spots, Run()), spots, Run()))
    assert max(len(rows) for rows, _ in blocks) == 3
    assert torch.cat([rows for rows, _ in blocks]).tolist() == list(range(41))
    for name in names:
        torch.testing.assert_close(torch.cat([getattr(block, name) for _, block in blocks]), getattr(result, name))


@pytest.mark.parametrize("likelihood", LIKELIHOODS)
def test_tiny_data(trained, likelihood):
    for counts in (
        [[3.0]],
        [[0.0, 2.0, 1.0]],
        [[4.0], [0.0], [1.0]],
        [[1.0, 2.0], [0.0, 3.0]],
        [[1e6, 0.0, 3.0], [2.0, 1e6, 0.0], [1e6, 1e6, 1e6]],
        np.full((12, 4), 7.0),
    ):
        mean = trained(np.array(counts), likelihood=likelihood).mean
        assert mean.shape == np.shape(counts)
        assert mean.isfinite().all()


def test_spots_are_split_once_and_shuffled_every_epoch(irregular, spots_of, monkeypatch):
    training, validation = [], []

    def watched(patch, *statistics):
        (training if torch.is_grad_enabled() else validation).append(patch.spots.tolist())
        return make_batch(patch, *statistics)

    monkeypatch.setattr(method, "make_batch", watched)
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


def test_the_loss_goes_down_and_training_stops_early(hexagonal, trained):
    history = trained(hexagonal.X, n_epochs=300, early_stop=5, lr=1e-2).history
    assert min(history["validation_loss"]) < 0.9 * history["validation_loss"][0]
    assert len(history["loss"]) < 300
    assert min(history["validation_loss"]) == min(history["validation_loss"][:-5])
    # Without spots to validate on, all are trained on.
    assert set(trained(hexagonal.X, validation_fraction=0).history) == {"loss", "lr"}


def test_another_seed_gives_other_numbers(irregular, trained):
    assert not torch.equal(trained(irregular.X, seed=4).mean, trained(irregular.X, seed=5).mean)


def test_divergence_stops_with_advice(hexagonal, trained):
    with pytest.raises(FloatingPointError, match="dca: .*nan at epoch 1; .* below 5e"):
        trained(hexagonal.X, lr=1e38)
