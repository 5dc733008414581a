"""Pooled features of image tiles from a residual network, with weights that the caller has."""

from __future__ import annotations

from collections.abc import Mapping
from importlib import import_module
from pathlib import Path
from typing import cast

import numpy as np
import torch
from torch import Tensor, nn

ARCHITECTURES = ("resnet18", "resnet34", "resnet50", "resnet101", "resnet152")

_SIDE = 299
_MEAN, _STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)


def load_resnet(path: str | Path, architecture: str) -> nn.Module:
    """Build a residual network of torchvision without its last layer. Nothing is downloaded.

    Parameters
    ----------
    path
        File with the state dict of the network, with or without the last layer `fc`; only tensors are read from it.
    architecture
        One of `ARCHITECTURES`.
    """
    try:
        models = import_module("torchvision.models")
    except ImportError as error:
        raise ImportError(
            "extractor='torchvision' needs torchvision, which is not installed; install it, or pass a function of your own "
            "as extractor."
        ) from error
    state = torch.load(path, map_location="cpu", weights_only=True)
    if not isinstance(state, Mapping) or not all(isinstance(value, Tensor) for value in state.values()):
        raise ValueError(f"{str(path)!r} does not hold a state dict, which maps names to tensors.")
    # On no device: weights that are replaced at once need not be drawn.
    with torch.device("meta"):
        network = cast("nn.Module", getattr(models, architecture)(weights=None))
    network.fc = nn.Identity()
    state = {name: value for name, value in state.items() if not name.startswith("fc.")}
    try:
        network.load_state_dict(state, assign=True)
    except RuntimeError as error:
        raise ValueError(f"{str(path)!r} is not a state dict of {architecture}: {error}") from error
    return network.eval()


def pooled_features(network: nn.Module, tiles: np.ndarray) -> np.ndarray:
    """Resize tiles to 299 pixels, normalise their colours as for ImageNet, and run the network.

    Parameters
    ----------
    network
        Maps `(n, 3, height, width)` to `(n, n_features)`.
    tiles
        Shape `(n, size, size, n_channels)`: grey, RGB, or RGBA, whose last channel is left out. Floats between 0 and 1, or
        integers over the range of their type.

    Returns
    -------
    Shape `(n, n_features)`.
    """
    n_channels = tiles.shape[3]
    if n_channels not in (1, 3, 4):
        raise ValueError(f"extractor='torchvision' takes images of 1, 3 or 4 channels, not {n_channels}.")
    if tiles.dtype.kind in "iu":
        tiles = tiles / np.float32(np.iinfo(tiles.dtype).max)
    elif tiles.min() < 0 or tiles.max() > 1:
        raise ValueError(
            f"an image of {tiles.dtype} must have values between 0 and 1, not from {tiles.min():g} to {tiles.max():g}."
        )
    device = next(network.parameters()).device
    colours = torch.from_numpy(tiles[..., :3].astype(np.float32)).to(device).permute(0, 3, 1, 2)
    with torch.inference_mode():
        colours = nn.functional.interpolate(
            colours.expand(-1, 3, -1, -1), size=(_SIDE, _SIDE), mode="bilinear", antialias=True
        )
        mean, std = (torch.tensor(value, device=device)[:, None, None] for value in (_MEAN, _STD))
        return cast("np.ndarray", network((colours - mean) / std).cpu().numpy())
