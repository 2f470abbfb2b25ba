"""tenfold: methods for single-cell and spatial transcriptomics behind one interface, judged on your own data.

Nothing heavy is imported here: torch, Scanpy and the methods load on first use.
"""

from __future__ import annotations

import importlib
import sys
import types
from importlib.metadata import PackageNotFoundError, version
from typing import TYPE_CHECKING, Any

from tenfold import errors

if TYPE_CHECKING:
    from tenfold import annotate, data, denoise, domains, embed, generate, integrate, metrics, plot, velocity
    from tenfold.catalog import load, method, methods, run
    from tenfold.compare import compare

try:
    __version__ = version("tenfold")
except PackageNotFoundError:  # a source tree on the path that was never installed
    __version__ = "0+unknown"

_FUNCTIONS = {
    "compare": "tenfold.compare",
    "load": "tenfold.catalog",
    "method": "tenfold.catalog",
    "methods": "tenfold.catalog",
    "run": "tenfold.catalog",
}
_MODULES = ("annotate", "data", "denoise", "domains", "embed", "generate", "integrate", "metrics", "plot", "velocity")

__all__ = [  # noqa: RUF022  (verbs first)
    "methods", "method", "run", "compare", "load",
    "annotate", "data", "denoise", "domains", "embed", "generate", "integrate", "metrics", "plot", "velocity", "errors",
]  # fmt: skip


def __getattr__(name: str) -> Any:
    if name in _FUNCTIONS:
        return getattr(importlib.import_module(_FUNCTIONS[name]), name)
    if name in _MODULES:
        return importlib.import_module(f"tenfold.{name}")
    raise AttributeError(f"module 'tenfold' has no attribute '{name}'{errors.closest(name, __all__)}")


def __dir__() -> list[str]:
    return sorted([*__all__, "__version__"])


class _Package(types.ModuleType):
    """Keeps ``tf.method`` and ``tf.compare`` the functions, although files of the same names exist.

    Importing ``tenfold.method`` makes Python set that attribute of this package to the module; that one assignment
    is ignored. ``from tenfold.method import Method`` is not affected.
    """

    def __setattr__(self, name: str, value: object) -> None:
        if not (name in _FUNCTIONS and isinstance(value, types.ModuleType)):
            super().__setattr__(name, value)


sys.modules[__name__].__class__ = _Package
