import sys

import pytest
import torch

import stdenoise as st
from stdenoise._base.device import resolve_device
from stdenoise._base.settings import Settings


def test_values_hold_within_override_only():
    assert st.settings == Settings() == Settings(device="auto", progress=None, check_counts=True)
    with (
        pytest.raises(RuntimeError, match="inside"),
        st.settings.override(device="cpu", progress=True) as inside,
    ):
        assert inside is st.settings
        assert (st.settings.device, st.settings.progress) == ("cpu", True)
        raise RuntimeError("inside")
    assert st.settings == Settings()


@pytest.mark.parametrize(
    ("name", "value", "error", "message"),
    [
        ("devise", "cpu", AttributeError, r"'devise'.*\['device', .*\]. Did you mean 'device'"),
        ("device", 3, TypeError, "device .* not 3"),
        ("device", None, TypeError, "device .* not None"),
        ("progress", "yes", TypeError, "progress .* not 'yes'"),
        ("progress", 1, TypeError, "progress .* not 1"),
    ],
)
def test_bad_values_change_nothing(name, value, error, message):
    with pytest.raises(error, match=message):
        setattr(st.settings, name, value)
    with pytest.raises(error, match=message), st.settings.override(**{"progress": True, name: value}):
        pass
    assert st.settings == Settings()
    assert not hasattr(st.settings, "devise")


def test_progress_is_the_argument_else_the_setting_else_the_terminal(monkeypatch):
    for setting, argument, terminal, shown in (
        (None, None, True, True),
        (None, None, False, False),
        (False, None, True, False),
        (True, None, False, True),
        (False, True, False, True),
        (True, False, True, False),
    ):
        monkeypatch.setattr(sys.stderr, "isatty", lambda answer=terminal: answer, raising=False)
        assert Settings(progress=setting).show_progress(argument) is shown


def test_device_of_the_settings_stands_behind_auto(hexagonal, monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    with st.settings.override(device="cpu"):
        st.tl.denoise(hexagonal, "gene_mean")
    assert hexagonal.uns["gene_mean"]["device"] == "cpu"
    with st.settings.override(device="gpu0"), pytest.raises(ValueError, match="device='gpu0'"):
        resolve_device("auto")


@pytest.mark.parametrize("n_cuda", [0, 2])
def test_auto_takes_cuda_where_there_is_one(monkeypatch, n_cuda):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: n_cuda > 0)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: n_cuda)
    there = ["cpu", "cuda", "cuda:0", "cuda:1"] if n_cuda else ["cpu"]
    assert resolve_device("auto") == torch.device("cuda" if n_cuda else "cpu")
    for name in there:
        assert resolve_device(name) == torch.device(name)
    with pytest.raises(ValueError, match=rf"'cuda:2' .*{['auto', *there]!r}".replace("[", r"\[").replace("]", r"\]")):
        resolve_device("cuda:2")
