"""Which tasks can be compared: those whose folder says how it is judged."""

from __future__ import annotations

import importlib
import importlib.util

from tenfold import catalog
from tenfold.errors import ParameterError
from tenfold.method import TASKS
from tenfold.task import ComparedTask


def compared_task(task: str) -> ComparedTask:
    """Return the judge of a task.

    Raises
    ------
    ParameterError
        No such task, or its methods cannot be compared yet.
    """
    catalog.check_task(task)
    if importlib.util.find_spec(f"tenfold.{task}._task") is None:
        able = [name for name in TASKS if importlib.util.find_spec(f"tenfold.{name}._task")]
        raise ParameterError(f"Methods for '{task}' cannot be compared yet; compare judges: {', '.join(able)}.")
    return importlib.import_module(f"tenfold.{task}._task").TASK
