"""Why a plain graft does not beat the host: what happens in one training of each arm, step by step.

    python -m benchmarks.loudness --work DIR --data data/sst2     measure; goes on where it stopped
    python -m benchmarks.loudness --draw                          docs/assets/results-loudness.svg from the file

DATA holds train.csv, validation.csv and test.csv. Trained is as in the studies of docs/results/plans: host
all-MiniLM-L6-v2, layer 17 of Gemma-3-270M, 10 % of SST-2 (692 texts, seed 2023), the paper's settings with precision
bf16. Every arm is one run: enough to see a cause, and no measurement of a gain. `--layers FOLDER` uses layers that
a study has extracted already.

**Expected, written before the first run** (known then: a-gemma's first seed, 84.5 % of the test set for `host` and
65.5 % for `graft`, whose training loss is 13 in the first epoch and 4.4 in the last):

1. The donor is loud: at the start RMS(donor(z)) is over 1,000 times RMS(z), and RMS(u) over 100 times RMS(h). With
   the default projections the donor therefore works in a place that its norm does not care about, and what it is given
   beside its own answer (z itself) is lost.
2. Adam moves each weight by the learning rate whatever the gradient is. So a first step moves u by about
   lr x sum|donor(z)| (Gemma: 5e-5 x 640 x 300 = 10), a few per cent of u itself, as in any layer, but more than ten
   times all of h; and logits of tens by units, where the loss asks for tenths. The loss therefore does not fall below
   a floor of some units: step_logits of `graft` stays over 10 times that of `host`, through all three epochs.
3. Gradients do not help: the norm before clipping is over 100 times the limit of 5 at the start, nearly all of it in
   the host (it comes back through the loud path), but Adam divides by it. Clipping changes nothing of consequence;
   the parts' relative updates differ by less than a factor of 3 between `graft` and `host`.
4. The head is saturated: over 90 % of its GELU's inputs lie beyond +-3 in `graft`, none in `host`.
5. The donor's answers to different texts are alike: mean cosine of f over 0.9 at the start, so that most of u is a
   constant. That is the part that scaling can't mend.
6. `matched` removes 2 and 4 (loss starts below 1; step_logits within a factor of 3 of `host`; test accuracy within a
   few points of `host`), and not 5. `random` is no louder than its projections and behaves like `host` or a little
   worse. `gated` behaves like `host` as long as |gate| x RMS(u) is small; its gate, too, moves by the learning rate a
   step, times an RMS(u) of 200: 0.01 a step, so the graft stays below the host's vector.
7. `fast-projections` (1e-3) is worse than `graft` (steps 20 times larger), `fast-head` (1e-3) too: its logits take
   larger steps still.

**Added when the numbers before training were there, and before any training was** (but three steps on eight texts had
been tried with `folded`, whose loss went from 0.70 to 4.9, and with `folded-slow`, where it fell to 0.60): 1 holds
(gain 1,624, RMS(u) 527 times RMS(h)), 5 does not (mean cosine 0.64, where the host's own vectors have 0.69). `matched`
multiplied its numbers into the weights then, which is the arm `folded` now: it makes proj_out's weights 830 times
smaller, while Adam's step stays what it is, so that adam_step_out is 13.5, 34 times its u. Its loss, 0.69 at the
start, is expected to jump above 2 in the first steps, and its accuracy to lie between `graft` and `host`. What should
help then, all within 3 points of `host`:

8. `folded-slow`: projection_learning_rate 5e-8, by which a step is the share of proj_out that it is of a default one.
   proj_in, 1,730 times larger, stays as it is.
9. `quiet`: default projections and learning rates; proj_out is given the donor's answer times a fixed number, so that
   u is as loud as h. Weights are of an ordinary size, and so are the steps of everything.
10. `matched` as it is now: fixed numbers beside both projections.

**Came out**, in one run each: 1, 2, 4, 8, 9 and 10 as expected, and what was expected of `folded`, `matched`, `random`
and `gated` (4 without dropout; in training it makes a fifth of the inputs zero). Not so: 5, see above. Of 3, half of
the squared norm is the host's, and not nearly all. Of 2, the reason is wider: in the first epoch a seventh of what a
step changes in u is proj_out's; the rest comes from host and proj_in, whose ordinary steps, of some per cent of z, are
as many per cent of a u of 198. Of 7, `fast-projections` has the larger losses, and yet 78 % of the test set to the
65 % of `graft`; `fast-head` is as bad as `graft`.

The trainings of `host`, `graft`, `random`, `gated` and `wide-head` came to the same losses and answers as those of
a-gemma, digit for digit: to be watched has changed nothing.

docs/results/loudness.json (numbers to four significant digits):

    machine, versions, command, settings
    start            donor -> arm -> numbers before training: 32 texts of the validation part, float32, no dropout
    training         arm -> {test_accuracy, best_epoch, history, series: name -> a number for each step}

Names, in a batch of texts; RMS: root of the mean square of all its numbers.

    rms_host         the host's vector h, where the graft takes it   rms_inside   z = proj_in(h)
    rms_donor        donor(z)                                        rms_added    f = donor(z) - z
    rms_out          u = proj_out(donor(z))                          rms_logits   what the head says
    (wide-head: `donor` is the GELU's output, and nothing is added)
    margin_mean, margin_deviation    of logit 1 - logit 0 over the texts
    cosine_X         mean cosine of the vectors of two different texts, of host, added, out
    rank_X           effective number of directions in which they differ (participation ratio; at most texts - 1)
    saturated        share of the inputs of the head's GELU beyond +-3 (with dropout, in training)
    loss             of the batch, label smoothing included
    gradient_PART, gradient, clip    norms before clipping, by part and of all; the factor of the clipping
    update_PART      size of the step's change by size of the weights, before (null: they are zero)
    step_X           RMS of what the step changes in h (host), u (out) and logits for 16 fixed texts, float32, no
                     dropout; step_out_by_proj_out, step_logits_by_head: by that part alone
    gate             of `gated`, behind the step
    At the start only:
    gain             rms_added / rms_inside
    own_scale        RMS of a z as large as what the layer adds to it
    adam_step_out    lr x mean over texts of sum|what proj_out is given|: the most that proj_out's first step can move
                     a number of u
    louder           relative change of u for h x 1.01        nudged       for h + noise of 1 % of its size
"""

import argparse
import json
import shutil
import sys
from pathlib import Path
from typing import Any
from unittest import mock

import torch

from benchmarks.loudness_picture import draw
from benchmarks.loudness_start import measure_start
from benchmarks.loudness_watch import Watch, as_text, fold, quieten, watched_trainer
from benchmarks.machine import machine, say, versions
from layer_surgeon.finetune import run
from layer_surgeon.progress import NullProgress
from layer_surgeon.study import cells
from layer_surgeon.study.arms import Arm
from layer_surgeon.study.layout import StudyFolder, read_json, write_json, write_text
from layer_surgeon.study.models import build_model
from layer_surgeon.study.plan import Cell, StudyPlan
from layer_surgeon.study.prepare import prepare_study

RESULTS = Path("docs/results/loudness.json")
PICTURE = Path("docs/assets/results-loudness.svg")
SEED = 2023
DONORS = ("packaged:gemma-3-270m", "packaged:qwen2.5-coder-1.5b-instruct")
ARMS: tuple[Any, ...] = (
    "host",
    "graft",
    "matched",
    {"name": "folded", "like": "matched"},
    {"name": "folded-slow", "like": "matched", "finetune": {"projection_learning_rate": 5e-8}},
    {"name": "quiet", "like": "graft"},
    "random",
    "wide-head",
    "gated",
    {"name": "fast-projections", "like": "graft", "finetune": {"projection_learning_rate": 1e-3}},
    {"name": "fast-head", "like": "graft", "finetune": {"head_learning_rate": 1e-3}},
)
# Those of which something is to be seen before training; the others begin like `graft`.
STARTING = ("host", "graft", "matched", "folded", "quiet", "random", "wide-head")


def make_plan(data: Path, donor: str, max_steps: int | None = None) -> StudyPlan:
    """All arms, as the studies have them."""
    settings: dict[str, Any] = {"precision": "bf16", "max_eval_samples": 200}
    if max_steps is not None:
        settings["max_steps"] = max_steps
    files = {part: str(data / f"{part}.csv") for part in ("train", "validation", "test")}
    return StudyPlan.from_dict(
        {
            "name": "loudness",
            "host": "packaged:all-MiniLM-L6-v2",
            "donor": donor,
            "arms": list(ARMS),
            "fractions": [0.1],
            "seeds": [SEED],
            "data": [{"name": "sst2", **files}],
            "finetune": settings,
        }
    )


def train(cell: Cell, folder: StudyFolder, series: Path) -> None:
    """One training, watched; what was measured is written when it is whole."""
    # Half a training that goes on has half of the steps.
    for path in (folder.run(cell.id), folder.run(cell.id).with_name(f"{cell.id}.unfinished")):
        shutil.rmtree(path, ignore_errors=True)
    folder.result(cell.id).unlink(missing_ok=True)
    watch = Watch()
    with (
        mock.patch.object(run, "SurgeonTrainer", watched_trainer(watch)),
        mock.patch.object(cells, "build_model", build),
    ):
        result = cells.run_cell(cell, folder)
    write_json(
        series,
        {
            "test_accuracy": result.tests[cell.data].scores["accuracy"],
            "best_epoch": result.best_epoch,
            "history": list(result.history),
            "series": watch.rounded(),
        },
    )


def build(arm: Arm, *arguments: Any) -> Any:
    """As the studies build it, but for what they can't."""
    model = build_model(arm, *arguments)
    change = {"quiet": quieten, "folded": fold, "folded-slow": fold}.get(arm.name)
    return model if change is None else change(model)


def borrow(work: Path, layers: Path) -> None:
    """Have the study's folder use layers that another has extracted."""
    (work / "layers").mkdir(parents=True, exist_ok=True)
    for path in layers.iterdir():
        if not (work / "layers" / path.name).exists():
            (work / "layers" / path.name).symlink_to(path.resolve())


def collect(work: Path, settings: dict[str, Any]) -> dict[str, Any]:
    """The document, of all that was measured so far."""
    names = [arm if isinstance(arm, str) else arm["name"] for arm in ARMS]
    found = {name: work / "series" / f"{name}.json" for name in names}
    starts = [work / "start" / f"{short(donor)}.json" for donor in DONORS]
    return {
        "format": 1,
        "machine": machine(),
        "versions": versions("layer-surgeon", "torch", "transformers", "accelerate"),
        "command": "python -m benchmarks.loudness --work DIR --data data/sst2",
        "settings": settings,
        "start": {path.stem: read_json(path) for path in starts if path.is_file()},
        "training": {name: read_json(path) for name, path in found.items() if path.is_file()},
    }


def short(donor: str) -> str:
    """The name of a donor."""
    return donor.partition(":")[2]


def main() -> None:
    """Do what was asked for."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path)
    parser.add_argument("--work", type=Path)
    parser.add_argument("--layers", type=Path, action="append", default=[])
    parser.add_argument("--max-steps", type=int, help="to try the script out")
    parser.add_argument("--arms", nargs="+", help="train these only, in this order")
    parser.add_argument("--without-start", action="store_true", help="trainings only")
    parser.add_argument("--output", type=Path, default=RESULTS)
    parser.add_argument("--draw", action="store_true")
    given = parser.parse_args()
    if given.data is not None:
        if given.work is None:
            sys.exit("--data says what to train on; say where to keep what is under way with --work too.")
        torch.set_num_threads(1)
        measure(given)
    if given.draw:
        write_text(PICTURE, draw(json.loads(given.output.read_text(encoding="utf-8"))))


def measure(given: argparse.Namespace) -> None:
    """All that is not there yet, and then the file."""
    for layers in given.layers:
        borrow(given.work, layers)
    plan = make_plan(given.data, DONORS[0], given.max_steps)
    folder = StudyFolder(root=given.work)
    if not given.without_start:
        start(DONORS[0], given)
    prepare_study(plan, folder, NullProgress())
    wanted = {cell.arm.name: cell for cell in plan.cells()}
    for name in given.arms or wanted:
        series = given.work / "series" / f"{name}.json"
        if not series.is_file():
            say(name)
            train(wanted[name], folder, series)
        keep(given, plan)
    if not given.without_start:
        start(DONORS[1], given)
        keep(given, plan)


def start(donor: str, given: argparse.Namespace) -> None:
    """What there is to be measured before training."""
    target = given.work / "start" / f"{short(donor)}.json"
    if target.is_file():
        return
    say(f"before training: {short(donor)}")
    folder, plan = StudyFolder(root=given.work), make_plan(given.data, donor)
    prepare_study(plan, folder, NullProgress())
    write_json(
        target, measure_start([arm for arm in plan.arms if arm.name in STARTING], folder, "sst2", build, seed=SEED)
    )


def keep(given: argparse.Namespace, plan: StudyPlan) -> None:
    """Write what is there so far."""
    settings = dict(plan.finetune) | {"seed": SEED, "fraction": 0.1}
    write_text(given.output, as_text(collect(given.work, settings)))


if __name__ == "__main__":
    main()
