"""From the folders of studies to the committed evidence, and from that to docs/results.md: `make results`.

    python -m benchmarks.evidence --collect WORK    docs/results/evidence/*.json, of the studies' folders in WORK
    python -m benchmarks.evidence                   docs/results.md, docs/assets/results-*.svg and the README's block
    python -m benchmarks.evidence --check           says what of these is not what the evidence gives

Templates: docs/results/page.md and readme.md; their directives: `benchmarks.evidence_page`. The second and third
read nothing but docs/results: every table is computed anew by what `surgeon compare` computes its own with.
"""

import argparse
import sys
from collections.abc import Mapping
from pathlib import Path

from benchmarks.evidence_facts import Evidence, load
from benchmarks.evidence_figures import figures
from benchmarks.evidence_page import Page
from benchmarks.evidence_store import RESULTS, collect
from benchmarks.machine import ROOT, say
from layer_surgeon._io import write_text
from layer_surgeon.errors import ConfigError, LayerSurgeonError

PAGE, README = ROOT / "docs" / "results.md", ROOT / "README.md"
ASSETS = ROOT / "docs" / "assets"
TEMPLATE, BLOCK = RESULTS / "page.md", RESULTS / "readme.md"
BEGIN, END = "<!-- result -->", "<!-- /result -->"
NOTE = "<!-- Made from docs/results/page.md by `make results`: change that, not this. -->\n\n"


def render(evidence: Evidence) -> tuple[dict[Path, str], str]:
    """The page with its figures, by file; and the README's block.

    Raises:
        ConfigError: A template asks for what is not there.
    """
    drawn = figures(evidence)
    texts = {name: text for name, (_, text) in drawn.items()}
    page = Page(evidence=evidence, figures=texts, assets="assets").render(TEMPLATE.read_text(encoding="utf-8"))
    block = Page(evidence=evidence, figures=texts, assets="docs/assets").render(BLOCK.read_text(encoding="utf-8"))
    files = {ASSETS / f"results-{name}.svg": svg for name, (svg, _) in drawn.items()}
    return {**files, PAGE: NOTE + page}, block


def put_block(readme: str, block: str) -> str:
    """The README with the block between its marks.

    Raises:
        ConfigError: They are not there.
    """
    before, begin, rest = readme.partition(BEGIN)
    _, end, after = rest.partition(END)
    if not begin or not end:
        raise ConfigError(f"README.md has no {BEGIN} with {END} behind it: there the sentence and the plot go.")
    return f"{before}{begin}\n{block}{end}{after}"


def main() -> int:
    """Read the command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--collect", type=Path, metavar="WORK", help="take up what is finished in these folders")
    parser.add_argument(
        "--check", action="store_true", help="write nothing; fail where a file is not what it should be"
    )
    given = parser.parse_args()
    try:
        if given.collect is not None:
            for line in collect(given.collect):
                say(line)
            return 0
        files, block = render(load())
        stale = update(files, write=not given.check)
        stale += update({README: put_block(README.read_text(encoding="utf-8"), block)}, write=not given.check)
    except LayerSurgeonError as error:
        say(str(error))
        return 1
    return 1 if given.check and stale else 0


def update(files: Mapping[Path, str], *, write: bool) -> list[Path]:
    """Those files that are not yet what they should be; now they are, if they may be written."""
    stale = [path for path, text in files.items() if not path.is_file() or path.read_text(encoding="utf-8") != text]
    for path in stale:
        say(f"{path.relative_to(ROOT)} {'is written' if write else 'is not what the evidence gives'}")
        if write:
            write_text(path, files[path])
    return stale


if __name__ == "__main__":
    sys.exit(main())
