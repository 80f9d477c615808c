"""What a finished run shows of itself: results.json, the picture of its losses, the model card."""

import json
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from huggingface_hub import EvalResult, ModelCardData
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from layer_surgeon._version import __version__
from layer_surgeon.finetune.metrics import TITLES
from layer_surgeon.finetune.registry import DATASETS
from layer_surgeon.finetune.results import RESULTS, FinetuneResult
from layer_surgeon.graft.tasks import TASKS
from layer_surgeon.workspace import short_name

LOSS_CURVE = "loss_curve.png"
_BLUE, _ORANGE, _GRAY = "#2563a8", "#c2570c", "#b8c4d0"
# The Hub's names where they are others than ours.
_HUB_METRICS = {"macro_f1": "f1"}
PIPELINE_TAGS = {"translation": "translation", "summarisation": "summarization"}
_REPO_ID = re.compile(r"[\w.-]+/[\w.-]+|[\w-][\w.-]*")


def write_report(result: FinetuneResult, model_config: Any, folder: Path) -> None:
    """Write the card, the picture and, last, results.json into a folder that holds the model already."""
    draw_curve(result, folder / LOSS_CURVE)
    (folder / "README.md").write_text(make_card(result, model_config), encoding="utf-8")
    (folder / RESULTS).write_text(json.dumps(result.as_dict(), indent=2) + "\n", encoding="utf-8")


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
    figure.suptitle(f"{result.path.name}: training loss and validation", fontsize=11, x=0.02, ha="left")
    figure.savefig(path)


def _moving_mean(values: Sequence[float]) -> list[float]:
    """Mean over the last twentieth of the points; empty where there are too few to smooth."""
    width = len(values) // 20
    if width < 2:
        return []
    return [sum(part) / len(part) for part in (values[max(0, i - width + 1) : i + 1] for i in range(len(values)))]


def make_card(result: FinetuneResult, model_config: Any) -> str:
    """The text of README.md: the Hub's metadata, with the measured values, and a page for people."""
    names = model_names(model_config)
    return f"---\n{_metadata(result, model_config, names).to_yaml()}\n---\n\n{_body(result, names)}"


def model_names(model_config: Any) -> list[str]:
    """What the model was made from: the host and, in a graft, the donor model."""
    host, donor = getattr(model_config, "host", None), getattr(model_config, "donor", None)
    names = [(host or {}).get("name"), (donor or {}).get("base_model") or (donor or {}).get("name")]
    names = names if isinstance(host, dict) else [getattr(model_config, "_name_or_path", None)]
    return [name for name in names if name]


def _metadata(result: FinetuneResult, model_config: Any, names: Sequence[str]) -> ModelCardData:
    record = DATASETS.get(str(result.data["name"]))
    donor = getattr(model_config, "donor", None)
    tag = PIPELINE_TAGS.get(str(record.task) if record is not None else "", TASKS[result.task].pipeline_tag)
    entries = [
        EvalResult(
            task_type=tag,
            dataset_type=record.hub_id if record is not None and record.hub_id else str(result.data["name"]),
            dataset_name=str(result.data["name"]),
            dataset_split=split,
            metric_type=_HUB_METRICS.get(score, score),
            metric_name=TITLES[score][:1].upper() + TITLES[score][1:],
            metric_value=round(float(value), 6),
        )
        for split, measured in result.measured.items()
        for score, value in measured.scores.items()
        if score != "loss"
    ]
    repos = [name for name in names if _REPO_ID.fullmatch(name) and not Path(name).exists()]
    return ModelCardData(
        library_name="transformers",
        pipeline_tag=tag,
        tags=["layer-surgeon"],
        base_model=repos or None,
        license=donor["license"] if isinstance(donor, dict) and isinstance(donor.get("license"), str) else None,
        datasets=[record.hub_id] if record is not None and record.hub_id else None,
        model_name=result.path.name,
        eval_results=entries,
        ignore_metadata_errors=False,
    )


def _body(result: FinetuneResult, names: Sequence[str]) -> str:
    shown = " with a layer of ".join(short_name(name) if Path(name).exists() else name for name in names)
    labels = f" to tell apart: {', '.join(result.label_names)}" if result.label_names else ""
    where = "a part of the training data held out" if result.data["validation_held_out_from_train"] else "its own split"
    settings = "\n".join(f"| {name} | {value} |" for name, value in result.as_dict()["config"].items())
    return f"""# {result.path.name}

{shown or "A transformers model"}, fine-tuned on {result.data["name"]}{labels}.

{_USE[result.task]}
## Results

{_score_table(result)}

Validation data: {where}. The epoch with the best validation {result.config.select_by} was kept.

{_class_table(result)}
## Training

![Training loss and validation score]({LOSS_CURVE})

{_epoch_table(result)}

{result.num_trained_parameters:,} of {result.num_parameters:,} parameters were trained, on {result.device}, in
{result.seconds:.0f} s.

<details><summary>All settings</summary>

| setting | value |
|---|---|
{settings}

</details>

`results.json` holds all of this for programs. The terms of the models and of the data that this was made from apply.

Made with layer_surgeon {__version__}.
"""


def _pipeline_example(name: str, task: str, call: str) -> str:
    return f"""```python
import layer_surgeon  # makes the model's classes known to transformers
from transformers import pipeline

{name} = pipeline("{task}", model="path/to/this/folder")
{call}
```
"""


def _predict_example(item: str) -> str:
    return f"""```python
from layer_surgeon.finetune import predict

predict("path/to/this/folder", [{item}])
```
"""


_USE = {
    "text-classification": _pipeline_example("classify", "text-classification", 'classify("A text.")'),
    "token-classification": _pipeline_example("tag", "token-classification", 'tag("A text.")'),
    "question-answering": _predict_example('("A question?", "A text with the answer.")'),
    "seq2seq": _predict_example('"A text."'),
    "causal-lm": _predict_example('"The beginning of a text"'),
}


def _score_table(result: FinetuneResult) -> str:
    scores = list(result.validation.scores)
    return _table(
        ["set", "examples", *(TITLES[score] for score in scores)],
        [
            [name, f"{measured.examples:,}", *(f"{measured.scores[score]:.4f}" for score in scores)]
            for name, measured in result.measured.items()
        ],
    )


def _epoch_table(result: FinetuneResult) -> str:
    scores = list(result.validation.scores)
    return _table(
        ["epoch", "training loss", *(f"validation {TITLES[score]}" for score in scores)],
        [
            [
                f"{epoch.epoch:g}{' (kept)' if index == result.best_epoch else ''}",
                f"{epoch.training_loss:.4f}",
                *(f"{epoch.scores[score]:.4f}" for score in scores),
            ]
            for index, epoch in enumerate(result.history, start=1)
        ],
    )


def _class_table(result: FinetuneResult) -> str:
    """Of the test examples, else of the validation examples; nothing for a task without classes."""
    name, metrics = list(result.measured.items())[-1]
    per_class = getattr(metrics, "per_class", None)
    if not per_class:
        return ""
    return (
        _table(
            [f"{name}, by class", "precision", "recall", "F1", "examples"],
            [
                [label, f"{s.precision:.4f}", f"{s.recall:.4f}", f"{s.f1:.4f}", f"{s.support:,}"]
                for label, s in per_class.items()
            ],
        )
        + "\n"
    )


def _table(header: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """Markdown; all columns but the first hold numbers."""
    lines = [header, ["---", *["---:"] * (len(header) - 1)], *rows]
    return "\n".join("| " + " | ".join(cells) + " |" for cells in lines)
