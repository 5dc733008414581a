"""Trained networks on disk."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path

from stdenoise.methods._base import Denoiser, Model
from stdenoise.methods._registry import make_method
from stdenoise.train.checkpoint import load_tensors, save_tensors

_KIND = "model"


def write_model(path: Path, denoiser: Denoiser, model: Model) -> None:
    """Write a trained network and its hyperparameters."""
    content = {"method": denoiser.info.name, "params": asdict(denoiser.config), **vars(model)}
    content["state"] = {name: tensor.cpu() for name, tensor in model.state.items()}
    save_tensors(path, _KIND, content)


def read_model(path: Path) -> tuple[Denoiser, Model]:
    """Read what `write_model` wrote: the configured method and its network. Nothing in the file is executed.

    Raises
    ------
    FileNotFoundError
        There is no such file.
    ValueError
        It is damaged, no model, or of another version.
    """
    content = load_tensors(path, _KIND)
    try:
        denoiser = make_method(content.pop("method"), content.pop("params"))
        return denoiser, Model(**content)
    except (KeyError, TypeError, ValueError) as error:
        raise ValueError(f"{str(path)!r} is of another version of stdenoise: {error}") from error
