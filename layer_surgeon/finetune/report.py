"""Write the report of a finished run: results.json, charts and the model card."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from layer_surgeon._charts import draw_png
from layer_surgeon._io import write_bytes, write_json, write_text
from layer_surgeon.finetune.confusion import draw_confusion
from layer_surgeon.finetune.results import CONFUSION_MATRIX, RESULTS, FinetuneResult
from layer_surgeon.finetune.run_facts import LOSS_CURVE, make_card
from layer_surgeon.tasks import score_title


def write_report(result: FinetuneResult, model_config: Any, folder: Path) -> None:
    """Write the model card, the charts and, last, results.json into a folder that already contains the model."""
    draw_curve(result, folder / LOSS_CURVE)
    name, metrics = list(result.measured.items())[-1]
    confusion = getattr(metrics, "confusion", None)
    if confusion:
        title = f"{result.path.name}: {metrics.examples:,} {name} examples"
        draw_confusion(confusion, result.label_names, title, folder / CONFUSION_MATRIX)
    write_text(folder / "README.md", make_card(result, model_config))
    write_json(folder / RESULTS, result.as_dict() | {"folder": str(result.path.resolve())})


def draw_curve(result: FinetuneResult, path: Path) -> None:
    """Draw the training loss by step, and below it the validation score by epoch with the kept epoch marked."""
    import altair as alt

    losses = [loss for _, loss in result.steps]
    smooth = _moving_mean(losses)
    # Order of the theme's colours: gray, orange, blue.
    lines = ("training, each point" if smooth else "training", "validation", "training, moving mean")
    records: list[dict[str, Any]] = [{"line": lines[0], "step": step, "loss": loss} for step, loss in result.steps]
    records += [{"line": lines[1], "step": epoch.step, "loss": epoch.loss} for epoch in result.history]
    steps = [step for step, _ in result.steps]
    records += [{"line": lines[2], "step": step, "loss": loss} for step, loss in zip(steps, smooth, strict=False)]
    last = max([record["step"] for record in records], default=1)
    color = alt.Color(
        "line:N", scale=alt.Scale(domain=list(lines)), legend=alt.Legend(values=list(lines[: 2 + bool(smooth)]))
    )
    x = alt.X("step:Q", scale=alt.Scale(domain=[0, last], nice=False), axis=alt.Axis(tickMinStep=1, grid=False))
    upper = _chart(records).encode(x=x.title(None), y=_from_data("loss", "loss (nats)"), color=color)
    name = next(iter(result.validation.scores))
    best = result.history[result.best_epoch - 1]
    text = f"kept: epoch {best.epoch:g}, {best.scores[name]:.4f}"
    scores = [
        {"line": lines[1], "step": epoch.step, "score": epoch.scores[name], "text": text if epoch is best else ""}
        for epoch in result.history
    ]
    lower = _chart(scores).encode(
        x=x.title("optimizer steps"), y=_from_data("score", f"validation {score_title(name)}"), color=color
    )
    kept = lower.transform_filter("datum.text")
    late = best.step > 0.6 * last
    parts = [
        alt.layer(upper.mark_line(strokeWidth=1.6, opacity=0.8), *_points(upper)),
        alt.layer(
            lower.mark_line(strokeWidth=1.6),
            *_points(lower),
            kept.mark_point(size=250, shape="circle"),
            kept.mark_text(align="right" if late else "left", dx=-8 if late else 8, dy=-16).encode(text="text:N"),
        ),
    ]
    title = alt.Title(f"{result.path.name}: training loss and validation")
    spec = alt.vconcat(*(part.properties(width=620, height=190) for part in parts)).properties(title=title)
    write_bytes(path, draw_png(spec.to_dict(validate=False)))


def _chart(records: Sequence[dict[str, Any]]) -> Any:
    import altair as alt

    return alt.Chart(alt.Data(values=list(records)))  # type: ignore[no-untyped-call]


def _from_data(field: str, title: str) -> Any:
    import altair as alt

    return alt.Y(f"{field}:Q", title=title, scale=alt.Scale(zero=False, padding=14), axis=alt.Axis(tickCount=5))


def _points(chart: Any) -> list[Any]:
    """Make the marks at the ends of the epochs."""
    return [chart.transform_filter("datum.line == 'validation'").mark_point(filled=True, size=50, opacity=1)]


def _moving_mean(values: Sequence[float]) -> list[float]:
    """Compute the moving mean over a twentieth of the points; empty if there are too few points to smooth."""
    width = len(values) // 20
    if width < 2:
        return []
    return [sum(part) / len(part) for part in (values[max(0, i - width + 1) : i + 1] for i in range(len(values)))]
