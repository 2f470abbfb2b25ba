"""README, docs and continuous integration say what is true of the package."""

from __future__ import annotations

import re
import shlex
import sys
import tomllib
from pathlib import Path

import pytest
from typer.main import get_command

from tenfold.cli import app

ROOT = Path(__file__).resolve().parents[1]
README = (ROOT / "README.md").read_text()
PAGES = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *sorted((ROOT / "docs").glob("*.md"))]
SETUP = "python3 -m venv .venv && .venv/bin/pip install"


def blocks(text: str, language: str) -> list[str]:
    return re.findall(rf"^```{language}\n(.*?)^```", text, flags=re.DOTALL | re.MULTILINE)


def command_lines() -> list[str]:
    lines = [line for page in PAGES for block in blocks(page.read_text(), "bash") for line in block.splitlines()]
    return sorted({line.strip() for line in lines if line.strip().startswith("tenfold ")})


def test_ci_runs_the_commands_of_the_readme():
    commands = [line for block in blocks(README, "bash") for line in block.splitlines() if line.startswith(SETUP)]
    assert len(commands) == 2
    ran = (ROOT / ".ci" / "run").read_text().splitlines()
    assert all(f"{command} || exit 1" in ran for command in commands)
    assert ran[-1].startswith(commands[1])
    assert "set -euo pipefail" in ran


@pytest.mark.parametrize("line", command_lines())
def test_commands_in_the_docs_are_understood(line):
    name, *words = shlex.split(line)[1:]
    get_command(app).commands[name].make_context(name, words)


def test_links_lead_somewhere():
    for page in PAGES:
        for target in re.findall(r"\]\(([^)#:]+)\)", page.read_text()):
            assert (page.parent / target).exists(), f"{page.name} links to {target}"


def test_table_of_the_readme_is_the_catalog(monkeypatch):
    monkeypatch.syspath_prepend(ROOT / "docs")
    generate = pytest.importorskip("generate")
    assert generate.with_catalog(README) == README, "run python docs/generate.py"
    assert "`harmony`" in README


def test_python_of_the_readme_runs(tmp_path, monkeypatch):
    from tenfold.data import pbmc

    adata = pbmc(planted_batch=True)
    adata.obs = adata.obs.rename(columns={"batch": "donor"})
    adata.write_h5ad(tmp_path / "cells.h5ad")
    monkeypatch.chdir(tmp_path)
    names: dict = {}
    exec(blocks(README, "python")[0], names)
    assert names["adata"].obsm["X_harmony"].shape == names["harmony"].embed().shape


def test_constraints_pin_everything_that_is_installed():
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    lines = [line for line in (ROOT / "constraints.txt").read_text().splitlines() if not line.startswith("#")]
    assert all(re.fullmatch(r"[A-Za-z0-9._-]+==[0-9][\w.]*", line) for line in lines)
    pinned = {plain(line.partition("==")[0]) for line in lines}
    wanted = [*project["dependencies"], *project["optional-dependencies"]["test"]]
    assert {plain(re.match(r"[\w.-]+", entry)[0]) for entry in wanted} <= pinned
    assert "torch==2.13.0" in lines


def plain(package: str) -> str:
    return re.sub(r"[-_.]+", "-", package).lower()


def test_changelog_has_this_version():
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    assert f"## {project['version']} " in (ROOT / "CHANGELOG.md").read_text()
    assert sys.version_info >= tuple(int(part) for part in re.findall(r"\d+", project["requires-python"]))
