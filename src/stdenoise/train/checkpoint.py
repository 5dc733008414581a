"""Files of tensors that are whole or not there: checkpoints of a training, and trained models."""

from __future__ import annotations

import logging
import pickle
import signal
import threading
import time
import zipfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from types import FrameType
from typing import Any

import torch

from stdenoise._base.device import started_by_launcher
from stdenoise._base.files import replacing
from stdenoise._base.signals import ending_signals

logger = logging.getLogger("stdenoise")

_FORMAT = 1
_ECHO = 1.0
"""Seconds in which another signal is no second one, where there are several processes: who started them hands on what they got."""


def save_tensors(path: Path, kind: str, content: Mapping[str, Any]) -> None:
    """Write tensors, numbers, names, lists and dicts under a temporary name, then rename.

    Parameters
    ----------
    path
        What was there is replaced only when all is on the disk, and only if it is of the same kind. Of a symbolic link, what it leads to
        is replaced.
    kind
        What the file is, such as `"model"`; checked when it is read.
    content
        By name.
    """
    try:
        with replacing(path, kind) as fresh, fresh.open("wb") as file:
            torch.save({"stdenoise": kind, "format": _FORMAT, "content": dict(content)}, file)
    except FileExistsError:
        raise
    except OSError as error:
        raise OSError(error.errno, f"cannot write the {kind} {str(path)!r}: {error.strerror}") from error
    except RuntimeError as error:
        # How torch reports a write that failed, or was interrupted.
        if isinstance(error.__context__, KeyboardInterrupt):
            raise error.__context__ from None
        raise OSError(f"cannot write the {kind} {str(path)!r}: {error}") from error


def load_tensors(path: Path, kind: str) -> dict[str, Any]:
    """Read what `save_tensors` wrote; nothing in the file is executed.

    Raises
    ------
    FileNotFoundError
        There is no such file.
    ValueError
        It is damaged, not of this kind, or of another version of the format.
    """
    if not path.is_file():
        raise FileNotFoundError(f"there is no {kind} {str(path)!r}.")
    try:
        # torch does not look at the checksums that it writes.
        with zipfile.ZipFile(path) as archive:
            if (part := archive.testzip()) is not None:
                raise ValueError(f"the checksum of {part} is not right")
        whole = torch.load(path, map_location="cpu", weights_only=True)
    except (
        zipfile.BadZipFile,
        RuntimeError,
        EOFError,
        OSError,
        ValueError,
        LookupError,
        TypeError,
        pickle.UnpicklingError,
    ) as error:
        reason = str(error).split("\n", 1)[0]
        raise ValueError(f"{str(path)!r} is damaged or no {kind} of stdenoise: {reason}") from error
    if not isinstance(whole, dict) or whole.get("stdenoise") != kind:
        found = whole.get("stdenoise") if isinstance(whole, dict) else type(whole).__name__
        raise ValueError(f"{str(path)!r} is no {kind} of stdenoise, but {found!r}.")
    if whole.get("format") != _FORMAT:
        raise ValueError(
            f"{str(path)!r} has format {whole.get('format')}; this version of stdenoise reads format {_FORMAT}."
        )
    content: dict[str, Any] = whole["content"]
    return content


@dataclass
class Checkpoint:
    """Where a training is saved on its way, and how often.

    Parameters
    ----------
    path
        The file.
    minutes
        Time between two savings.
    resume
        Go on from the file, if it is there.
    identity
        What the training is: method, parameters, seed, data. A file of another training is refused.
    """

    path: Path
    minutes: float = 10.0
    resume: bool = False
    identity: Mapping[str, Any] = field(default_factory=dict)
    _saved_at: float = field(default_factory=time.monotonic)
    _signal: int | None = None
    _failure: str | None = None

    def load(self) -> dict[str, Any] | None:
        """Return the saved state, or `None` where there is none to go on from."""
        if not self.resume or not self.path.exists():
            return None
        state = load_tensors(self.path, "checkpoint")
        names = sorted(self.identity.keys() | state["identity"].keys())
        other = [name for name in names if self.identity.get(name) != state["identity"].get(name)]
        if other:
            found = ", ".join(
                f"{name} {state['identity'].get(name)!r}, now {self.identity.get(name)!r}" for name in other
            )
            raise ValueError(f"{str(self.path)!r} is the checkpoint of another run: {found}.")
        return state

    def save(self, state: Mapping[str, Any] | None) -> None:
        """Save the state; with `None`, only note that another process does.

        A disk that is full does not end the training: what was saved before stays, and the next time may be better.
        """
        self._saved_at = time.monotonic()
        if state is None:
            return
        try:
            save_tensors(self.path, "checkpoint", {**state, "identity": dict(self.identity)})
        except OSError as error:
            self._failure = str(error)
            logger.warning("%s; the training goes on", error)
        else:
            self._failure = None
            logger.info("saved %s", self.path)

    @property
    def is_due(self) -> bool:
        """Whether it is time to save."""
        return time.monotonic() - self._saved_at >= 60 * self.minutes

    @property
    def is_stopped(self) -> bool:
        """Whether the process was told to stop."""
        return self._signal is not None

    def stop(self) -> None:
        """Raise `KeyboardInterrupt`, with what to do next."""
        why = "" if self._signal is None else f" by {signal.Signals(self._signal).name}"
        if self._failure is not None:
            raise KeyboardInterrupt(f"stopped{why}; {self._failure}")
        raise KeyboardInterrupt(f"stopped{why}; {str(self.path)!r} is saved: run it again with resume to go on.")

    @contextmanager
    def delayed_signals(self) -> Iterator[None]:
        """Let a step end before an interruption (Ctrl-C, or the end of a cluster job) takes effect; a second one acts at once."""
        if threading.current_thread() is not threading.main_thread():
            yield
            return
        numbers = ending_signals()
        before = {number: signal.getsignal(number) for number in numbers}
        echo = 0.0 if started_by_launcher() is None else _ECHO

        told_at = 0.0

        def note(number: int, frame: FrameType | None) -> None:
            nonlocal told_at
            if self._signal is None:
                self._signal, told_at = number, time.monotonic()
            elif time.monotonic() - told_at >= echo:
                raise KeyboardInterrupt

        try:
            for number in numbers:
                signal.signal(number, note)
            yield
        finally:
            for number, handler in before.items():
                signal.signal(number, handler)
            pending, self._signal = self._signal, None
        if pending is not None:
            # It came after the last step, so that nothing was left to save.
            signal.raise_signal(pending)
