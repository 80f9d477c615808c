"""Measure the time and memory of extracting the last layer from checkpoints shaped like Llama-3.1-8B and 70B.

    python -m benchmarks.extract                                   both shapes, page cache warm and dropped, all rows
    python -m benchmarks.extract --only 8B --cache warm --runs 3 --rows copy surgeon

Makes sparse checkpoints with the real layout in a temporary folder (2.2 GB, and up to 3 GB of output). Each run is a
new process, and the rows take turns. The tables show medians, with the fastest and slowest run in brackets. "copy +
sha256" reads, writes and hashes the layer's bytes with only the standard library: the lower bound for `surgeon
extract`. The other rows are tools that people use today; `make bench` installs them in .venv-peers.
docs/benchmarks/extraction.md explains the results.
"""

import argparse
import os
import statistics
import tempfile
from collections.abc import Sequence
from dataclasses import asdict
from functools import partial
from pathlib import Path
from typing import Any

from benchmarks.command import SMALL
from benchmarks.machine import heading, machine, save, say, spread, table, versions
from benchmarks.peers import (
    PEERS,
    ROWS,
    Job,
    digest_of,
    environment,
    find_job,
    peer_versions,
    remove,
    settle,
    size_of,
)
from benchmarks.process import HAS_PROC, Usage, drop_from_cache, measure, take_turns
from tests.support.checkpoints import LLAMA_8B, LLAMA_70B, write_sparse_checkpoint

# Config, size of the largest shard, bytes of the last layer, and the default rows. For the 70B shape, mergekit writes
# 5.9 GB per run, too much for a small disk or its page cache without disturbing the other rows.
SHAPES: dict[str, tuple[dict[str, Any], int, int, tuple[str, ...]]] = {
    "small": (SMALL, 2_500_000, 1_115_136, ("copy", "surgeon")),
    "8B": (LLAMA_8B, 5_000_000_000, 436_224_000, tuple(ROWS)),
    "70B": (LLAMA_70B, 5_000_000_000, 1_711_308_800, tuple(row for row in ROWS if row != "mergekit")),
}


def run_rows(job: Job, rows: Sequence[str], runs: int, *, cold: bool) -> tuple[dict[str, list[Usage]], dict[str, int]]:
    """Run the rows, and compare every output byte for byte with the checkpoint.

    Returns:
        The usage of each row's runs, and how many bytes each row wrote.
    """
    sizes = {}
    # This also reads the layer into the page cache.
    expected = digest_of(iter(job.tensors))

    def run(name: str) -> Usage:
        row = ROWS[name]
        settle()
        if cold:
            drop_from_cache(job.checkpoint)
        usage = measure(row.command(job), environment=environment())
        sizes[name] = size_of(job.output)
        if digest_of(row.tensors(job)) != expected:
            raise SystemExit(f"{row.title} wrote different bytes than the checkpoint contains.")
        remove(job.output)
        return usage

    return take_turns({name: partial(run, name) for name in rows}, runs), sizes


def show(results: dict[str, list[Usage]], sizes: dict[str, int]) -> dict[str, float]:
    """Print the rows, and return the median seconds of each."""
    medians = {name: statistics.median(usage.seconds for usage in usages) for name, usages in results.items()}
    copy_seconds = medians.get("copy")
    lines = []
    for name, usages in results.items():
        lines.append(
            [
                ROWS[name].title,
                spread([usage.seconds for usage in usages]),
                f"{medians[name] / copy_seconds:.2f}" if copy_seconds else "",
                spread([usage.cpu_seconds for usage in usages]),
                _megabytes([usage.resident_bytes for usage in usages]),
                _megabytes([usage.anonymous_bytes for usage in usages]),
                _megabytes([usage.disk_bytes for usage in usages]),
                f"{sizes[name] / 1e6:,.0f} MB",
            ]
        )
    print(table(("", "time", "x copy", "CPU", "resident", "anonymous", "from disk", "written"), lines))
    return medians


def _megabytes(values: Sequence[int | None]) -> str:
    """Format the largest of several numbers of bytes."""
    known = [value for value in values if value is not None]
    return f"{max(known) / 1e6:,.0f} MB" if known else "unknown"


def judge(shape: str, results: dict[str, list[Usage]], medians: dict[str, float]) -> None:
    """Compare `surgeon extract` with its targets."""
    if "surgeon" not in results:
        return
    ours = medians["surgeon"]
    if "copy" in medians:
        ratio, difference = ours / medians["copy"], ours - medians["copy"]
        target = "1.1 x" if shape == "70B" else "0.2 s longer"
        print(f"surgeon extract: {ratio:.2f} x the copy, {difference:.2f} s longer; target for this shape: {target}")
    peak = max(usage.resident_bytes for usage in results["surgeon"]) / 1e6
    print(f"surgeon extract: {peak:.1f} MB resident; target: 40 MB")
    for name, target in (("safe_open", "2 x"), ("from_pretrained", "8 x")):
        if name in medians:
            print(f"surgeon extract: {medians[name] / ours:.1f} x faster than {ROWS[name].title}; target: {target}")


def benchmark(shape: str, folder: Path, settings: argparse.Namespace) -> dict[str, Any]:
    """Measure one shape and print its rows."""
    config, max_shard_bytes, expected, default_rows = SHAPES[shape]
    layer = config["num_hidden_layers"] - 1
    checkpoint = write_sparse_checkpoint(folder / shape, config, [layer], max_shard_bytes=max_shard_bytes)
    job = find_job(checkpoint, folder / "out")
    if job.num_bytes != expected:
        raise SystemExit(f"{shape}: the plan reads {job.num_bytes:,} bytes, but should read {expected:,}.")
    document: dict[str, Any] = {"num_bytes": job.num_bytes}
    for cache in ("warm", "cold") if settings.cache == "both" else (settings.cache,):
        say(f"{shape}, page cache {cache}")
        results, sizes = run_rows(job, settings.rows or default_rows, settings.runs, cold=cache == "cold")
        print(f"\n{shape}: layer {layer}, {job.num_bytes:,} bytes, page cache {cache}\n")
        medians = show(results, sizes)
        print()
        judge(shape, results, medians)
        document[cache] = {name: [asdict(usage) for usage in usages] for name, usages in results.items()}
    remove(checkpoint)
    return document


def parse(arguments: list[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", choices=SHAPES, help="one shape (default: 8B and 70B)")
    parser.add_argument("--cache", choices=("warm", "cold", "both"), default="both", help="the checkpoint's pages")
    parser.add_argument("--rows", choices=ROWS, nargs="+", help="default: all, for 70B without mergekit")
    parser.add_argument("--runs", type=int, default=5)
    parser.add_argument("--folder", type=Path, help="where to make files (default: TMPDIR); on a disk for a cold cache")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write all measurements to this file")
    return parser.parse_args(arguments)


def main(arguments: list[str] | None = None) -> None:
    settings = parse(arguments)
    shapes = [settings.only] if settings.only else ["8B", "70B"]
    rows = {row for shape in shapes for row in settings.rows or SHAPES[shape][3]}
    if any(ROWS[row].peer for row in rows) and not (PEERS / "python").exists():
        raise SystemExit(f"{PEERS.parent} doesn't exist. Run `make bench`, or choose rows with --rows copy surgeon.")
    if settings.cache != "warm" and not hasattr(os, "posix_fadvise"):
        raise SystemExit("This system can't drop the pages of a file from its cache. Use --cache warm.")
    facts, packages = machine(), versions("layer-surgeon") | peer_versions()
    print(heading(facts, packages), flush=True)
    if not HAS_PROC:
        print("This system has no /proc: resident memory is that of the largest process, anonymous memory is unknown.")
    document: dict[str, Any] = {"machine": facts, "versions": packages, "settings": vars(settings), "shapes": {}}
    with tempfile.TemporaryDirectory(dir=settings.folder) as folder:
        for shape in shapes:
            document["shapes"][shape] = benchmark(shape, Path(folder), settings)
    save(settings.json, document)


if __name__ == "__main__":
    main()
