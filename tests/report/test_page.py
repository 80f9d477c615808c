"""The page of a report as text: its content, and that names from users can't break it."""

import base64
import csv
import hashlib
import itertools
import json
import math
import re
from dataclasses import replace
from html.parser import HTMLParser

import numpy as np
import pytest

from layer_surgeon._charts import DARK, LIGHT, chart_config, glyph
from layer_surgeon._io import write_json
from layer_surgeon.report.csv_files import comparisons_csv
from layer_surgeon.report.curve_figures import share_figures
from layer_surgeon.report.encodings import axis_span
from layer_surgeon.report.export import write_report
from layer_surgeon.report.figure_style import FigureStyle
from layer_surgeon.report.figures import Figures
from layer_surgeon.report.load import load_report
from layer_surgeon.report.render import html, markdown
from layer_surgeon.report.words import say_count
from layer_surgeon.study import paired
from layer_surgeon.study.layout import StudyFolder
from tests.support.made_up_studies import HOSTILE, made_up_study

VOID = {"meta", "link", "br"}


@pytest.fixture(autouse=True)
def _few_resamples(monkeypatch):
    """Uses few bootstrap draws: these tests check the display, not the estimates."""
    monkeypatch.setattr(paired, "_RESAMPLES", 40)


class Parsed(HTMLParser):
    """The elements of a page, which must be closed in the reverse order of opening."""

    def __init__(self, text):
        super().__init__()
        self.open, self.tags, self.ids, self.attributes, self.text, self.drawn = [], [], [], [], "", ""
        self.feed(text)
        assert self.open == []

    def handle_starttag(self, tag, attrs):
        self.tags.append(tag)
        self.attributes += attrs
        self.ids += [value for name, value in attrs if name == "id"]
        if tag not in VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag, attrs):
        self.tags.append(tag)
        self.attributes += attrs

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        if "svg" in self.open:
            self.drawn += f"{data}\n"
        elif "script" not in self.open:
            self.text += data


def without_script(text):
    """A page without the code of Vega."""
    return re.sub(r"<script>.*?</script>", "", text, flags=re.DOTALL)


def page_of(folder, shares, **changes):
    made_up_study(folder, shares, examples=60, **changes)
    report = load_report(folder)
    return report, html(report)


def test_the_content_of_the_page(tmp_path):
    report, text = page_of(tmp_path, {"host": 0.6, "graft": 0.9, "random": 0.6}, title="Short reviews")
    page, summary = Parsed(text), report.summary
    assert summary.verdict in page.text
    assert page.text.index(summary.verdict) < page.text.index("Results")
    for comparison in summary.tables[0].comparisons:
        assert comparison.words in [value for name, value in page.attributes if name == "title"]
    for said in (report.state, report.command, "learning_rate", "5.24.0", "cpu (1 threads)", "p (Holm)", "effect size"):
        assert said in page.text
    for section in ("results", "learning", "arms", "made"):
        assert section in page.ids
    assert not {"layers", "shift", "shares", "open", "chosen"} & set(page.ids)
    assert len(page.ids) == len(set(page.ids))
    for name, value in page.attributes:
        if name == "aria-labelledby":
            assert set(value.split()) <= set(page.ids)
    # Without scripts, the charts are there as SVG.
    assert page.tags.count("svg") == page.tags.count("noscript") == 6
    assert f"{100 * summary.tables[0].rows[1].mean:.1f}" in page.drawn


def test_equivalence_is_on_the_page_and_in_every_file(tmp_path):
    report, text = page_of(tmp_path, {"host": 0.7, "graft": 0.7, "random": 0.2}, equivalence=20)
    same, worse = report.summary.tables[0].comparisons[:2]
    assert (same.equivalent, worse.equivalent) == (True, False)
    page = Parsed(text)
    assert f"{same.arm} and {same.against} are equivalent within ±20 points (a difference of" in page.text
    assert "p (equivalence)" in page.text
    assert "within the margin of ±20 points" in page.text
    assert "| equivalent |" in markdown(report, {})
    (row,) = [row for row in csv.DictReader(comparisons_csv(report).splitlines()) if row["words"] == same.words]
    assert (row["equivalent"], float(row["p_equivalence"])) == ("true", pytest.approx(same.p_equivalence))


def test_the_page_loads_nothing_and_its_policy_allows_nothing_else(tmp_path):
    text = page_of(tmp_path, {"host": 0.7, "graft": 0.8})[1]
    (policy,) = re.findall(r'http-equiv="Content-Security-Policy" content="([^"]*)"', text)
    (script,) = re.findall(r"<script>(.*?)</script>", text, re.DOTALL)
    digest = base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()
    allowed = dict(part.strip().split(" ", 1) for part in policy.replace("&#39;", "'").split(";"))
    assert allowed == {
        "default-src": "'none'",
        "style-src": "'unsafe-inline'",
        "img-src": "data:",
        "form-action": "'none'",
        "base-uri": "'none'",
        "script-src": f"'sha256-{digest}'",
    }
    assert len(text.encode()) < 2_000_000
    rest = without_script(text)
    assert not re.search(r"""(?:src|href)=["'](?!#|data:)""", rest)
    assert "url(" not in rest
    assert "@import" not in rest


def test_names_can_not_break_the_page(tmp_path):
    arms = ["host", "graft", {"name": HOSTILE, "like": "random"}]
    _, text = page_of(
        tmp_path, {"host": 0.7, "graft": 0.8, HOSTILE: 0.7}, arms=arms, title=HOSTILE, fail=[(HOSTILE, 2)]
    )
    page = Parsed(text)
    # One is run; the others hold the charts and the themes.
    types = [value for name, value in page.attributes if name == "type"]
    assert page.tags.count("script") == types.count("application/json") + 1
    assert page.tags.count("b") == 0
    assert page.text.count(HOSTILE) > 5
    assert HOSTILE in page.drawn
    assert "the loss is nan | <b>" in page.text
    assert "<script>alert" not in text


def test_the_page_of_an_unfinished_study(tmp_path):
    gaps = {"skip": [("random", 2), ("random", 3)], "fail": [("graft", 2)]}
    report, text = page_of(tmp_path, {"host": 0.7, "graft": 0.8, "random": 0.7}, **gaps)
    page = Parsed(text)
    assert report.state in page.text
    assert page.text.count("not run yet") == 2
    assert page.text.count("TrainingError: the loss is nan") == 1


def test_the_page_of_an_empty_study(tmp_path):
    everything = [(arm, seed) for arm in ("host", "graft") for seed in (1, 2, 3)]
    report, text = page_of(tmp_path, {"host": 0.7, "graft": 0.8}, skip=everything)
    page = Parsed(text)
    assert report.summary.verdict in page.text
    assert "results" not in page.ids


@pytest.mark.parametrize("changes", [{"seeds": [7]}, {"fractions": [1.0, 0.1]}])
def test_one_arm(tmp_path, changes):
    report, text = page_of(tmp_path, {"host": 0.7}, **changes)
    page = Parsed(text)
    assert "Differences" not in page.text
    assert ("shares" in page.ids) == (len(report.plan.fractions) > 1)


def test_domain_shift_is_a_heat_map_with_values(tmp_path):
    report, text = page_of(tmp_path, {"host": 0.5, "graft": 0.9}, data=["films", "shops"], tests="all")
    page = Parsed(text)
    assert "shift" in page.ids
    for table in report.summary.tables:
        assert f"{100 * table.comparisons[0].mean:+.1f}" in page.drawn
        assert f"{100 * table.rows[0].mean:.1f}" in page.drawn
    assert LIGHT["h8"] in text


def test_a_sweep_and_its_best_layer(tmp_path):
    layers = [{"source": "b/llm", "layer": layer} for layer in range(4)]
    shares = {"host": 0.7, **{f"graft+llm-L{layer}": 0.6 + 0.05 * layer for layer in range(4)}}
    _, text = page_of(tmp_path, shares, arms=["host", "graft"], donors=layers, donor=None, focus=None)
    page = Parsed(text)
    assert "layers" in page.ids
    assert "Highest: layer 3 (ringed)" in page.text
    assert "Cost against gain" not in page.text


def test_a_sweep_over_sites_names_the_site(tmp_path):
    arms = [{"name": f"graft-{site}", "like": "graft", "graft": {"site": site}} for site in ("embeddings", 1)]
    shares = {"host": 0.7, "graft-embeddings": 0.6, "graft-1": 0.75}
    page = Parsed(page_of(tmp_path, shares, arms=["host", *arms], seeds=[1], focus=None)[1])
    assert "site of llm-L-1 in the host" in page.text
    assert "Which site" in page.text
    assert "Highest: 1 (ringed)" in page.text
    assert "from 0" not in page.text


def test_the_page_of_a_selection_names_the_choice(tmp_path):
    made_up_study(tmp_path, {"host": 0.7, "graft": 0.8}, examples=60)
    rungs = [
        {"name": "probe without training", "scores": {"graft": 0.61, "other": 0.5}, "kept": ["graft"], "examples": 0}
    ]
    margin = {"runner_up": "other", "difference": 0.01, "deviation": None}
    content = {"format": 1, "best": "graft", "layers": [3], "cost": 0.12, "rungs": rungs, "margin": margin}
    write_json(tmp_path / "selection.json", content)
    page = Parsed(html(load_report(tmp_path)))
    assert (
        "Chosen: graft (layer 3, site encoder_output), ahead of other by 1.0 points, with one seed, at 12 %"
        in page.text
    )
    assert "probe without training" in page.text


def test_the_page_notes_that_lower_is_better(tmp_path):
    page = Parsed(page_of(tmp_path, {"host": 0.6, "graft": 0.9}, metric="loss")[1])
    assert "lower is better" in page.text
    assert "far down and to the left" in page.text


def test_numbers_that_json_does_not_have(tmp_path):
    """A perplexity can be infinite, and the loss of an epoch without a log NaN."""
    made_up_study(tmp_path, {"host": 0.6, "graft": 0.9}, examples=60, metric="loss", summary=False)
    for path in (tmp_path / "cells").glob("graft.*.json"):
        cell = json.loads(path.read_text())
        cell["tests"]["films"]["scores"]["loss"] = math.inf
        cell["history"][0]["training_loss"] = math.nan
        path.write_text(json.dumps(cell))
    page = html(load_report(tmp_path))
    specs = re.findall(r'<script type="application/json"[^>]*>(.*?)</script>', page, re.DOTALL)
    for spec in specs:
        json.loads(spec, parse_constant=pytest.fail)
    assert len(specs) > 3


def test_scores_that_are_no_numbers(tmp_path):
    """A correlation is NaN where a model gives all examples the same value."""
    made_up_study(tmp_path, {"host": 0.6, "graft": 0.9}, examples=60, data=["a", "b"], summary=False)
    for name, arms in (("a", "graft"), ("b", "*")):
        for path in (tmp_path / "cells").glob(f"{arms}.{name}.*.json"):
            cell = json.loads(path.read_text())
            for test in cell["tests"].values():
                test["scores"]["accuracy"] = math.nan
            path.write_text(json.dumps(cell))
    page = html(load_report(tmp_path))
    assert page.count("Best: host") == 1
    assert "Best: graft" not in page


@pytest.mark.parametrize("score", [math.inf, math.nan])
def test_an_infinite_score_leaves_the_colours_of_other_tiles(tmp_path, score):
    shares = {"host": 0.6, "graft": 0.8, "random": 0.7}
    made_up_study(tmp_path, shares, examples=60, metric="loss", data=["a", "b"], tests="all", summary=False)
    for path in (tmp_path / "cells").glob("random.a.*.json"):
        cell = json.loads(path.read_text())
        cell["tests"]["b"]["scores"]["loss"] = score
        path.write_text(json.dumps(cell))
    (figure,) = Figures(load_report(tmp_path)).domain_shift()
    specs = [panel.spec for panel in figure.panels]
    (scale,) = {json.dumps(spec["layer"][0]["encoding"]["color"]["scale"]) for spec in specs}
    values = [[record["value"] for record in spec["data"]["values"]] for spec in specs]
    assert [value > 0 for value in values[1]] == [True] * 4
    largest = max(abs(value) for panel in values for value in panel)
    assert 0.1 < largest < json.loads(scale)["domain"][1] < 0.4
    assert values[2][1] == (-largest if score == math.inf else 0)


def test_shares_of_the_data_are_in_order_if_an_arm_lacks_one(tmp_path):
    arms = [f"arm{number}" for number in range(7)]
    plan = made_up_study(
        tmp_path,
        dict.fromkeys(arms, 0.7),
        arms=[{"name": name, "like": "host"} for name in arms],
        fractions=[0.1, 0.5, 1.0],
        examples=60,
        seeds=[1],
        summary=False,
    )
    skipped = next(cell for cell in plan.cells() if (cell.arm.name, cell.fraction) == ("arm0", 0.5))
    StudyFolder(root=tmp_path).result(skipped.id).unlink()
    for shown in (2, 7):
        report = load_report(tmp_path)
        kept = dict(list(report.summary.arms.items())[:shown])
        report = replace(report, summary=replace(report.summary, arms=kept))
        ((_, figure),) = share_figures(FigureStyle(report, ()))
        charts = re.findall(r'"sort": (\[[^]]*\])', json.dumps([panel.spec for panel in figure.panels]))
        assert {tuple(json.loads(chart)) for chart in charts} == {("10 %", "50 %", "100 %")}


def test_the_page_is_written_atomically(tmp_path):
    made_up_study(tmp_path / "study", {"host": 0.7, "graft": 0.8}, examples=60)
    write_report(load_report(tmp_path / "study"), tmp_path / "deep", ("html",))
    assert [path.name for path in (tmp_path / "deep").iterdir()] == ["report.html"]
    assert (tmp_path / "deep" / "report.html").read_text(encoding="utf-8").endswith("</html>\n")


def test_a_page_with_many_charts_stays_small_and_names_missing_charts(tmp_path):
    data = [f"set-{number}" for number in range(5)]
    text = page_of(tmp_path, {"host": 0.5, "graft": 0.9}, data=data, tests="all", seeds=[1])[1]
    assert len(text.encode()) < 2_000_000
    assert "This chart needs scripts. Its numbers are in the tables." in text


def test_every_chart_is_valid_vega_lite(tmp_path):
    layers = [{"source": "b/llm", "layer": layer} for layer in range(2)]
    shares = {"host": 0.5, "graft+llm-L0": 0.9, "graft+llm-L1": 0.6}
    made_up_study(
        tmp_path, shares, arms=["host", "graft"], donors=layers, donor=None, focus=None, data=["a", "b"], tests="all"
    )
    figures = Figures(load_report(tmp_path))
    drawn = [figures.differences(figures.summary.tables[0]), *(figure for _, figure in figures.for_files())]
    assert len(drawn) > 10
    for figure in drawn:
        for panel in figure.panels:
            panel.chart.to_dict(validate=True)
            assert panel.text


@pytest.mark.parametrize(
    ("values", "expected"),
    [((97, 98), (95.26, 99.74)), ((98.5, 100), (95.76, 100)), ((0, 1), (0, 4.24)), ((60, 99), (57.66, 100))],
)
def test_axes_end_where_scores_end(values, expected):
    assert axis_span(values, 4, within=(0, 100)) == pytest.approx(expected)


def test_no_line_of_an_axis_crosses_a_text(tmp_path):
    made_up_study(tmp_path, {"host": 0.7, "graft": 0.8}, examples=60)
    figures = Figures(load_report(tmp_path))
    layers = figures.differences(figures.summary.tables[0]).panels[0].spec["layer"]
    kinds = [(layer["mark"]["type"], layer["mark"].get("style")) for layer in layers]
    cover = kinds.index(("bar", "cover"))
    assert ("rule", None) in kinds[:cover]
    assert {kind for kind, _ in kinds[cover + 1 :]} == {"text"}


def test_arms_look_different():
    symbols = chart_config(LIGHT)["range"]["symbol"]
    assert len({glyph(index) for index in range(56)}) == 56
    assert len({glyph(index)[0] for index in range(len(symbols))}) == len(symbols)


def test_colours_have_contrast_in_both_themes():
    assert LIGHT.keys() == DARK.keys()
    for theme in (LIGHT, DARK):
        for ground in ("page", "card"):
            assert min(contrast(theme[name], theme[ground]) for name in ("ink", "soft", "link", "warn")) >= 4.5
            assert min(contrast(theme[f"c{index}"], theme[ground]) for index in range(8)) >= 3
        assert min(contrast(theme[f"t{step}"], theme[f"h{step}"]) for step in range(9)) >= 4.5
        for name, back in (("ink", "chip"), ("soft", "chip"), ("warn", "warn-back"), ("card", "c2"), ("card", "warn")):
            assert contrast(theme[name], theme[back]) >= 4.5, (name, back)


# How linear RGB is seen without red, green and blue cones (Machado et al. 2009, severity 1).
BLINDNESS = (
    ((0.152286, 1.052583, -0.204868), (0.114503, 0.786281, 0.099216), (-0.003882, -0.048116, 1.051998)),
    ((0.367322, 0.860646, -0.227968), (0.280085, 0.672501, 0.047413), (-0.011820, 0.042940, 0.968881)),
    ((1.255528, -0.076749, -0.178779), (-0.078411, 0.930809, 0.147602), (0.004733, 0.691367, 0.303900)),
)


def test_colours_of_arms_differ_for_colour_blind_people():
    for theme in (LIGHT, DARK):
        for seen in (np.eye(3), *map(np.array, BLINDNESS)):
            colors = [lab(seen @ linear(theme[f"c{index}"])) for index in range(8)]
            nearest = min(np.linalg.norm(one - other) for one, other in itertools.combinations(colors, 2))
            assert nearest >= 10


def lab(rgb):
    to_xyz = np.array([[0.4125, 0.3576, 0.1804], [0.2127, 0.7152, 0.0722], [0.0193, 0.1192, 0.9503]])
    x, y, z = np.cbrt(to_xyz @ np.clip(rgb, 0, 1) / (0.9505, 1, 1.089))
    return np.array([116 * y - 16, 500 * (x - y), 200 * (y - z)])


def contrast(one, other):
    dark, bright = sorted(map(luminance, (one, other)))
    return (bright + 0.05) / (dark + 0.05)


def luminance(color):
    return float(linear(color) @ (0.2126, 0.7152, 0.0722))


def linear(color):
    digits = color[1:] if len(color) == 7 else "".join(2 * digit for digit in color[1:])
    parts = np.array([int(digits[at : at + 2], 16) / 255 for at in (0, 2, 4)])
    return np.where(parts <= 0.04045, parts / 12.92, ((parts + 0.055) / 1.055) ** 2.4)


@pytest.mark.parametrize(("value", "said"), [(950, "950"), (1_540, "1.54 k"), (23_205_506, "23.2 M"), (8e9, "8 B")])
def test_counts_are_rounded_for_display(value, said):
    assert say_count(value) == said
