"""The network is a stand-in of torchvision's: its layers differ, what is done to images and weights does not."""

import sys
from types import ModuleType

import numpy as np
import pytest
import torch
from torch import nn

from stdenoise.nn.resnet import ARCHITECTURES, load_resnet, pooled_features


class Tiny(nn.Module):
    """Mean of each channel in place of the layers, then a normalisation and the last layer."""

    def __init__(self):
        super().__init__()
        self.conv = nn.Conv2d(3, 4, 1)
        self.norm = nn.BatchNorm1d(4)
        self.fc = nn.Linear(4, 10)

    def forward(self, x):
        self.seen = x
        return self.fc(self.norm(self.conv(x).mean((2, 3))))


@pytest.fixture
def torchvision(monkeypatch):
    """A module `torchvision.models` whose networks are tiny and may not load weights by themselves."""

    def build(weights="default"):
        assert weights is None
        return Tiny()

    models = ModuleType("torchvision.models")
    for name in ARCHITECTURES:
        setattr(models, name, build)
    package = ModuleType("torchvision")
    package.models = models
    monkeypatch.setitem(sys.modules, "torchvision", package)
    monkeypatch.setitem(sys.modules, "torchvision.models", models)


@pytest.fixture
def state():
    """Weights of the tiny network; building it draws from the global generator, which is put back."""
    with torch.random.fork_rng():
        return Tiny().state_dict()


@pytest.fixture
def path(state, tmp_path):
    """File of the weights."""
    torch.save(state, tmp_path / "weights.pt")
    return tmp_path / "weights.pt"


@pytest.fixture
def network(torchvision, path):
    """The tiny network; loading it draws no random numbers."""
    before = torch.random.get_rng_state()
    network = load_resnet(path, "resnet50")
    assert torch.equal(torch.random.get_rng_state(), before)
    return network


def test_features_are_those_before_the_last_layer_which_may_be_missing(network, state, tmp_path):
    tiles = np.random.default_rng(0).integers(0, 256, size=(5, 8, 8, 3), dtype=np.uint8)
    found = pooled_features(network, tiles)
    assert network.seen.shape == (5, 3, 299, 299)
    with torch.no_grad():
        x = torch.from_numpy(tiles).permute(0, 3, 1, 2) / 255
        mean, std = (torch.tensor(x)[:, None, None] for x in ([0.485, 0.456, 0.406], [0.229, 0.224, 0.225]))
        x = (nn.functional.interpolate(x, (299, 299), mode="bilinear", antialias=True) - mean) / std
        expected = x.mean((2, 3)) @ state["conv.weight"][:, :, 0, 0].T + state["conv.bias"]
    # The normalisation is in its state for use, and its statistics are those of a new layer.
    np.testing.assert_allclose(found, expected / np.sqrt(1 + 1e-5), atol=1e-5)
    torch.save({name: value for name, value in state.items() if not name.startswith("fc.")}, tmp_path / "headless.pt")
    np.testing.assert_array_equal(pooled_features(load_resnet(tmp_path / "headless.pt", "resnet18"), tiles), found)


def test_the_kinds_of_pixels_agree(network):
    bytes_ = np.random.default_rng(0).integers(0, 256, size=(3, 6, 6, 3), dtype=np.uint8)
    found = pooled_features(network, bytes_)
    np.testing.assert_allclose(pooled_features(network, bytes_ / 255), found, atol=1e-5)
    np.testing.assert_allclose(pooled_features(network, bytes_.astype(np.uint16) * 257), found, atol=1e-5)
    alpha = np.concatenate([bytes_, np.full((3, 6, 6, 1), 255, dtype=np.uint8)], axis=3)
    np.testing.assert_array_equal(pooled_features(network, alpha), found)
    grey = pooled_features(network, bytes_[..., :1])
    np.testing.assert_allclose(grey, pooled_features(network, bytes_[..., [0, 0, 0]]), atol=1e-6)


def test_images_that_are_not_understood(network):
    for tiles, words in (
        (np.zeros((1, 2, 2, 2)), "1, 3 or 4 channels, not 2"),
        (np.full((1, 2, 2, 3), 255.0), "between 0 and 1, not from 255 to 255"),
        (np.full((1, 2, 2, 3), -0.5), "between 0 and 1"),
    ):
        with pytest.raises(ValueError, match=words):
            pooled_features(network, tiles)


def test_files_that_are_not_weights(torchvision, state, tmp_path):
    path = tmp_path / "other.pt"
    del state["conv.weight"]
    for content, error, words in (
        ([1, 2], ValueError, "does not hold a state dict"),
        ({"conv.weight": 1}, ValueError, "does not hold a state dict"),
        (state, ValueError, "is not a state dict of resnet50: (?s:.)*conv.weight"),
        # It cannot run code.
        ({"conv.weight": Tiny}, Exception, "[Ww]eights.only"),
    ):
        torch.save(content, path)
        with pytest.raises(error, match=words):
            load_resnet(path, "resnet50")
