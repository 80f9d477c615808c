"""`surgeon demo`: the whole workflow on real weights."""

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from layer_surgeon._format import format_bytes, format_count, format_seconds
from layer_surgeon.errors import TrainingError
from layer_surgeon.finetune.config import COLUMN_SETTINGS, OTHER_TASKS_SETTINGS, FinetuneConfig

from .command import command, new_app, usage
from .errors import UsageError
from .report import write_page
from .ui import Ui, escape_text

if TYPE_CHECKING:
    from layer_surgeon.study.compare import StudyResult

app = new_app()

# Settings that the demo chooses itself, and settings of tasks other than classification.
_WITHOUT = ("seed", "task", *COLUMN_SETTINGS, *OTHER_TASKS_SETTINGS, "extra_metrics")

_ENOUGH_SEEDS = 5


@command(app, settings=FinetuneConfig, without=_WITHOUT)
def demo(
    num_seeds: Annotated[int, typer.Option("--num-seeds", help="Runs of each arm.")] = 2,
    *,
    settings: dict[str, Any],
    ui: Ui,
) -> dict[str, Any]:
    """Run the whole workflow on real weights, without the Hub.

    Puts the last layer of Gemma-3-270M into MiniLM. Trains the graft and MiniLM alone on film reviews, tests both on
    three data sets, and writes an HTML page. Finished trainings are not repeated.
    """
    if num_seeds < 1:
        raise UsageError(f"--num-seeds is {num_seeds}; it must be at least 1.")
    with usage():
        config = FinetuneConfig(**settings)

    from layer_surgeon.study.demo import run_demo

    seeds = range(FinetuneConfig.seed, FinetuneConfig.seed + num_seeds)
    result = run_demo(ui.workspace, ui.progress, seeds=seeds, config=config)
    if result.failed:
        raise TrainingError(
            f"{len(result.failed)} of {result.summary.cells.planned} trainings failed. "
            f"{next(iter(result.failed.values()))} Run the same command to try them again. Finished trainings are kept."
        )
    changed = {name: value for name, value in settings.items() if value != getattr(FinetuneConfig, name)}
    if not ui.as_json:
        _show(result, changed, ui)
    page = write_page(result.path, ui)
    model = _last_graft(result)
    if not ui.as_json:
        ui.line(f'\nNext: [bold]surgeon predict "What a film!" --model {escape_text(str(model))}[/]')
        if num_seeds < _ENOUGH_SEEDS and not changed:
            ui.line(f"      [bold]surgeon demo --num-seeds {_ENOUGH_SEEDS}[/] adds seeds, for a clearer result")
    return result.as_dict() | {"report": page, "model": model}


def _last_graft(result: "StudyResult") -> Path:
    """Return the folder of the last graft that was trained."""
    from layer_surgeon.study.layout import StudyFolder
    from layer_surgeon.study.plan import StudyPlan

    folder = StudyFolder(root=result.path)
    return folder.run([cell.id for cell in StudyPlan.read(folder.plan).cells() if cell.arm.donor is not None][-1])


def _show(result: "StudyResult", changed: Mapping[str, Any], ui: Ui) -> None:
    from layer_surgeon.study.verdict import difference_in_words, say_p

    summary = result.summary
    for line in _describe(result):
        ui.line(line)
    ui.table(
        ("test set", "sentences", "arm", "accuracy", "95 % interval", "by seed"),
        [
            (
                table.test if row is table.rows[0] else "",
                f"{table.examples:,}" if row is table.rows[0] else "",
                row.arm,
                f"{row.mean:.1%}",
                "" if (interval := row.example_interval) is None else f"{interval.low:.1%} to {interval.high:.1%}",
                ", ".join(f"{value:.1%}" for value in row.by_seed),
            )
            for table in summary.tables
            for row in table.rows
        ],
    )
    ui.table(
        ("test set", "graft - host", "95 % interval", "p", ""),
        [
            (
                table.test,
                difference_in_words(comparison.mean, summary.metric),
                "" if (span := comparison.interval) is None else f"{100 * span.low:+.1f} to {100 * span.high:+.1f}",
                "" if comparison.p_holm is None else say_p(comparison.p_holm),
                summary.outcome(comparison) or "no test possible",
            )
            for table in summary.tables
            for comparison in table.comparisons
        ],
    )
    seeds = summary.tables[0].rows[0].seeds
    basis = "seeds and sentences" if len(seeds) > 1 else "the sentences, for this one seed"
    ui.line(
        f"The interval of an accuracy is over the sentences. The interval and the p of a difference are over {basis}.\n"
    )
    ui.headline(summary.verdict)
    exceptions = f", except {', '.join(f'{name} = {value}' for name, value in changed.items())}" if changed else ""
    ui.facts(
        {
            "settings": f"the paper's{exceptions}",
            "trainings": f"{result.done} done, {result.ran} of them now"
            + (f". To repeat all of them, delete {result.path} first" if result.ran < result.done else ""),
            "time": format_seconds(result.seconds),
        }
    )
    ui.line("")


def _describe(result: "StudyResult") -> tuple[str, ...]:
    """Say in three lines what the demo did."""
    from layer_surgeon.extract import LayerArtifact
    from layer_surgeon.study.layout import StudyFolder
    from layer_surgeon.study.plan import StudyPlan

    summary, table = result.summary, result.summary.tables[0]
    folder = StudyFolder(root=result.path)
    (donor,) = {arm.donor for arm in StudyPlan.read(folder.plan).arms if arm.donor is not None}
    artifact = LayerArtifact.open(folder.layer(donor.name))
    layer = ", ".join(map(str, artifact.layer_indices))
    trained = {row.arm: counts.trained for row in table.rows if (counts := summary.parameters(row.arm)) is not None}
    return (
        f"Put layer {layer} of Gemma-3-270M ({format_bytes(artifact.num_bytes)}) into all-MiniLM-L6-v2. The layer is "
        "frozen, between two trained projections.",
        f"Trained MiniLM alone (host, {format_count(trained['host'])} trained parameters) and with the layer (graft, "
        f"{format_count(trained['graft'])}) on {table.rows[0].train_examples} sentences of film reviews, once with "
        f"each seed ({', '.join(map(str, table.rows[0].seeds))}).",
        f"Tested all models on {table.examples} other sentences of film reviews (imdb), and on sentences "
        "about products (amazon) and restaurants (yelp).",
    )
