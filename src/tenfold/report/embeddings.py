"""Layouts and colours of the cells drawn, packed as base64 arrays for the page's script."""

from __future__ import annotations

import base64
from pathlib import Path
from typing import Any

import numpy as np

from tenfold.errors import DataError
from tenfold.plot.colours import PALETTE
from tenfold.plot.field import averaged, streamlines
from tenfold.report.stored import Comparison, Run, listing, mapping

HEAD = 0.02  # length of an arrow head, as a share of the layout's extent
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
        ``streams``, lines along its velocities (likewise, a NaN after each), where it has arrows. Arrows on permuted
        counts are an entry of their own, with ``of``, the place of the method whose layout it shares, for ``xy``.
        ``colours``: kind (batch, labels), key, names, and ``codes`` (base64 of uint16) of each column; ``palette``;
        ``n``, the number of cells drawn; ``missing``, the code of a cell without a value; ``pair``, places of the
        two methods to show first: the baseline (the first that was asked for) and the best other one, or of velocities
        the best method and what it makes of permuted counts. All cells are in one shuffled order, so that no batch is
        drawn over the others.
    """
    kinds = ("shown", "batch", "labels")
    cells = read_arrays(comparison.directory / "cells.safetensors", kinds, comparison.problems)
    drawn = {}
    for method in comparison.methods:
        for run in comparison.runs_of(method):
            found = _pictures(run, comparison.problems) if run.ok else {}
            if found:
                drawn[method] = (run, found)
                break
    if not drawn:
        return {}
    n = len(cells["shown"]) if "shown" in cells else len(next(iter(drawn.values()))[1]["layout"])
    for run, found in list(drawn.values()):
        if len(found["layout"]) != n:
            comparison.problems.append(
                f"The layout of {run.title} has {len(found['layout'])} cells, not {n}; it is not drawn."
            )
            del drawn[run.method]
    if not drawn:
        return {}
    order = np.random.default_rng(0).permutation(n)
    methods = [
        {"name": method, "title": run.title, "seed": run.seed, "xy": base64_of(found["layout"][order].astype("<f4"))}
        | _streams(found, "arrows")
        for method, (run, found) in drawn.items()
    ]
    nulls: list[dict[str, Any]] = []
    with_nulls = []
    for place, (method, (run, found)) in enumerate(drawn.items()):
        if lines := _streams(found, "null_arrows"):
            with_nulls.append(place)
            title = f"{run.title}, permuted counts"
            nulls.append({"name": f"{method}-null", "title": title, "seed": run.seed, "of": place, **lines})
    pair = _pair([run for run, _ in drawn.values()], with_nulls, comparison.meta)
    colours = _colours(comparison, cells, order)
    return {
        "methods": [*methods, *nulls], "colours": colours, "palette": PALETTE, "n": n, "missing": MISSING, "pair": pair,
    }  # fmt: skip


def _pair(runs: list[Run], nulls: list[int], meta: dict[str, Any]) -> list[int]:
    """Places of the first method and of the best of the others; of velocities the best and its own null."""
    drawn = [run.method for run in runs]
    ranking = [mapping(entry).get("method") for entry in listing(meta.get("ranking"))]
    order = [name for name in [mapping(meta.get("recommendation")).get("method"), *ranking, *drawn] if name in drawn]
    # Baselines are for research only: permuting unspliced counts means nothing to those that do not look at them.
    for name in sorted(order, key=lambda name: runs[drawn.index(name)].readiness == "research"):
        if drawn.index(name) in nulls:
            return [drawn.index(name), len(drawn) + nulls.index(drawn.index(name))]
    others = [name for name in order if name != drawn[0]]
    return [0, drawn.index(others[0])] if others else [0]


def _streams(found: dict[str, np.ndarray], name: str) -> dict[str, str]:
    """Lines along the arrows, with a head in the middle of each, one after the other; nothing without arrows."""
    arrows = found.get(name)
    if arrows is None or arrows.shape != found["layout"].shape or not np.nan_to_num(arrows).any():
        return {}
    try:
        lines = streamlines(averaged(found["layout"], arrows))
    except DataError:
        return {}
    size = HEAD * float(np.ptp(found["layout"], axis=0).max())
    gap = np.full((1, 2), np.nan)
    parts = [part for line in lines for part in (line, gap, _head(line, size), gap)]
    return {"streams": base64_of(np.concatenate(parts).astype("<f4"))} if parts else {}


def _head(line: np.ndarray, size: float) -> np.ndarray:
    """Return the three points of an arrow head half way along a line."""
    steps = np.diff(line, axis=0)
    length = np.hypot(*steps.T)
    middle = int(np.searchsorted(np.cumsum(length), length.sum() / 2))
    back = -size * steps[middle] / max(length[middle], 1e-12)
    turn = np.array([[np.cos(0.5), -np.sin(0.5)], [np.sin(0.5), np.cos(0.5)]])
    tip = line[middle + 1]
    return np.stack([tip + turn @ back, tip, tip + turn.T @ back])


def _pictures(run: Run, problems: list[str]) -> dict[str, np.ndarray]:
    """Read layout and arrows of a run; nothing without a layout."""
    if run.arrays is None:
        return {}
    found = read_arrays(run.arrays, ("layout", "arrows", "null_arrows"), problems)
    layout = found.get("layout")
    return found if layout is not None and layout.ndim == 2 and layout.shape[1] == 2 else {}


def read_arrays(path: Path, names: tuple[str, ...], problems: list[str]) -> dict[str, np.ndarray]:
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
        colours.append({"kind": kind, "key": key, "names": names, "codes": base64_of(codes.astype("<u2"))})
    return colours


def base64_of(values: np.ndarray) -> str:
    """Return the bytes of an array as text, for the page."""
    return base64.b64encode(np.ascontiguousarray(values).tobytes()).decode("ascii")
