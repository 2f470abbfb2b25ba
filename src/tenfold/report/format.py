"""Numbers as people read them; the same on the page and in the terminal."""

from __future__ import annotations

import json

DASH = "–"


def value(number: float | None, metric: str = "") -> str:
    """Write a score or a cost with the digits that matter; an en dash for None.

    Parameters
    ----------
    number
        The value.
    metric
        Its metric; times and memory get fewer digits than scores.
    """
    if number is None:
        return DASH
    if metric in ("seconds", "peak_memory_mb"):
        return f"{number:,.1f}" if abs(number) < 100 else f"{number:,.0f}"
    if number and not 1e-3 <= abs(number) < 1e4:
        return f"{number:.2e}"
    return f"{number:.3f}" if abs(number) < 100 else f"{number:.1f}"


def spread(deviation: float, metric: str = "") -> str:
    """Write the standard deviation of a score; one that would read as zero is given as a bound."""
    if metric in ("seconds", "peak_memory_mb"):
        return value(deviation, metric)
    return "<0.001" if 0 < deviation < 5e-4 else f"{deviation:.3f}" if deviation < 100 else f"{deviation:.1f}"


def integer(number: object) -> str:
    """Write a count with thousands separated; an en dash where it is none."""
    try:
        return f"{int(number):,}"  # type: ignore[call-overload]
    except (TypeError, ValueError):
        return DASH


def seconds(number: float | None) -> str:
    """Write a duration in the unit that suits it."""
    if number is None:
        return DASH
    if number < 120:
        return f"{number:.1f} s"
    return f"{number / 60:.1f} min" if number < 7200 else f"{number / 3600:.1f} h"


def flat(thing: object) -> str:
    """Write a parameter, a number of a control or another stored value on one line."""
    if isinstance(thing, bool) or thing is None:
        return {True: "yes", False: "no", None: DASH}[thing]
    if isinstance(thing, float):
        return f"{thing:.4g}"
    if isinstance(thing, dict):
        return ", ".join(f"{key}: {flat(entry)}" for key, entry in thing.items())
    if isinstance(thing, (list, tuple)):
        return ", ".join(flat(entry) for entry in thing)
    return thing if isinstance(thing, str) else json.dumps(thing)
