"""RNA velocity: where the expression of each cell is heading, from spliced and unspliced counts."""

from importlib import import_module
from typing import Any

from tenfold.catalog import lazy_classes

_load, _names = lazy_classes(__name__)
_OTHERS = {"Consensus": "tenfold.velocity._consensus", "consensus": "tenfold.velocity._consensus"}


def __getattr__(name: str) -> Any:
    return getattr(import_module(_OTHERS[name]), name) if name in _OTHERS else _load(name)


def __dir__() -> list[str]:
    return sorted([*_names(), *_OTHERS])
