"""Data: reading and writing, checked inputs, preprocessing, graphs, simulation. Everything loads on first use.

``tf.data.read(path)`` reads any of the formats, ``tf.data.write(adata, path)`` writes results, ``tf.data.pbmc()`` is a
real data set that needs no download, ``tf.data.simulate()`` makes cells whose truth is known.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

from tenfold.errors import closest

if TYPE_CHECKING:
    from tenfold.data import splits, stress
    from tenfold.data.backed import results
    from tenfold.data.bundled import pbmc
    from tenfold.data.genes import rename_genes
    from tenfold.data.reading import read, read_mudata
    from tenfold.data.simulation import plant_batch, simulate
    from tenfold.data.velocity_simulation import simulate_branching, simulate_splicing
    from tenfold.data.writing import write

_FUNCTIONS = {
    "pbmc": "bundled",
    "plant_batch": "simulation",
    "read": "reading",
    "read_mudata": "reading",
    "rename_genes": "genes",
    "results": "backed",
    "simulate": "simulation",
    "simulate_branching": "velocity_simulation",
    "simulate_splicing": "velocity_simulation",
    "write": "writing",
}

_MODULES = ("splits", "stress")

__all__ = [
    "pbmc", "plant_batch", "read", "read_mudata", "rename_genes", "results", "simulate", "simulate_branching",
    "simulate_splicing", "splits", "stress", "write",
]  # fmt: skip


def __getattr__(name: str) -> Any:
    if name in _FUNCTIONS:
        return getattr(importlib.import_module(f"tenfold.data.{_FUNCTIONS[name]}"), name)
    if name in _MODULES:
        return importlib.import_module(f"tenfold.data.{name}")
    raise AttributeError(f"module 'tenfold.data' has no attribute '{name}'{closest(name, __all__)}")


def __dir__() -> list[str]:
    return __all__
