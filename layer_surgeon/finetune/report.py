"""What a finished run shows of itself: results.json, its pictures, the model card."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from layer_surgeon._io import new_file, write_json, write_text
from layer_surgeon.finetune.card import LOSS_CURVE, make_card
from layer_surgeon.finetune.confusion import draw_confusion
from layer_surgeon.finetune.metrics import TITLES
from layer_surgeon.finetune.results import CONFUSION_MATRIX, RESULTS, FinetuneResult

_BLUE, _ORANGE, _GRAY = "#2563a8", "#c2570c", "#b8c4d0"


def write_report(result: FinetuneResult, model_config: Any, folder: Path) -> None:
    """Write the card, the pictures and, last, results.json into a folder that holds the model already."""
    draw_curve(result, folder / LOSS_CURVE)
    name, metrics = list(result.measured.items())[-1]
    confusion = getattr(metrics, "confusion", None)
    if confusion:
        title = f"{result.path.name}: {metrics.examples:,} {name} examples"
        draw_confusion(confusion, result.label_names, title, folder / CONFUSION_MATRIX)
    write_text(folder / "README.md", make_card(result, model_config))
    write_json(folder / RESULTS, result.as_dict())


def draw_curve(result: FinetuneResult, path: Path) -> None:
    """Training loss by step above, the validation score by epoch below; the kept epoch is marked."""
    figure = Figure(figsize=(7.2, 5.4), dpi=150, layout="constrained")
    upper, lower = figure.subplots(2, 1, sharex=True)
    steps, losses = [step for step, _ in result.steps], [loss for _, loss in result.steps]
    smooth = _moving_mean(losses)
    upper.plot(steps, losses, color=_GRAY, linewidth=1, label="training, each point" if smooth else "training")
    if smooth:
        upper.plot(steps, smooth, color=_BLUE, linewidth=1.8, label="training, moving mean")
    ends = [epoch.step for epoch in result.history]
    upper.plot(ends, [epoch.loss for epoch in result.history], "o-", color=_ORANGE, markersize=5, label="validation")
    upper.set_ylabel("loss (nats)")
    upper.legend(frameon=False, fontsize=8.5)
    name = next(iter(result.validation.scores))
    lower.plot(ends, [epoch.scores[name] for epoch in result.history], "o-", color=_ORANGE, markersize=5)
    best = result.history[result.best_epoch - 1]
    lower.plot([best.step], [best.scores[name]], "o", markersize=11, markerfacecolor="none", color=_BLUE)
    side = -1 if best.step > 0.6 * ends[-1] else 1
    lower.annotate(
        f"kept: epoch {best.epoch:g}, {best.scores[name]:.4f}",
        (best.step, best.scores[name]),
        xytext=(6 * side, 11),
        textcoords="offset points",
        fontsize=8.5,
        color=_BLUE,
        ha="right" if side < 0 else "left",
    )
    lower.set_ylabel(f"validation {TITLES[name]}")
    lower.set_xlabel("optimizer steps")
    lower.set_xlim(left=0)
    lower.margins(y=0.25)
    lower.xaxis.set_major_locator(MaxNLocator(integer=True))
    for axes in (upper, lower):
        axes.spines[["top", "right"]].set_visible(False)
        axes.grid(axis="y", color="#e6eaee", linewidth=0.8)
        axes.set_axisbelow(True)
    title = f"{result.path.name}: training loss and validation"
    figure.suptitle(title, fontsize=11, x=0.02, ha="left", parse_math=False)
    with new_file(path) as file:
        figure.savefig(file, format="png")


def _moving_mean(values: Sequence[float]) -> list[float]:
    """Mean over the last twentieth of the points; empty where there are too few to smooth."""
    width = len(values) // 20
    if width < 2:
        return []
    return [sum(part) / len(part) for part in (values[max(0, i - width + 1) : i + 1] for i in range(len(values)))]
