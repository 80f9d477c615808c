"""`surgeon select --candidates depth`: how many of a donor's first layers to take."""

from pathlib import Path
from typing import TYPE_CHECKING, Any

from layer_surgeon.run.settings import RunConfig

from .command import usage
from .errors import UsageError
from .ui import Ui

if TYPE_CHECKING:
    from layer_surgeon.study.depths import DepthSelection

PICTURE = "depths.svg"


def check_options(candidates: str, ignored: dict[str, bool], only_depth: dict[str, bool]) -> None:
    """Refuse options that don't go with the candidates.

    Args:
        candidates: The value of `--candidates`.
        ignored: Options that `depth` doesn't use, and whether they were set.
        only_depth: Options that only `depth` uses, and whether they were set.
    """
    options = ignored if candidates == "depth" else only_depth
    wrong = next((name for name, is_set in options.items() if is_set), None)
    if wrong is not None:
        reason = "which trains nothing and needs no host" if candidates == "depth" else "only with depth"
        raise UsageError(f"{wrong} does not go with --candidates {candidates}, {reason}. Leave it out.")


def run_depths(
    donor: str | None,
    *,
    layers: str | None,
    data: str,
    states: Path | None,
    num_seeds: int | None,
    max_texts: int | None,
    output: Path,
    workers: int,
    ui: Ui,
) -> dict[str, Any]:
    """Run the donor on the training texts, probe its states, and show the best depth."""
    if donor is None and states is None:
        raise UsageError("Name the donor, or the folder of an earlier run with --states.")
    if donor is not None and states is not None:
        raise UsageError("--states has the states of a donor, so no donor can be named. Leave one of them out.")
    if states is not None and (layers is not None or workers != 1):
        raise UsageError("--states has the states of an earlier run, so --layers and --workers change nothing.")
    with usage():
        config = RunConfig(layers="all" if layers is None else layers, workers=workers)

    from layer_surgeon.report.depth_chart import depth_chart
    from layer_surgeon.report.layer_heat_map import write_picture
    from layer_surgeon.study.data import parse_data
    from layer_surgeon.study.depths import MAX_TEXTS, NUM_SEEDS, select_depth
    from layer_surgeon.study.layout import StudyFolder
    from layer_surgeon.study.records import as_json

    selection = select_depth(
        donor,
        parse_data(data),
        output,
        states=states,
        config=config,
        num_seeds=NUM_SEEDS if num_seeds is None else num_seeds,
        max_texts=MAX_TEXTS if max_texts is None else max_texts,
        progress=ui.progress,
    )
    picture = StudyFolder(root=output).path(PICTURE)
    title = f"{Path(selection.source).name} on {selection.data}, after each number of layers"
    write_picture(depth_chart(selection).properties(title=title), picture, title=title)
    if not ui.as_json:
        _show(selection, picture, ui)
    return as_json(selection) | {"picture": picture}


def _show(selection: "DepthSelection", picture: Path, ui: Ui) -> None:
    rows = [
        (
            str(score.depth),
            f"{100 * score.accuracy:.1f}",
            f"{100 * score.error:.1f}",
            "best" if score.depth == selection.best else f"{100 * score.behind:.1f} ± {100 * score.behind_error:.1f}",
        )
        for score in selection.scores
    ]
    ui.table(("layers", "accuracy, %", "standard error", "behind the best, points"), rows)
    of_best = next(score for score in selection.scores if score.depth == selection.best)
    facts: dict[str, Any] = {
        "donor": selection.source,
        "texts": f"{selection.num_texts:,} of the training part of {selection.data}",
        "best": f"{selection.best} of {selection.num_layers} layers, {100 * of_best.accuracy:.1f} %",
        "smallest that is as good": f"{selection.smallest} (at most one standard error behind)",
        "most frequent class": f"{100 * selection.majority:.1f} %",
        "states": selection.states,
        "picture": picture,
    }
    if selection.command is not None:
        facts["next"] = selection.command
    elif len(selection.scores) > 1:
        facts["next"] = "No layer helps: the token embeddings alone are best."
    ui.facts(facts)
