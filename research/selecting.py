"""Compare `surgeon select` with the full sweep: how good is its choice, at what share of the cost?

    python -m research.selecting --data DATA --work WORK   sweeps, then selections; continues where it stopped
    python -m research.selecting --work WORK --check       one training in a process of its own, and in the sweep
    python -m research.selecting --work WORK --measure     research/measured/select.json from what is there

DATA holds the folders sst2 and tweet_offensive, each with train.csv, validation.csv and test.csv (text, label), of
which 600, 400 and 1,000 rows are taken, stratified. Host: all-MiniLM-L6-v2; donor: each of the 18 layers of
Gemma-3-270M; both from the demo extra. Fixed before any sweep was run: the data, the settings in `selecting_facts`,
three seeds for the sweeps, and that a selection has seeds of its own: it knows nothing about the sweep that judges it.

The host is frozen and has no dropout: its vectors for a text never change, and are computed once. All trainings run in
one process. That makes hundreds of trainings affordable on a core, and should change no number beyond rounding, which
`--check` shows for one training.
"""

import argparse
import csv
import functools
import json
import random
import shutil
import time
from collections import defaultdict
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any
from unittest import mock

import torch
from transformers import BertModel
from transformers.modeling_outputs import BaseModelOutput

from layer_surgeon._io import write_json
from layer_surgeon.checkpoint.packaged import local_model
from layer_surgeon.progress import NullProgress
from layer_surgeon.study import compare
from layer_surgeon.study.cells import run_cell
from layer_surgeon.study.compare import run_study
from layer_surgeon.study.executors import run_process
from layer_surgeon.study.layout import StudyFolder, read_json
from layer_surgeon.study.plan import Cell
from layer_surgeon.study.prepare import prepare_study
from layer_surgeon.study.select import select_arm
from research.evidence import MEASURED
from research.selecting_facts import DATA, HOST, ROWS, SEEDS, SELECTIONS, measure, plan

RESULTS = MEASURED / "select.json"


def prepare(data: Path, work: Path) -> None:
    """Write the chosen rows, and the host without dropout."""
    for name in DATA:
        for part, wanted in ROWS.items():
            target = work / "data" / name / f"{part}.csv"
            if target.is_file():
                continue
            with (data / name / f"{part}.csv").open(newline="", encoding="utf-8") as file:
                rows = [(row["text"], row["label"]) for row in csv.DictReader(file)]
            target.parent.mkdir(parents=True, exist_ok=True)
            with target.open("w", newline="", encoding="utf-8") as file:
                csv.writer(file).writerows([("text", "label"), *take(rows, wanted)])
    host = work / "host"
    if not host.is_dir():
        shutil.copytree(local_model(HOST), host)
        config = json.loads((host / "config.json").read_text(encoding="utf-8"))
        config |= {"hidden_dropout_prob": 0.0, "attention_probs_dropout_prob": 0.0}
        (host / "config.json").write_text(json.dumps(config, indent=1), encoding="utf-8")


def take(rows: Sequence[tuple[str, str]], wanted: int) -> list[tuple[str, str]]:
    """Draw rows, with the shares of the classes unchanged."""
    by_label = defaultdict(list)
    for row in rows:
        by_label[row[1]].append(row)
    draw = random.Random(0)
    taken = []
    for label in sorted(by_label):
        part = by_label[label]
        draw.shuffle(part)
        taken += part[: round(wanted * len(part) / len(rows))]
    draw.shuffle(taken)
    return taken


def run_here(
    cells: Sequence[Cell], folder: StudyFolder, workers: int, notice: Callable[[str], None] | None = None
) -> Iterator[tuple[Cell, str | None]]:
    """Run all trainings in this process, in place of `run_local`."""
    for cell in cells:
        began, cpu = time.monotonic(), time.process_time()
        run_cell(cell, folder)
        print(f"{cell.id}: {time.monotonic() - began:.1f} s, {time.process_time() - cpu:.1f} s of CPU", flush=True)
        yield cell, None


def remember_hosts() -> None:
    """Make a frozen host without dropout compute the vectors of a text only once."""
    plain = BertModel.forward
    known: dict[bytes, torch.Tensor] = {}

    @functools.wraps(plain)
    def forward(self: Any, input_ids: torch.Tensor, attention_mask: torch.Tensor, **kwargs: Any) -> BaseModelOutput:
        lengths = attention_mask.sum(dim=1).tolist()
        keys = [ids[:length].numpy().tobytes() for ids, length in zip(input_ids, lengths, strict=True)]
        missing = [row for row, key in enumerate(keys) if key not in known]
        if missing:
            with torch.no_grad():
                states = plain(
                    self, input_ids=input_ids[missing], attention_mask=attention_mask[missing]
                ).last_hidden_state
            for row, state in zip(missing, states, strict=True):
                known[keys[row]] = state[: lengths[row]].clone()
        padded = torch.nn.utils.rnn.pad_sequence([known[key] for key in keys], batch_first=True)
        return BaseModelOutput(last_hidden_state=padded)

    BertModel.forward = forward


def sweep(work: Path, data: str) -> None:
    """Run the full sweep."""
    run_study(plan(work, data, SEEDS), work / f"sweep-{data}")


def select(work: Path, data: str, number: int) -> None:
    """Run one selection with its own seeds and folder; it shares only data and layers with the sweep."""
    seeds = [1000 * (number + 1) + offset for offset in range(len(SEEDS))]
    folder, shared = work / f"select-{data}-{number}", work / f"sweep-{data}"
    prepare_study(plan(work, data, SEEDS), StudyFolder(root=shared), NullProgress())
    borrow(folder, shared)
    result = select_arm(plan(work, data, seeds), folder)
    print(f"{data}, selection {number}: {result.best}, {result.cost:.2f} of the sweep", flush=True)


def borrow(folder: Path, shared: Path) -> None:
    """Let a study's folder use the data and layers of another."""
    folder.mkdir(exist_ok=True)
    for name in ("data", "layers"):
        if not (folder / name).exists():
            shutil.copytree(shared / name, folder / name)


def check(work: Path, data: str) -> None:
    """Train one cell as `surgeon compare` does, in a process of its own, and print it with that of the sweep."""
    folder, shared = work / "check", StudyFolder(root=work / f"sweep-{data}")
    borrow(folder, shared.root)
    cell = next(cell for cell in plan(work, data, SEEDS).cells() if cell.arm.donor is not None)
    reason = run_process(cell, StudyFolder(root=folder), threads=1)
    if reason is not None:
        raise SystemExit(reason)
    for study in (StudyFolder(root=folder), shared):
        result = read_json(study.result(cell.id))
        print(result["id"], result["tests"][data]["scores"], result["validation"]["scores"], result["seconds"])


def main() -> None:
    """Read the command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path)
    parser.add_argument("--work", type=Path)
    parser.add_argument("--only", choices=("sweeps", "selections"))
    parser.add_argument("--check", action="store_true")
    parser.add_argument("--measure", action="store_true")
    arguments = parser.parse_args()
    if arguments.check:
        check(arguments.work, DATA[0])
    if arguments.measure:
        write_json(RESULTS, measure(arguments.work), indent=1)
    if arguments.data is None:
        return
    prepare(arguments.data, arguments.work)
    remember_hosts()
    torch.set_num_threads(1)
    with mock.patch.object(compare, "run_local", run_here):
        for data in DATA if arguments.only != "selections" else ():
            sweep(arguments.work, data)
        for number in range(SELECTIONS) if arguments.only != "sweeps" else ():
            for data in DATA:
                select(arguments.work, data, number)


if __name__ == "__main__":
    main()
