"""`surgeon finetune`: train a grafted model."""

import shlex
from dataclasses import asdict, fields
from difflib import get_close_matches
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from layer_surgeon._format import format_bytes, format_count, format_seconds
from layer_surgeon._launched import is_main_process, number_of_processes
from layer_surgeon._yaml import read_yaml
from layer_surgeon.errors import LayerSurgeonError, SourceError, TrainingError
from layer_surgeon.finetune.config import FinetuneConfig
from layer_surgeon.tasks import score_title

from .command import DonorOption, command, new_app, usage
from .errors import UsageError
from .processes import start_processes
from .push import show_push
from .ui import Ui

if TYPE_CHECKING:
    from layer_surgeon.finetune import FinetuneResult, RunPlan, SeedsResult
    from layer_surgeon.graft import PushResult

app = new_app()

DEFAULT_DATASET = "sst2"
# What a configuration file may have in addition to the settings. The names are those of the command line.
PLACES = {
    "graft": "Folder or repo id of a graft, or of any model for the task; default: the latest graft.",
    "dataset": f"A name of `surgeon datasets`, a Hub id, a file or a list of files; default: {DEFAULT_DATASET}.",
    "validation": "Validation data, named in the same way; default: the data set's, or part of the training data.",
    "test": "Test data, named in the same way; default: the data set's own, if there is any.",
    "output": "Folder of the run; default: in the workspace.",
    "tokenizer": "Folder or repo id of the tokenizer; default: the model's.",
}


@command(app, settings=FinetuneConfig, panel="Training settings (default: the paper's)")
def finetune(
    graft: Annotated[
        str | None,
        typer.Argument(
            help="Folder or repo id of a graft, or of any model for the task. [dim](default: the latest graft)[/]"
        ),
    ] = None,
    dataset: Annotated[
        list[str] | None,
        typer.Option(
            "--dataset",
            "-d",
            help="A name of `surgeon datasets`, a Hub id, a CSV, TSV, JSONL or Parquet file (repeat the "
            f"option for several files), a folder of them, or - for stdin. [dim](default: {DEFAULT_DATASET})[/]",
        ),
    ] = None,
    validation: Annotated[
        list[str] | None,
        typer.Option(
            help="Validation data, named in the same way. [dim](default: the data set's own, or a part of the training "
            "data)[/]"
        ),
    ] = None,
    test: Annotated[
        list[str] | None,
        typer.Option(help="Test data, named in the same way. [dim](default: the data set's own, if there is any)[/]"),
    ] = None,
    output: Annotated[
        Path | None, typer.Option("--output", "-o", help="Folder of the run. [dim](default: in the workspace)[/]")
    ] = None,
    tokenizer: Annotated[
        str | None, typer.Option(help="Folder or repo id of the tokenizer. [dim](default: the model's)[/]")
    ] = None,
    donor: DonorOption = None,
    config: Annotated[
        Path | None,
        typer.Option("--config", "-c", help="YAML file with any of these settings by name. Flags override the file."),
    ] = None,
    resume: Annotated[
        bool, typer.Option("--resume", help="Continue the unfinished run with the same settings and data.")
    ] = False,
    seeds: Annotated[
        int | None, typer.Option(help="Train with this many seeds, and show the mean and standard deviation.", min=1)
    ] = None,
    num_processes: Annotated[
        int | None,
        typer.Option(help="Train in this many processes on this machine, with one GPU and one batch each.", min=1),
    ] = None,
    push_to_hub: Annotated[
        str | None,
        typer.Option(
            metavar="REPO",
            help="Upload the finished run to the Hub, as `surgeon push` does. Write access is checked before training.",
        ),
    ] = None,
    public: Annotated[
        bool, typer.Option("--public", help="Make a new repo of --push-to-hub public instead of private.")
    ] = False,
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Check everything and show the plan, but train and write nothing.")
    ] = False,
    *,
    settings: dict[str, Any],
    ui: Ui,
) -> dict[str, Any]:
    """Train a grafted model.

    Without arguments, this trains the latest graft on SST-2 with the paper's settings. The frozen layer is not trained.
    """
    options: dict[str, Any] = {"graft": graft, "dataset": dataset, "validation": validation, "test": test}
    options |= {"output": output, "tokenizer": tokenizer}
    sources, file_settings = read_config(config)
    sources |= {name: value for name, value in options.items() if value}
    with usage():
        finetune_config = FinetuneConfig(**(file_settings | settings))
    model = sources.get("graft") or ui.latest("graft")

    _check_options(seeds=seeds, resume=resume, push_to_hub=push_to_hub, public=public)
    if push_to_hub is not None and is_main_process():
        from layer_surgeon.hub.access import check_access

        check_access(push_to_hub)

    if num_processes is not None and num_processes > 1 and not dry_run and number_of_processes() == 1:
        return start_processes(num_processes)

    from layer_surgeon.finetune import finetune_model, finetune_seeds, plan_finetuning
    from layer_surgeon.finetune.repeat import check_seeds

    data = sources.get("dataset") or DEFAULT_DATASET, sources.get("validation")
    common: dict[str, Any] = {
        "config": finetune_config,
        "output": sources.get("output"),
        "test": sources.get("test"),
        "progress": ui.progress,
        "workspace": ui.workspace,
        "tokenizer": sources.get("tokenizer"),
        "donor": donor,
    }
    if dry_run:
        runs = _runs_by_seed(finetune_config.seed, seeds, sources.get("output"))
        common["output"] = next(iter(runs.values()), common["output"])
        check_seeds((*data, common.get("test")), list(runs), sources.get("output"))
        plan = plan_finetuning(model, *data, num_processes=num_processes or 1, **common)
        if not ui.as_json:
            _show_plan(plan, runs, ui)
        listed = [{"seed": seed, "path": path} for seed, path in runs.items()]
        return plan.as_dict() | ({"runs": listed} if runs else {})
    try:
        if seeds is not None:
            outcome = finetune_seeds(model, *data, num_seeds=seeds, **common)
            if not ui.as_json and is_main_process():
                _show_seeds(outcome, ui)
            return outcome.as_dict()
        result = finetune_model(model, *data, resume=resume, **common)
    except KeyboardInterrupt as error:
        raise TrainingError(str(error) or "Interrupted before training started. Nothing was written.") from error
    if not ui.as_json and is_main_process():
        _show(result, ui)
    document = result.as_dict() | {"path": result.path}
    if push_to_hub is not None and is_main_process():
        document["pushed"] = asdict(_push(result.path, push_to_hub, public, ui))
    return document


def _check_options(*, seeds: int | None, resume: bool, push_to_hub: str | None, public: bool) -> None:
    """Refuse options that contradict each other."""
    if seeds is not None and resume:
        raise UsageError(
            "--seeds and --resume can't be combined. Resume one of the runs: --seed N --output FOLDER --resume."
        )
    if public and push_to_hub is None:
        raise UsageError("--public needs --push-to-hub REPO. Add it, or leave --public out.")
    if push_to_hub is not None and seeds is not None:
        raise UsageError(
            "--seeds and --push-to-hub can't be combined, because there are several runs. Upload one of them with "
            "surgeon push REPO FOLDER."
        )


def _push(run: Path, repo: str, public: bool, ui: Ui) -> "PushResult":
    """Upload the run to the Hub. If that fails, the message says that the run itself is complete."""
    from layer_surgeon.graft import push_graft

    try:
        result = push_graft(run, repo, private=not public)
    except (LayerSurgeonError, KeyboardInterrupt) as error:
        push_command = f"surgeon push {repo} {shlex.quote(str(run))}{' --public' if public else ''}"
        raise SourceError(
            f"{str(error) or 'Interrupted.'} Training is finished and the run in {run} is complete; only the upload "
            f"failed. Try it again with: {push_command}"
        ) from error
    show_push(result, run, ui)
    return result


def read_config(path: Path | None) -> tuple[dict[str, Any], dict[str, Any]]:
    """Read a configuration file.

    Returns:
        The values of the keys in `PLACES`, and the settings.

    Raises:
        ConfigError: The file can't be read or is not YAML.
        UsageError: A key is unknown, or the value of a key in `PLACES` is not text.
    """
    if path is None:
        return {}, {}
    from layer_surgeon.finetune.moved import find_moved

    content = read_yaml(path)
    known = (*PLACES, *(field.name for field in fields(FinetuneConfig)))
    content = {name.replace("-", "_"): value for name, value in content.items()}
    for name in content:
        if name not in known:
            matches = get_close_matches(name, known, n=1)
            hint = f"Did you mean {matches[0]}?" if matches else f"The settings are: {', '.join(known)}."
            raise UsageError(f"{path} has the key {name!r}, which is not a setting. {hint}")
    sources = {name: content.pop(name) for name in PLACES if content.get(name) is not None}
    for name, value in sources.items():
        _check_source(path, name, value)
        found = find_moved(value if isinstance(value, list) else [value], path.parent)
        sources[name] = found if isinstance(value, list) else found[0]
    return sources, {name: value for name, value in content.items() if name not in PLACES}


def _check_source(path: Path, name: str, value: Any) -> None:
    is_file_list = isinstance(value, list) and bool(value) and name in ("dataset", "validation", "test")
    for text in value if is_file_list else [value]:
        if not isinstance(text, str) or "\0" in text:
            raise UsageError(
                f"{path}: {name} is {value!r}; it must be a path or a name. Put it in quotes if YAML reads it as "
                "something else."
            )


def _show(result: "FinetuneResult", ui: Ui) -> None:
    # Extra metrics are computed once, at the end.
    epoch_scores = list(result.history[0].scores)
    rows = [
        (
            f"{epoch.epoch:g}" + (" (kept)" if number == result.best_epoch else ""),
            f"{epoch.training_loss:.4f}",
            *(f"{epoch.scores[score]:.4f}" for score in epoch_scores),
        )
        for number, epoch in enumerate(result.history, start=1)
    ]
    ui.table(("epoch", "training loss", *(f"validation {score_title(score)}" for score in epoch_scores)), rows)
    scores = list(result.validation.scores)
    ui.table(
        ("set", "examples", *map(score_title, scores)),
        [
            (name, f"{measured.examples:,}", *(f"{measured.scores[score]:.4f}" for score in scores))
            for name, measured in result.measured.items()
        ],
    )
    ui.facts(
        {
            "trained": f"{format_count(result.num_trained_parameters)} of {format_count(result.num_parameters)} "
            f"parameters, on {result.device}, in {format_seconds(result.seconds)}",
            "run": result.path,
        }
    )
    ui.line('\nNext: [bold]surgeon evaluate --dataset FILE[/] or [bold]surgeon predict "A text."[/]')


def _runs_by_seed(first: int, count: int | None, output: str | Path | None) -> dict[int, Path | None]:
    """The folders of the runs of --seeds; None for a new folder in the workspace."""
    from layer_surgeon.finetune.repeat import seed_folder

    seeds = range(first, first + (count or 0))
    return {seed: None if output is None else seed_folder(output, seed) for seed in seeds}


def _show_plan(plan: "RunPlan", runs: dict[int, Path | None], ui: Ui) -> None:
    counts = [
        (name, *(format_count(part[key]) for key in ("total", "trained"))) for name, part in plan.parameters.items()
    ]
    ui.table(("part", "parameters", "trained"), counts)
    ui.table(("memory, estimated", ""), [(name, format_bytes(size)) for name, size in plan.memory.items()])
    ui.table(("setting", ""), [(name, value) for name, value in asdict(plan.config).items() if value is not None])
    ui.facts(
        {
            "model": f"{plan.model}, {plan.task}",
            "examples": ", ".join(f"{count:,} {name}" for name, count in plan.examples.items()),
            "steps": f"{plan.steps:,}, {plan.steps_per_epoch:,} per epoch, on {plan.device}",
            **({"runs": f"{len(runs)}, one for each seed"} if runs else {"run": plan.output}),
            **{f"seed {seed}": path or "a new folder in the workspace" for seed, path in runs.items()},
        }
    )
    ui.line("\nNothing was trained or written. To start, leave [bold]--dry-run[/] out.")


def _show_seeds(outcome: "SeedsResult", ui: Ui) -> None:
    rows = []
    for name, mean in outcome.mean.items():
        scores = [f"{result.metrics[name]:.4f}" for result in outcome.results]
        rows.append((name, f"{mean:.4f}", f"{outcome.deviation[name]:.4f}", *scores))
    ui.table(("score", "mean", "deviation", *(f"seed {seed}" for seed in outcome.seeds)), rows)
    ui.facts({f"seed {seed}": result.path for seed, result in zip(outcome.seeds, outcome.results, strict=True)})
