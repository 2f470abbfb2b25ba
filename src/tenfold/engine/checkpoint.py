"""Training state on disk, and the Ctrl-C that asks for it."""

from __future__ import annotations

import hashlib
import json
import signal
import threading
import time
import zlib
from pathlib import Path
from types import FrameType
from typing import Any

import numpy as np
from scipy import sparse
from torch.nn import Module

from tenfold import __version__
from tenfold.data.store import read_file, write_file
from tenfold.errors import ParameterError

#: Least time between two checkpoints, and the largest share of the time that writing them may take.
SECONDS = 30.0
SHARE = 0.02


class Checkpoint:
    """The checkpoint file of one training.

    Parameters
    ----------
    folder
        Made if missing.
    name
        Of the training; a method that trains twice keeps two files.
    fingerprint
        Plain values that a stored state must agree with.
    """

    def __init__(self, folder: str, name: str, fingerprint: dict[str, Any]):
        self.path = Path(folder) / f"{name}.safetensors"
        self.fingerprint = json.loads(json.dumps({"tenfold": __version__, **fingerprint}, default=str))
        self._due = time.perf_counter() + SECONDS

    def due(self) -> bool:
        """Whether it is time to save again."""
        return time.perf_counter() >= self._due

    def save(self, state: dict[str, Any]) -> None:
        """Replace the stored state; see `write_file`."""
        started = time.perf_counter()
        write_file(self.path, self.fingerprint, state)
        ended = time.perf_counter()
        self._due = ended + max(SECONDS, (ended - started) / SHARE)

    def load(self) -> dict[str, Any] | None:
        """Return the stored state, or None if there is none.

        Raises
        ------
        FileFormatError
            The file is damaged.
        ParameterError
            It belongs to another training; the message names what differs.
        """
        if not self.path.exists():
            return None
        stored, state = read_file(self.path, "Delete it to train from the start.")
        now = self.fingerprint
        changed = [key for key in {**stored, **now} if stored.get(key) != now.get(key)]
        if changed:
            raise self.foreign("; ".join(f"{key} was {stored.get(key)}, is now {now.get(key)}" for key in changed))
        return state

    def foreign(self, difference: str) -> ParameterError:
        """Return the error for a checkpoint of another training."""
        return ParameterError(
            f"The checkpoint '{self.path}' belongs to another training: {difference}. "
            "Give another checkpoint folder, or delete that file to train from the start."
        )


def describe_net(net: Module) -> str:
    """Return a short description of a network's class and the names and shapes of its weights."""
    shapes = [(name, tuple(value.shape), str(value.dtype)) for name, value in net.state_dict().items()]
    digest = hashlib.sha256(repr(shapes).encode()).hexdigest()[:12]
    return f"{type(net).__name__} with {sum(p.numel() for p in net.parameters())} weights ({digest})"


def describe_entry(value: Any) -> str:
    """Return the shape, type and a checksum of an entry of the data; large ones are sampled evenly."""
    parts = [value.data, value.indices, value.indptr] if sparse.issparse(value) else [np.asarray(value)]
    checksum = 0
    for part in parts:
        flat = part.reshape(-1)
        checksum = zlib.crc32(np.ascontiguousarray(flat[:: max(1, flat.size // 1_000_000)]).tobytes(), checksum)
    return f"{tuple(value.shape)} {value.dtype} #{checksum:08x}"


class Interruption:
    """Context in which the first Ctrl-C is only noted, so that the training can save; a second one acts at once.

    Attributes
    ----------
    requested
        Whether Ctrl-C was pressed.
    """

    def __init__(self, active: bool):
        # Python allows handlers in the main thread only; elsewhere, or where SIGINT is ignored, nothing changes.
        self._active = active and threading.current_thread() is threading.main_thread()
        self.requested = False

    def __enter__(self) -> Interruption:
        self._former = signal.getsignal(signal.SIGINT)
        self._active = self._active and callable(self._former)
        if self._active:
            signal.signal(signal.SIGINT, self._note)
        return self

    def _note(self, number: int, frame: FrameType | None) -> None:
        self.requested = True
        signal.signal(signal.SIGINT, self._former)

    def __exit__(self, *exc: object) -> None:
        if self._active:
            signal.signal(signal.SIGINT, self._former)
