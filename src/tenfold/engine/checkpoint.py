"""Training state on disk, and the Ctrl-C that asks for it."""

from __future__ import annotations

import json
import signal
import threading
import time
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from types import FrameType
from typing import Any

import numpy as np
from scipy import sparse
from torch.nn import Module

from tenfold import __version__
from tenfold.data.store import read_file, write_file
from tenfold.data.streamed import StreamedCounts
from tenfold.engine.phases import Phase
from tenfold.errors import ParameterError

#: Least time between two checkpoints, and the largest share of the time that writing them may take.
SECONDS = 30.0
SHARE = 0.02
#: Seconds in which signals are one press of Ctrl-C: torchrun hands on what the terminal has sent to all already.
ONE_PRESS = 1.0


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
            differences = "; ".join(f"{key} was {stored.get(key)}, is now {now.get(key)}" for key in changed)
            raise ParameterError(
                f"The checkpoint '{self.path}' belongs to another training: {differences}. "
                "Give another checkpoint folder, or delete that file to train from the start."
            )
        return state


def fingerprint_of(net: Module, phases: list[Phase], data: dict[str, Any]) -> dict[str, Any]:
    """Return plain values that tell this training from others, by the words that name them in an error."""
    shapes = [(name, tuple(value.shape), str(value.dtype)) for name, value in net.state_dict().items()]
    width = sum(p.numel() for p in net.parameters())
    return {
        "the network": f"{type(net).__name__} with {width} weights (#{zlib.crc32(repr(shapes).encode()):08x})",
        **{f"phase '{phase.name}'": phase.summary(net) for phase in phases},
        **{f"entry '{name}' of the data": _checksum(value) for name, value in data.items()},
    }


def _checksum(value: Any) -> str:
    """Return the shape, type and a checksum of an entry of the data; large ones are sampled evenly."""
    if isinstance(value, StreamedCounts):
        return f"{value.shape} on disk #{value.checksum:08x}"
    parts = [value.data, value.indices, value.indptr] if sparse.issparse(value) else [np.asarray(value)]
    checksum = 0
    for part in parts:
        flat = part.reshape(-1)
        checksum = zlib.crc32(np.ascontiguousarray(flat[:: max(1, flat.size // 1_000_000)]).tobytes(), checksum)
    return f"{tuple(value.shape)} {value.dtype} #{checksum:08x}"


@contextmanager
def noted_interruption(active: bool) -> Iterator[threading.Event]:
    """Only note the first Ctrl-C in the block, so that the training can save; one after `ONE_PRESS` acts at once.

    Yields an event that is set by Ctrl-C. Python allows handlers in the main thread only; elsewhere, where SIGINT is
    ignored, and where not `active`, nothing changes.
    """
    requested, former, times = threading.Event(), signal.getsignal(signal.SIGINT), list[float]()
    active = active and threading.current_thread() is threading.main_thread() and callable(former)

    def note(number: int, frame: FrameType | None) -> None:
        times.append(time.perf_counter())
        requested.set()
        if times[-1] - times[0] > ONE_PRESS:
            former(number, frame)  # type: ignore[operator, misc]

    if active:
        signal.signal(signal.SIGINT, note)
    try:
        yield requested
    finally:
        if active:
            signal.signal(signal.SIGINT, former)
