"""Measure the time and memory of assembling the first layers of a checkpoint shaped like Llama-3.1-8B.

    python -m benchmarks.assemble                           2 layers, embeddings and head: 2.97 GB
    python -m benchmarks.assemble --rows copy surgeon --runs 3

Makes a sparse checkpoint with the real layout in a temporary folder (1 GB, and 3 GB of output). Each run is a new
process, and the rows take turns. "copy + sha256" reads, writes and hashes the same bytes with only the standard
library: the lower bound for `surgeon assemble`. mergekit does the same task with its passthrough; it is in
.venv-peers, which `make bench` installs. All rows must give the same tensors.
"""

import argparse
import statistics
import tempfile
from collections.abc import Iterator
from dataclasses import asdict
from functools import partial
from pathlib import Path
from typing import Any

from benchmarks.command import SMALL, SURGEON
from benchmarks.machine import heading, machine, save, spread, table, versions
from benchmarks.peers import (
    PEERS,
    Job,
    Row,
    StoredTensor,
    copied,
    copy_command,
    digest_of,
    environment,
    in_safetensors,
    mergekit_command,
    peer_versions,
    remove,
    settle,
)
from benchmarks.process import Usage, measure, take_turns
from layer_surgeon import plan_assembly
from tests.support.checkpoints import LLAMA_8B, write_sparse_checkpoint

LAYERS = 2
SHAPES: dict[str, tuple[dict[str, Any], int, int]] = {
    "small": (SMALL, 2_500_000, 2_296_320),
    "8B": (LLAMA_8B, 5_000_000_000, 2_973_802_496),
}
TARGET_RATIO = 1.2
TARGET_MB = 64


def find_job(checkpoint: Path, output: Path) -> Job:
    """Find the tensors to keep, by their names in the new model."""
    plan = plan_assembly(checkpoint, keep=f"0:{LAYERS}")
    tensors = []
    for shard in plan.shards:
        for tensor in shard.planned:
            file = checkpoint / tensor.source.file.partition("/")[2]
            tensors.append((tensor.name, file, tensor.source.offset, tensor.source.num_bytes))
    return Job(checkpoint=checkpoint, index=0, tensors=tuple(tensors), output=output)


def _surgeon_command(job: Job) -> list[str]:
    return [str(SURGEON), "assemble", str(job.checkpoint), "--keep", f"0:{LAYERS}", "--output", str(job.output)]


def _mergekit_command(job: Job) -> list[str]:
    return mergekit_command(job, [0, LAYERS])


def _in_folder(job: Job) -> Iterator[StoredTensor]:
    for path in job.output.glob("*.safetensors"):
        yield from in_safetensors(path, "")


ROWS = {
    "copy": Row(title="copy + sha256 (standard library)", command=copy_command, tensors=copied, peer=False),
    "surgeon": Row(title="surgeon assemble", command=_surgeon_command, tensors=_in_folder, peer=False),
    "mergekit": Row(title="mergekit passthrough", command=_mergekit_command, tensors=_in_folder),
}


def run_rows(job: Job, rows: list[str], runs: int) -> dict[str, list[Usage]]:
    """Run the rows, and check what they wrote."""
    expected = digest_of(iter(job.tensors))

    def run(row: Row) -> Usage:
        settle()
        usage = measure(row.command(job), environment=environment())
        if digest_of(row.tensors(job)) != expected:
            raise SystemExit(f"{row.title} wrote other tensors than the checkpoint has.")
        remove(job.output)
        return usage

    return take_turns({name: partial(run, ROWS[name]) for name in rows}, runs)


def show(results: dict[str, list[Usage]]) -> None:
    """Print the rows, and compare `surgeon assemble` with its targets."""
    lines = []
    for name, usages in results.items():
        # Rows take turns, so runs of one round saw about the same load of the machine.
        ratios = [usage.seconds / copy.seconds for usage, copy in zip(usages, results.get("copy", ()), strict=False)]
        lines.append(
            [
                ROWS[name].title,
                spread([usage.seconds for usage in usages]),
                f"{statistics.median(ratios):.2f}" if ratios else "",
                spread([usage.cpu_seconds for usage in usages]),
                f"{max(usage.resident_bytes for usage in usages) / 1e6:,.1f} MB",
            ]
        )
    print(table(("", "time", "x copy", "CPU", "resident"), lines))
    print(f"\nTargets of surgeon assemble: {TARGET_RATIO} x the copy, {TARGET_MB} MB resident")


def main(arguments: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", choices=SHAPES, default="8B")
    parser.add_argument("--rows", choices=ROWS, nargs="+", default=list(ROWS))
    parser.add_argument("--runs", type=int, default=5)
    parser.add_argument("--folder", type=Path, help="where to make files (default: TMPDIR)")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write all measurements to this file")
    settings = parser.parse_args(arguments)
    if any(ROWS[row].peer for row in settings.rows) and not (PEERS / "python").exists():
        raise SystemExit(f"{PEERS.parent} doesn't exist. Run `make bench`, or choose rows with --rows copy surgeon.")
    facts, packages = machine(), versions("layer-surgeon") | peer_versions()
    print(heading(facts, packages), flush=True)
    config, max_shard_bytes, expected = SHAPES[settings.only]
    with tempfile.TemporaryDirectory(dir=settings.folder) as temporary:
        folder = Path(temporary)
        checkpoint = write_sparse_checkpoint(folder / "model", config, range(LAYERS), max_shard_bytes=max_shard_bytes)
        job = find_job(checkpoint, folder / "out")
        if job.num_bytes != expected:
            raise SystemExit(f"The plan reads {job.num_bytes:,} bytes, but should read {expected:,}.")
        print(f"\n{settings.only}: {LAYERS} layers, embeddings and head, {job.num_bytes:,} bytes\n", flush=True)
        results = run_rows(job, settings.rows, settings.runs)
    show(results)
    document = {name: [asdict(usage) for usage in usages] for name, usages in results.items()}
    save(settings.json, {"machine": facts, "versions": packages, "num_bytes": expected, "rows": document})


if __name__ == "__main__":
    main()
