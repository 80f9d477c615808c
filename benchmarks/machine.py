"""Describe the machine and the versions, and show results as tables and JSON."""

import importlib.metadata
import json
import os
import platform
import statistics
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent


def machine() -> dict[str, Any]:
    """Facts about the machine that affect the results."""
    return {
        "date": time.strftime("%Y-%m-%d"),
        "platform": platform.platform(),
        "processor": _processor(),
        "cores": len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count(),
        "memory_bytes": os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES"),
        "python": platform.python_version(),
        "load_before": round(os.getloadavg()[0], 2),
    }


def versions(*packages: str) -> dict[str, str]:
    """The versions of packages in this interpreter, without those that are not installed."""
    version_of = {}
    for package in packages:
        try:
            version_of[package] = importlib.metadata.version(package)
        except importlib.metadata.PackageNotFoundError:
            continue
    return version_of


def _processor() -> str:
    info = Path("/proc/cpuinfo")
    lines = info.read_text().splitlines() if info.is_file() else []
    names = (line.partition(":")[2].strip() for line in lines if line.startswith("model name"))
    return next(names, platform.processor() or platform.machine())


def heading(facts: dict[str, Any], packages: dict[str, str]) -> str:
    """Describe the machine and the versions in one line."""
    memory = facts["memory_bytes"] / 1e9
    names = ", ".join(f"{name} {version}" for name, version in packages.items())
    return (
        f"{facts['processor']}, {facts['cores']} cores, {memory:.0f} GB, {facts['platform']}, Python "
        f"{facts['python']}, {names}, {facts['date']}; load before the first run {facts['load_before']:.2f}"
    )


def table(header: Sequence[str], rows: Sequence[Sequence[str]], left: int = 1) -> str:
    """Format a Markdown table with padded columns: the first `left` columns left-aligned, the others right-aligned."""
    widths = [max(len(row[column]) for row in (header, *rows)) for column in range(len(header))]

    def line(cells: Sequence[str]) -> str:
        padded = [
            f"{cell:<{width}}" if column < left else f"{cell:>{width}}"
            for column, (cell, width) in enumerate(zip(cells, widths, strict=True))
        ]
        return "| " + " | ".join(padded) + " |"

    rules = ["-" * (width + 2) if column < left else "-" * (width + 1) + ":" for column, width in enumerate(widths)]
    rule = "|" + "|".join(rules) + "|"
    return "\n".join([line(header), rule, *map(line, rows)])


def spread(values: Sequence[float]) -> str:
    """Format the median of several times in seconds, with the fastest and slowest in brackets."""
    median = statistics.median(values)
    return f"{median:.2f} s" if len(values) == 1 else f"{median:.2f} s ({min(values):.2f}-{max(values):.2f})"


def say(text: str) -> None:
    """Print progress on stderr; stdout is only for results."""
    sys.stderr.write(f"{text}\n")


def save(path: Path | None, document: dict[str, Any]) -> None:
    """Write all measurements to a JSON file, unless `path` is None. Its folder is made, if need be."""
    if path is not None:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(json.dumps(document, indent=2, default=str) + "\n")
