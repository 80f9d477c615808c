"""`surgeon select` against the full sweep: how good is its choice, at what share of the cost?

    python -m benchmarks.selecting --data DATA --work WORK   sweeps, then selections; goes on where it stopped
    python -m benchmarks.selecting --work WORK --check       a training as the command does it, and the one there
    python -m benchmarks.selecting --work WORK --measure     docs/results/select.json from what is there
    python -m benchmarks.selecting --draw                    the pictures of docs/select.md from that file

DATA holds the folders sst2 and tweet_offensive, each with train.csv, validation.csv and test.csv (text, label), of
which 600, 400 and 1,000 rows are taken, stratified. Host: all-MiniLM-L6-v2; donor: each of the 18 layers of
Gemma-3-270M; both from the demo extra. Fixed before any sweep was run: the data, the settings in `select_plan`, 3 seeds
for the sweeps, and that a selection has seeds of its own, so that it knows nothing of the sweep that it is measured by.

The host is frozen and without dropout, so that what it says of a text is always the same, and is computed once; all
trainings run in one process. That makes hundreds of trainings affordable on a core, and should change no number beyond
rounding: `--check` shows it for one.
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

from benchmarks.selecting_facts import draw, measure
from benchmarks.selecting_plan import DATA, HOST, ROWS, SEEDS, SELECTIONS, plan
from layer_surgeon._io import write_json
from layer_surgeon.progress import NullProgress
from layer_surgeon.study import compare
from layer_surgeon.study.cells import run_cell
from layer_surgeon.study.compare import run_study
from layer_surgeon.study.executors import run_process
from layer_surgeon.study.hosts import host_source
from layer_surgeon.study.layout import StudyFolder, read_json
from layer_surgeon.study.plan import Cell
from layer_surgeon.study.prepare import prepare_study
from layer_surgeon.study.select import select_arm

RESULTS = Path("docs/results/select.json")


def prepare(data: Path, work: Path) -> None:
    """The rows, and the host without dropout."""
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
        shutil.copytree(host_source(HOST, StudyFolder(root=work)), host)
        config = json.loads((host / "config.json").read_text(encoding="utf-8"))
        config |= {"hidden_dropout_prob": 0.0, "attention_probs_dropout_prob": 0.0}
        (host / "config.json").write_text(json.dumps(config, indent=1), encoding="utf-8")


def take(rows: Sequence[tuple[str, str]], wanted: int) -> list[tuple[str, str]]:
    """Some of the rows, with the shares of the classes as they were."""
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
    """All in this process; in place of `run_local`."""
    for cell in cells:
        began, cpu = time.monotonic(), time.process_time()
        run_cell(cell, folder)
        print(f"{cell.id}: {time.monotonic() - began:.1f} s, {time.process_time() - cpu:.1f} s of CPU", flush=True)
        yield cell, None


def remember_hosts() -> None:
    """Have a frozen host without dropout compute what it says of a text once."""
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
    """The full sweep."""
    run_study(plan(work, data, SEEDS), work / f"sweep-{data}")


def select(work: Path, data: str, number: int) -> None:
    """One selection, with seeds of its own, in a folder of its own; only data and layers are the sweep's."""
    seeds = [1000 * (number + 1) + offset for offset in range(len(SEEDS))]
    folder, shared = work / f"select-{data}-{number}", work / f"sweep-{data}"
    prepare_study(plan(work, data, SEEDS), StudyFolder(root=shared), NullProgress())
    borrow(folder, shared)
    result = select_arm(plan(work, data, seeds), folder)
    print(f"{data}, selection {number}: {result.best}, {result.cost:.2f} of the sweep", flush=True)


def borrow(folder: Path, shared: Path) -> None:
    """Have a study's folder use the data and layers of another."""
    folder.mkdir(exist_ok=True)
    for name in ("data", "layers"):
        if not (folder / name).exists():
            shutil.copytree(shared / name, folder / name)


def check(work: Path, data: str) -> None:
    """Train one cell as the command does it, in a process of its own whose host remembers nothing."""
    folder, shared = work / "check", StudyFolder(root=work / f"sweep-{data}")
    borrow(folder, shared.root)
    cell = next(cell for cell in plan(work, data, SEEDS).cells() if cell.arm.donor is not None)
    reason = run_process(cell, StudyFolder(root=folder), threads=1)
    if reason is not None:
        raise SystemExit(reason)
    for place in (StudyFolder(root=folder), shared):
        found = read_json(place.result(cell.id))
        print(found["id"], found["tests"][data]["scores"], found["validation"]["scores"], found["seconds"])


def main() -> None:
    """Run what was asked for."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path)
    parser.add_argument("--work", type=Path)
    parser.add_argument("--only", choices=("sweeps", "selections"))
    parser.add_argument("--check", action="store_true")
    parser.add_argument("--measure", action="store_true")
    parser.add_argument("--draw", action="store_true")
    given = parser.parse_args()
    if given.check:
        check(given.work, DATA[0])
    if given.measure:
        write_json(RESULTS, measure(given.work), indent=1)
    if given.draw:
        draw(read_json(RESULTS))
    if given.data is None:
        return
    prepare(given.data, given.work)
    remember_hosts()
    torch.set_num_threads(1)
    with mock.patch.object(compare, "run_local", run_here):
        for data in DATA if given.only != "selections" else ():
            sweep(given.work, data)
        for number in range(SELECTIONS) if given.only != "sweeps" else ():
            for data in DATA:
                select(given.work, data, number)


if __name__ == "__main__":
    main()
