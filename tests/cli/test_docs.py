"""Generated pages are up to date, and README and docs only name commands that exist."""

import re
import runpy
from pathlib import Path

from layer_surgeon_cli.main import COMMANDS

ROOT = Path(__file__).resolve().parents[2]


def test_docs_commands_is_up_to_date():
    generator = runpy.run_path(str(ROOT / "tools" / "generate_commands.py"))
    assert (ROOT / "docs" / "commands.md").read_text() == generator["page"](), "run tools/generate_commands.py"


def test_commands_in_the_docs_exist():
    for page in [ROOT / "README.md", *(ROOT / "docs").glob("*.md")]:
        for name in re.findall(r"^surgeon ([a-z]+)", page.read_text(), re.MULTILINE):
            assert name in COMMANDS, f"{page.name}: surgeon {name}"


def test_pages_are_in_the_navigation_and_links_work():
    navigation = (ROOT / "mkdocs.yml").read_text()
    for page in (ROOT / "docs").glob("*.md"):
        assert f" {page.name}" in navigation
    for page in [ROOT / "README.md", *(ROOT / "docs").glob("*.md")]:
        for target in re.findall(r"\]\(([^)#:]+)(?:#[^)]*)?\)", page.read_text()):
            assert (page.parent / target).exists(), f"{page.name} links to {target}"
