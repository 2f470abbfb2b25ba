"""How a comparison came about: parameters, versions, warnings, citations, and the command that repeats it."""

from __future__ import annotations

import re
import shlex
from typing import Any
from urllib.parse import quote

from tenfold.report.stored import Comparison, Run, listing, mapping

_DOI = re.compile(r"^(?:https?://(?:dx\.)?doi\.org/|doi:\s*)?(10\.\d{4,9}/\S+)$", re.IGNORECASE)


def doi_link(text: str) -> str:
    """Address of a DOI at doi.org, or an empty string where `text` is no DOI (so that no other address gets in)."""
    match = _DOI.match(text.strip())
    return f"https://doi.org/{quote(match[1], safe='/()._-;:')}" if match else ""


def citations(comparison: Comparison) -> list[dict[str, str]]:
    """Title, DOI and its address of each method compared, each once."""
    found = {}
    for run in comparison.runs:
        if run.doi:
            found[run.title, run.doi] = {"title": run.title, "doi": run.doi, "link": doi_link(run.doi)}
    return list(found.values())


def parameters(comparison: Comparison) -> list[dict[str, Any]]:
    """Hyper-parameters of each method, from its first run that stored any; the seed is listed apart."""
    tables = []
    for method in comparison.methods:
        own = comparison.runs_of(method)
        run = next((run for run in own if run.parameters), own[0])
        values = {name: value for name, value in run.parameters.items() if name != "seed"}
        seeds = [entry.seed for entry in own if entry.seed]
        tables.append({"title": run.title, "readiness": run.readiness, "seeds": seeds, "values": values})
    return tables


def versions(comparison: Comparison) -> dict[str, str]:
    """Versions of tenfold and of the packages used; a run that used another version is named beside it."""
    found = {str(name): str(version) for name, version in mapping(comparison.meta.get("versions")).items()}
    if comparison.meta.get("tenfold"):
        found = {"tenfold": str(comparison.meta["tenfold"])} | found
    for run in comparison.runs:
        for name, version in run.versions.items():
            known = found.setdefault(str(name), str(version))
            if str(version) not in known:
                found[str(name)] = f"{known}; {version} in {run.title}, seed {run.seed}"
    return found


def machine(comparison: Comparison) -> dict[str, Any]:
    """What the comparison ran on, named as people name it."""
    names = {"memory_gb": "memory (GiB)", "python": "Python"}
    found = mapping(comparison.meta.get("machine"))
    return {names.get(name, str(name).replace("_", " ")): value for name, value in found.items()}


def warnings(comparison: Comparison) -> list[tuple[str, str]]:
    """Each warning once, with whose it is: the comparison's own, then those of the runs."""
    found: dict[str, list[Run]] = {}
    for run in comparison.runs:
        for warning in run.warnings:
            found.setdefault(warning, []).append(run)
    own = [("", str(warning)) for warning in [*listing(comparison.meta.get("warnings")), *comparison.problems]]
    return own + [(", ".join(dict.fromkeys(run.title for run in runs)), warning) for warning, runs in found.items()]


def command(comparison: Comparison) -> str:
    """The command line that repeats the comparison, as far as its files tell."""
    meta = comparison.meta
    name = str(mapping(meta.get("data")).get("name") or "DATA")
    # A name of several words is what the report calls the data (the demo's, an AnnData in memory), not a file.
    words = ["tenfold", "compare", comparison.task, "DATA" if " " in name else name, "-o", "DIR"]
    words += ["--methods", ",".join(comparison.methods)]
    for role, value in _roles(meta).items():
        for name in value if isinstance(value, list) else [value]:
            words += [f"--{role.replace('_', '-')}", str(name)]
    seeds = listing(meta.get("seeds"))
    words += ["--seeds", str(len(seeds))] if seeds else []
    return " ".join(shlex.quote(word) for word in words)


def call(comparison: Comparison) -> str:
    """The Python call that repeats the comparison on an AnnData object."""
    roles = "".join(f", {role}={value!r}" for role, value in _roles(comparison.meta).items() if role.isidentifier())
    seeds = listing(comparison.meta.get("seeds"))
    last = f", seeds={len(seeds) if seeds == list(range(len(seeds))) else seeds}" if seeds else ""
    return f'tf.compare({comparison.task!r}, adata, methods={comparison.methods!r}{roles}{last}, out="DIR")'


def _roles(meta: dict[str, Any]) -> dict[str, Any]:
    """Data roles that were given by name (a role whose value is an object cannot be written on a command line)."""
    return {str(role): value for role, value in mapping(meta.get("roles")).items() if isinstance(value, (str, list))}
