"""The page of a report in Chromium: it requests nothing, logs nothing, and is readable on every screen."""

import pytest

from layer_surgeon.report.export import write_report
from layer_surgeon.report.load import load_report
from layer_surgeon.study import paired
from tests.support.browser import chromium, opened
from tests.support.made_up_studies import HOSTILE, made_up_study

LONG = "a-graft-with-a-very-long-name/learning-rate-5e-5+Llama-3.1-8B-Instruct-L31-all-MiniLM-L6-v2"
DATA = ("films", "shops", "a-data-set-with-a-long-name-of-its-own")

# Contrast as WCAG 2.2 defines it: 4.5 for text, 3 for marks.
_CONTRAST = """() => {
  const parts = (text) => text.match(/[\\d.]+/g).map(Number);
  const linear = (v) => (v /= 255) <= 0.04045 ? v / 12.92 : ((v + 0.055) / 1.055) ** 2.4;
  const light = ([r, g, b]) => 0.2126 * linear(r) + 0.7152 * linear(g) + 0.0722 * linear(b);
  const contrast = (a, b) => {
    const [dark, bright] = [light(a), light(b)].sort((x, y) => x - y);
    return (bright + 0.05) / (dark + 0.05);
  };
  const behind = (element) => {
    for (; element; element = element.parentElement) {
      const color = parts(getComputedStyle(element).backgroundColor);
      if (color.length < 4 || color[3] === 1) return color;
    }
    return [255, 255, 255];
  };
  // Text on a tile of a heat map: the tile that holds its middle.
  const tile = (text) => {
    const box = text.getBoundingClientRect();
    const x = box.left + box.width / 2, y = box.top + box.height / 2;
    return [...text.closest("svg").querySelectorAll(".mark-rect path")].find((path) => {
      const own = path.getBoundingClientRect();
      return own.left < x && x < own.right && own.top < y && y < own.bottom && own.height < 80;
    });
  };
  const poor = [];
  const visible = (selector) => [...document.querySelectorAll(selector)].filter((e) => e.getClientRects().length);
  for (const element of visible("body *:not(script, style, title, desc, noscript)")) {
    const own = [...element.childNodes].some((node) => node.nodeType === 3 && node.textContent.trim());
    if (!own) continue;
    const style = getComputedStyle(element);
    const isText = element.tagName === "text";
    const on = isText ? tile(element) : null;
    const ground = on ? parts(getComputedStyle(on).fill) : behind(element);
    const value = contrast(parts(isText ? style.fill : style.color), ground);
    const least = element.matches(".key") ? 3 : 4.5;
    if (value < least) poor.push([element.textContent.slice(0, 30), element.getAttribute("class"), value.toFixed(2)]);
  }
  return poor;
}"""
_CHARTS = """() => {
  const measure = (chart) => {
    const plot = chart.querySelector("svg");
    const box = plot.getBoundingClientRect();
    const scale = box.width / plot.viewBox.baseVal.width;
    const texts = [...plot.querySelectorAll("text")].filter((text) => text.textContent && text.style.opacity !== "0"
      && text.getAttribute("opacity") !== "0").map((text) => ({
      text: text.textContent, ...text.getBoundingClientRect().toJSON(),
      size: parseFloat(getComputedStyle(text).fontSize) * scale,
    }));
    const isOut = (text) => text.left < box.left - 1 || text.right > box.right + 1
      || text.top < box.top - 1 || text.bottom > box.bottom + 1;
    const touch = (a, b) => Math.min(a.right, b.right) - Math.max(a.left, b.left) > 1
      && Math.min(a.bottom, b.bottom) - Math.max(a.top, b.top) > 3;
    return {
      told: chart.closest("[role=img][aria-label]:not(.chart)").getAttribute("aria-label"),
      width: box.width, height: box.height,
      room: chart.getBoundingClientRect().width,
      shapes: plot.querySelectorAll(".mark-symbol path, .mark-rect path").length,
      smallest: Math.min(...texts.map((text) => text.size)),
      outside: texts.filter(isOut).map((text) => text.text),
      touching: texts.flatMap((a, i) => texts.slice(i + 1).filter((b) => touch(a, b)).map((b) => [a.text, b.text])),
    };
  };
  return [...document.querySelectorAll(".chart")].filter((chart) => chart.getClientRects().length).map(measure);
}"""
_ALL_DRAWN = "() => [...document.querySelectorAll('.chart')].every((chart) => chart.querySelector('svg.marks'))"
_OPEN_ALL = "() => document.querySelectorAll('details').forEach((part) => { part.open = true; })"
_SCROLLING = """() => [...document.querySelectorAll(".scroll")]
  .filter((box) => box.scrollWidth > box.clientWidth)
  .map((box) => ({needed: box.scrollWidth, shown: box.clientWidth, text: box.textContent.slice(0, 40)}))"""
_VALUES = "(table, column) => [...table.tBodies[0].rows].map((row) => row.cells[column].dataset.v)"
_NAMES = "(table) => [...table.tBodies[0].rows].map((row) => row.cells[0].textContent)"


@pytest.fixture(scope="module")
def pages(tmp_path_factory):
    """Reports of domain shift with hostile names and missing results, of a sweep, and of a usual comparison."""
    folder = tmp_path_factory.mktemp("reports")
    with pytest.MonkeyPatch.context() as patch:
        # What is shown matters here, and not how well it is estimated.
        patch.setattr(paired, "_RESAMPLES", 40)
        _write_pages(folder)
    return folder


def _write_pages(folder):
    arms = ["host", "graft", {"name": LONG, "like": "graft", "finetune": {"learning_rate": 1e-4}}]
    arms.append({"name": HOSTILE, "like": "random"})
    shares = {"host": 0.7, "graft": 0.82, LONG: 0.75, HOSTILE: 0.6}
    gaps = {"skip": [(HOSTILE, 2)], "fail": [("graft", 2)]}
    common = {"seeds": [1, 2], "examples": 60, "title": HOSTILE}
    made_up_study(folder / "shift", shares, arms=arms, data=list(DATA), tests="all", **gaps, **common)
    layers = [{"source": "b/llm", "layer": layer} for layer in range(5)]
    by_layer = {"host": 0.7, **{f"graft+llm-L{layer}": 0.7 + 0.02 * layer for layer in range(5)}}
    made_up_study(folder / "sweep", by_layer, arms=["host", "graft"], donors=layers, donor=None, focus=None, **common)
    arms = ["host", "graft", "random", "projections-only", "wide-head"]
    usual = dict(zip(arms, (0.99, 0.95, 0.96, 0.97, 0.98), strict=True))
    names = {"host": "packaged:all-MiniLM-L6-v2", "donor": {"source": "packaged:gemma-3-270m", "layer": 17}}
    made_up_study(folder / "usual", usual, **names, **common)
    for name in ("shift", "sweep", "usual"):
        write_report(load_report(folder / name), folder / name / "report", ("html",))
        (folder / name / "report" / "report.html").rename(folder / f"{name}.html")


@pytest.fixture(scope="module")
def browser():
    with chromium() as running:
        yield running


@pytest.mark.parametrize("name", ["shift", "sweep"])
@pytest.mark.parametrize(("width", "scheme"), [(360, "light"), (1200, "dark")])
def test_the_page_is_drawn_and_readable(browser, pages, name, width, scheme):
    path = pages / f"{name}.html"
    with opened(browser, path, width=width, scheme=scheme) as page:
        page.ask(_OPEN_ALL)
        page.page.wait_for_function(_ALL_DRAWN)
        page.page.wait_for_timeout(500)
        assert page.problems == []
        assert page.requests == [path.as_uri()]
        assert page.ask("() => document.documentElement.scrollWidth") <= width
        charts = page.ask(_CHARTS)
        assert len(charts) > (20 if name == "shift" else 8)
        for chart in charts:
            assert len(chart["told"]) > 20
            assert min(chart["width"], chart["height"]) > 80
            assert chart["width"] <= chart["room"] + 1
            assert chart["shapes"]
            assert chart["smallest"] >= 10.5, chart["told"]
            assert (chart["outside"], chart["touching"]) == ([], []), chart["told"]
        assert page.ask(_CONTRAST) == []
        if width == 1200:
            # A table scrolls sideways only if it is wider than the window.
            assert [box for box in page.ask(_SCROLLING) if box["shown"] < width - 80] == []


@pytest.mark.parametrize("width", [390, 1200])
def test_a_usual_page_needs_no_mouse_and_no_wide_window(browser, pages, width):
    with opened(browser, pages / "usual.html", width=width) as page:
        page.page.wait_for_function(_ALL_DRAWN)
        ticks = page.page.locator("#results .chart").first.locator(".role-axis-label text").all_text_contents()
        assert max(map(float, ticks)) <= 100
        if width == 1200:
            assert page.ask(_SCROLLING) == []
        table = page.page.locator("#results table.sorts").last
        rare = table.locator("th.rare").last
        assert not rare.is_visible()
        button = page.page.locator("#results .more").last
        assert button.inner_text() == "Show more columns: p (t-test), p (permutation)"
        button.click()
        assert rare.is_visible()
        page.page.get_by_text("The verdicts in words").click()
        words = page.page.locator("#results details[open] li").all_inner_texts()
        assert len(words) == table.locator("tbody tr").count()
        assert all(text.startswith(("graft ", "random ", "projections-only ", "wide-head ")) for text in words)


def test_the_page_and_its_charts_follow_the_theme(browser, pages):
    text = "document.querySelector('.chart svg text[fill]')?.getAttribute('fill')"
    get = f"[...['backgroundColor', 'color'].map((name) => getComputedStyle(document.body)[name]), {text}]"

    def colors(page):
        return page.ask(f"() => {get}")

    with opened(browser, pages / "sweep.html") as page:
        page.page.wait_for_function(_ALL_DRAWN)
        light = colors(page)
        page.page.emulate_media(color_scheme="dark")
        page.page.wait_for_function(f"(light) => !{get}.some((color) => light.includes(color))", arg=light)
        page.page.wait_for_function(_ALL_DRAWN)
        assert not set(light) & set(colors(page))
        assert page.problems == []


def test_tooltips_describe_marks_and_run_no_code(browser, pages):
    with opened(browser, pages / "shift.html") as page:
        chart = page.page.locator("details[open] .chart").first
        chart.scroll_into_view_if_needed()
        page.page.wait_for_function(_ALL_DRAWN)
        chart.locator(".mark-symbol path").last.hover(force=True)
        tip = page.page.locator("#vg-tooltip-element.visible")
        tip.wait_for()
        assert "95 % over seeds" in tip.inner_text()
        assert tip.locator("script, b").count() == 0
        assert HOSTILE.replace("  ", " ") in tip.inner_text()
        assert page.problems == []


def test_tables_sort_by_mouse_and_keyboard(browser, pages):
    with opened(browser, pages / "sweep.html") as page:
        table = page.page.locator("#results table.sorts").first
        head = table.locator("thead th").nth(1)
        before = [float(value) for value in table.evaluate(_VALUES, 1)]
        head.locator("button").click()
        assert head.get_attribute("aria-sort") == "descending"
        assert [float(value) for value in table.evaluate(_VALUES, 1)] == sorted(before, reverse=True) != before
        head.locator("button").press("Enter")
        assert head.get_attribute("aria-sort") == "ascending"
        assert [float(value) for value in table.evaluate(_VALUES, 1)] == sorted(before)
        table.locator("thead th button").first.press("Space")
        assert table.locator("[aria-sort]").count() == 1
        names = table.evaluate(_NAMES)
        assert names == sorted(names)


def test_missing_values_are_sorted_last_and_the_command_is_copied(browser, pages):
    with opened(browser, pages / "shift.html") as page:
        table = page.page.locator("details[open] table.sorts").first
        for _ in range(2):
            table.locator("thead th button").nth(2).click()
            values = table.evaluate(_VALUES, 2)
            assert values[0] != ""
            assert values[-1] == ""
        page.page.locator(".command button").click()
        page.page.locator(".command button:not(:text-is('Copy'))").wait_for()


def test_the_page_is_complete_without_scripts(browser, pages):
    with opened(browser, pages / "shift.html", scripts=False) as page:
        assert page.page.locator("h1").inner_text().replace("\n", " ") == HOSTILE
        assert page.page.locator(".chart svg").first.is_visible()
        assert page.page.locator("table.sorts").first.is_visible()
        assert page.page.locator("thead button, .command button, .more").count() == 0
        assert page.page.locator("th.rare").first.is_visible()
