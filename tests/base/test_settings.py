import sys

import pytest
import torch

import stdenoise as st
from stdenoise._base.device import resolve_device
from stdenoise._base.settings import Settings


def test_defaults():
    assert Settings() == Settings(device="auto", progress=None)
    assert st.settings == Settings()


def test_values_hold_within_override_only():
    with st.settings.override(device="cpu", progress=True) as inside:
        assert inside is st.settings
        assert (st.settings.device, st.settings.progress) == ("cpu", True)
    assert st.settings == Settings()


def test_values_come_back_after_an_error():
    with pytest.raises(RuntimeError, match="inside"), st.settings.override(progress=True):
        raise RuntimeError("inside")
    assert st.settings == Settings()


@pytest.mark.parametrize(
    ("name", "value", "error", "message"),
    [
        (
            "devise",
            "cpu",
            AttributeError,
            r"there is no setting 'devise'; settings are \['device', 'progress', .*\]. Did you",
        ),
        ("seed", 3, AttributeError, "there is no setting 'seed'"),
        ("device", 3, TypeError, "device must be a string such as 'auto', 'cpu' or 'cuda', not 3"),
        ("device", None, TypeError, "device must be a string"),
        ("progress", "yes", TypeError, "progress must be True, False or None, not 'yes'"),
        ("progress", 1, TypeError, "progress must be True, False or None, not 1"),
    ],
)
def test_bad_values_change_nothing(name, value, error, message):
    with pytest.raises(error, match=message):
        setattr(st.settings, name, value)
    with pytest.raises(error, match=message), st.settings.override(**{"progress": True, name: value}):
        pass
    assert st.settings == Settings()
    assert not hasattr(st.settings, "devise")


@pytest.mark.parametrize(
    ("setting", "argument", "terminal", "shown"),
    [
        (None, None, True, True),
        (None, None, False, False),
        (False, None, True, False),
        (True, None, False, True),
        (False, True, False, True),
        (True, False, True, False),
    ],
)
def test_progress_is_the_argument_else_the_setting_else_the_terminal(monkeypatch, setting, argument, terminal, shown):
    monkeypatch.setattr(sys.stderr, "isatty", lambda: terminal, raising=False)
    assert Settings(progress=setting).show_progress(argument) is shown


def test_device_of_the_settings_stands_behind_auto(hexagonal, small):
    with st.settings.override(device="cpu"):
        assert resolve_device("auto") == torch.device("cpu")
        st.tl.denoise(hexagonal, **small)
    assert hexagonal.uns["dusted"]["device"] == "cpu"


def test_a_bad_device_of_the_settings_is_named():
    with st.settings.override(device="gpu0"), pytest.raises(ValueError, match="device='gpu0' is not available"):
        resolve_device("auto")


@pytest.mark.parametrize(("n_cuda", "chosen"), [(0, "cpu"), (2, "cuda")])
def test_auto_takes_cuda_where_there_is_one(monkeypatch, n_cuda, chosen):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: n_cuda > 0)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: n_cuda)
    assert resolve_device("auto") == torch.device(chosen)


@pytest.mark.parametrize("name", ["cpu", "cuda", "cuda:0", "cuda:1"])
def test_devices_that_are_there(monkeypatch, name):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    assert resolve_device(name) == torch.device(name)
    with pytest.raises(
        ValueError, match=r"'cuda:2' is not available; choose from \['auto', 'cpu', 'cuda', 'cuda:0', 'cuda:1'\]"
    ):
        resolve_device("cuda:2")
