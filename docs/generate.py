"""Pages that are derived from the package: one for every method, and the table of the README.

``python docs/generate.py`` renews the table in the README; the pages are written by every build of the docs.
"""

from __future__ import annotations

import re
from pathlib import Path

from tenfold import catalog
from tenfold.method import ROLES, TASKS, Method

README = Path(__file__).resolve().parents[1] / "README.md"
START, END = "<!-- catalog: written by docs/generate.py -->", "<!-- end of catalog -->"


def catalog_table() -> str:
    """Return the table of the README: a row a task and method."""
    rows = ["| Task | Method | Name | Family | Readiness |", "|---|---|---|---|---|"]
    for task, info in TASKS.items():
        for name in catalog.names(task):
            method = catalog.find(task, name).info
            cells = (info.title, method.title, f"`{name}`", method.family, method.readiness_for(task))
            rows.append(f"| {' | '.join(cells)} |")
    return "\n".join(rows)


def with_catalog(readme: str) -> str:
    """Return the README with its table renewed."""
    pattern = re.compile(f"{re.escape(START)}.*{re.escape(END)}", re.DOTALL)
    return pattern.sub(lambda _: f"{START}\n{catalog_table()}\n{END}", readme)


def write_method_pages(folder: Path) -> None:
    """Write ``index.md`` and one page for every method of the catalog."""
    folder.mkdir(exist_ok=True)
    for old in folder.glob("*.md"):
        old.unlink()
    classes = list(catalog.classes())
    for cls in classes:
        (folder / f"{cls.name()}.md").write_text(method_page(cls))
    names = "\n".join(cls.name() for cls in classes)
    (folder / "index.md").write_text(f"# Methods\n\n{catalog_table()}\n\n```{{toctree}}\n:hidden:\n\n{names}\n```\n")


def method_page(cls: type[Method]) -> str:
    """Return the page of a method: catalog entry, how to call it, docstring, recorded evidence."""
    info, name = cls.info, cls.name()
    facts = {
        "Name in the catalog": f"`{name}`",
        "Tasks": ", ".join(f"`{task}`" for task in info.tasks),
        "Family": f"{info.family}, {info.year}",
        "Source": f"[{info.doi}](https://doi.org/{info.doi})",
        "Readiness": ", ".join(f"{info.readiness_for(task)} (`{task}`)" for task in info.tasks),
        "Gives": ", ".join(info.gives),
        "Needs": ", ".join(f"`{role}`: the {ROLES[role]}" for role in info.needs) or "counts only",
        "Also takes": ", ".join(f"`{role}`" for role in info.accepts) or "nothing more",
        "Stochastic": "yes: results depend on the seed" if info.stochastic else "no",
    }
    lines = [f"# {info.title}", "", info.advice, "", "| | |", "|---|---|"]
    lines += [f"| {title} | {text} |" for title, text in facts.items()]
    lines += ["", "```bash", _command(cls), "```", ""]
    lines += ["```{eval-rst}", f".. autoclass:: {cls.__module__}.{_signature(cls)}", "   :members:", "```", ""]
    return "\n".join([*lines, "## Evidence", "", evidence_table(name), ""])


def _signature(cls: type[Method]) -> str:
    """Return the class with its hyper-parameters and their defaults."""
    defaults = ", ".join(f"{name}={value!r}" for name, value in cls().parameters.items())
    return f"{cls.__name__}({defaults})"


def _command(cls: type[Method]) -> str:
    roles = "".join(f" --{role.replace('_', '-')} KEY" for role in cls.info.needs)
    return f"tenfold run {cls.info.tasks[0]} {cls.name()} cells.h5ad -o result.h5ad{roles}"


def evidence_table(name: str) -> str:
    """Return what `evidence/results` holds on a method, or that it holds nothing."""
    records = catalog.evidence(name)
    if not records:
        return "None is recorded yet: agreement with a reference implementation has not been shown."
    rows = ["| Kind | Claim | Data | Metric | tenfold | Reference | Passed |", "|---|---|---|---|---|---|---|"]
    for record in records:
        reference = f"{_figure(record.get('reference_value'))} ({record.get('reference') or 'none'})"
        cells = [record["kind"], record.get("claim", ""), record.get("dataset", ""), record.get("metric", ""),
                 _figure(record.get("value")), reference, "yes" if record["passed"] else "**no**"]  # fmt: skip
        rows.append("| " + " | ".join(str(cell).replace("|", "\\|").replace("\n", " ") for cell in cells) + " |")
    return "\n".join(rows)


def _figure(value: object) -> str:
    return f"{value:.4g}" if isinstance(value, float) else "–" if value is None else str(value)


if __name__ == "__main__":
    README.write_text(with_catalog(README.read_text()))
