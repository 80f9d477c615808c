"""`surgeon compare`: a study of arms, seeds, data sets and test sets."""

import shlex
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from layer_surgeon._format import format_amount, format_count, format_seconds
from layer_surgeon._limits import MAX_TRAININGS, check_size
from layer_surgeon.errors import LayerSurgeonError, TrainingError
from layer_surgeon.finetune.config import FinetuneConfig

from .command import command, new_app, usage
from .errors import UsageError
from .report import write_page
from .set_option import SetOption, StudyCommand, check_settings, parse_settings
from .studies import (
    AddressOption,
    DryRunOption,
    Executor,
    ExecutorOption,
    HostOption,
    OutputOption,
    Scale,
    ScaleOption,
    WorkersOption,
)
from .ui import Ui, escape_text

if TYPE_CHECKING:
    from layer_surgeon.study.compare import StudyResult
    from layer_surgeon.study.estimate import Estimate
    from layer_surgeon.study.plan import StudyPlan

app = new_app()


@command(app, command_class=StudyCommand)
def compare(
    config: Annotated[Path | None, typer.Option("--config", "-c", help="YAML file with the plan of the study.")] = None,
    preset: Annotated[
        str | None, typer.Option(help="A built-in plan: demo, table-1 ... table-20, figure-2, figure-3.")
    ] = None,
    scale: ScaleOption = "full",
    host: HostOption = None,
    donor: Annotated[
        str | None, typer.Option(help="The large model, or a layer artifact. [dim](default: the latest layer)[/]")
    ] = None,
    layer: Annotated[int | None, typer.Option(help="Which of its layers. [dim](default: the last)[/]")] = None,
    arms: Annotated[
        list[str] | None,
        typer.Option(
            "--arm",
            "-a",
            help="An arm, built-in or of the plan. Repeat it for several. "
            "[dim](default: those of the plan, or host, graft, random, wide-head)[/]",
        ),
    ] = None,
    data: Annotated[
        list[str] | None,
        typer.Option(
            "--dataset", "-d", help="A data set to train on, or the name of one of the plan. Repeat it for several."
        ),
    ] = None,
    tests: Annotated[
        str | None,
        typer.Option(help="own: test on the test part of the same data set; all: on those of all (domain shift)."),
    ] = None,
    fractions: Annotated[
        list[float] | None, typer.Option("--fraction", help="Share of the training data. Repeat it for several.")
    ] = None,
    num_seeds: Annotated[
        int | None,
        typer.Option(
            "--num-seeds", help="Runs of each arm: the first seeds of the plan. [dim](default: all of them, or 5)[/]"
        ),
    ] = None,
    equivalence: Annotated[
        float | None,
        typer.Option(
            help="Also test whether arms are equivalent within this margin: points of a score that is shown as a "
            "percentage, else in its unit."
        ),
    ] = None,
    assignments: SetOption = None,
    output: OutputOption = None,
    workers: WorkersOption = 1,
    executor: ExecutorOption = "local",
    address: AddressOption = None,
    dry_run: DryRunOption = False,
    *,
    ui: Ui,
) -> dict[str, Any]:
    """Compare arms over seeds, data sets and test sets, with statistics.

    Each training runs in its own process. If a study is stopped, run the same command again to continue it. The folder
    of a study is enough: surgeon compare --output FOLDER.
    """
    if preset is not None and (commands := _profile_commands(preset, scale)):
        if not ui.as_json:
            ui.line(f"{escape_text(preset)} is measured without training. These commands measure its rows:\n")
            for line in commands:
                ui.line(escape_text(line))
        return {"preset": preset, "commands": commands}
    overrides: dict[str, Any] = {
        "host": host,
        "arms": arms,
        "data": data,
        "tests": tests,
        "fractions": fractions,
        "equivalence": equivalence,
    }
    if donor is not None or layer is not None:
        overrides["donor"] = {"source": donor, "layer": layer}
    with usage():
        plan = make_plan(
            config=config,
            preset=preset,
            scale=scale,
            output=output,
            overrides=overrides,
            num_seeds=num_seeds,
            settings=parse_settings(assignments),
            ui=ui,
        )
    folder = output or ui.workspace.root / "studies" / plan.name
    return run_plan(plan, folder, workers=workers, executor=executor, address=address, dry_run=dry_run, ui=ui)


def _profile_commands(name: str, scale: Scale) -> list[str]:
    """Return the commands that make a table that needs no training; empty for all other presets."""
    from layer_surgeon.study.preset import preset, profile_commands

    with usage():
        content = preset(name, scale)
    return profile_commands(content) if content.get("kind") == "profile" else []


def make_plan(
    *,
    config: Path | None,
    preset: str | None,
    scale: Scale,
    output: Path | None,
    overrides: dict[str, Any],
    num_seeds: int | None,
    settings: dict[str, dict[str, Any]],
    ui: Ui,
) -> "StudyPlan":
    """Make the plan from a file, a preset, the folder of a study, or options alone. Options override the others."""
    from layer_surgeon.study.plan import StudyPlan

    complete_path = _complete_plan_path(config, preset, output)
    complete_plan = None if complete_path is None else StudyPlan.read(complete_path)
    has_options = any(map(_is_given, overrides.values())) or settings or num_seeds is not None or scale != "full"
    if complete_plan is not None and not has_options:
        return complete_plan
    plan = None
    # Options can't change a complete plan. But the options that made the study in a folder may be repeated.
    if complete_plan is None or config is None:
        try:
            content = make_content(
                config=config,
                preset=preset,
                scale=scale,
                overrides=overrides,
                num_seeds=num_seeds,
                settings=settings,
                ui=ui,
            )
            plan = StudyPlan.from_dict(content)
        except LayerSurgeonError:
            if complete_plan is None:
                raise
    if plan is None or (complete_plan is not None and plan.as_dict() != complete_plan.as_dict()):
        raise UsageError(
            f"{complete_path} holds the complete plan of a study, and these options make a different one. Leave the "
            "options out to run the study as it is, or choose another folder."
        )
    return plan


def _complete_plan_path(config: Path | None, preset: str | None, output: Path | None) -> Path | None:
    """The study.yaml that a study wrote: in its folder if only that is named, or the file of --config itself."""
    from layer_surgeon._yaml import read_yaml
    from layer_surgeon.study.layout import PLAN

    if preset is not None:
        return None
    if config is None:
        return output / PLAN if output is not None and (output / PLAN).is_file() else None
    arms = read_yaml(config).get("arms")
    is_complete = isinstance(arms, list) and bool(arms) and all(isinstance(arm, dict) and "kind" in arm for arm in arms)
    return config if is_complete else None


def make_content(
    *,
    config: Path | None,
    preset: str | None,
    scale: Scale,
    overrides: dict[str, Any],
    num_seeds: int | None,
    settings: dict[str, dict[str, Any]],
    ui: Ui,
) -> dict[str, Any]:
    """Make what `StudyPlan.from_dict` takes: the content of a file or preset, changed by the options.

    Args:
        config: A YAML file with a plan.
        preset: The name of a built-in plan.
        scale: Which version of the plan.
        overrides: Values by the plan's key; empty ones are ignored.
        num_seeds: Number of seeds.
        settings: What `parse_settings` returns.
        ui: For the workspace, which has the latest layer.

    Raises:
        LayerSurgeonError: The file or preset can't be read, options contradict each other, or a value can't be used.
    """
    from layer_surgeon._yaml import read_yaml
    from layer_surgeon.study.arms import NoDonorError
    from layer_surgeon.study.plan_parts import choose, mapping, read_arms, value_of
    from layer_surgeon.study.preset import preset as find_preset
    from layer_surgeon.study.preset import preset_plan, scale_down

    if config is not None and preset is not None:
        raise UsageError(
            "--config and --preset can't be combined, because a study has one plan. Leave one of them out."
        )
    changes = {name: value for name, value in overrides.items() if _is_given(value)}
    content: dict[str, Any] = {"name": "study", "arms": ["host", "graft", "random", "wide-head"]}
    if preset is not None:
        content = find_preset(preset, scale)
        if content.get("kind") == "profile":
            preset_plan(preset, scale)
    elif config is not None:
        content = read_yaml(config)
        content["name"] = value_of(content, "name", config.stem)
        small = content.pop("small", None)
        content = scale_down(content, small) if scale == "small" else content
    elif scale == "small":
        content = scale_down(content, None)
    if "donor" in changes:
        plan_donor = content.get("donor")
        plan_donor = {"source": plan_donor} if isinstance(plan_donor, str) else mapping(content, "donor")
        new_donor = {name: value for name, value in changes["donor"].items() if value is not None}
        if "layer" in new_donor:
            plan_donor.pop("layers", None)
            content.pop("layers", None)
        if "source" in new_donor:
            plan_donor.pop("revision", None)
        elif not plan_donor.get("source"):
            count = "several" if content.get("donors") else "none"
            raise UsageError(f"--layer needs one donor, but the plan names {count}. Name it with --donor.")
        changes["donor"] = {**plan_donor, **new_donor}
        content.pop("donors", None)
    if "host" in changes:
        content.pop("hosts", None)
    for key in {"arms", "data"} & changes.keys():
        changes[key] = choose(content, key, changes[key])
    if "arms" in changes and content.get("focus") and str(content["focus"]).partition("@")[0] not in overrides["arms"]:
        content["focus"] = None
    content.update(changes)
    if num_seeds is not None:
        if num_seeds < 1:
            raise UsageError(f"--num-seeds is {num_seeds}; it must be at least 1.")
        check_size(num_seeds, MAX_TRAININGS, "seeds", UsageError)
        content["seeds"] = _first_seeds(content, num_seeds)
    for section, values in settings.items():
        content[section] = {**mapping(content, section), **values}
    check_settings(content, list(settings))
    if not content.get("donor") and not content.get("donors"):
        try:
            read_arms(content)
        except NoDonorError:
            content["donor"] = str(ui.latest("layer"))
    return content


def _is_given(value: Any) -> bool:
    """Whether an option was given; one that takes several values may be an empty list if not."""
    return value is not None and value != []


def _first_seeds(content: dict[str, Any], count: int) -> list[Any]:
    """The first seeds of a plan, and if it has fewer, the numbers after its highest one."""
    from layer_surgeon.study.plan_parts import listed

    seeds = listed(content, "seeds", [FinetuneConfig.seed])
    start = max(seeds) + 1 if all(isinstance(seed, int) for seed in seeds) else None
    more = () if start is None else range(start, start + count - len(seeds))
    return [*seeds, *more][:count]


def run_plan(
    plan: "StudyPlan",
    folder: Path,
    *,
    workers: int,
    executor: Executor,
    address: str | None,
    dry_run: bool,
    ui: Ui,
) -> dict[str, Any]:
    """Run a plan and show the results, or only estimate what it takes."""
    if dry_run:
        from layer_surgeon.study.estimate import estimate_study

        estimate = estimate_study(plan, folder, ui.progress)
        if not ui.as_json:
            _show_estimate(plan, estimate, workers, ui)
        return {"plan": plan.as_dict(), "path": folder, **estimate.as_dict()}

    from layer_surgeon.study.compare import run_study

    try:
        result = run_study(plan, folder, workers=workers, executor=executor, address=address, progress=ui.progress)
    except KeyboardInterrupt as error:
        raise TrainingError(
            "Interrupted. Finished trainings are kept. To continue: surgeon compare --output "
            f"{shlex.quote(str(folder))}"
        ) from error
    if result.done == 0:
        raise TrainingError(f"None of the trainings succeeded. {next(iter(result.failed.values()), '')}")
    if not ui.as_json:
        _show(result, plan, ui)
    return result.as_dict() | {"report": write_page(folder, ui)}


def _show_estimate(plan: "StudyPlan", estimate: "Estimate", workers: int, ui: Ui) -> None:
    factors = {
        "arm": len(plan.arms),
        "seed": len(plan.seeds),
        "data set": sum(bool(spec.train) for spec in plan.data),
        "share": len(plan.fractions),
    }
    product = " x ".join(format_amount(count, noun) for noun, count in factors.items())
    ui.facts(
        {
            "trainings": f"{estimate.cells}: {product} of the data",
            "done": estimate.done,
            # One after the other, each training has all processor cores; several share them.
            "time": f"about {format_seconds(estimate.seconds)}, one at a time"
            if workers == 1
            else f"at least {format_seconds(estimate.seconds / workers)}, {workers} at a time",
        }
    )
    rows = [(name, format_seconds(seconds)) for name, seconds in estimate.seconds_by_arm.items()]
    ui.table(("arm", "one step of training"), rows)
    ui.line("\nNothing was written. To start, leave [bold]--dry-run[/] out.")


def _show(result: "StudyResult", plan: "StudyPlan", ui: Ui) -> None:
    from layer_surgeon.report.words import say_gains
    from layer_surgeon.study.verdict import difference_in_words, say_p, say_place

    for table in result.summary.tables:
        rows = [
            (
                row.arm,
                len(row.seeds),
                f"{row.mean:.4f}",
                _format_deviation(row.deviation),
                _format_trained(result, row.arm),
            )
            for row in table.rows
        ]
        place = say_place(table.test, table.data, table.fraction)
        ui.table(("arm", "seeds", plan.metric, "deviation", "trained"), rows, title=place)
        ui.table(
            ("comparison", "difference", "95 % interval", "p", "p (Holm)", ""),
            [
                (
                    f"{comparison.arm} - {comparison.against}",
                    difference_in_words(comparison.mean, is_share=plan.is_share),
                    say_gains(comparison.interval, result.summary),
                    "" if comparison.p is None else say_p(comparison.p),
                    "" if comparison.p_holm is None else say_p(comparison.p_holm),
                    result.summary.outcome(comparison) or "no test possible",
                )
                for comparison in table.comparisons
            ],
        )
    ui.headline(result.summary.verdict)
    facts = {"trainings": f"{result.done} done, {result.ran} of them now", "time": format_seconds(result.seconds)}
    if result.failed:
        facts["failed"] = f"{len(result.failed)}; run the same command to try them again"
    ui.facts({**facts, "study": result.path})


def _format_deviation(value: float | None) -> str:
    return "" if value is None else f"{value:.4f}"


def _format_trained(result: "StudyResult", arm: str) -> str:
    counts = result.summary.parameters(arm)
    return "" if counts is None else format_count(counts.trained)
