"""Nested state on disk: arrays as safetensors, the rest as JSON in the header of the same file, never pickled."""

from __future__ import annotations

import json
import math
import os
from contextlib import suppress
from pathlib import Path
from typing import Any

import numpy as np
from scipy import sparse

from tenfold.errors import FileFormatError, ResourceError

STATE = "state.safetensors"
#: For people to read; the same is in the header of the state, which alone is loaded.
HEAD = "method.json"


def write_folder(folder: Path, head: dict[str, Any], state: dict[str, Any]) -> Path:
    """Save a model as `folder`. An earlier one of ours is replaced at once or not at all; other files are left alone.

    Parameters
    ----------
    folder
        Made if missing.
    head
        JSON values that identify the model.
    state
        As for `write_file`.

    Raises
    ------
    FileFormatError
        If `folder` holds something else than a saved model, or `state` something that cannot be saved.
    """
    if folder.exists() and not folder.is_dir():
        raise FileFormatError(f"'{folder}' is a file; choose another folder.")
    files = {path.name for path in folder.iterdir()} if folder.exists() else set()
    if files and not files & {STATE, _unfinished(Path(STATE)).name}:
        raise FileFormatError(f"'{folder}' exists and is not a saved tenfold model; choose another folder.")
    write_file(folder / STATE, head, state)
    (folder / HEAD).write_text(json.dumps(head, indent=1))
    return folder


def read_folder(folder: Path) -> tuple[dict[str, Any], dict[str, Any]]:
    """Return the head and state that `write_folder` wrote.

    Raises
    ------
    FileFormatError
        If the folder is missing, damaged or not a saved tenfold model.
    """
    if not (folder / STATE).is_file():
        raise FileFormatError(f"'{folder}' is not a saved tenfold model (it has no {STATE}).")
    return read_file(folder / STATE, "Save the model again.")


def write_file(path: Path, head: dict[str, Any], state: dict[str, Any]) -> None:
    """Replace `path` at once: a process killed meanwhile leaves the former file whole.

    Parameters
    ----------
    path
        Its folder is made if missing.
    head
        JSON values.
    state
        Nested dicts, lists and tuples of JSON values, NumPy arrays, tensors and SciPy sparse matrices.

    Raises
    ------
    FileFormatError
        If `state` holds anything else.
    ResourceError
        If the file cannot be written; nothing is left of it then.
    """
    from safetensors.numpy import save

    arrays: dict[str, np.ndarray] = {}
    header = {"head": json.dumps(head), "state": json.dumps(_pack(state, "", arrays), allow_nan=False)}
    content = save(arrays, metadata=header)  # its save_file would leave files of random names when killed
    fresh = _unfinished(path)
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with open(fresh, "wb") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        os.replace(fresh, path)
    except OSError as error:
        raise ResourceError(
            f"'{path}' cannot be written ({error}). Free space there, or choose another folder."
        ) from error
    finally:
        with suppress(OSError):
            fresh.unlink()


def read_file(path: Path, advice: str) -> tuple[dict[str, Any], dict[str, Any]]:
    """Return the head and state that `write_file` wrote.

    Raises
    ------
    FileFormatError
        If the file is damaged; the message ends with `advice`.
    """
    from safetensors import SafetensorError, safe_open

    try:
        with safe_open(path, framework="np") as file:
            header = file.metadata() or {}
            arrays = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118  (not a dict)
        return json.loads(header["head"]), _unpack(json.loads(header["state"]), arrays)
    except (OSError, ValueError, KeyError, TypeError, SafetensorError) as error:
        raise FileFormatError(f"'{path}' is damaged ({type(error).__name__}: {error}). {advice}") from error


def _unfinished(path: Path) -> Path:
    """Return the name under which `path` is written; always the same, so that the next write clears a killed one's."""
    return path.with_suffix(".tmp")


def _pack(value: Any, path: str, arrays: dict[str, np.ndarray]) -> Any:
    """Return `value` as strict JSON: arrays move to `arrays`, and what JSON lacks becomes a dict with a marked key."""
    if isinstance(value, np.generic):
        value = value.item()
    if value is None or isinstance(value, (bool, int, str)):
        return value
    if isinstance(value, float):
        return value if math.isfinite(value) else {"__float__": str(value)}
    if isinstance(value, np.ndarray):
        if value.dtype.kind in "OUT":
            return {"__strings__": [str(entry) for entry in value]}
        arrays[path] = np.asarray(value, order="C")
        return {"__array__": path}
    if hasattr(value, "state_dict") or hasattr(value, "detach"):
        return _pack_torch(value, path, arrays)
    if sparse.issparse(value):
        csr = value.tocsr()
        return {"__csr__": _pack([csr.data, csr.indices, csr.indptr, list(csr.shape)], path, arrays)}
    if isinstance(value, dict):
        if all(isinstance(key, str) and not key.startswith("__") for key in value):
            return {key: _pack(entry, f"{path}/{key}", arrays) for key, entry in value.items()}
        return {"__pairs__": [[key, _pack(entry, f"{path}/{key}", arrays)] for key, entry in value.items()]}
    if isinstance(value, (list, tuple)):
        entries = [_pack(entry, f"{path}/{i}", arrays) for i, entry in enumerate(value)]
        return entries if isinstance(value, list) else {"__tuple__": entries}
    raise FileFormatError(f"'{path.strip('/')}' is a {type(value).__name__}, which cannot be saved.")


def _pack_torch(value: Any, path: str, arrays: dict[str, np.ndarray]) -> Any:
    if hasattr(value, "state_dict"):
        return _pack(dict(value.state_dict()), path, arrays)
    arrays[path] = value.detach().cpu().numpy()
    return {"__tensor__": path}


def _unpack(value: Any, arrays: dict[str, np.ndarray]) -> Any:
    if isinstance(value, list):
        return [_unpack(entry, arrays) for entry in value]
    if not isinstance(value, dict):
        return value
    kind: str
    content: Any
    kind, content = next(iter(value.items()), ("", None))
    if kind == "__float__":
        return float(content)
    if kind == "__strings__":
        return np.array(content, dtype=object)
    if kind == "__array__":
        return arrays[content]
    if kind == "__tensor__":
        import torch

        return torch.from_numpy(arrays[content])
    if kind == "__csr__":
        *parts, shape = _unpack(content, arrays)
        return sparse.csr_matrix(tuple(parts), shape=shape)
    if kind == "__pairs__":
        return {key: _unpack(entry, arrays) for key, entry in content}
    if kind == "__tuple__":
        return tuple(_unpack(content, arrays))
    return {key: _unpack(entry, arrays) for key, entry in value.items()}
