"""`surgeon demo`: the whole workflow on real weights."""

import shlex
from collections.abc import Sequence
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
    from layer_surgeon.study.demo import CutModel
    from layer_surgeon.study.plan import StudyPlan

app = new_app()

# Settings that the demo chooses itself, and settings of tasks other than classification.
_WITHOUT = ("seed", "task", *COLUMN_SETTINGS, *OTHER_TASKS_SETTINGS, "extra_metrics")

# Those of the preset. Each arm has its own learning rates: docs/demo.md has them.
_DEFAULTS = {"batch_size": "16", "max_train_samples": "320", "max_eval_samples": "100"}

_ENOUGH_SEEDS = 5
_SENTENCE = "The plot is thin, but I loved every minute of it."


@command(app, settings=FinetuneConfig, without=_WITHOUT, defaults=_DEFAULTS)
def demo(
    num_seeds: Annotated[int, typer.Option("--num-seeds", help="Runs of each arm.")] = 2,
    *,
    settings: dict[str, Any],
    ui: Ui,
) -> dict[str, Any]:
    """Run the whole workflow on real weights, without the Hub.

    Trains MiniLM on film reviews: alone, with the first half of Gemma-3-270M, which reads the text next to it, and with
    Gemma's last layer, as in the paper. Tests all of them on three data sets, and writes an HTML page. Then cuts Gemma
    itself to half of its layers, and classifies a sentence. Finished work is not repeated.
    """
    if num_seeds < 1:
        raise UsageError(f"--num-seeds is {num_seeds}; it must be at least 1.")
    with usage():
        FinetuneConfig(**settings)

    from layer_surgeon.finetune import predict
    from layer_surgeon.study.arms import is_called
    from layer_surgeon.study.demo import cut_donor, run_demo
    from layer_surgeon.study.layout import StudyFolder
    from layer_surgeon.study.plan import StudyPlan

    seeds = range(FinetuneConfig.seed, FinetuneConfig.seed + num_seeds)
    result = run_demo(ui.workspace, ui.progress, seeds=seeds, finetune=settings)
    if result.failed:
        raise TrainingError(
            f"{len(result.failed)} of {result.summary.cells.planned} trainings failed. "
            f"{next(iter(result.failed.values()))} Run the same command to try them again. Finished trainings are kept."
        )
    folder = StudyFolder(root=result.path)
    plan = StudyPlan.read(folder.plan)
    if not ui.as_json:
        _show(result, plan, ui)
    page = write_page(result.path, ui)
    cut = cut_donor(result.path, ui.progress)
    stack = next(folder.run(cell.id) for cell in plan.cells() if is_called(plan.focus, cell.arm.name))
    predictions = [predict(model, [_SENTENCE], progress=ui.progress)[0] for model in (stack, cut.trained)]
    if not ui.as_json:
        _show_cut(cut, predictions, ui)
        ui.line(f'\nNext: [bold]surgeon predict "What a film." --model {escape_text(shlex.quote(str(stack)))}[/]')
        if num_seeds < _ENOUGH_SEEDS and not settings:
            ui.line(f"      [bold]surgeon demo --num-seeds {_ENOUGH_SEEDS}[/] adds seeds, for a clearer result")
    return result.as_dict() | {
        "report": page,
        "model": stack,
        "cut": {
            "path": cut.model.path,
            "model": cut.trained,
            **{name: dict(scores.scores) for name, scores in cut.result.tests.items()},
        },
        "predictions": {
            name: prediction.as_row() for name, prediction in zip((plan.focus, "cut"), predictions, strict=True)
        },
    }


def _show(result: "StudyResult", plan: "StudyPlan", ui: Ui) -> None:
    from layer_surgeon.study.verdict import difference_in_words, say_p

    summary = result.summary
    for line in _describe(result, plan):
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
        ("test set", "difference", "", "95 % interval", "corrected p", ""),
        [
            (
                table.test if comparison is table.comparisons[0] else "",
                f"{comparison.arm} - {comparison.against}",
                difference_in_words(comparison.mean, is_share=summary.is_share),
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
        "p is corrected for all comparisons of a test set.\n"
    )
    ui.headline(summary.verdict)
    ui.facts(
        {
            "settings": _describe_settings(plan),
            "trainings": f"{result.done} done, {result.ran} of them now"
            + (f". To repeat all of them, delete {result.path} first" if result.ran < result.done else ""),
            "time": format_seconds(result.seconds),
        }
    )
    ui.line("")


def _describe_settings(plan: "StudyPlan") -> str:
    """Say which settings are not the paper's: those of all arms, then those of single arms."""
    owners = {"": plan.finetune, **{f" of {arm.name}": arm.finetune for arm in plan.arms}}
    changes = [f"{name}{owner} = {value}" for owner, settings in owners.items() for name, value in settings.items()]
    return "the paper's" + (f", except {', '.join(changes)}" if changes else "")


def _describe(result: "StudyResult", plan: "StudyPlan") -> list[str]:
    """Say in a few lines what the demo did."""
    from layer_surgeon.extract import LayerArtifact
    from layer_surgeon.study.layout import StudyFolder

    folder, table = StudyFolder(root=result.path), result.summary.tables[0]
    roles = {
        "host": "MiniLM alone",
        "stack": "MiniLM, and next to it Gemma's embeddings and layers {}, which read the same text",
        "graft": "MiniLM, and after it Gemma's layer {}, which gets MiniLM's vectors, as in the paper",
    }
    lines = [
        f"Trained all-MiniLM-L6-v2 with the help of Gemma-3-270M on {table.rows[0].train_examples} sentences of film "
        f"reviews, once with each seed ({', '.join(map(str, table.rows[0].seeds))}):",
        "",
    ]
    for arm in plan.arms:
        counts = result.summary.parameters(arm.name)
        layers, size = "", ""
        if arm.donor is not None:
            artifact = LayerArtifact.open(folder.layer(arm.donor.name))
            indices = artifact.layer_indices
            layers = f"{indices[0]} to {indices[-1]}" if len(indices) > 1 else str(indices[0])
            size = f", {format_bytes(artifact.num_bytes)} frozen"
        trained = "" if counts is None else f"{format_count(counts.trained)} parameters trained"
        lines.append(f"  {arm.name:<6} {roles[arm.kind].format(layers)} ({trained}{size})")
    return [
        *lines,
        "",
        f"Tested on {table.examples} other sentences of film reviews (imdb), and on sentences about products (amazon) "
        "and restaurants (yelp).",
    ]


def _show_cut(cut: "CutModel", predictions: Sequence[Any], ui: Ui) -> None:
    (test,) = cut.result.tests.values()
    layers = cut.model.config["num_hidden_layers"]
    ui.line(
        f"\nCut Gemma-3-270M itself to its first {layers} layers: {escape_text(str(cut.model.path))} is an ordinary "
        f"transformers model ({format_bytes(cut.model.num_bytes)}).\n"
        f"Trained a head on top of the frozen layers ({format_count(cut.result.parameters.trained)} parameters): "
        f"{test.scores['accuracy']:.1%} on {cut.result.data}, one seed."
    )
    rows = zip(("MiniLM with the stack", "Gemma, cut"), predictions, strict=True)
    ui.table(
        (f'"{_SENTENCE}"', "class", "probability"),
        [(name, prediction.label, f"{prediction.score:.1%}") for name, prediction in rows],
    )
