"""Annotation: labels of cell types, learnt from labelled cells or from markers, with a confidence to rely on."""

from typing import Any

from tenfold.catalog import lazy_classes

_load, _names = lazy_classes(__name__)
_CONFIDENCE = ("Conformal", "conformalize")


def __getattr__(name: str) -> Any:
    if name in _CONFIDENCE:
        from tenfold.annotate import _conformalize

        return getattr(_conformalize, name)
    return _load(name)


def __dir__() -> list[str]:
    return sorted([*_names(), *_CONFIDENCE])
