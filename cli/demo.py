"""`surgeon demo`: the whole workflow on real weights."""

from typing import TYPE_CHECKING, Annotated, Any

import typer

from layer_surgeon._format import format_bytes, format_count, format_seconds
from layer_surgeon.finetune.config import COLUMN_SETTINGS, OTHER_TASKS_SETTINGS, FinetuneConfig

from .command import command, new_app, usage
from .errors import UsageError
from .ui import Ui, escape_text

if TYPE_CHECKING:
    from layer_surgeon.study import DemoResult

app = new_app()

# Settings that the demo chooses itself, and settings of tasks other than classification.
_WITHOUT = ("seed", "task", *COLUMN_SETTINGS, *OTHER_TASKS_SETTINGS, "extra_metrics")


@command(app, settings=FinetuneConfig, without=_WITHOUT)
def demo(
    num_seeds: Annotated[int, typer.Option("--num-seeds", help="Runs of each arm.")] = 2,
    *,
    settings: dict[str, Any],
    ui: Ui,
) -> dict[str, Any]:
    """Run the whole workflow on real weights, without the Hub.

    Puts the last layer of Gemma-3-270M into MiniLM. Trains the graft and MiniLM alone on film reviews, tests both on
    three data sets, and writes an HTML page.
    """
    if num_seeds < 1:
        raise UsageError(f"--num-seeds is {num_seeds}; it must be at least 1.")
    with usage():
        config = FinetuneConfig(**settings)

    from layer_surgeon.study import run_demo

    seeds = range(FinetuneConfig.seed, FinetuneConfig.seed + num_seeds)
    result = run_demo(ui.workspace, ui.progress, seeds=seeds, config=config)
    if not ui.as_json:
        _show(result, ui)
    return result.as_dict()


def _show(result: "DemoResult", ui: Ui) -> None:
    rows = []
    for arm in result.arm_names:
        counts = result.runs(arm)[0].parameters
        total, trained = (sum(values) for values in zip(*counts.values(), strict=True))
        seconds = sum(run.training_seconds for run in result.runs(arm)) / len(result.runs(arm))
        rows.append((arm, format_count(total), format_count(trained), format_seconds(seconds)))
    ui.table(("arm", "parameters", "trained", "time per training"), rows)
    ui.table(
        ("test set", "sentences", "arm", "accuracy", "95 % interval", "macro F1"),
        [
            (
                test,
                f"{cell.examples:,}",
                arm,
                f"{cell.accuracy:.4f}",
                _format_interval(cell.interval),
                f"{cell.macro_f1:.4f}",
            )
            for test in result.test_names
            for arm, cell in ((arm, result.cell(arm, test)) for arm in result.arm_names)
        ],
    )
    ui.table(
        ("test set", "grafted - host alone", "95 % interval", "verdict"),
        [
            (test, f"{difference.delta:+.4f}", _format_interval(difference.interval, "+.3f"), difference.verdict)
            for test, difference in ((test, result.comparison(test)) for test in result.test_names)
        ],
    )
    ui.headline(result.conclusion())
    changed = ", ".join(f"{name} = {value}" for name, value in result.changed.items())
    layer = ", ".join(map(str, result.layer_indices))
    ui.facts(
        {
            "layer": f"{layer} of {result.donor_name}, {format_bytes(result.layer_bytes)}, "
            f"{'reused' if result.layer_reused else 'extracted'} in {format_seconds(result.extraction_seconds)}",
            "settings": f"the paper's{f', except {changed}' if changed else ''}; seeds {_join(result.seeds)}",
            "time": format_seconds(result.seconds),
            "page": result.page,
        }
    )
    ui.line(f'\nNext: [bold]surgeon predict "What a film!" --model {escape_text(str(result.arms[-1].path))}[/]')


def _format_interval(interval: Any, spec: str = ".3f") -> str:
    return f"{interval.low:{spec}} to {interval.high:{spec}}"


def _join(values: Any) -> str:
    return ", ".join(map(str, values))
