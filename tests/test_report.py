"""The report and the terminal table of a comparison: what they say, what they survive, what they let in."""

from __future__ import annotations

import base64
import itertools
import json
import os
import re

import numpy as np
import pytest
from rich.console import Console

from comparison_folder import NASTY, Folder, frame_of
from tenfold import report
from tenfold.errors import FileFormatError
from tenfold.report import details, embeddings, format, maps, page, provenance, stored, summary

LATE = {"late": ("timeout", "The run passed its time limit of 60 s."), "scvi-1": ("out of memory", "It needed more.")}


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    made = Folder(methods=("pca", "harmony", "combat", "scvi", "late"), seeds=3, failures=LATE, sees_labels=("combat",))
    return made.write(tmp_path_factory.mktemp("report") / "trial")


@pytest.fixture(scope="module")
def html(folder):
    return report.build(folder).read_text(encoding="utf-8")


def visible(html: str) -> str:
    """Return the page without its scripts and styles."""
    return re.sub(r"<(script|style).*?</\1>", "", html, flags=re.DOTALL)


def printed(source, width: int = 100) -> str:
    console = Console(width=width, record=True, file=open(os.devnull, "w"))  # noqa: SIM115
    console.print(report.terminal_table(source))
    return console.export_text()


def test_the_page_answers_in_order(html):
    parts = [
        "What should I run, and why?", "Should I integrate at all?", "Each control is an experiment",
        'id="score-table"', "What the columns mean", 'id="plot-0"', "<h3>Parameters</h3>", "Please cite",
        "Repeat it</h3>",
    ]  # fmt: skip
    places = [visible(html).index(part) for part in parts]
    assert places == sorted(places)


def test_the_page_says_what_was_stored(folder, html):
    summary_ = json.loads((folder / "compare.json").read_text())
    text = visible(html)
    assert summary_["recommendation"]["sentence"] in text
    for reason in summary_["recommendation"]["reasons"]:
        assert reason in text
    mean = frame_of(folder).query("method == 'harmony' and metric == 'recovered_neighbors'")["value"].mean()
    assert f'<span class="mean">{mean:.3f}</span>' in text or f'<span class="mean best">{mean:.3f}</span>' in text
    assert "The run passed its time limit of 60 s." in text and text.count("time limit of 60 s.") <= 2
    assert "1 of 3 seeds failed" in text and "sees labels" in text
    assert "--methods pca,harmony,combat,scvi,late --batch donor --labels cell_type --seeds 3" in text


def test_criticism_stands_below_every_criticised_column(folder, html):
    comparison = stored.read(folder)
    columns = summary.columns(comparison.scores, comparison.meta["metrics"])
    foot = html[html.index("<tfoot>") : html.index("</tfoot>")]
    cells = re.findall(r"<td>(.*?)</td>", foot, flags=re.DOTALL)
    assert len(cells) == len(columns)
    for cell, column in zip(cells, columns, strict=True):
        assert bool(cell.strip()) == bool(column.warning)


def test_nothing_is_loaded_from_elsewhere(html):
    assert "default-src 'none'" in html.replace("&#39;", "'")
    assert not re.search(r"<(link|img|iframe|object|embed)\b|<script[^>]+src=|@import|url\(", visible(html))
    assert len(html) < 8e6


def test_the_policy_names_exactly_the_scripts_of_the_page(html):
    scripts = re.findall(r"<script>(.*?)</script>", html, flags=re.DOTALL)
    assert len(scripts) == 3 and page._policy(scripts) in html.replace("&#39;", "'")


def test_hostile_names_stay_text(tmp_path):
    made = Folder(batches=NASTY[:2], labels=NASTY, name=NASTY[1], failures={"scvi": ("crash", NASTY[1])})
    html = report.build(made.write(tmp_path / "t")).read_text(encoding="utf-8")
    assert "<img src=x" not in html and "<script>window.pwned" not in html and "<b>bold</b>" not in html
    assert "{{ 7 * 7 }}" in html and "細胞" in html


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"labels": None}, "none given"),
        ({"methods": ("pca",), "seeds": 1}, "comparison of 1 method"),
        ({"missing": ("cells.safetensors",)}, 'id="plot-0"'),
        ({"missing": ("compare.json",)}, "compare.json is missing"),
        ({"missing": ("scores.csv",)}, 'id="score-table"'),
        ({"missing": ("runs/pca-0.json", "runs/harmony-0.safetensors")}, "No result is stored."),
        (
            {"failures": dict.fromkeys(("pca", "harmony", "combat", "scvi"), ("crash", "Boom."))},
            "nothing can be recommended",
        ),
        ({"batches": ["only one"]}, "only one"),
        ({"labels": [f"type {i}" for i in range(120)]}, "Colours repeat after 40 levels"),
        ({"verdict": "not advised"}, "No: integration is not advised"),
        ({"verdict": "confounded"}, "confounded"),
    ],
    ids=lambda value: next(iter(value)) if isinstance(value, dict) else "",
)
def test_odd_folders_still_give_a_page(tmp_path, change, words):
    made = Folder(**change).write(tmp_path / "t")
    assert words in visible(report.build(made).read_text(encoding="utf-8"))
    assert printed(made)


def test_damaged_files_are_named_on_the_page(tmp_path):
    made = Folder().write(tmp_path / "t")
    (made / "runs" / "pca-0.json").write_text('{"method": ')
    (made / "runs" / "harmony-0.safetensors").write_bytes(b"nonsense")
    (made / "cells.safetensors").write_bytes(b"")
    text = visible(report.build(made).read_text(encoding="utf-8"))
    for name in ("pca-0.json", "harmony-0.safetensors", "cells.safetensors"):
        assert f"{name} cannot be read" in text, name


def test_values_that_are_no_numbers_become_dashes(tmp_path):
    made = Folder(methods=("pca", "harmony"), seeds=1).write(tmp_path / "t")
    scores = frame_of(made)
    scores.loc[scores["metric"] == "clisi", "value"] = np.nan
    scores.loc[scores["metric"] == "kbet", "value"] = np.inf
    scores.to_csv(made / "scores.csv", index=False)
    text = visible(report.build(made).read_text(encoding="utf-8"))
    assert "nan" not in re.findall(r'data-value="(\w*)', text) and ">inf<" not in text and "Not computed" in text


def test_a_folder_without_a_comparison_is_an_error_that_helps(tmp_path):
    for source in (tmp_path, tmp_path / "nowhere"):
        with pytest.raises(FileFormatError, match="tenfold compare"):
            report.build(source)
    assert not list(tmp_path.iterdir())


def test_a_page_that_cannot_be_written_leaves_the_old_one(tmp_path, monkeypatch):
    made = Folder(methods=("pca",), seeds=1).write(tmp_path / "t")
    before = report.build(made).read_bytes()
    names = sorted(path.name for path in made.iterdir())

    def broken(comparison):
        raise RuntimeError("no")

    monkeypatch.setattr(page, "_render", broken)
    with pytest.raises(RuntimeError):
        report.build(made)
    assert (made / "report.html").read_bytes() == before
    assert sorted(path.name for path in made.iterdir()) == names


def test_the_best_method_is_shown_beside_the_baseline(folder):
    comparison = stored.read(folder)
    cells = embeddings.payload(comparison)
    names = [method["name"] for method in cells["methods"]]
    first, second = cells["pair"]
    assert names[first] == "pca" and names[second] == comparison.meta["recommendation"]["method"]
    assert "late" not in names


def test_layouts_of_another_length_are_left_out(tmp_path):
    from tenfold.compare.files import write_tensors

    made = Folder(methods=("pca", "harmony"), seeds=1).write(tmp_path / "t")
    write_tensors(made / "runs" / "harmony-0.safetensors", {"layout": np.zeros((3, 2), dtype=np.float32)})
    comparison = stored.read(made)
    assert [method["name"] for method in embeddings.payload(comparison)["methods"]] == ["pca"]
    assert "3 cells, not 400" in " ".join(comparison.problems)


def test_worst_part_first_whatever_the_scale():
    def score(part, metric, value):
        return stored.Score("m", "0", f"label:{part}", metric, value)

    described = {"a": {"good": "high"}, "b": {"good": "low"}}
    scores = [score("bad", "a", 0.1), score("good", "a", 0.9), score("bad", "b", 900.0), score("good", "b", 2.0)]
    found = details.breakdown(scores, "m", "label", {"names": ["good", "bad"], "sizes": [5, 7]}, described)
    assert [(part.name, part.size) for part in found.parts] == [("bad", 7), ("good", 5)]


def test_a_control_counts_by_its_worst_seed():
    def run(seed, verdict):
        return stored.Run(
            "m", seed, "M", controls=[{"name": "c", "title": "C", "verdict": verdict, "sentence": verdict}]
        )

    found = details.controls([run("0", "pass"), run("1", "fail"), run("2", "warn")])
    assert [(c.verdict, c.seed, c.sentence) for c in found] == [("fail", "1", "fail")]
    assert found[0].verdicts == {"0": "pass", "1": "fail", "2": "warn"} and details.tally(found) == {"fail": 1}


def test_only_dois_become_links():
    assert provenance.doi_link("10.1038/s41592-019-0619-0").startswith("https://doi.org/10.1038/")
    assert provenance.doi_link("doi: 10.1/x") == provenance.doi_link("javascript:alert(1)") == ""


def test_numbers_read_as_people_write_them():
    assert format.value(None) == "–" and format.value(0.12345) == "0.123" and format.value(2.0, "seconds") == "2.0"
    assert format.spread(2e-5) == "<0.001" and format.spread(0.0) == "0.000" and format.spread(0.03) == "0.030"
    assert format.seconds(59) == "59.0 s" and format.seconds(600) == "10.0 min" and format.integer(12345) == "12,345"


# ---- terminal --------------------------------------------------------------------------------------------------------


def test_the_table_fits_a_hundred_characters(folder):
    text = printed(folder)
    assert max(map(len, text.splitlines())) <= 100
    rows = [line for line in text.splitlines() if re.match(r"\s+(\d|L\d|–)\s", line)]
    assert len(rows) == 5 and "…" not in text, "a row a method, nothing cut"
    assert re.search(r"0\.\d{3} ±\.\d{3}", rows[0]) and "MB" in rows[0]
    assert any(line.split()[:2] == ["L1", "ComBat"] for line in rows)
    assert "late: timeout. The run passed its time limit of 60 s." in text
    assert "scVI, seed 1: out of memory. It needed more." in text


def test_the_table_takes_scores_alone_and_markup_as_text(tmp_path):
    scores = frame_of(Folder(seeds=1).write(tmp_path / "t"))
    scores["method"] = scores["method"].replace({"harmony": "[red]x[/]"})
    text = printed(scores)
    assert "[red]x[/]" in text and "pca" in text


# ---- colours ---------------------------------------------------------------------------------------------------------

_VISION = {
    "normal": np.eye(3),
    "protanopia": [[0.152286, 1.052583, -0.204868], [0.114503, 0.786281, 0.099216], [-0.003882, -0.048116, 1.051998]],
    "deuteranopia": [[0.367322, 0.860646, -0.227968], [0.280085, 0.672501, 0.047413], [-0.01182, 0.04294, 0.968881]],
}


def _lab(colours: list[str], vision: str) -> np.ndarray:
    """Return CIELAB coordinates (D65) of sRGB colours as seen with a vision (Machado et al. 2009)."""
    encoded = np.array([[int(colour[i : i + 2], 16) / 255 for i in (1, 3, 5)] for colour in colours])
    linear = np.where(encoded <= 0.04045, encoded / 12.92, ((encoded + 0.055) / 1.055) ** 2.4)
    seen = np.clip(linear @ np.asarray(_VISION[vision]).T, 0, 1)
    to_xyz = [[0.4124, 0.3576, 0.1805], [0.2126, 0.7152, 0.0722], [0.0193, 0.1192, 0.9505]]
    xyz = seen @ np.array(to_xyz).T / [0.9505, 1, 1.089]
    f = np.where(xyz > 0.008856, np.cbrt(xyz), 7.787 * xyz + 16 / 116)
    return np.stack([116 * f[:, 1] - 16, 500 * (f[:, 0] - f[:, 1]), 200 * (f[:, 1] - f[:, 2])], axis=1)


def _nearest(colours: list[str], vision: str) -> float:
    lab = _lab(colours, vision)
    return min(float(np.linalg.norm(one - other)) for one, other in itertools.combinations(lab, 2))


@pytest.mark.parametrize("vision", list(_VISION))
@pytest.mark.parametrize(("count", "apart"), [(6, 15), (12, 15), (40, 9)])
def test_colours_can_be_told_apart(vision, count, apart):
    """Distances in CIELAB; about 2.3 is a just noticeable difference."""
    assert _nearest(embeddings.PALETTE[:count], vision) > apart


def test_colours_stand_out_on_light_and_dark_ground():
    for ground in ("#ffffff", "#14171b"):
        assert _nearest_to(ground) > 20


def _nearest_to(ground: str) -> float:
    lab = _lab([ground, *embeddings.PALETTE], "normal")
    return float(np.linalg.norm(lab[1:] - lab[0], axis=1).min())


@pytest.mark.parametrize(("name", "shown"), [("cells.h5ad", "cells.h5ad"), ("AnnData in memory", "DATA")])
def test_the_command_to_repeat_names_a_file_or_stands_for_one(tmp_path, name, shown):
    (tmp_path / "compare.json").write_text(
        json.dumps(
            {"task": "integrate", "data": {"name": name}, "methods": ["pca"], "plan": {"pca": [0]}, "seeds": [0]}
        )
    )
    command = provenance.command(stored.read(tmp_path))
    assert command == f"tenfold compare integrate {shown} -o DIR --methods pca --seeds 1"


def test_a_single_value_has_its_error_over_cells_and_several_their_deviation_over_seeds() -> None:
    import io

    import pandas as pd

    rows = [
        ("a", 0, "control", "recovered_neighbors", 0.5), ("a", 0, "spread:cells", "recovered_neighbors", 0.02),
        ("b", 0, "control", "recovered_neighbors", 0.4), ("b", 1, "control", "recovered_neighbors", 0.6),
        ("b", 0, "spread:cells", "recovered_neighbors", 0.02),
    ]  # fmt: skip
    frame = pd.DataFrame(rows, columns=["method", "seed", "group", "metric", "value"])
    shown = io.StringIO()
    Console(file=shown, width=100).print(report.terminal_table(frame))
    assert "0.500 ±.020" in shown.getvalue() and "0.500 ±.141" in shown.getvalue()
    assert "± of a single value" in shown.getvalue()


# ---- streamlines and maps --------------------------------------------------------------------------------------------


def _add(path, **tensors):
    from safetensors.numpy import load_file

    from tenfold.compare.files import write_tensors

    write_tensors(path, {**load_file(path), **tensors})


def _unpacked(text: str, kind: str) -> np.ndarray:
    return np.frombuffer(base64.b64decode(text), dtype=kind)


def write_moving(directory):
    """Write a comparison of velocities: PCA whirls, Harmony as well, and on permuted counts it whirls the other way."""
    from safetensors.numpy import load_file

    made = Folder(methods=("pca", "harmony", "scvi"), seeds=1).write(directory)
    for name, signs in (("pca", (1,)), ("harmony", (1, -1))):
        path = made / "runs" / f"{name}-0.safetensors"
        x, y = load_file(path)["layout"].T
        whirl = np.column_stack([-y, x]) / np.hypot(x, y)[:, None]
        kinds = zip(("arrows", "null_arrows"), signs, strict=False)
        _add(path, **{kind: (sign * whirl).astype(np.float32) for kind, sign in kinds})
    return made


@pytest.fixture
def moving(tmp_path):
    return write_moving(tmp_path / "t")


def test_streamlines_of_a_method_stand_beside_those_of_permuted_counts(moving):
    cells = embeddings.payload(stored.read(moving))
    names = [method["name"] for method in cells["methods"]]
    assert names == ["pca", "harmony", "scvi", "harmony-null"]
    assert ["streams" in method for method in cells["methods"]] == [True, True, False, True]
    assert [names[place] for place in cells["pair"]] == ["harmony", "harmony-null"]
    path = moving / "runs" / "pca-0.safetensors"
    _add(path, null_arrows=np.ones((400, 2), np.float32))
    baseline = moving / "runs" / "pca-0.json"
    baseline.write_text(json.dumps({**json.loads(baseline.read_text()), "readiness": "research"}))
    summary_ = json.loads((moving / "compare.json").read_text())
    summary_ |= {"recommendation": {"method": None}, "ranking": [{"method": "pca"}, {"method": "harmony"}]}
    (moving / "compare.json").write_text(json.dumps(summary_))
    again = embeddings.payload(stored.read(moving))
    assert [again["methods"][place]["name"] for place in again["pair"]] == ["harmony", "harmony-null"], "no baseline"
    null = cells["methods"][3]
    assert null["of"] == 1 and "xy" not in null and "permuted counts" in null["title"]
    for method, sign in ((cells["methods"][1], 1), (null, -1)):
        lines = _unpacked(method["streams"], "<f4").reshape(-1, 2)
        assert np.isnan(lines[-1]).all()
        pieces = [
            piece[~np.isnan(piece).any(axis=1)] for piece in np.split(lines, np.flatnonzero(np.isnan(lines[:, 0])))
        ]
        long = [piece for piece in pieces if len(piece) > 3]
        assert len(long) > 10
        for (x, y), (dx, dy) in ((piece[:-1].T, np.diff(piece, axis=0).T) for piece in long):
            assert (sign * (x * dy - y * dx)).sum() > 0
    html = report.build(moving).read_text(encoding="utf-8")
    assert "They are smooth for any data" in visible(html) and 'id="streams"' in html


def test_arrows_that_cannot_be_drawn_leave_the_page_as_it_was(tmp_path):
    made = Folder(methods=("pca", "harmony", "scvi"), seeds=1).write(tmp_path / "t")
    for name, arrows in (
        ("pca", np.zeros((400, 2))),
        ("harmony", np.full((400, 2), np.nan)),
        ("scvi", np.ones((3, 2))),
    ):
        _add(made / "runs" / f"{name}-0.safetensors", arrows=arrows.astype(np.float32))
    cells = embeddings.payload(stored.read(made))
    assert not any("streams" in method for method in cells["methods"]) and len(cells["methods"]) == 3
    assert 'id="streams"' not in report.build(made).read_text(encoding="utf-8")


def write_mapped(directory):
    """Write a comparison of domains: two slices of a tissue of four layers and 16 cells without one."""
    layers = ["L1", "L2", "L3", "L4", "unlabelled"]
    made = Folder(methods=("pca", "harmony", "late"), seeds=1, labels=layers, failures=LATE).write(directory)
    x, y = np.meshgrid(np.arange(20.0), np.arange(20.0))
    codes = (x.ravel() // 5).astype(np.int32)
    codes[:16] = 4
    sample = (y.ravel() >= 10).astype(np.int32)
    _add(made / "cells.safetensors", positions=np.column_stack([x.ravel(), y.ravel()]).astype(np.float32),
         labels=codes, sample=sample)  # fmt: skip
    domains = np.array([2, 0, 3, 1])[(x.ravel() // 5).astype(int)]
    refined = np.where(domains == 1, 4, domains)  # of another name, and still the fourth layer
    _add(made / "runs" / "pca-0.safetensors", domains=domains.astype(np.int32), refined=refined.astype(np.int32))
    halves = (x.ravel() >= 10).astype(np.int32)
    halves[-5:] = [2, 3, 4, 5, 5]
    _add(made / "runs" / "harmony-0.safetensors", domains=halves)
    summary_ = json.loads((made / "compare.json").read_text())
    summary_["sample"] = {"key": "slice", "names": ["one", "<b>two</b>"]}
    (made / "compare.json").write_text(json.dumps(summary_))
    rows = "integrate,pca,0,layers,ari,0.75\nintegrate,pca,0,layers,ari_refined,0.5\n"
    (made / "scores.csv").write_text((made / "scores.csv").read_text() + rows)
    return made


@pytest.fixture
def mapped(tmp_path):
    return write_mapped(tmp_path / "t")


def test_domains_take_the_colours_of_the_layers_that_they_share_most_with(mapped):
    drawn = maps.payload(stored.read(mapped))
    assert [entry["title"] for entry in drawn["maps"]] == ["Annotation", "PCA", "Harmony"] and drawn["voted"]
    truth, pca, harmony = (_unpacked(entry["plain"], "<u2") for entry in drawn["maps"])
    assert (truth == drawn["missing"]).sum() == 16
    told = truth != drawn["missing"]
    assert (pca[told] == truth[told]).all() and (_unpacked(drawn["maps"][1]["refined"], "<u2") == pca).all()
    assert drawn["maps"][1]["said"] == {"plain": "4 domains, ARI 0.75", "refined": "4 domains, ARI 0.50"}
    assert drawn["names"] == ["L1", "L2", "L3", "L4", "further domain 1", "further domain 2"]
    assert set(harmony) == set(range(6)) and "refined" not in drawn["maps"][2]


def test_slices_stand_side_by_side(mapped):
    drawn = maps.payload(stored.read(mapped))
    where = _unpacked(drawn["xy"], "<f4").reshape(-1, 2)
    assert [section["name"] for section in drawn["sections"]] == ["one", "<b>two</b>"]
    assert drawn["spacing"] == pytest.approx(1) and drawn["width"] == pytest.approx(np.ptp(where[:, 0]))
    one, two = where[:200], where[200:]
    for own in (one, two):
        np.testing.assert_allclose(np.ptp(own, axis=0), [19, 9], rtol=1e-5)
    assert two[:, 1].min() > one[:, 1].max() + 1 or two[:, 0].min() > one[:, 0].max() + 1


def test_maps_are_on_the_page_and_names_in_them_stay_text(mapped):
    html = report.build(mapped).read_text(encoding="utf-8")
    assert html.count("<canvas") == 3 and 'name="vote"' in html and "after a majority vote" in html
    assert "<b>two</b>" not in html and len(re.findall(r"<script>(.*?)</script>", html, flags=re.DOTALL)) == 4


def test_without_layers_the_first_method_lends_its_colours(mapped):
    summary_ = json.loads((mapped / "compare.json").read_text())
    summary_["labels"]["names"] = ["unlabelled", "NA", "none", "unknown", "nan"]
    (mapped / "compare.json").write_text(json.dumps(summary_))
    drawn = maps.payload(stored.read(mapped))
    assert [entry["title"] for entry in drawn["maps"]] == ["PCA", "Harmony"] and not drawn["annotated"]
    assert drawn["names"][:2] == ["domain 1", "domain 2"]
    assert "a reference for colours, not for what is right" in report.build(mapped).read_text(encoding="utf-8")


def test_no_positions_no_maps(folder):
    assert maps.payload(stored.read(folder)) == {}
