"""Time and memory of `surgeon extract` on the shapes of Llama-3.1-8B and 70B, beside the least that could be done.

    python -m benchmarks.extract            both shapes
    python -m benchmarks.extract --only 8B --runs 3

Sparse checkpoints with the real layout are made in a temporary folder (2.2 GB). Each row is a new process; rows take
turns, and medians are shown. "copy + sha256" reads the layer's bytes, writes them and hashes them with nothing but the
standard library: the limit that `surgeon extract` is measured against.
"""

import argparse
import json
import platform
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

from tests.support.checkpoints import LLAMA_8B, LLAMA_70B, write_sparse_checkpoint

SHAPES = {"8B": (LLAMA_8B, 436_224_000), "70B": (LLAMA_70B, 1_711_308_800)}
SURGEON = Path(sys.executable).with_name("surgeon")

# Runs a command and prints its seconds and peak resident memory; a process of its own, so that it counts one child.
MEASURE = """
import json, resource, subprocess, sys, time
start = time.perf_counter()
subprocess.run(sys.argv[1:], check=True, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
seconds = time.perf_counter() - start
peak = resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss * (1 if sys.platform == "darwin" else 1024)
print(json.dumps({"seconds": seconds, "peak_bytes": peak}))
"""
COPY = """
import hashlib, json, sys
ranges, target = json.loads(sys.argv[1]), sys.argv[2]
digest, buffer = hashlib.sha256(), memoryview(bytearray(1 << 20))
with open(target, "wb", buffering=0) as out:
    for path, start, length in ranges:
        with open(path, "rb", buffering=0) as file:
            file.seek(start)
            while length:
                count = file.readinto(buffer[:length])
                out.write(buffer[:count])
                digest.update(buffer[:count])
                length -= count
"""


def measure(*command: str) -> dict[str, float]:
    """Seconds and peak resident bytes of one run of a command."""
    done = subprocess.run([sys.executable, "-c", MEASURE, *command], check=True, capture_output=True, text=True)
    result: dict[str, float] = json.loads(done.stdout)
    return result


def plan(checkpoint: Path) -> dict[str, Any]:
    """What `surgeon extract --dry-run` says about the last layer."""
    command = [SURGEON, "extract", checkpoint, "--layer", "-1", "--dry-run", "--json"]
    document: dict[str, Any] = json.loads(subprocess.run(command, check=True, capture_output=True).stdout)
    return document


def benchmark(name: str, folder: Path, runs: int) -> None:
    """Measure one shape and print its rows."""
    config, expected = SHAPES[name]
    checkpoint = write_sparse_checkpoint(folder / name, config, [config["num_hidden_layers"] - 1])
    document = plan(checkpoint)
    if document["num_bytes"] != expected:
        raise SystemExit(f"{name}: the plan reads {document['num_bytes']:,} bytes; {expected:,} are right.")
    tensors = document["tensors"]
    ranges = json.dumps([[str(checkpoint / t["file"]), t["offset"], t["num_bytes"]] for t in tensors])
    rows: dict[str, list[dict[str, float]]] = {"copy + sha256 (standard library)": [], "surgeon extract": []}
    for _ in range(runs):
        for row, results in rows.items():
            target = folder / "out"
            if row == "surgeon extract":
                command = [str(SURGEON), "extract", str(checkpoint), "--layer", "-1", "--output", str(target)]
            else:
                command = [sys.executable, "-c", COPY, ranges, str(target)]
            results.append(measure(*command))
            shutil.rmtree(target) if target.is_dir() else target.unlink()
    base = statistics.median(result["seconds"] for result in rows["copy + sha256 (standard library)"])
    for row, results in rows.items():
        seconds = statistics.median(result["seconds"] for result in results)
        peak = max(result["peak_bytes"] for result in results)
        print(f"{name:4} {row:34} {seconds:6.2f} s  {seconds / base:5.2f} x  peak {peak / 1e6:6.1f} MB")
    shutil.rmtree(checkpoint)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", choices=SHAPES)
    parser.add_argument("--runs", type=int, default=5)
    arguments = parser.parse_args()
    print(
        f"{platform.platform()}, Python {platform.python_version()}, {time.strftime('%Y-%m-%d')}, {arguments.runs} runs"
    )
    with tempfile.TemporaryDirectory() as folder:
        for name in [arguments.only] if arguments.only else SHAPES:
            benchmark(name, Path(folder), arguments.runs)


if __name__ == "__main__":
    main()
