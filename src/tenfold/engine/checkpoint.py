"""Training state on disk: one file, replaced at once or not at all, and the signals that ask for it."""

from __future__ import annotations

import hashlib
import json
import os
import signal
import threading
import time
import zlib
from pathlib import Path
from types import FrameType
from typing import Any

import numpy as np
import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from scipy import sparse
from torch.nn import Module

from tenfold import __version__
from tenfold.errors import FileFormatError, ParameterError

#: Least time between two checkpoints, and the largest share of the time that writing them may take.
SECONDS = 30.0
SHARE = 0.02


class Checkpoint:
    """The checkpoint file of one training: tensors as safetensors, all else as JSON in the header of the same file.

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
        """Replace the stored state; a process killed meanwhile leaves the former one whole."""
        started = time.perf_counter()
        tensors: dict[str, torch.Tensor] = {}
        header = json.dumps({"fingerprint": self.fingerprint, "state": _pack(state, "", tensors)})
        self.path.parent.mkdir(parents=True, exist_ok=True)
        fresh = self.path.with_suffix(".tmp")  # always the same name: what a killed process left is overwritten
        try:
            save_file(tensors, fresh, metadata={"training": header})
            with open(fresh, "rb") as file:
                os.fsync(file.fileno())
            os.replace(fresh, self.path)
        finally:
            fresh.unlink(missing_ok=True)
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
        try:
            with safe_open(self.path, framework="pt") as file:
                header = json.loads(file.metadata()["training"])
                stored = header["fingerprint"]
                tensors = {name: file.get_tensor(name) for name in file.keys()} if stored == self.fingerprint else None
        except (OSError, ValueError, KeyError, TypeError, SafetensorError) as error:
            raise FileFormatError(
                f"The checkpoint '{self.path}' is damaged ({error}). Delete it to train from the start."
            ) from error
        if tensors is None:
            raise ParameterError(
                f"The checkpoint '{self.path}' belongs to another training: {'; '.join(self._differences(stored))}. "
                "Give another checkpoint folder, or delete that file to train from the start."
            )
        return _unpack(header["state"], tensors)

    def _differences(self, stored: dict[str, Any]) -> list[str]:
        names = [key for key in {**stored, **self.fingerprint} if stored.get(key) != self.fingerprint.get(key)]
        return [f"{key} was {stored.get(key)}, is now {self.fingerprint.get(key)}" for key in names]


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


def _pack(value: Any, path: str, tensors: dict[str, torch.Tensor]) -> Any:
    """Return `value` as JSON, its tensors and arrays moved to `tensors`."""
    if isinstance(value, torch.Tensor):
        # A copy of its own: safetensors refuses tensors that share memory, as tied weights do.
        tensors[path] = value.detach().to("cpu", copy=True).contiguous()
        return {"tensor": path}
    if isinstance(value, np.ndarray):
        tensors[path] = torch.from_numpy(value.astype(np.int64) if value.dtype.kind == "u" else value.copy())
        return {"array": path, "dtype": str(value.dtype)}
    if isinstance(value, dict):
        # As pairs, since the keys of an optimiser's state are integers.
        return {"dict": [[key, _pack(entry, f"{path}/{key}", tensors)] for key, entry in value.items()]}
    if isinstance(value, (list, tuple)):
        entries = [_pack(entry, f"{path}/{i}", tensors) for i, entry in enumerate(value)]
        return {"tuple": entries} if isinstance(value, tuple) else entries
    if isinstance(value, np.generic):
        return value.item()
    if value is None or isinstance(value, (bool, int, float, str)):
        return value
    raise ParameterError(f"A checkpoint cannot hold {path.strip('/')}, a {type(value).__name__}.")


def _unpack(value: Any, tensors: dict[str, torch.Tensor]) -> Any:
    if isinstance(value, list):
        return [_unpack(entry, tensors) for entry in value]
    if not isinstance(value, dict):
        return value
    if "tensor" in value:
        return tensors[value["tensor"]]
    if "array" in value:
        return tensors[value["array"]].numpy().astype(value["dtype"])
    if "tuple" in value:
        return tuple(_unpack(entry, tensors) for entry in value["tuple"])
    return {key: _unpack(entry, tensors) for key, entry in value["dict"]}
