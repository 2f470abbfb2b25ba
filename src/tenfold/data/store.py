"""Saving fitted state: numbers as safetensors, the rest as JSON, a whole folder at once or not at all."""

from __future__ import annotations

import json
import os
import shutil
import tempfile
from pathlib import Path
from typing import Any

import numpy as np
from scipy import sparse

from tenfold.errors import FileFormatError

HEAD = "method.json"
TENSORS = "state.safetensors"


def write_folder(folder: Path, head: dict[str, Any], state: dict[str, Any]) -> Path:
    """Write `head` and `state` as a new `folder`; an earlier one of ours is replaced in one step.

    Parameters
    ----------
    folder
        Where to save.
    head
        JSON values that identify the model.
    state
        Nested dicts and lists whose leaves are JSON values, NumPy arrays or SciPy sparse matrices.

    Raises
    ------
    FileFormatError
        If `folder` exists and is not a saved tenfold model.
    """
    from safetensors.numpy import save_file

    if folder.exists() and not (folder / HEAD).is_file() and (not folder.is_dir() or any(folder.iterdir())):
        raise FileFormatError(f"'{folder}' exists and is not a saved tenfold model; choose another folder.")
    folder.parent.mkdir(parents=True, exist_ok=True)
    tensors: dict[str, np.ndarray] = {}
    tree = _flatten(state, "", tensors)
    fresh = Path(tempfile.mkdtemp(prefix=f".{folder.name}-", dir=folder.parent))
    try:
        save_file(tensors, fresh / TENSORS)
        (fresh / HEAD).write_text(json.dumps({**head, "state": tree}, indent=1))
        if folder.exists():
            old = Path(tempfile.mkdtemp(prefix=f".{folder.name}-old-", dir=folder.parent))
            os.replace(folder, old / "model")
            os.replace(fresh, folder)
            shutil.rmtree(old)
        else:
            os.replace(fresh, folder)
    finally:
        shutil.rmtree(fresh, ignore_errors=True)
    folder.chmod(0o755)
    return folder


def read_folder(folder: Path) -> tuple[dict[str, Any], dict[str, Any]]:
    """Read back what `write_folder` wrote.

    Returns
    -------
    head, state
        As given to `write_folder`.

    Raises
    ------
    FileFormatError
        If the folder is missing, damaged or not a saved tenfold model.
    """
    from safetensors import SafetensorError
    from safetensors.numpy import load_file

    if not (folder / HEAD).is_file():
        raise FileFormatError(f"'{folder}' is not a saved tenfold model (it has no {HEAD}).")
    try:
        head = json.loads((folder / HEAD).read_text())
        tensors = load_file(folder / TENSORS)
        return head, _rebuild(head.pop("state"), tensors)
    except (OSError, ValueError, KeyError, SafetensorError) as error:
        raise FileFormatError(f"The saved model in '{folder}' is damaged ({error}); save it again.") from error


def _flatten(value: Any, path: str, tensors: dict[str, np.ndarray]) -> Any:
    if isinstance(value, np.ndarray):
        if value.dtype.kind in "OUST":
            return {"__strings__": [str(entry) for entry in value]}
        tensors[path] = np.ascontiguousarray(value)
        return {"__array__": path}
    if sparse.issparse(value):
        matrix = value.tocsr()
        parts = {part: _flatten(getattr(matrix, part), f"{path}.{part}", tensors)
                 for part in ("data", "indices", "indptr")}  # fmt: skip
        return {"__csr__": parts, "shape": list(matrix.shape)}
    if isinstance(value, dict):
        return {str(key): _flatten(entry, f"{path}/{key}", tensors) for key, entry in value.items()}
    if isinstance(value, (list, tuple)):
        return [_flatten(entry, f"{path}/{i}", tensors) for i, entry in enumerate(value)]
    if isinstance(value, np.generic):
        return value.item()
    return value


def _rebuild(value: Any, tensors: dict[str, np.ndarray]) -> Any:
    if isinstance(value, dict):
        if "__array__" in value:
            return tensors[value["__array__"]]
        if "__strings__" in value:
            return np.array(value["__strings__"], dtype=object)
        if "__csr__" in value:
            parts = _rebuild(value["__csr__"], tensors)
            return sparse.csr_matrix((parts["data"], parts["indices"], parts["indptr"]), shape=tuple(value["shape"]))
        return {key: _rebuild(entry, tensors) for key, entry in value.items()}
    if isinstance(value, list):
        return [_rebuild(entry, tensors) for entry in value]
    return value
