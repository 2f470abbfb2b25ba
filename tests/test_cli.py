"""The command line, as a user meets it: outputs, exit codes, errors in words."""

from __future__ import annotations

import importlib
import json
import signal
import subprocess
import sys
from pathlib import Path

import anndata
import pytest
from typer import BadParameter
from typer.main import get_command
from typer.testing import CliRunner

from tenfold import catalog
from tenfold.cli import app
from tenfold.cli.app import in_words
from tenfold.cli.options import parsed_settings
from tenfold.data import pbmc
from tenfold.errors import KeyMissingError, ParameterError, RoleError
from tenfold.method import ROLES

COMMANDS = ("demo", "methods", "run", "compare", "report", "doctor")


def tenfold(*words: object, code: int = 0) -> str:
    """Run a command and return all that it printed; the exit code must be `code`."""
    result = CliRunner().invoke(app, [str(word) for word in words])
    assert result.exit_code == code, result.output
    assert "Traceback" not in result.output
    return " ".join(result.output.split())


@pytest.fixture(scope="module")
def cells(tmp_path_factory) -> Path:
    path = tmp_path_factory.mktemp("cells") / "cells.h5ad"
    pbmc(planted_batch=True)[::3].copy().write_h5ad(path)
    return path


# ---- help and usage ----


@pytest.mark.parametrize("command", COMMANDS)
def test_help_has_an_example(command):
    assert f"Example: tenfold {command}" in tenfold(command, "--help")


def test_help_names_every_command():
    text = tenfold("--help")
    assert all(command in text for command in COMMANDS)


def test_version():
    import tenfold as package

    assert tenfold("--version") == f"tenfold {package.__version__}"


@pytest.mark.parametrize("command", ["run", "compare"])
def test_every_data_role_is_an_option(command):
    options = {option for p in get_command(app).commands[command].params for option in p.opts}
    assert options >= {f"--{role.replace('_', '-')}" for role in ROLES}


@pytest.mark.parametrize(
    "words",
    [
        ["nonsense"],
        ["methods", "--jsn"],
        ["run", "embed", "pca"],
        ["compare", "integrate", "x", "-o", "y", "--seeds", "0"],
    ],
)
def test_wrong_usage_ends_with_2(words):
    tenfold(*words, code=2)


# ---- the catalog ----


def test_methods_as_json_is_the_catalog():
    rows = json.loads(CliRunner().invoke(app, ["methods", "--json"]).stdout)
    assert [(row["task"], row["name"]) for row in rows] == list(
        catalog.methods()[["task", "name"]].itertuples(index=False)
    )
    assert all(row["doi"].startswith("10.") for row in rows)


def test_methods_of_a_task():
    text = tenfold("methods", "integrate")
    assert "harmony" in text and "readiness" in text
    assert "There is no task 'integrat'. Did you mean 'integrate'?" in tenfold("methods", "integrat", code=1)


# ---- run ----


@pytest.mark.parametrize("name", ["out.h5ad", "out.zarr"])
def test_run_writes_the_results_and_never_over_a_file(cells, tmp_path, name):
    out = tmp_path / "new folder" / name
    words = ["run", "embed", "pca", cells, "-o", out, "--set", "n_components=5", "--set", "n_top_genes=None"]
    text = tenfold(*words)
    assert 'obsm["X_pca"]' in text and 'obs["pca"]' in text
    written = anndata.read_h5ad(out) if name.endswith("h5ad") else anndata.read_zarr(out)
    assert written.obsm["X_pca"].shape == (written.n_obs, 5)
    assert json.loads(written.uns["tenfold"]["pca"]["parameters"])["n_top_genes"] is None
    assert "exists" in tenfold(*words, code=1)
    tenfold(*words, "--overwrite", "--set", "n_components=4")
    assert [path.name for path in out.parent.iterdir()] == [name]


def test_run_takes_roles_and_key_added(cells, tmp_path):
    out = tmp_path / "out.h5ad"
    tenfold("run", "integrate", "harmony", cells, "-o", out, "--batch", "batch", "--key-added", "mine", "--seed", 3)
    written = anndata.read_h5ad(out)
    assert "X_mine" in written.obsm and written.uns["tenfold"]["mine"]["seed"] == 3


def test_run_generates_cells(cells, tmp_path):
    out = tmp_path / "new.h5ad"
    words = ["run", "generate", "scvi", cells, "-o", out, "--set", "epochs=2"]
    assert "40 synthetic cells" in tenfold(*words, "--n-cells", 40)
    made = anndata.read_h5ad(out)
    assert made.n_obs == 40 and made.obs["synthetic"].all()
    assert made.uns["tenfold"]["scvi"]["task"] == "generate"
    tenfold("run", "embed", "pca", cells, "-o", tmp_path / "x.h5ad", "--n-cells", 40, code=2)


@pytest.mark.parametrize(
    ("words", "told"),
    [
        (["embed", "pcaa", "{cells}", "-o", "{out}"], "There is no method 'pcaa'. Did you mean 'pca'?"),
        (["embed", "pca", "{cells}", "-o", "{out}", "--set", "n_component=3"], "Did you mean 'n_components'?"),
        (["embed", "pca", "{cells}", "-o", "{out}", "--set", "n_components=few"], "expected a whole number"),
        (["embed", "pca", "{cells}", "-o", "out.csv"], "should end in .h5ad or .zarr"),
        (["embed", "pca", "no-such-file.h5ad", "-o", "{out}"], "no-such-file.h5ad"),
        (["embed", "pca", "{cells}", "-o", "{out}", "--batch", "donr"], "--batch donr: obs has no such column"),
        (["integrate", "harmony", "{cells}", "-o", "{out}"], "Harmony needs --batch:"),
        (["embed", "pca", "{cells}", "-o", "{out}", "--spatial", "x"], "Leave --spatial out"),
    ],
)
def test_errors_are_sentences_and_nothing_is_written(cells, tmp_path, words, told):
    out = tmp_path / "out.h5ad"
    assert told in tenfold("run", *(word.format(cells=cells, out=out) for word in words), code=1)
    assert list(tmp_path.iterdir()) == []


def test_debug_shows_where_an_error_comes_from():
    result = CliRunner().invoke(app, ["methods", "integrat", "--debug"])
    assert isinstance(result.exception, ParameterError)


def test_a_fault_of_tenfold_is_said_to_be_one(monkeypatch):
    monkeypatch.setattr(catalog, "methods", lambda task: 1 / 0)
    assert "This is a fault in tenfold" in tenfold("methods", code=1)


def test_ctrl_c_says_what_is_left_and_how_to_go_on(cells, tmp_path, monkeypatch):
    def stop(*_, **__):
        raise KeyboardInterrupt

    monkeypatch.setattr("sys.argv", ["tenfold", "compare", "integrate", str(cells), "--overwrite"])
    monkeypatch.setattr(importlib.import_module("tenfold.compare"), "compare", stop)
    text = tenfold("compare", "integrate", cells, "-o", tmp_path / "trial", "--batch", "batch", code=130)
    assert text.endswith(f"go on with: tenfold compare integrate {cells} --resume")
    monkeypatch.setattr(catalog, "run", stop)
    out = tmp_path / "out.h5ad"
    assert "nothing was written" in tenfold("run", "embed", "pca", cells, "-o", out, code=130)
    assert not out.exists()


@pytest.mark.parametrize("kind", ["SIGINT", "SIGTERM"])
def test_a_signal_ends_the_program_with_a_sentence(tmp_path, kind):
    program = "import sys; sys.argv = ['tenfold', 'demo']; from tenfold.cli import main; main()"
    demo = subprocess.Popen([sys.executable, "-c", program], cwd=tmp_path, text=True, stdout=-1, stderr=-1)
    assert demo.stdout.readline().startswith("Real cells")
    demo.send_signal(getattr(signal, kind))
    _, told = demo.communicate(timeout=60)
    assert demo.returncode == 130, told
    assert "go on with: tenfold demo" in told and "Traceback" not in told


def test_values_of_set():
    given = ["a=1", "b=0.5", "c=true", "d=[128, 64]", "e=nb", "f=None", "n-latent = 3", "g=a=b", 'h={"x": 1}']
    wanted = {
        "a": 1,
        "b": 0.5,
        "c": True,
        "d": [128, 64],
        "e": "nb",
        "f": None,
        "n_latent": 3,
        "g": "a=b",
        "h": {"x": 1},
    }
    assert parsed_settings(given) == wanted
    for wrong in ("n_latent", "=3"):
        with pytest.raises(BadParameter, match="name=value"):
            parsed_settings([wrong])


def test_roles_in_errors_look_like_options():
    assert in_words(RoleError("Harmony needs batch=...: the column.")) == "Harmony needs --batch: the column."
    assert in_words(KeyMissingError("use_rep='X_pca' is missing")) == "--use-rep X_pca is missing"
    assert in_words(RoleError("Leave spatial= out.")) == "Leave --spatial out."
    assert in_words(KeyMissingError("Name one with modality=.")) == "Name one with --modality."


# ---- compare, report, demo, doctor ----


def test_compare_and_report(cells, tmp_path):
    out = tmp_path / "trial"
    words = ["compare", "integrate", cells, "-o", out, "--batch", "batch", "--labels", "cell_type"]
    text = tenfold(*words, "--methods", "pca", "--seeds", 1, "--no-controls")
    assert "PCA" in text and "scores.csv" in text
    assert (out / "scores.csv").read_text().startswith("task,method,seed,group,metric,value")
    (out / "report.html").unlink()
    tenfold("report", out)
    assert (out / "report.html").stat().st_size > 10_000
    assert "--resume" in tenfold(*words, code=1)
    assert "does not hold a comparison" in tenfold("report", tmp_path, code=1)


def test_demo_says_what_is_planted_and_what_comes_out(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    text = tenfold("demo", "--methods", "pca")
    assert "The batch effect is planted" in text
    assert (tmp_path / "tenfold-demo" / "report.html").exists() and "report.html" in text
    started = (tmp_path / "tenfold-demo" / "runs" / "pca-0.json").stat().st_mtime
    tenfold("demo", "--methods", "pca")
    assert (tmp_path / "tenfold-demo" / "runs" / "pca-0.json").stat().st_mtime == started


def test_doctor_finds_nothing_missing():
    text = tenfold("doctor")
    assert "All is well" in text and "700 cells" in text and "optional: docs" in text


def test_labels_from_a_reference_file(cells, tmp_path):
    known = anndata.read_h5ad(cells)
    new = known[::2].copy()
    new.obs = new.obs.drop(columns="cell_type")
    new.write_h5ad(tmp_path / "new.h5ad")
    out = tmp_path / "labelled.h5ad"
    text = tenfold("run", "annotate", "svm", tmp_path / "new.h5ad", "-o", out,
                   "--reference", cells, "--labels", "cell_type", "--set", "probability=margin")  # fmt: skip
    assert 'obs["svm_label"]' in text
    assert (anndata.read_h5ad(out).obs["svm_label"] == known[::2].obs["cell_type"]).mean() > 0.8
