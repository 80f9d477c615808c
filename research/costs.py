"""Count what each arm of a study costs: weights in memory and on the disk, and work per text and per training step.

    python -m research.costs PLAN.yaml [PLAN.yaml ...] --work DIR --output research/reading/measured/costs.json

Controls with random or permuted weights, or with the states of other texts, cost as much as the arm that they are a
control of, and are left out.
Nothing is timed, so every machine gives the same numbers.

The JSON:

    versions, command       with what, how
    tokens                  length of the text that is counted, for the host and for a donor that reads
    rows                    one for each study and arm:
        study, arm          names
        parameters_total    all weights, and those that training changes
        parameters_trained
        macs                multiply-accumulates of reading one text; the donor's embeddings are looked up, which is no
                            multiplication
        macs_training       of a training step with one text, forward and backward, in which the donor reads it too
        disk_bytes          model.safetensors of the saved model, and its folder donor/
"""

import argparse
import shlex
import sys
from pathlib import Path
from typing import Any

from benchmarks.machine import save, say, table, versions
from layer_surgeon._yaml import read_yaml
from layer_surgeon.cost.measure import Workload
from layer_surgeon.progress import NullProgress
from layer_surgeon.study.donor_layers import prepare_layers
from layer_surgeon.study.layout import StudyFolder
from layer_surgeon.study.models import build_model
from layer_surgeon.study.plan import StudyPlan
from research.efficiency import PACKAGES, SEED, TASK, sizes, work_of

# A sentence of SST-2 has 25 tokens on average, with those of MiniLM.
TOKENS = 25


def main() -> None:
    """Read the command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("plans", nargs="+", type=Path, help="the studies' files")
    parser.add_argument("--work", type=Path, required=True, help="folder for the layers; reused")
    parser.add_argument("--output", type=Path, help="a JSON file for everything counted")
    arguments = parser.parse_args()
    rows = [row for path in arguments.plans for row in count(path, StudyFolder(root=arguments.work))]
    command = shlex.join(["python", "-m", "research.costs", *sys.argv[1:]])
    save(arguments.output, {"versions": versions(*PACKAGES), "command": command, "tokens": TOKENS, "rows": rows})
    cells = [[f"{value:,}" if isinstance(value, int) else value for value in row.values()] for row in rows]
    print(table(list(rows[0]), cells, left=2))


def count(path: Path, folder: StudyFolder) -> list[dict[str, Any]]:
    """The rows of a study.

    Args:
        path: Its file.
        folder: Where layers are taken from, and kept.
    """
    plan = StudyPlan.from_dict(read_yaml(path))
    arms = [
        arm
        for arm in plan.arms
        if arm.control not in ("permuted", "shuffled") and arm.graft.get("donor_init") != "random"
    ]
    prepare_layers([arm.donor for arm in arms if arm.donor is not None], folder, NullProgress())
    rows = []
    for arm in arms:
        model = build_model(arm, TASK, SEED, folder)
        size = sizes(model)
        work = work_of(model, Workload(batch=1, length=TOKENS))
        disk_bytes = size.pop("disk_bytes_trained") + (size.pop("disk_bytes_donor") or 0)
        rows.append({"study": path.stem, "arm": arm.name, **size, **work, "disk_bytes": disk_bytes})
        say(f"{path.stem}, {arm.name}: {rows[-1]}")
    return rows


if __name__ == "__main__":
    main()
