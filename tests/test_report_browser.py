"""The report opened and used in a real browser; skipped where there is no Chromium."""

from __future__ import annotations

import shutil
from contextlib import contextmanager

import pytest

from comparison_folder import NASTY, Folder
from tenfold import report
from tenfold.plot.colours import PALETTE
from test_report import write_mapped, write_moving

CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
pytestmark = pytest.mark.skipif(CHROMIUM is None, reason="no Chromium on this machine")
playwright = pytest.importorskip("playwright.sync_api")

FLAGS = [
    "--no-sandbox", "--use-angle=swiftshader", "--enable-unsafe-swiftshader", "--disable-background-networking",
    "--disable-sync", "--no-first-run",
]  # fmt: skip
DRAWN = "[...document.querySelectorAll('.pane:not([hidden]) .plot')].every((plot) => plot.dataset.drawn)"
PATIENCE = 90_000  # milliseconds; WebGL is drawn by the processor here


@pytest.fixture(scope="module")
def browser():
    with playwright.sync_playwright() as driver:
        chromium = driver.chromium.launch(executable_path=CHROMIUM, args=FLAGS)
        yield chromium
        chromium.close()


@contextmanager
def opened(browser, path, drawn: bool = True, **options):
    """Open a report; at the end nothing may have been said on the console, nor asked of the network."""
    context = browser.new_context(viewport={"width": 1300, "height": 900}, **options)
    tab = context.new_page()
    tab.set_default_timeout(PATIENCE)
    said, asked = [], []
    tab.on("console", lambda message: said.append(message.text) if message.type in ("error", "warning") else None)
    tab.on("pageerror", lambda error: said.append(str(error)))
    tab.on("request", lambda request: asked.append(request.url))
    tab.goto(path.as_uri())
    if drawn:
        tab.wait_for_function(DRAWN)
    yield tab
    # The software renderer itself warns about slow read-backs; that is no fault of the page.
    assert [text for text in said if "GPU stall" not in text and "GL Driver Message" not in text] == []
    assert [url for url in asked if not url.startswith(("file:", "data:", "blob:"))] == []
    context.close()


@pytest.fixture(scope="module")
def page_path(tmp_path_factory):
    made = Folder(
        methods=("pca", "harmony", "combat", "scvi", "late"), seeds=2, sees_labels=("combat",),
        failures={"late": ("timeout", "The run passed its time limit of 60 s.")},
    )  # fmt: skip
    return report.build(made.write(tmp_path_factory.mktemp("browser") / "trial"))


@pytest.fixture(scope="module")
def tab(browser, page_path):
    """One tab for all tests of the ordinary page: each puts back what the next relies on."""
    with opened(browser, page_path) as tab:
        yield tab


def order(tab) -> list[str]:
    return tab.eval_on_selector_all("#score-table tbody.method", "(all) => all.map((one) => one.dataset.method)")


def numbers(tab, metric: str) -> list[float]:
    """Return the values of a column of the ranked methods, from top to bottom."""
    return tab.evaluate(
        """(title) => {
          const heads = [...document.querySelectorAll("#score-table thead tr:last-child th")];
          const column = heads.findIndex((head) => head.textContent.includes(title));
          const rows = [...document.querySelectorAll("#score-table tbody[data-section=ranked]")];
          return rows.map((body) => Number(body.rows[0].cells[column].dataset.value));
        }""",
        metric,
    )


def test_clicking_a_heading_sorts(tab):
    before = order(tab)
    heading = tab.locator("#score-table > thead th", has_text="Seconds")
    heading.locator("button").click()
    assert heading.get_attribute("aria-sort") == "ascending" and tab.locator("th[aria-sort]").count() == 1
    assert numbers(tab, "Seconds") == sorted(numbers(tab, "Seconds")) and order(tab) != before
    heading.locator("button").click()
    assert heading.get_attribute("aria-sort") == "descending"
    assert numbers(tab, "Seconds") == sorted(numbers(tab, "Seconds"), reverse=True)
    assert order(tab)[-2:] == ["combat", "late"], "methods ranked apart and failed ones stay below"


def test_the_keyboard_sorts_and_opens_details(tab):
    heading = tab.locator("#score-table > thead th", has_text="CiLISI")
    heading.locator("button").focus()
    tab.keyboard.press("Enter")
    assert heading.get_attribute("aria-sort") == "descending"
    assert numbers(tab, "CiLISI") == sorted(numbers(tab, "CiLISI"), reverse=True)
    more = tab.locator("tbody[data-method=harmony] .more")
    more.focus()
    tab.keyboard.press("Space")
    details = tab.locator("tbody[data-method=harmony] tr.details")
    assert more.get_attribute("aria-expanded") == "true" and details.is_visible()
    assert {"B cell", "donor 1", "Seed 1"} <= set(details.locator("th").all_inner_texts())
    tab.keyboard.press("Space")
    assert not details.is_visible()


def test_a_heading_explains_itself(tab):
    tab.locator("#score-table > thead th", has_text="CiLISI").locator("button").hover()
    tip = tab.locator("#tip")
    assert tip.is_visible() and "Caution: Where batch and condition coincide" in tip.inner_text()
    tab.keyboard.press("Escape")
    assert not tip.is_visible()


COLOURS = "() => [...new Set(document.getElementById('plot-0').data.flatMap((trace) => trace.marker.color))].sort()"


def redrawn(tab, act) -> None:
    before = tab.locator("#plot-0").get_attribute("data-drawn")
    act()
    tab.wait_for_function("(before) => document.getElementById('plot-0').dataset.drawn !== before", arg=before)


def test_batch_and_label_colour_the_plot(tab):
    assert tab.evaluate("document.getElementById('plot-0').data[0].type") == "scattergl"
    by_batch, picture = tab.evaluate(COLOURS), tab.locator("#plot-0").screenshot()
    assert len(by_batch) == 2 and tab.locator("#legend li").count() == 2
    redrawn(tab, tab.locator("input[name=colour]").nth(1).check)
    assert len(tab.evaluate(COLOURS)) == 5 and tab.locator("#legend .name").all_inner_texts()[0] == "B cell"
    assert tab.locator("#plot-0").screenshot() != picture
    redrawn(tab, tab.locator("input[name=colour]").nth(0).check)


def test_the_legend_isolates_levels(tab):
    redrawn(tab, tab.locator("#legend button").first.click)
    sizes = tab.evaluate("document.getElementById('plot-0').data.map((trace) => trace.x.length)")
    assert len(sizes) == 2 and sum(sizes) == 400 and sizes[1] > 100
    assert tab.locator("#legend button[aria-pressed=false]").count() == 1
    redrawn(tab, tab.locator("#legend button").first.click)
    assert tab.evaluate("document.getElementById('plot-0').data.length") == 1


def test_every_method_can_be_looked_at(tab):
    choice = tab.locator("#method-1")
    names = choice.locator("option").all_inner_texts()
    assert len(names) == 4 and tab.locator("#method-0 option:checked").inner_text().startswith("PCA")
    seen = set()
    for place in range(4):
        choice.select_option(index=place)
        tab.wait_for_function(
            "(title) => document.getElementById('plot-1').ariaLabel.includes(title)", arg=names[place].split(" (")[0]
        )
        seen.add(tab.evaluate("document.getElementById('plot-1').data[0].x.slice(0, 5).join()"))
    assert len(seen) == 4
    redrawn(tab, tab.locator("#beside").uncheck)
    assert not tab.locator("#plot-1").is_visible() and tab.locator("#plot-0").is_visible()
    redrawn(tab, tab.locator("#beside").check)


def test_names_stand_on_the_plot_as_text(browser, tmp_path):
    path = report.build(Folder(labels=NASTY, batches=NASTY[:2], name=NASTY[0]).write(tmp_path / "t"))
    with opened(browser, path) as tab:
        redrawn(tab, tab.locator("input[name=colour]").nth(1).check)
        redrawn(tab, tab.locator("#names").check)
        tab.locator(".more").first.click()
        assert tab.evaluate("window.pwned") is None
        assert tab.locator("#legend .name").first.inner_text() == NASTY[0]
        assert NASTY[3].split(" ")[0] in tab.locator("#plot-0").inner_text()


@pytest.mark.parametrize(("scheme", "ground"), [("light", "rgb(255, 255, 255)"), ("dark", "rgb(20, 23, 27)")])
@pytest.mark.parametrize("width", [390, 1300])
def test_nothing_sticks_out_of_the_page(tab, width, scheme, ground):
    tab.set_viewport_size({"width": width, "height": 900})
    tab.emulate_media(color_scheme=scheme)
    tab.eval_on_selector_all(".more[aria-expanded=false]", "(all) => all.forEach((button) => button.click())")
    assert tab.evaluate("document.documentElement.scrollWidth") <= width
    assert tab.evaluate("getComputedStyle(document.body).backgroundColor") == ground


def test_streamlines_lie_over_the_cells_and_can_be_taken_off(browser, tmp_path):
    with opened(browser, report.build(write_moving(tmp_path / "t"))) as tab:
        kinds = "(place) => document.getElementById(`plot-${place}`).data.map((trace) => trace.mode)"
        assert [tab.evaluate(kinds, place) for place in (0, 1)] == [["markers", "lines"]] * 2
        assert "permuted counts" in tab.locator("#method-1 option:checked").inner_text()
        first = "(place) => Array.from(document.getElementById(`plot-${place}`).data[0].x.slice(0, 9))"
        assert tab.evaluate(first, 0) == tab.evaluate(first, 1), "the same cells in the same place"
        lines = "(place) => document.getElementById(`plot-${place}`).data[1].x.filter(Number.isFinite).length"
        assert min(tab.evaluate(lines, 0), tab.evaluate(lines, 1)) > 100
        redrawn(tab, tab.locator("#streams").uncheck)
        assert tab.evaluate(kinds, 0) == ["markers"]


PIXELS = """(place) => {
  const canvas = document.getElementById(`map-${place}`);
  const copy = new OffscreenCanvas(canvas.width, canvas.height).getContext("2d", { willReadFrequently: true });
  copy.drawImage(canvas, 0, 0);
  const { data } = copy.getImageData(0, 0, canvas.width, canvas.height);
  const seen = {};
  for (let i = 0; i < data.length; i += 4) {
    if (data[i + 3] === 255) {
      const hue = [data[i], data[i + 1], data[i + 2]].map((part) => part.toString(16).padStart(2, "0")).join("");
      seen[hue] = (seen[hue] || 0) + 1;
    }
  }
  return seen;
}"""


def test_maps_are_drawn_in_the_colours_of_the_layers(browser, tmp_path):
    with opened(browser, report.build(write_mapped(tmp_path / "t"))) as tab:
        assert tab.locator("#maps canvas").count() == 3
        layers = [hue.removeprefix("#") for hue in PALETTE[:4]]
        for place in (0, 1):
            seen = tab.evaluate(PIXELS, place)
            assert set(layers) <= set(seen) and min(seen[hue] for hue in layers) > 200
        names = tab.locator("#map-legend .name").all_inner_texts()
        assert names == ["L1", "L2", "L3", "L4", "further domain 1", "further domain 2", "not annotated"]
        told = tab.locator("#maps figure").nth(1).locator(".told")
        assert told.inner_text() == "4 domains, ARI 0.75"
        tab.locator("input[name=vote]").nth(1).check()
        assert told.inner_text() == "4 domains, ARI 0.50"
        tab.locator("#map-legend button").nth(2).click()
        assert tab.locator("#map-legend button[aria-pressed=false]").count() == 6
        seen = tab.evaluate(PIXELS, 1)
        assert seen[layers[2]] > 200 and not {layers[0], layers[1], layers[3]} & set(seen)
        tab.set_viewport_size({"width": 390, "height": 900})
        assert tab.evaluate("document.documentElement.scrollWidth") <= 390


def test_without_scripts_the_numbers_are_all_there(browser, page_path):
    with opened(browser, page_path, drawn=False, java_script_enabled=False) as tab:
        assert tab.get_by_text("Scripts are blocked here.").is_visible()
        assert tab.locator("#score-table tr.details").first.is_visible()
        assert not tab.locator(".tools").is_visible()


def test_a_page_without_layouts_is_silent(browser, tmp_path):
    made = Folder(methods=("pca",), seeds=1, labels=None, missing=("cells.safetensors", "runs/pca-0.safetensors"))
    with opened(browser, report.build(made.write(tmp_path / "t")), drawn=False) as tab:
        assert tab.get_by_text("No layout of the cells is stored").is_visible()
        tab.locator("#score-table > thead th", has_text="Seconds").locator("button").click()
        assert order(tab) == ["pca"]


def test_fifty_thousand_cells_stay_smooth(browser, tmp_path):
    """Generous bounds: on two busy cores without a graphics card a switch takes 0.15-0.8 s and a zoom 0.03-0.07 s."""
    made = Folder(
        n_cells=50_000, methods=("pca", "harmony", "combat", "bbknn", "scvi"), seeds=1,
        labels=[f"type {i}" for i in range(15)],
    )  # fmt: skip
    path = report.build(made.write(tmp_path / "t"))
    assert path.stat().st_size < 12e6
    with opened(browser, path) as tab:
        assert tab.evaluate("document.getElementById('plot-0').data[0].x.length") == 50_000
        switches = [tab.evaluate(SWITCH, place) for place in (1, 0, 1, 0)]
        zooms = tab.evaluate(ZOOM)
    assert min(switches) < 1500, switches
    assert sorted(zooms)[len(zooms) // 2] < 500, zooms


SWITCH = """async (place) => {
  const plot = document.getElementById("plot-0");
  const [before, start] = [plot.dataset.drawn, performance.now()];
  document.querySelectorAll("input[name=colour]")[place].click();
  while (plot.dataset.drawn === before) await new Promise((done) => setTimeout(done, 5));
  return performance.now() - start;
}"""
ZOOM = """async () => {
  const times = [];
  for (let step = 0; step < 7; step++) {
    const start = performance.now();
    await Plotly.relayout("plot-0", { "xaxis.range": [step - 5, step + 5], "yaxis.range": [-5, 5] });
    times.push(performance.now() - start);
  }
  return times;
}"""
