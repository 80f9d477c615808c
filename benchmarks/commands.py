"""Where the time of a command goes before and around the training: seconds, and the five largest causes.

`python -m benchmarks.commands` runs `graft`, `finetune` (one step), `predict`, `evaluate` and `compare --dry-run` on
real weights: a layer of Gemma-3-270M in all-MiniLM-L6-v2, from the packages of the extra `demo`. Each command runs
three times: by itself, for its time and memory; with `-X importtime`, for the time of imports by package; and with
cProfile, for the calls that our code makes into other libraries. A profiler slows Python down, so the causes are shown
as shares of their own run.
"""

import os
import pstats
import re
import subprocess
import sys
import tempfile
from collections import Counter
from pathlib import Path

from benchmarks.command import SURGEON
from benchmarks.machine import ROOT, machine
from benchmarks.process import measure

LAYER = ["extract", "packaged:gemma-3-270m", "--layer", "-1"]
COMMANDS = {
    "graft": ["graft", "packaged:all-MiniLM-L6-v2", "--force"],
    "finetune": ["finetune", "--dataset", "sentences-imdb", "--max-steps", "1", "--batch-size", "8"],
    "predict": ["predict", "A fine film."],
    "evaluate": ["evaluate", "--dataset", "sentences-yelp"],
    "compare --dry-run": ["compare", "--preset", "demo", "--output", "study", "--dry-run"],
}
CAUSES = 5
_IMPORT = re.compile(r"import time:\s+(\d+) \|\s+\d+ \|\s+([\w.]+)")
_PROFILED = """
import cProfile, sys, time
from layer_surgeon_cli.main import main
profile = cProfile.Profile(time.process_time)
try:
    profile.runcall(main)
except SystemExit:
    pass
profile.dump_stats("profile")
"""


def import_shares(arguments: list[str], folder: Path) -> dict[str, float]:
    """Return the share of a command's time that imports take, by package."""
    seconds: Counter[str] = Counter()
    command = [sys.executable, "-X", "importtime", str(SURGEON), *arguments]
    done = subprocess.run(command, cwd=folder, capture_output=True, text=True, check=True)
    for microseconds, module in _IMPORT.findall(done.stderr):
        seconds[module.partition(".")[0]] += int(microseconds) / 1e6
    total = measure([SURGEON, *arguments]).seconds
    return {f"importing {package}": value / total for package, value in seconds.items()}


def call_shares(arguments: list[str], folder: Path) -> dict[str, float]:
    """Return the share of a command's processor time in each function of another library that our code calls."""
    subprocess.run([sys.executable, "-c", _PROFILED, *arguments], cwd=folder, capture_output=True, check=True)
    profile = pstats.Stats(str(folder / "profile")).stats  # type: ignore[attr-defined]  # set in __init__, but missing in the type stubs
    total = max(row[3] for row in profile.values())
    shares: Counter[str] = Counter()
    for (path, _, function), (*_, callers) in profile.items():
        if _is_ours(path) or "importlib" in path or path.startswith("~") or function == "<module>":
            continue
        for (caller_path, _, caller), (*_, cumulative) in callers.items():
            if _is_ours(caller_path):
                shares[f"{function}, from {Path(caller_path).stem}.{caller}"] += cumulative / total
    return dict(shares)


def _is_ours(path: str) -> bool:
    # main.py and command.py call everything, through typer; _auto.py wraps imports.
    wrappers = ("_auto.py", "cli/main.py", "cli/command.py")
    return path.startswith((str(ROOT / "layer_surgeon"), str(ROOT / "cli"))) and not path.endswith(wrappers)


def main() -> None:
    """Print a table for each command."""
    print(machine())
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        os.chdir(folder)
        subprocess.run([SURGEON, *LAYER], check=True, capture_output=True)
        for command, arguments in COMMANDS.items():
            usage = measure([SURGEON, *arguments])
            print(
                f"\n{command}: {usage.seconds:.1f} s, {usage.cpu_seconds:.1f} s of processor time, "
                f"{usage.resident_bytes / 1e6:.0f} MB"
            )
            shares = import_shares(arguments, folder) | call_shares(arguments, folder)
            for cause, share in sorted(shares.items(), key=lambda item: -item[1])[:CAUSES]:
                print(f"  {share:6.1%}  {cause}", flush=True)


if __name__ == "__main__":
    main()
