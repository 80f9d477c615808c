"""The figures, drawn with Altair from the committed evidence, as SVG files.

Each SVG holds its alternative text and a hash of its chart: a figure is up to date where both are, whatever version of
the renderer wrote the file.
"""

import hashlib
import io
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from html import escape
from typing import Any

import altair as alt
import pandas as pd

from layer_surgeon._charts import LIGHT
from research.evidence import Evidence, Gap, Study
from research.numbers import fixed, percent, points, three_digits
from research.tables import price_rows

COLORS = {"Gemma": LIGHT["c1"], "Qwen": LIGHT["c2"], "host alone": LIGHT["c0"]}
LITTLE_DATA = "SST-2, 692 examples: difference to the host alone, points"
# `quiet` and `folded-slow` run along `matched`; more lines could not be followed.
WATCHED = ("host", "graft", "matched", "folded", "random", "gated", "fast-projections", "fast-head", "wide-head")
PANELS = {
    "Loss of the batch": ("loss",),
    "RMS of the graft's output (host: of its vector)": ("rms_out", "rms_host"),
    "RMS of what a step changes in the logits": ("step_logits",),
    "Relative change of the host's weights per step": ("update_host",),
    "Relative change of proj_in per step": ("update_proj_in",),
    "Relative change of proj_out per step": ("update_proj_out",),
    "Relative change of the head per step": ("update_head",),
    "Share of saturated inputs of the head's GELU": ("saturated",),
}
# The studies whose arms are priced. Two of them can share an arm: it is the same training.
PRICED = ("s-larger", "s-qwen-mpnet")
# What its arms are called in a figure.
ARM_LABELS = {
    "host": "MiniLM",
    "lora": "MiniLM, LoRA",
    "matched": "MiniLM + one layer",
    "stack-own": "MiniLM + a donor that reads",
    "qwen-stack": "MiniLM + a larger donor that reads",
    "cut": "half of Gemma",
    "mpnet": "MPNet",
}
# Each panel of a figure of prices: its axis, what `research.costs` counted, and the unit.
PRICES = {"GMACs per text": ("macs", 1e9), "weights held, millions": ("parameters_total", 1e6)}
# So many steps make one point of a line: the loss of a batch of 32 jumps.
_STEPS = 3


@dataclass(frozen=True)
class Figure:
    """A chart and the text for readers who don't see it."""

    chart: alt.Chart
    text: str

    @property
    def stamp(self) -> str:
        """What the SVG of an unchanged figure contains."""
        content = {key: value for key, value in self.chart.to_dict().items() if key != "$schema"}
        digest = hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()[:16]
        return f'<desc id="{digest}">{escape(self.text)}</desc>'

    def svg(self) -> str:
        """The SVG file."""
        file = io.StringIO()
        self.chart.save(file, format="svg")
        head, opening, body = file.getvalue().partition("<svg ")
        attributes, end, content = body.partition(">")
        return f"{head}{opening}{attributes}{end}{self.stamp}{content}\n"


def draw_all(evidence: Evidence) -> dict[str, Figure]:
    """Every figure, by name."""
    return {
        "little": draw_little(evidence),
        "sweep": draw_sweep(evidence),
        "layers": draw_layers(evidence),
        "domains": draw_domains(evidence),
        "why": draw_why(evidence),
        "loudness": draw_loudness(evidence.measured["loudness"]),
        "select-sweeps": draw_select_sweeps(evidence.measured["select"]),
        "select-probe": draw_select_probe(evidence.measured["select"]),
    }


def draw_little(evidence: Evidence) -> Figure:
    """Little data: the arms of both donors against the host, and the matched ones."""
    names = {
        "a-gemma": ("graft", "random", "wide-head", "gated"),
        "a-qwen": ("graft", "random", "wide-head", "gated"),
        "u-loud": ("matched", "matched-random"),
        "u-qwen": ("matched", "matched-random"),
    }
    return _differences(LITTLE_DATA, [row for name, arms in names.items() for row in _rows(evidence.study(name), arms)])


def draw_why(evidence: Evidence) -> Figure:
    """What was tried against the loudness of the donor."""
    rows: list[tuple[str, str, Gap]] = []
    for name, note in (("u-loud", ""), ("u-qwen", ""), ("u-rates", ", 3 seeds"), ("u-epochs", ", 10 epochs")):
        study = evidence.study(name)
        # With five seeds, these two are among the rows of u-loud.
        left_out = ("graft", "matched") if name == "u-rates" else ()
        arms = [arm.name for arm in study.plan.arms if arm.name not in (study.plan.reference, *left_out)]
        rows += _rows(study, arms, note)
    return _differences(LITTLE_DATA, rows)


def draw_domains(evidence: Evidence) -> Figure:
    """Own and other domains."""
    rows = [
        (f"{arm}, {label}", donor, gaps[kind])
        for arm, gaps in evidence.study("d-domains").domains.items()
        for kind, label, donor in (("own", "own domain", "Gemma"), ("other", "other domains", "Qwen"))
    ]
    return _differences("Three domains: difference to the host alone, points", rows)


def draw_prices(reading: Evidence) -> dict[str, Figure]:
    """Accuracy against what an arm costs, one figure for each data set."""
    names = [spec.name for spec in reading.plans[PRICED[0]].data if reading.has(PRICED[0], spec.name)]
    return {f"price-{data}": _draw_price(reading, data) for data in names}


def _draw_price(reading: Evidence, data: str) -> Figure:
    rows = []
    studies = [reading.study(name) for name in PRICED if reading.has(name, data)]
    priced = {cost["arm"]: (study, cost) for study in studies for cost in price_rows(reading, study)}
    for study, cost in sorted(priced.values(), key=lambda pair: pair[1]["macs"]):
        row = study.row(data, data, cost["arm"])
        low, high = row["seed_interval"] or (row["mean"], row["mean"])
        accuracy = {"mean": row["mean"], "low": low, "high": high}
        prices = {title: cost[name] / unit for title, (name, unit) in PRICES.items()}
        label = ARM_LABELS.get(cost["arm"], cost["arm"])
        rows.append({"arm": label, **{key: round(100 * value, 4) for key, value in accuracy.items()}, **prices})
    # At the bottom with space between the columns, because a browser may have a wider font than the one measured here.
    legend = alt.Legend(orient="bottom", columns=2, columnPadding=40, labelLimit=0, symbolOpacity=1)
    panels = []
    for title in PRICES:
        base = alt.Chart(pd.DataFrame(rows), width=330, height=280).encode(
            x=alt.X(
                f"{title}:Q", title=title, scale=alt.Scale(type="log", padding=25), axis=alt.Axis(labelSeparation=6)
            ),
            y=alt.Y("mean:Q", title="accuracy, %", scale=alt.Scale(zero=False)),
            color=alt.Color("arm:N", sort=None, scale=alt.Scale(scheme="tableau10"), title=None, legend=legend),
        )
        panels.append(
            alt.layer(
                base.mark_rule(strokeWidth=2, opacity=0.5).encode(y="low:Q", y2="high:Q"),
                base.mark_point(filled=True, size=70, opacity=1),
            )
        )
    title = f"{data}: accuracy against what a text and a model cost"
    chart = alt.hconcat(*panels, title=title)
    texts = [f"{row['arm']} {fixed(row['mean'])} at {three_digits(row['GMACs per text'])}" for row in rows]
    return Figure(chart, f"{title}; per cent at GMACs: {'; '.join(texts)}")


def _donor(study: Study) -> str:
    return "Qwen" if "qwen" in study.name else "Gemma"


def _rows(study: Study, arms: Sequence[str], note: str = "") -> list[tuple[str, str, Gap]]:
    return [(f"{arm}, {_donor(study)}{note}", _donor(study), study.gap("sst2", "sst2", arm, "host")) for arm in arms]


def _color(names: Sequence[str], **settings: Any) -> alt.Color:
    scale = alt.Scale(domain=list(names), range=[COLORS[name] for name in names])
    return alt.Color("donor:N", scale=scale, **settings)


def _gap_columns(gap: Gap) -> dict[str, Any]:
    """In points; rounded, so that the last bits of a mean don't change the file."""
    low, high = gap.interval or (gap.mean, gap.mean)
    values = {"mean": gap.mean, "low": low, "high": high}
    return {key: round(100 * value, 4) for key, value in values.items()} | {"significant": gap.significant}


def _differences(title: str, rows: Sequence[tuple[str, str, Gap]]) -> Figure:
    """One line for each difference: mean, interval, and the single seeds as faint dots; a full mark is significant."""
    columns = ({"row": row, "donor": donor, "label": points(gap.mean), **_gap_columns(gap)} for row, donor, gap in rows)
    seeds = [
        {"row": row, "donor": donor, "seed": round(100 * value, 4)}
        for row, donor, gap in rows
        for value in (gap.by_seed if len(gap.by_seed) > 1 else ())
    ]
    y = alt.Y("row:N", sort=[row for row, _, _ in rows], title=None, axis=alt.Axis(labelLimit=300, minExtent=150))
    color = _color(("Gemma", "Qwen"), legend=None)
    means = alt.Chart(pd.DataFrame(columns)).encode(y=y, color=color)
    mark = alt.condition("datum.significant", color, alt.value("white"))
    chart = alt.layer(
        alt.Chart(pd.DataFrame({"zero": [0]}))
        .mark_rule(color=COLORS["host alone"])
        .encode(x=alt.X("zero:Q", title=None)),
        alt.Chart(pd.DataFrame(seeds)).mark_circle(opacity=0.35).encode(x="seed:Q", y=y, color=color),
        means.mark_rule(strokeWidth=2).encode(x="low:Q", x2="high:Q"),
        means.mark_point(size=70, opacity=1).encode(x="mean:Q", fill=mark),
        means.mark_text(align="left", fontWeight="bold").encode(x=alt.value(510), text="label:N"),
    ).properties(width=500, title=title)
    return Figure(chart, f"{title}: {'; '.join(f'{row} {points(gap.mean)}' for row, _, gap in rows)}")


def draw_sweep(evidence: Evidence) -> Figure:
    """Accuracy by layer, both donors, with the level of the host."""
    studies = [evidence.study("e-gemma"), evidence.study("e-qwen")]
    rows = [
        {"donor": _donor(study), "layer": int(label), **_band(study.sweep.rows[arm])}
        for study in studies
        for arm, label in study.sweep.labels.items()
    ]
    host = studies[0].sweep.host
    level = alt.Chart(pd.DataFrame([{"donor": "host alone", "first": 0, "last": 27, **_band(host)}]))
    x, color = (
        alt.X("layer:Q", title="layer of the donor (from 0)"),
        _color(tuple(COLORS), title=None, legend=alt.Legend(symbolOpacity=1)),
    )
    y = alt.Y("mean:Q", title="accuracy, %", scale=alt.Scale(zero=False))
    lines = alt.Chart(pd.DataFrame(rows)).encode(x=x, color=color)
    title = "SST-2, 692 examples: mean and deviation by layer"
    chart = alt.layer(
        level.mark_rect(opacity=0.13).encode(x="first:Q", x2="last:Q", y="low:Q", y2="high:Q", color=color),
        level.mark_rule(strokeDash=[6, 4]).encode(x="first:Q", x2="last:Q", y=y, color=color),
        lines.mark_area(opacity=0.13).encode(y="low:Q", y2="high:Q"),
        lines.mark_line(point=True).encode(y=y),
    ).properties(width=600, height=300, title=title)
    texts = [f"{_donor(study)}: {', '.join(map(percent, study.sweep.means.values()))}" for study in studies]
    texts.append(f"host alone: {percent(host['mean'])}")
    return Figure(chart, f"{title}: {'; '.join(texts)}")


def _band(row: Mapping[str, Any]) -> dict[str, float]:
    mean, deviation = row["mean"], row["deviation"] or 0
    values = {"mean": mean, "low": mean - deviation, "high": mean + deviation}
    return {key: round(100 * value, 4) for key, value in values.items()}


def draw_layers(evidence: Evidence) -> Figure:
    """What each layer does to the host, against its loudness."""
    rows, texts = [], []
    for study in (evidence.study("e-gemma"), evidence.study("e-qwen")):
        gains = evidence.gains(study.name)
        for arm, label in study.sweep.labels.items():
            gap = study.gap("sst2", "sst2", arm, study.plan.reference)
            rows.append(
                {"donor": _donor(study), "layer": label, "gain": float(f"{gains[arm]:.4g}"), **_gap_columns(gap)}
            )
            gain = three_digits(gains[arm])
            texts.append(f"{_donor(study)} {label} (adds {gain} times its input) {points(gap.mean)}")
    title = "SST-2, 692 examples: a layer's graft against how loud the layer is"
    color = _color(("Gemma", "Qwen"), title=None)
    x_title = "what the layer adds, times what it is given, before training"
    x = alt.X("gain:Q", scale=alt.Scale(type="log"), title=x_title)
    y = alt.Y("mean:Q", title="difference to the host alone, points")
    layers = alt.Chart(pd.DataFrame(rows)).encode(x=x, color=color)
    mark = alt.condition("datum.significant", color, alt.value("white"))
    chart = alt.layer(
        alt.Chart(pd.DataFrame({"zero": [0]})).mark_rule(color=COLORS["host alone"]).encode(y="zero:Q"),
        layers.mark_rule(opacity=0.4).encode(y="low:Q", y2="high:Q"),
        layers.mark_point(size=60, opacity=1).encode(y=y, fill=mark),
        layers.mark_text(dx=6, align="left", fontSize=9).encode(y=y, text="layer:N"),
    ).properties(width=600, height=320, title=title)
    return Figure(chart, f"{title}: {'; '.join(texts)}")


def draw_loudness(content: Mapping[str, Any]) -> Figure:
    """One training of each arm, step by step: every measure in a panel of its own."""
    arms = [arm for arm in WATCHED if arm in content["training"]]
    color = alt.Color("arm:N", sort=arms, scale=alt.Scale(domain=arms, scheme="tableau10"), title=None)
    panels = []
    for title, names in PANELS.items():
        share = names == ("saturated",)
        rows = []
        for arm in arms:
            series = content["training"][arm]["series"]
            values = next((series[name] for name in names if name in series), [])
            rows += [{"arm": arm, **mean} for mean in _means(values) if share or mean["value"] > 0]
        scale, axis = alt.Scale(type="linear" if share else "log"), alt.Axis(format="%" if share else "~g", tickCount=5)
        base = alt.Chart(pd.DataFrame(rows, columns=["arm", "step", "value"]), title=title, width=330, height=180)
        panels.append(
            base.mark_line().encode(x="step:Q", y=alt.Y("value:Q", title=None, scale=scale, axis=axis), color=color)
        )
    return Figure(alt.concat(*panels, columns=2), "One training of each arm, step by step")


def _means(values: Sequence[float | None]) -> list[dict[str, float]]:
    """The mean of every few steps; None is left out."""
    frame = pd.DataFrame({"step": range(1, len(values) + 1), "value": pd.Series(values, dtype=float)}).dropna()
    means = frame.groupby((frame["step"] - 1) // _STEPS).mean()
    return [{"step": step, "value": float(f"{value:.4g}")} for step, value in means.itertuples(index=False)]


def draw_select_sweeps(content: Mapping[str, Any]) -> Figure:
    """The sweeps, with the layers that `surgeon select` chose."""
    panels = []
    for name, facts in content["data"].items():
        frame = pd.DataFrame(
            [{"layer": number, **_seed_band(row["test"])} for number, row in enumerate(facts["layers"])]
        )
        chosen = pd.Series([selection["layer"] for selection in facts["selections"]]).value_counts()
        counts = pd.DataFrame({"layer": chosen.index, "times": chosen.to_numpy(), "y": frame["low"].min() - 1.5})
        best = frame["mean"].max()
        levels = pd.DataFrame(
            [{"low": best - 100 * facts["pooled_deviation"], "high": best, "host": _seed_band(facts["host"])["mean"]}]
        )
        x = alt.X("layer:O", title="layer of Gemma-3-270M (from 0)", axis=alt.Axis(labelAngle=0))
        y = alt.Y("mean:Q", title="test accuracy, %", scale=alt.Scale(zero=False))
        sweep, blue, orange = alt.Chart(frame).encode(x=x), COLORS["Qwen"], COLORS["Gemma"]
        panels.append(
            alt.layer(
                alt.Chart(levels).mark_rect(opacity=0.12, color=blue).encode(y="low:Q", y2="high:Q"),
                alt.Chart(levels).mark_rule(strokeDash=[6, 4]).encode(y="host:Q"),
                sweep.mark_rule(color=blue).encode(y="low:Q", y2="high:Q"),
                sweep.mark_line(point=True, color=blue).encode(y=y),
                alt.Chart(counts).mark_circle(size=250, color=orange, opacity=1).encode(x=x, y="y:Q"),
                alt.Chart(counts).mark_text(color="white").encode(x=x, y="y:Q", text="times:Q"),
            ).properties(width=620, height=220, title=name)
        )
    text = (
        "Test accuracy of every layer: mean and deviation of three seeds. Dashed: the host alone. Band: within a "
        "pooled deviation of the best layer. Circles: how often `surgeon select` chose a layer"
    )
    return Figure(alt.vconcat(*panels), text)


def draw_select_probe(content: Mapping[str, Any]) -> Figure:
    """The probe without training against the sweep."""
    panels = []
    for name, facts in content["data"].items():
        rows = []
        for number, row in enumerate(facts["layers"]):
            scores = (
                pd.Series([selection["rungs"][0]["scores"][str(number)] for selection in facts["selections"]]) * 100
            )
            probe = {"low": scores.min(), "high": scores.max(), "probe": scores.mean()}
            rows.append(
                {
                    "layer": number,
                    "mean": _seed_band(row["test"])["mean"],
                    **{key: round(value, 4) for key, value in probe.items()},
                }
            )
        x = alt.X("probe:Q", title="probe without training, %", scale=alt.Scale(zero=False))
        y = alt.Y("mean:Q", title="sweep: test accuracy, %", scale=alt.Scale(zero=False))
        base = alt.Chart(pd.DataFrame(rows)).encode(y=y)
        panels.append(
            alt.layer(
                base.mark_rule(opacity=0.35).encode(x="low:Q", x2="high:Q"),
                base.mark_circle().encode(x=x),
                base.mark_text(dx=5, dy=-5, fontSize=9).encode(x=x, text="layer:N"),
            ).properties(width=290, height=260, title=name)
        )
    text = "The probe of every layer (line: from selection to selection) against its test accuracy in the sweep"
    return Figure(alt.hconcat(*panels), text)


def _seed_band(accuracies: Sequence[float]) -> dict[str, float]:
    series = pd.Series(accuracies)
    return _band({"mean": series.mean(), "deviation": series.std()})
