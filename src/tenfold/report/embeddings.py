"""Layouts and colours of the cells drawn, packed as base64 arrays for the page's script."""

from __future__ import annotations

import base64
from pathlib import Path
from typing import Any

import numpy as np

from tenfold.plot.colours import PALETTE
from tenfold.report.stored import Comparison, Run, listing, mapping

MISSING = 65535  # code of a cell without a value; a column of more levels cannot be told apart by colour anyway


def payload(comparison: Comparison) -> dict[str, Any]:
    """What the page's script needs to draw the cells; empty where nothing can be drawn.

    Parameters
    ----------
    comparison
        What :func:`tenfold.report.stored.read` returns. Sentences on what cannot be drawn are added to its `problems`.

    Returns
    -------
    dict
        ``methods``: name, title, seed and ``xy`` (base64 of float32, x and y in turn) of each method with a layout;
        ``colours``: kind (batch, labels), key, names, and ``codes`` (base64 of uint16) of each column; ``palette``;
        ``n``, the number of cells drawn; ``missing``, the code of a cell without a value; ``pair``, places of the
        two methods to show first: the baseline (the first that was asked for) and the best other one.
        All cells are in one shuffled order, so that no batch is drawn over the others.
    """
    cells = _arrays(comparison.directory / "cells.safetensors", ("shown", "batch", "labels"), comparison.problems)
    drawn = {}
    for method in comparison.methods:
        for run in comparison.runs_of(method):
            layout = _layout(run, comparison.problems) if run.ok else None
            if layout is not None:
                drawn[method] = (run, layout)
                break
    if not drawn:
        return {}
    n = len(cells["shown"]) if "shown" in cells else len(next(iter(drawn.values()))[1])
    for run, layout in list(drawn.values()):
        if len(layout) != n:
            comparison.problems.append(f"The layout of {run.title} has {len(layout)} cells, not {n}; it is not drawn.")
            del drawn[run.method]
    if not drawn:
        return {}
    order = np.random.default_rng(0).permutation(n)
    methods = [
        {"name": method, "title": run.title, "seed": run.seed, "xy": _base64(layout[order].astype("<f4"))}
        for method, (run, layout) in drawn.items()
    ]
    colours = _colours(comparison, cells, order)
    pair = _pair(list(drawn), comparison.meta)
    return {"methods": methods, "colours": colours, "palette": PALETTE, "n": n, "missing": MISSING, "pair": pair}


def _pair(drawn: list[str], meta: dict[str, Any]) -> list[int]:
    """Places of the first method and of the best of the others: before and after."""
    ranking = [mapping(entry).get("method") for entry in listing(meta.get("ranking"))]
    order = [mapping(meta.get("recommendation")).get("method"), *ranking, *drawn]
    others = [name for name in order if name in drawn[1:]]
    return [0, drawn.index(others[0])] if others else [0]


def _layout(run: Run, problems: list[str]) -> np.ndarray | None:
    if run.arrays is None:
        return None
    layout = _arrays(run.arrays, ("layout",), problems).get("layout")
    return layout if layout is not None and layout.ndim == 2 and layout.shape[1] == 2 else None


def _arrays(path: Path, names: tuple[str, ...], problems: list[str]) -> dict[str, np.ndarray]:
    """Read only the named arrays: a run's full embedding can be large and is not drawn."""
    from safetensors import SafetensorError, safe_open

    if not path.exists():
        return {}
    try:
        with safe_open(path, framework="numpy") as file:
            return {name: file.get_tensor(name) for name in names if name in file.keys()}  # noqa: SIM118
    except (OSError, SafetensorError) as error:
        problems.append(f"{path.name} cannot be read ({error}).")
        return {}


def _colours(comparison: Comparison, cells: dict[str, np.ndarray], order: np.ndarray) -> list[dict[str, Any]]:
    """Codes of the cells drawn for batch and labels, as far as both codes and names are stored."""
    colours = []
    for kind in ("batch", "labels"):
        about = mapping(comparison.meta.get(kind))
        if kind not in cells or "shown" not in cells:
            continue
        shown = cells["shown"][order]
        if len(cells[kind]) <= shown.max(initial=-1):
            comparison.problems.append(f"cells.safetensors has fewer codes for the {kind} than cells drawn.")
            continue
        codes = cells[kind][shown].astype(np.int64)
        names = [str(name) for name in listing(about.get("names"))]
        names += [f"level {code}" for code in range(len(names), int(codes.max(initial=-1)) + 1)]
        codes = np.where((codes < 0) | (codes >= MISSING), MISSING, codes)
        key = str(about.get("key") or kind)
        colours.append({"kind": kind, "key": key, "names": names, "codes": _base64(codes.astype("<u2"))})
    return colours


def _base64(values: np.ndarray) -> str:
    return base64.b64encode(np.ascontiguousarray(values).tobytes()).decode("ascii")
