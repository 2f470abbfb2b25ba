"""Writing the files of a comparison whole or not at all."""

from __future__ import annotations

import json
import math
import os
from pathlib import Path
from typing import Any

import numpy as np


def write_json(path: Path, value: Any) -> None:
    """Write JSON atomically; numbers that JSON cannot hold (NaN, infinity) become null."""
    _replace(path, json.dumps(_plain(value), indent=1, allow_nan=False).encode())


def write_text(path: Path, text: str) -> None:
    """Write text atomically."""
    _replace(path, text.encode())


def write_tensors(path: Path, tensors: dict[str, np.ndarray]) -> None:
    """Write arrays as safetensors, atomically."""
    from safetensors.numpy import save

    _replace(path, save({name: np.ascontiguousarray(array) for name, array in tensors.items()}))


def _replace(path: Path, content: bytes) -> None:
    fresh = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        fresh.write_bytes(content)
        os.replace(fresh, path)
    finally:
        fresh.unlink(missing_ok=True)


def _plain(value: Any) -> Any:
    if isinstance(value, dict):
        return {str(key): _plain(entry) for key, entry in value.items()}
    if isinstance(value, (list, tuple)):
        return [_plain(entry) for entry in value]
    if isinstance(value, np.ndarray):
        return _plain(value.tolist())
    if isinstance(value, np.generic):
        return _plain(value.item())
    if isinstance(value, float) and not math.isfinite(value):
        return None
    return value
