"""Annotation: labels of cell types, learnt from labelled cells or from markers, with a confidence to rely on."""

from importlib import import_module
from typing import Any

from tenfold.catalog import lazy_classes

_load, _names = lazy_classes(__name__)
_OTHERS = {
    "Conformal": "tenfold.annotate._conformalize",
    "conformalize": "tenfold.annotate._conformalize",
    "read_obo": "tenfold.annotators.ontology",
}


def __getattr__(name: str) -> Any:
    return getattr(import_module(_OTHERS[name]), name) if name in _OTHERS else _load(name)


def __dir__() -> list[str]:
    return sorted([*_names(), *_OTHERS])
