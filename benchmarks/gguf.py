"""Measure the start of commands on a GGUF file: Gemma-3-270M, Q4_K_M, 253 MB.

    python -m benchmarks.gguf
    python -m benchmarks.gguf --other old/bin/surgeon          also measures another installation

The file comes from the packages of the extra [demo]. Each run is a new process, and the rows take turns. Ratios are to
`surgeon --help` of the same round, which reads no file and imports no command.
docs/benchmarks/commands.md explains the results.
"""

import argparse
import tempfile
from dataclasses import asdict
from functools import partial
from pathlib import Path
from typing import Any

from benchmarks.command import SURGEON
from benchmarks.machine import heading, machine, save, spread, table, versions
from benchmarks.packaged_gguf import write_packaged_gguf
from benchmarks.peers import remove
from benchmarks.process import Usage, measure, take_turns

TARGETS = {"inspect": 6, "extract --layer -1": 10}


def commands(surgeon: Path, file: Path, output: Path) -> dict[str, list[str]]:
    """Return the command of each row."""
    return {
        "--help": [str(surgeon), "--help"],
        "inspect": [str(surgeon), "inspect", str(file)],
        "extract --layer -1": [str(surgeon), "extract", str(file), "--layer", "-1", "--output", str(output)],
    }


def run_rows(rows: dict[str, list[str]], output: Path, runs: int) -> dict[str, list[Usage]]:
    """Run the rows."""

    def run(command: list[str]) -> Usage:
        usage = measure(command)
        remove(output)
        return usage

    return take_turns({title: partial(run, command) for title, command in rows.items()}, runs)


def show(results: dict[str, list[Usage]]) -> None:
    """Print the rows, with ratios to `--help` of the same installation and round."""
    lines = []
    for title, usages in results.items():
        helps = results[title.partition(" ")[0] + " --help"]
        pairs = list(zip(usages, helps, strict=True))
        target = TARGETS.get(title.partition(" ")[2])
        lines.append(
            [
                title,
                spread([usage.seconds for usage in usages]),
                _ratio([usage.seconds / other.seconds for usage, other in pairs]),
                spread([usage.cpu_seconds for usage in usages]),
                _ratio([usage.cpu_seconds / other.cpu_seconds for usage, other in pairs]),
                f"{max(usage.resident_bytes for usage in usages) / 1e6:,.0f} MB",
                f"{target} x" if target else "",
            ]
        )
    print(table(("", "time", "x --help", "CPU", "x --help", "resident", "target"), lines))


def _ratio(values: list[float]) -> str:
    return spread(values).replace(" s", "")


def main(arguments: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--other", type=Path, metavar="COMMAND", help="the `surgeon` of another installation")
    parser.add_argument("--runs", type=int, default=5)
    parser.add_argument("--json", type=Path, metavar="FILE", help="write all measurements to this file")
    settings = parser.parse_args(arguments)
    facts, packages = machine(), versions("layer-surgeon", "transformers", "torch", "gguf", "numpy")
    print(heading(facts, packages), flush=True)
    with tempfile.TemporaryDirectory() as folder:
        file, output = write_packaged_gguf("packaged:gemma-3-270m", Path(folder)), Path(folder, "layer")
        rows = {f"surgeon {title}": command for title, command in commands(SURGEON, file, output).items()}
        if settings.other:
            rows |= {f"other {title}": command for title, command in commands(settings.other, file, output).items()}
        results = run_rows(rows, output, settings.runs)
    show(results)
    document: dict[str, Any] = {title: [asdict(usage) for usage in usages] for title, usages in results.items()}
    save(settings.json, {"machine": facts, "versions": packages, "rows": document})


if __name__ == "__main__":
    main()
