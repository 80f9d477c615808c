"""Measure `surgeon diff` of two checkpoints with the shape of Llama-3.1-8B against reading both of them once.

    python -m benchmarks.diff                    the first 4 of 32 layers, 7.6 GB for both
    python -m benchmarks.diff --layers 32        all layers, 32 GB for both

Writes three checkpoints of bfloat16 numbers to a temporary folder: A, a copy of it, and B, in which every number
differs. Each run is a new process, the rows take turns, and ratios are to "read both" of the same round, which reads
the files with the standard library, 1 MiB at a time. docs/benchmarks/models.md explains the results.
"""

import argparse
import json
import os
import shutil
import sys
import tempfile
from collections.abc import Iterator
from dataclasses import asdict
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.command import SMALL, SURGEON
from benchmarks.machine import ROOT, heading, machine, save, spread, table, versions
from benchmarks.process import Usage, drop_from_cache, measure, take_turns
from layer_surgeon.extract.dtypes import encode_floats
from tests.support.checkpoints import LLAMA_8B, llama_shapes, pad_header

_MAX_SHARD_BYTES = 5_000_000_000
_BLOCK_NUMBERS = 1 << 23
_READ = ROOT / "benchmarks" / "rows" / "read_files.py"


def write_models(folder: Path, config: dict[str, Any]) -> tuple[Path, Path, Path]:
    """Write A, a copy of it, and B, whose numbers are those of A with noise of a tenth of their size."""
    generator = np.random.default_rng(0)
    numbers = generator.standard_normal(_BLOCK_NUMBERS, dtype=np.float32) * np.float32(0.02)
    noise = generator.standard_normal(_BLOCK_NUMBERS, dtype=np.float32) * np.float32(0.002)
    a, copy, b = folder / "a", folder / "copy", folder / "b"
    _write(a, config, bytes(encode_floats(numbers, "BF16")))
    shutil.copytree(a, copy)
    _write(b, config, bytes(encode_floats(numbers + noise, "BF16")))
    return a, copy, b


def _write(folder: Path, config: dict[str, Any], block: bytes) -> None:
    folder.mkdir()
    (folder / "config.json").write_text(json.dumps(config))
    weight_map = {}
    shards: list[dict[str, int]] = [{}]
    for name, shape in llama_shapes(config).items():
        size = 2 * int(np.prod(shape))
        if sum(shards[-1].values()) + size > _MAX_SHARD_BYTES:
            shards.append({})
        shards[-1][name] = size
    for number, sizes in enumerate(shards, 1):
        file = f"model-{number:05}-of-{len(shards):05}.safetensors"
        weight_map |= dict.fromkeys(sizes, file)
        entries, position = {}, 0
        for name, size in sizes.items():
            shape = llama_shapes(config)[name]
            entries[name] = {"dtype": "BF16", "shape": shape, "data_offsets": [position, position + size]}
            position += size
        with (folder / file).open("wb") as shard:
            shard.write(pad_header(entries))
            for part in _repeated(block, position):
                shard.write(part)
            shard.flush()
            os.fsync(shard.fileno())
    (folder / "model.safetensors.index.json").write_text(json.dumps({"metadata": {}, "weight_map": weight_map}))


def _repeated(block: bytes, num_bytes: int) -> Iterator[bytes]:
    while num_bytes > 0:
        yield block[:num_bytes]
        num_bytes -= len(block)


def run_rows(models: tuple[Path, Path, Path], runs: int, *, cold: bool) -> dict[str, list[Usage]]:
    """Run the rows."""
    a, copy, b = models
    rows: dict[str, list[str | Path]] = {
        "read both": [sys.executable, _READ, a, b],
        "surgeon diff, all numbers differ": [SURGEON, "diff", a, b, "--json", "--quiet"],
        "surgeon diff, all are equal": [SURGEON, "diff", a, copy, "--json", "--quiet"],
    }

    def run(command: list[str | Path]) -> Usage:
        if cold:
            drop_from_cache(*models)
        return measure(command)

    return take_turns({title: partial(run, command) for title, command in rows.items()}, runs)


def show(results: dict[str, list[Usage]]) -> None:
    """Print the rows, with ratios to "read both" of the same round."""
    lines = []
    for title, usages in results.items():
        ratios = [u.seconds / reading.seconds for u, reading in zip(usages, results["read both"], strict=True)]
        lines.append(
            [
                title,
                spread([usage.seconds for usage in usages]),
                spread(ratios).replace(" s", ""),
                spread([usage.cpu_seconds for usage in usages]),
                f"{max(usage.resident_bytes for usage in usages) / 1e6:,.0f} MB",
            ]
        )
    print(table(("", "time", "x read both", "CPU", "peak memory"), lines))


def main(arguments: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--layers", type=int, default=4, help="number of layers of the 8B shape; 0 is a small model")
    parser.add_argument("--runs", type=int, default=3)
    parser.add_argument("--folder", type=Path, help="where to write the checkpoints")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write all measurements to this file")
    settings = parser.parse_args(arguments)
    facts, packages = machine(), versions("layer-surgeon", "numpy")
    print(heading(facts, packages), flush=True)
    config = LLAMA_8B | {"num_hidden_layers": settings.layers} if settings.layers else SMALL
    document: dict[str, Any] = {"machine": facts, "versions": packages}
    with tempfile.TemporaryDirectory(dir=settings.folder) as folder:
        models = write_models(Path(folder), config)
        num_bytes = sum(path.stat().st_size for path in models[0].iterdir())
        for cold in (True, False):
            state = "page cache dropped" if cold else "page cache warm"
            print(f"\n2 x {num_bytes / 1e9:.2f} GB, {state}:\n", flush=True)
            results = run_rows(models, settings.runs, cold=cold)
            show(results)
            document[state] = {title: [asdict(usage) for usage in usages] for title, usages in results.items()}
    save(settings.json, document)


if __name__ == "__main__":
    main()
