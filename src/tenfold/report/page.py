"""Build the HTML page of a comparison: one file, no network, every text from the user escaped."""

from __future__ import annotations

import base64
import hashlib
import os
import tempfile
from itertools import groupby
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tenfold.report import details, provenance, stored, summary
from tenfold.report.format import flat, integer, spread, value

if TYPE_CHECKING:
    from jinja2 import Environment

_ASSETS = Path(__file__).parent / "assets"
_TASKS = {
    "embed": "Embedding of cells",
    "domains": "Spatial domains",
    "annotate": "Cell-type annotation",
    "integrate": "Integration of batches",
    "denoise": "Denoising",
    "generate": "Generation of cells",
    "deconvolve": "Deconvolution",
    "communicate": "Cell-cell communication",
    "map": "Mapping of cells onto tissue",
    "multiome": "Multi-omics",
    "velocity": "RNA velocity",
}
# Verdict of the assessment -> chip and plain words. An unknown verdict is shown as it stands.
_ASSESSMENT = {
    "integrate": ("pass", "Yes: there is a batch effect to correct"),
    "not advised": ("info", "No: integration is not advised"),
    "confounded": ("fail", "Careful: batch and biology are confounded"),
    "can be judged on new batches": ("pass", "Yes: on batches that were left out"),
    "optimistic numbers only": ("warn", "No: without batches, all numbers are optimistic"),
    "spatial structure": ("pass", "Yes: expression varies smoothly over the tissue"),
    "no spatial structure": ("fail", "No: positions and expression have nothing to do with each other"),
    "evidence of velocity": ("pass", "Yes: more than permuted counts show"),
    "no evidence of velocity": ("fail", "No: permuted counts look the same"),
    "not run": ("not run", "Not assessed"),
}
#: What the assessment answers.
_ASKED = {
    "integrate": "Should I integrate at all?",
    "annotate": "Can these data say what to expect of new samples?",
    "domains": "Does expression depend on where cells lie?",
    "velocity": "Is there evidence of velocity?",
}


def build(directory: str | Path) -> Path:
    """Write ``report.html`` of a finished or interrupted comparison.

    The page holds everything it needs (styles, scripts, Plotly, data), opens without a network, and forbids itself to
    load anything. The file is written under another name first and then renamed, so no half page is ever seen.

    Parameters
    ----------
    directory
        Folder written by ``tenfold compare``: ``compare.json``, ``scores.csv``, ``runs/`` and ``cells.safetensors``.
        Pieces may be missing; the page then says so.

    Returns
    -------
    Path
        The file written, ``directory/report.html``.

    Raises
    ------
    tenfold.errors.FileFormatError
        The folder holds no comparison.
    """
    comparison = stored.read(directory)
    target = comparison.directory / "report.html"
    handle, name = tempfile.mkstemp(dir=comparison.directory, prefix=".report-", suffix=".html")
    try:
        # Line ends must stay as hashed: the security policy names scripts by the digest of their exact text.
        with os.fdopen(handle, "w", encoding="utf-8", newline="\n") as file:
            file.write(_render(comparison))
        os.chmod(name, 0o644)
        os.replace(name, target)
    except BaseException:
        Path(name).unlink(missing_ok=True)
        raise
    return target


def _render(comparison: stored.Comparison) -> str:
    from markupsafe import Markup

    from tenfold.report import embeddings, maps

    cells, drawn = embeddings.payload(comparison), maps.payload(comparison)
    scripts = [_asset("table.js")]
    if cells:
        from plotly.offline import get_plotlyjs

        scripts += [get_plotlyjs().replace("\r\n", "\n"), _asset("embeddings.js")]
    if drawn:
        scripts.append(_asset("maps.js"))
    if any("</script" in script.lower() for script in scripts):
        raise RuntimeError("A script of the report would end early: it contains a closing script tag.")
    page = _environment().get_template("report.html.j2")
    return page.render(
        **_context(comparison),
        cells=cells,
        maps=drawn,
        style=Markup(_asset("report.css")),
        scripts=[Markup(script) for script in scripts],
        policy=_policy(scripts),
    )


def _context(comparison: stored.Comparison) -> dict[str, Any]:
    """Everything the template shows besides the embeddings."""
    meta = comparison.meta
    described = stored.mapping(meta.get("metrics"))
    columns = summary.columns(comparison.scores, described)
    rows = summary.rows(comparison, columns)
    assessment = stored.mapping(meta.get("assessment"))
    verdict = str(assessment.get("verdict") or "not run")
    controls = {row.method: details.controls(row.runs) for row in rows}
    return {
        "comparison": comparison,
        "meta": meta,
        "task": _TASKS.get(comparison.task, comparison.task),
        "data": stored.mapping(meta.get("data")),
        "levels": {kind: stored.mapping(meta.get(kind)) for kind in ("batch", "labels")},
        "recommendation": stored.mapping(meta.get("recommendation")),
        "assessment": assessment,
        "asked": _ASKED.get(comparison.task, "Is it needed at all?"),
        "assessed": _ASSESSMENT.get(verdict, ("info", verdict)),
        "columns": columns,
        "groups": [
            (*about, len(list(members))) for about, members in groupby(columns, lambda c: (c.section, c.question))
        ],
        "rows": rows,
        "strips": {column.metric: _strip(rows, column) for column in columns},
        "best": {column.metric: summary.best(rows, column) for column in columns},
        "breakdowns": {
            row.method: {
                kind: details.breakdown(comparison.scores, row.method, kind, stored.mapping(meta.get(level)), described)
                for kind, level in (("label", "labels"), ("batch", "batch"))
            }
            for row in rows
        },
        "controls": controls,
        "control_names": _control_names(controls),
        "provenance": provenance,
        "tally": details.tally,
    }


def _control_names(controls: dict[str, list[details.Control]]) -> list[details.Control]:
    """Each control once, for the headings of the overview."""
    found: dict[str, details.Control] = {}
    for own in controls.values():
        for control in own:
            known = found.setdefault(control.name, control)
            if control.rule and not known.rule:
                found[control.name] = control
    return list(found.values())


def _strip(rows: list[summary.Row], column: summary.Column) -> tuple[float, float] | None:
    """Ends of a column's dot strips: the metric's own range, or what was seen where it has no bounds."""
    seen = [number for row in rows for number in row.cells[column.metric].values.values()]
    if not seen or max(len(row.cells[column.metric].values) for row in rows) < 2:
        return None
    low = min(seen) if column.low is None else min(column.low, *seen)
    high = max(seen) if column.high is None else max(column.high, *seen)
    return (low, high) if high > low else None


def _environment() -> Environment:
    from jinja2 import Environment, FileSystemLoader

    environment = Environment(
        loader=FileSystemLoader(_ASSETS),
        autoescape=True,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters.update(value=value, integer=integer, spread=spread, flat=flat)
    return environment


def _asset(name: str) -> str:
    return (_ASSETS / name).read_text(encoding="utf-8")


def _policy(scripts: list[str]) -> str:
    """Content security policy: nothing is loaded, and no script runs but those named by their digest."""
    digests = (base64.b64encode(hashlib.sha256(script.encode()).digest()).decode() for script in scripts)
    allowed = " ".join(f"'sha256-{digest}'" for digest in digests)
    # Plotly's WebGL layer compiles its draw calls at run time, hence unsafe-eval.
    return (
        f"default-src 'none'; script-src {allowed} 'unsafe-eval'; style-src 'unsafe-inline'; "
        "img-src data: blob:; base-uri 'none'; form-action 'none'"
    )
