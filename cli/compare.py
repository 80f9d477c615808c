"""`surgeon compare`: a study of arms, seeds, data sets and test sets."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from layer_surgeon._limits import MAX_TRAININGS, check_size
from layer_surgeon.errors import LayerSurgeonError, TrainingError
from layer_surgeon.finetune.config import FinetuneConfig

from .command import command, new_app, usage
from .errors import UsageError
from .report import write_page
from .studies import (
    TRAINING,
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
from .ui import Ui, format_count, format_seconds

if TYPE_CHECKING:
    from layer_surgeon.study.compare import StudyResult
    from layer_surgeon.study.estimate import Estimate
    from layer_surgeon.study.plan import StudyPlan
    from layer_surgeon.study.tables import Comparison

app = new_app()


@command(app, **TRAINING)
def compare(
    config: Annotated[Path | None, typer.Option("--config", "-c", help="YAML file with the plan of the study.")] = None,
    preset: Annotated[
        str | None, typer.Option(help="A plan that comes along: table-1 ... table-20, figure-2, figure-3.")
    ] = None,
    scale: ScaleOption = "full",
    host: HostOption = None,
    donor: Annotated[
        str | None, typer.Option(help="The large model, or a layer artifact. [dim](default: the latest layer)[/]")
    ] = None,
    layer: Annotated[int | None, typer.Option(help="Which of its layers. [dim](default: the last)[/]")] = None,
    arms: Annotated[
        list[str] | None,
        typer.Option("--arm", "-a", help="An arm; repeat it. [dim](default: host, graft, random, wide-head)[/]"),
    ] = None,
    data: Annotated[
        list[str] | None, typer.Option("--dataset", "-d", help="A data set to train on; repeat it for several.")
    ] = None,
    tests: Annotated[
        str | None, typer.Option(help="own: each on its own test part; all: on all of them (domain shift).")
    ] = None,
    fractions: Annotated[
        list[float] | None, typer.Option("--fraction", help="Share of the training data; repeat it.")
    ] = None,
    num_seeds: Annotated[int | None, typer.Option("--num-seeds", help="Runs of each arm. [dim](default: 5)[/]")] = None,
    output: OutputOption = None,
    workers: WorkersOption = 1,
    executor: ExecutorOption = "local",
    address: AddressOption = None,
    dry_run: DryRunOption = False,
    *,
    given: dict[str, Any],
    ui: Ui,
) -> dict[str, Any]:
    """Compare arms over seeds, data sets and test sets, with statistics.

    Each training runs in a process of its own. The same command goes on with a study that was stopped. A folder that
    holds a study is enough: surgeon compare --output FOLDER.
    """
    said: dict[str, Any] = {"host": host, "arms": arms, "data": data, "tests": tests, "fractions": fractions}
    if donor is not None or layer is not None:
        said["donor"] = {"source": donor, "layer": layer}
    with usage():
        plan = make_plan(
            config=config, preset=preset, scale=scale, output=output, said=said, num_seeds=num_seeds, given=given, ui=ui
        )
    folder = output or ui.workspace.root / "studies" / plan.name
    return run_plan(plan, folder, workers=workers, executor=executor, address=address, dry_run=dry_run, ui=ui)


def make_plan(
    *,
    config: Path | None,
    preset: str | None,
    scale: Scale,
    output: Path | None,
    said: dict[str, Any],
    num_seeds: int | None,
    given: dict[str, Any],
    ui: Ui,
) -> "StudyPlan":
    """The plan from a file, a preset, a study's folder or the command line alone; what is said goes before it."""
    from layer_surgeon.study.plan import StudyPlan

    own = _whole_plan(config, preset, output)
    known = None if own is None else StudyPlan.read(own)
    if known is not None and not (any(said.values()) or given or num_seeds or scale != "full"):
        return known
    made = None
    # Options can't change a plan with nothing left open; beside a study's folder, those that made it are welcome.
    if known is None or config is None:
        try:
            content = make_content(
                config=config, preset=preset, scale=scale, said=said, num_seeds=num_seeds, given=given, ui=ui
            )
            made = StudyPlan.from_dict(content)
        except LayerSurgeonError:
            if known is None:
                raise
    if made is None or (known is not None and made.as_dict() != known.as_dict()):
        raise UsageError(
            f"{own} holds a study, with nothing left open, and not the one that these options make. Leave them out to "
            "run it as it is, or choose another folder."
        )
    return made


def _whole_plan(config: Path | None, preset: str | None, output: Path | None) -> Path | None:
    """The study.yaml that a study left: its folder is named and nothing else, or the file itself."""
    from layer_surgeon.study.plan_parts import read_yaml

    if preset is not None:
        return None
    if config is None:
        return output / "study.yaml" if output is not None and (output / "study.yaml").is_file() else None
    arms = read_yaml(config).get("arms")
    whole = isinstance(arms, list) and bool(arms) and all(isinstance(arm, dict) and "kind" in arm for arm in arms)
    return config if whole else None


def make_content(
    *,
    config: Path | None,
    preset: str | None,
    scale: Scale,
    said: dict[str, Any],
    num_seeds: int | None,
    given: dict[str, Any],
    ui: Ui,
) -> dict[str, Any]:
    """What `StudyPlan.from_dict` takes: a file's or preset's content, with what was said laid over it."""
    from layer_surgeon.study.plan_parts import mapping, read_yaml
    from layer_surgeon.study.preset import preset as find_preset
    from layer_surgeon.study.preset import preset_plan, scale_down

    if config is not None and preset is not None:
        raise UsageError("--config and --preset are given; a study has one plan. Leave one of them out.")
    changes = {name: value for name, value in said.items() if value}
    content: dict[str, Any] = {"name": "study", "arms": ["host", "graft", "random", "wide-head"]}
    if preset is not None:
        content = find_preset(preset, scale)
        if content.get("kind") == "profile":
            preset_plan(preset, scale)
    elif config is not None:
        content = {"name": config.stem, **read_yaml(config)}
        small = content.pop("small", None)
        content = scale_down(content, small) if scale == "small" else content
    elif scale == "small":
        content = scale_down(content, None)
    if "donor" in changes:
        known = content.get("donor")
        known = {"source": known} if isinstance(known, str) else mapping(content, "donor")
        changes["donor"] = {**known, **{name: value for name, value in changes["donor"].items() if value is not None}}
        content.pop("donors", None)
    if "host" in changes:
        content.pop("hosts", None)
    content.update(changes)
    if num_seeds is not None:
        if num_seeds < 1:
            raise UsageError(f"--num-seeds is {num_seeds}; it must be at least 1.")
        check_size(num_seeds, MAX_TRAININGS, "seeds", UsageError)
        content["seeds"] = list(range(FinetuneConfig.seed, FinetuneConfig.seed + num_seeds))
    content["finetune"] = {**mapping(content, "finetune"), **given}
    if not content.get("donor") and not content.get("donors"):
        content["donor"] = str(ui.workspace.latest("layer"))
    return content


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
    """Run a plan, or say what it takes; and show what came out."""
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
        raise TrainingError(f"Interrupted. What is done is kept; go on: surgeon compare --output {folder}") from error
    if result.done == 0:
        raise TrainingError(f"None of the trainings succeeded. {next(iter(result.failed.values()), '')}")
    if not ui.as_json:
        _show(result, plan, ui)
    return result.as_dict() | {"report": write_page(folder, ui)}


def _show_estimate(plan: "StudyPlan", estimate: "Estimate", workers: int, ui: Ui) -> None:
    ui.facts(
        {
            "trainings": f"{estimate.cells}: {len(plan.arms)} arms x {len(plan.seeds)} seeds x {len(plan.data)} data "
            f"sets x {len(plan.fractions)} shares of the data",
            "done": estimate.done,
            "time": f"about {format_seconds(estimate.seconds / workers)} with {workers} at a time",
        }
    )
    rows = [(name, f"{1000 * seconds:.0f} ms") for name, seconds in estimate.seconds_by_arm.items()]
    ui.table(("arm", "one step of training"), rows)


def _show(result: "StudyResult", plan: "StudyPlan", ui: Ui) -> None:
    from layer_surgeon.study.verdict import difference_in_words, say_p

    for table in result.summary.tables:
        share = "" if table.fraction == 1 else f", {100 * table.fraction:g} % of the data"
        place = table.test if table.test == table.data else f"{table.test}, trained on {table.data}"
        rows = [
            (
                row.arm,
                len(row.seeds),
                f"{row.mean:.4f}",
                _deviation(row.deviation),
                _trained(result, row.arm),
            )
            for row in table.rows
        ]
        ui.table(("arm", "seeds", plan.metric, "deviation", "trained"), rows, title=f"{place}{share}")
        ui.table(
            ("comparison", "difference", "95 % interval", "p (Holm)", ""),
            [
                (
                    f"{c.arm} - {c.against}",
                    difference_in_words(c.mean, plan.metric),
                    _span(c),
                    "" if c.p_holm is None else say_p(c.p_holm),
                    "significant" if c.significant else "not significant",
                )
                for c in table.comparisons
            ],
        )
    ui.headline(result.summary.verdict)
    facts = {"trainings": f"{result.done} done, {result.ran} of them now", "time": format_seconds(result.seconds)}
    if result.failed:
        facts["failed"] = f"{len(result.failed)}; the same command tries them again"
    ui.facts({**facts, "study": result.path})


def _deviation(value: float | None) -> str:
    return "" if value is None else f"{value:.4f}"


def _span(comparison: "Comparison") -> str:
    interval = comparison.crossed.interval if comparison.crossed else comparison.seed_interval
    return "" if interval is None else f"{interval[0]:+.3f} to {interval[1]:+.3f}"


def _trained(result: "StudyResult", arm: str) -> str:
    counts = result.summary.parameters(arm)
    return "" if counts is None else format_count(counts.trained)
