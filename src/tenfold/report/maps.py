"""Maps of spatial domains, packed for the page's script: positions once, and a colour for each cell and method."""

from __future__ import annotations

import math
from typing import Any

import numpy as np

from tenfold.plot.colours import PALETTE
from tenfold.report.embeddings import MISSING, base64_of, read_arrays
from tenfold.report.stored import Comparison, listing, mapping

#: Room between slices, as a share of the largest.
MARGIN = 0.06


def payload(comparison: Comparison) -> dict[str, Any]:
    """What the page's script needs to draw maps; empty where no run has domains, or positions are not stored.

    Parameters
    ----------
    comparison
        What :func:`tenfold.report.stored.read` returns. Sentences on what cannot be drawn are added to its `problems`.

    Returns
    -------
    dict
        ``xy`` (base64 of float32, x and y in turn), slices side by side; ``width`` and ``height`` of all of it, and
        ``spacing``, a length about that between cells; ``sections``, with name, x and y of the title of each, where
        there are several; ``maps``: title, seed, ``plain`` and ``refined`` (base64 of uint16) and ``said``, a caption
        for each of the two; ``names`` of the codes, ``palette``, ``missing``, ``n``, and whether it is ``annotated``
        and ``voted``.
    """
    kinds = ("shown", "positions", "labels", "sample")
    cells = read_arrays(comparison.directory / "cells.safetensors", kinds, comparison.problems)
    if "positions" not in cells or "shown" not in cells:
        return {}
    shown = cells["shown"]
    found = _domains(comparison, len(shown))
    if not found:
        return {}
    names, annotation = _annotation(comparison, cells)
    entries: list[dict[str, Any]] = []
    if annotation is not None:
        told = f"{len(names)} layers"
        entries.append({"title": "Annotation", "plain": annotation, "said": {"plain": told, "refined": told}})
    reference = annotation if annotation is not None else found[0][1]["domains"].astype(np.int64)
    for run, own in found:
        coded = {way: _matched(own[name].astype(np.int64), reference)
                 for way, name in (("plain", "domains"), ("refined", "refined")) if name in own}  # fmt: skip
        said = {way: _said(comparison, run, codes, way) for way, codes in coded.items()}
        entries.append({"title": run.title, "seed": run.seed, **coded, "said": said})
    highest = max(int(entry["plain"].max(initial=-1)) for entry in entries)
    further = "further domain" if annotation is not None else "domain"
    names += [f"{further} {number}" for number in range(1, highest + 2 - len(names))]
    where, sections = _side_by_side(comparison, cells)
    for entry in entries:
        for way in {"plain", "refined"} & set(entry):
            entry[way] = base64_of(np.where(entry[way] < 0, MISSING, entry[way]).astype("<u2"))
    width, height = np.ptp(where, axis=0) if len(where) else (1.0, 1.0)
    return {
        "xy": base64_of(where.astype("<f4")), "width": float(width), "height": float(height),
        "spacing": _spacing(where), "sections": sections, "maps": entries, "names": names, "palette": PALETTE,
        "missing": MISSING, "n": len(shown), "annotated": annotation is not None,
        "voted": any("refined" in entry for entry in entries),
    }  # fmt: skip


def _domains(comparison: Comparison, n_cells: int) -> list[tuple[Any, dict[str, np.ndarray]]]:
    """Return the first run of each method that has domains, with them."""
    found = []
    for method in comparison.methods:
        for run in comparison.runs_of(method):
            if not run.ok or run.arrays is None:
                continue
            own = read_arrays(run.arrays, ("domains", "refined"), comparison.problems)
            if "domains" in own and all(codes.shape == (n_cells,) for codes in own.values()):
                found.append((run, own))
                break
    return found


def _annotation(comparison: Comparison, cells: dict[str, np.ndarray]) -> tuple[list[str], np.ndarray | None]:
    """Return names of annotated layers and the layer of each cell drawn, -1 for none."""
    from tenfold.domains._trial import UNANNOTATED

    if "labels" not in cells:
        return [], None
    codes = cells["labels"][cells["shown"]].astype(np.int64)
    stored = [str(name) for name in listing(mapping(comparison.meta.get("labels")).get("names"))]
    stored += [f"level {code}" for code in range(len(stored), int(codes.max(initial=-1)) + 1)]
    kept = [code for code, name in enumerate(stored) if name.lower() not in UNANNOTATED]
    if len(kept) < 2:
        return [], None
    place = np.full(len(stored) + 1, -1)
    place[kept] = np.arange(len(kept))
    return [stored[code] for code in kept], place[codes]


def _matched(domains: np.ndarray, reference: np.ndarray) -> np.ndarray:
    """Renumber domains like the levels of a reference with which they share most cells, each level once.

    Domains that are left over take numbers after those of the reference.
    """
    from scipy.optimize import linear_sum_assignment

    both = (domains >= 0) & (reference >= 0)
    n_domains, n_levels = int(domains.max(initial=-1)) + 1, int(reference.max(initial=-1)) + 1
    shared = np.zeros((n_domains, n_levels))
    np.add.at(shared, (domains[both], reference[both]), 1)
    place = np.full(n_domains + 1, -1)
    rows, columns = linear_sum_assignment(shared, maximize=True)
    place[rows] = columns
    left = [code for code in range(n_domains) if place[code] < 0]
    place[left] = n_levels + np.arange(len(left))
    return place[domains]


def _said(comparison: Comparison, run: Any, codes: np.ndarray, way: str) -> str:
    """Return the caption of a map: how many domains, and their agreement with the layers where it is known."""
    metric = "ari" if way == "plain" else "ari_refined"
    value = next(
        (score.value for score in comparison.scores
         if (score.method, score.seed, score.metric) == (run.method, run.seed, metric) and ":" not in score.group),
        None,
    )  # fmt: skip
    number = f"{len(np.unique(codes[codes >= 0]))} domains"
    return number if value is None else f"{number}, ARI {value:.2f}"


def _side_by_side(comparison: Comparison, cells: dict[str, np.ndarray]) -> tuple[np.ndarray, list[dict[str, Any]]]:
    """Return positions with slices in rows that make a square, and where the name of each stands."""
    where = cells["positions"][cells["shown"]].astype(np.float64)
    where = where - where.min(axis=0)
    if "sample" not in cells:
        return where, []
    codes = cells["sample"][cells["shown"]]
    names = [str(name) for name in listing(mapping(comparison.meta.get("sample")).get("names"))]
    slices = [code for code in np.unique(codes) if code >= 0]
    if len(slices) < 2:
        return where, []
    extents = [np.ptp(where[codes == code], axis=0) for code in slices]
    width, height = np.max(extents, axis=0)
    room = MARGIN * max(width, height)
    columns = math.ceil(math.sqrt(len(slices) * max(height, 1e-9) / max(width, 1e-9)))
    sections = []
    for place, code in enumerate(slices):
        own = codes == code
        # A row of names above each row of slices.
        corner = np.array([place % columns * (width + room), place // columns * (height + 2.5 * room) + 1.5 * room])
        where[own] += corner - where[own].min(axis=0)
        name = names[code] if code < len(names) else f"slice {code}"
        sections.append({"name": name, "x": float(corner[0]), "y": float(corner[1] - 0.4 * room)})
    return where, sections


def _spacing(where: np.ndarray) -> float:
    """Return the median distance of a cell to the nearest, or what is left where cells share their places."""
    from scipy.spatial import cKDTree

    if len(where) < 2:
        return 1.0
    nearest = cKDTree(where).query(where, k=2)[0][:, 1]
    apart = nearest[nearest > 0]
    return float(np.median(apart)) if len(apart) else 1.0
