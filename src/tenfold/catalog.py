"""What exists, by task and name. Derived from the files of the task folders: no list to keep up to date."""

from __future__ import annotations

import importlib
import json
import pkgutil
from collections.abc import Callable, Iterator
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tenfold.errors import ParameterError, closest
from tenfold.method import TASKS, Method

if TYPE_CHECKING:
    import pandas as pd
    from anndata import AnnData

_RANK = ("parity", "published", "check")


@cache
def _locations() -> dict[str, str]:
    """Module of every method: the file's name is the method's name."""
    found = {}
    for task in TASKS:
        package = importlib.import_module(f"tenfold.{task}")
        for module in pkgutil.iter_modules(package.__path__):
            if not module.name.startswith("_"):
                found[module.name] = f"tenfold.{task}.{module.name}"
    return found


def _load_class(name: str) -> type[Method]:
    module = importlib.import_module(_locations()[name])
    wanted = name.replace("_", "")
    for value in vars(module).values():
        if isinstance(value, type) and issubclass(value, Method) and value.__name__.lower() == wanted:
            return value
    raise ImportError(f"{module.__name__} holds no class named like its file ('{wanted}' in any case).")


def check_task(task: str) -> str:
    """Return `task`, or raise ParameterError with the closest match."""
    if task not in TASKS:
        raise ParameterError(f"There is no task '{task}'.{closest(task, TASKS)} Tasks are: {', '.join(TASKS)}.")
    return task


def names(task: str | None = None) -> list[str]:
    """Return the names of all methods, or of those that serve `task`, sorted."""
    if task is not None:
        check_task(task)
    return sorted(name for name in _locations() if task is None or task in _load_class(name).info.tasks)


def find(task: str, name: str) -> type[Method]:
    """Return the class of a method.

    Parameters
    ----------
    task
        One of `tenfold.method.TASKS`.
    name
        Catalog name (``"harmony"``); upper case and hyphens are forgiven.

    Raises
    ------
    ParameterError
        No such task, no such method, or the method does not serve the task.
    """
    check_task(task)
    key = str(name).lower().replace("-", "_")
    if key not in _locations():
        raise ParameterError(
            f"There is no method '{name}'.{closest(name, _locations())} Methods for {task}: {', '.join(names(task))}."
        )
    cls = _load_class(key)
    if task not in cls.info.tasks:
        raise ParameterError(
            f"{cls.info.title} does not serve '{task}' but {', '.join(cls.info.tasks)}. "
            f"Methods for {task}: {', '.join(names(task))}."
        )
    return cls


def method(task: str, name: str, **params: Any) -> Method:
    """Create a method by task and name, with hyper-parameters as keywords.

    Examples
    --------
    >>> import tenfold as tf
    >>> tf.method("integrate", "harmony", n_clusters=20)  # doctest: +ELLIPSIS
    Harmony(n_clusters=20, ...)
    """
    created = find(task, name)(**params)
    created.task = task  # type: ignore[misc]
    return created


def run(
    task: str,
    name: str,
    adata: AnnData,
    *,
    params: dict[str, Any] | None = None,
    seed: int | None = None,
    progress: bool = True,
    checkpoint: str | Path | None = None,
    **roles: Any,
) -> Method:
    """Create, fit and write in one step.

    Parameters
    ----------
    task, name
        As in `method`.
    adata
        Cells × genes with raw counts; results are written into its documented slots.
    params
        Hyper-parameters.
    seed
        Seed, for methods that have one.
    progress, checkpoint
        As in `Method.fit`.
    **roles
        Data roles (``batch=``, ``labels=``, ...).

    Returns
    -------
    The fitted method.
    """
    cls = find(task, name)
    params = dict(params or {})
    if seed is not None and "seed" in cls.parameter_names():
        params["seed"] = seed
    created = method(task, name, **params)
    created.fit(adata, progress=progress, checkpoint=checkpoint, **roles)
    created.write(adata)
    return created


def load(folder: str | Path) -> Method:
    """Load a method that `Method.save` wrote. Nothing is unpickled.

    Raises
    ------
    FileFormatError
        If the folder is not a saved model, is damaged, or was written by an unknown method.
    """
    from tenfold.data.store import read_folder
    from tenfold.errors import FileFormatError

    head, state = read_folder(Path(folder))
    if head.get("method") not in _locations():
        raise FileFormatError(f"'{folder}' holds a model of '{head.get('method')}', which this tenfold does not have.")
    loaded = _load_class(head["method"])(**head["parameters"])
    if head.get("task"):
        loaded.task = head["task"]  # type: ignore[misc]
    loaded._restore(state)
    return loaded


def evidence(name: str | None = None) -> list[dict[str, Any]]:
    """Return recorded results of the evidence scripts, all or those of one method."""
    packaged = Path(__file__).parent / "_evidence"
    checkout = Path(__file__).parents[2] / "evidence" / "results"
    folder = packaged if packaged.is_dir() else checkout
    records = [record for file in sorted(folder.glob("*.json")) for record in json.loads(file.read_text())]
    return [record for record in records if name is None or record["method"] == name]


def evidence_level(name: str) -> str:
    """Return the strongest kind of evidence of which every record passed: parity, published, check or none."""
    records = evidence(name)
    kinds = {record["kind"] for record in records} - {record["kind"] for record in records if not record["passed"]}
    return next((kind for kind in _RANK if kind in kinds), "none")


def methods(task: str | None = None) -> pd.DataFrame:
    """Return the catalog, one row a method and task.

    Parameters
    ----------
    task
        Only methods that serve this task.

    Returns
    -------
    Columns task, name, title, family, year, needs, gives, readiness, doi, evidence.
    """
    import pandas as pd

    rows = []
    for name in names(task):
        info = _load_class(name).info
        for served in info.tasks:
            if task in (None, served):
                rows.append(
                    {
                        "task": served,
                        "name": name,
                        "title": info.title,
                        "family": info.family,
                        "year": info.year,
                        "needs": ", ".join(("counts", *info.needs)),
                        "gives": ", ".join(info.gives),
                        "readiness": info.readiness_for(served),
                        "doi": info.doi,
                        "evidence": evidence_level(name),
                    }
                )
    return pd.DataFrame(rows).sort_values(["task", "name"], ignore_index=True)


def lazy_classes(package: str) -> tuple[Callable[[str], type[Method]], Callable[[], list[str]]]:
    """Return ``__getattr__`` and ``__dir__`` for a task folder, so that its classes load on first use."""
    task = package.rpartition(".")[2]

    def load_class(attribute: str) -> type[Method]:
        if attribute.startswith("_"):
            raise AttributeError(attribute)
        for name in _locations():
            if name.replace("_", "") == attribute.lower():
                cls = _load_class(name)
                if cls.__name__ == attribute and task in cls.info.tasks:
                    return cls
        hint = closest(attribute, class_names())
        raise AttributeError(f"tenfold.{task} has no '{attribute}'.{hint}")

    def class_names() -> list[str]:
        return [_load_class(name).__name__ for name in names(task)]

    return load_class, class_names


def classes() -> Iterator[type[Method]]:
    """Yield every method class of the catalog, sorted by name."""
    for name in names():
        yield _load_class(name)
