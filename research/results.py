"""Generate the results pages, their figures and the README's block from the committed evidence: `make results`.

    python -m research.results              write research/results.md, docs/results.md, research/figures and README.md
    python -m research.results --check      write nothing; fail if one of them is not what the evidence gives

Only files in research/ are read: every table is computed again by the code that `surgeon compare` uses.
"""

import argparse
import sys
from pathlib import Path

from benchmarks.machine import ROOT, say
from layer_surgeon._io import write_text
from research.evidence import READING, Evidence, load
from research.figures import draw_all, draw_prices
from research.page import FIGURES, render_all


def generate(evidence: Evidence, reading: Evidence) -> dict[Path, str]:
    """The content of every generated file that is not up to date yet.

    Raises:
        ConfigError: A template asks for something that is not there.
    """
    figures = draw_all(evidence) | draw_prices(reading)
    pages = render_all(evidence, reading, {name: figure.text for name, figure in figures.items()})
    stale = {path: text for path, text in pages.items() if _text(path) != text}
    for name, figure in figures.items():
        path = FIGURES / f"{name}.svg"
        if figure.stamp not in _text(path):
            stale[path] = figure.svg()
    return stale


def _text(path: Path) -> str:
    return path.read_text(encoding="utf-8") if path.is_file() else ""


def main() -> int:
    """Read the command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--check", action="store_true", help="write nothing; fail if a file is out of date")
    check = parser.parse_args().check
    stale = generate(load(), load(READING))
    for path, text in stale.items():
        say(f"{path.relative_to(ROOT)} {'is out of date' if check else 'is written'}")
        if not check:
            write_text(path, text)
    return 1 if check and stale else 0


if __name__ == "__main__":
    sys.exit(main())
