"""The pages that are made from the code are up to date, and the README speaks of commands that exist."""

import re
import runpy
from pathlib import Path

from layer_surgeon_cli.main import COMMANDS

ROOT = Path(__file__).resolve().parents[2]


def test_the_page_of_commands_is_up_to_date():
    generator = runpy.run_path(str(ROOT / "tools" / "generate_commands.py"))
    assert (ROOT / "docs" / "commands.md").read_text() == generator["page"](), "run tools/generate_commands.py"


def test_every_command_that_the_pages_name_exists():
    for page in [ROOT / "README.md", *(ROOT / "docs").glob("*.md")]:
        for name in re.findall(r"^surgeon ([a-z]+)", page.read_text(), re.MULTILINE):
            assert name in COMMANDS, f"{page.name}: surgeon {name}"


def test_every_page_is_in_the_navigation_and_every_link_leads_somewhere():
    navigation = (ROOT / "mkdocs.yml").read_text()
    for page in (ROOT / "docs").glob("*.md"):
        assert f" {page.name}" in navigation
    for page in [ROOT / "README.md", *(ROOT / "docs").glob("*.md")]:
        for target in re.findall(r"\]\(([^)#:]+)(?:#[^)]*)?\)", page.read_text()):
            assert (page.parent / target).exists(), f"{page.name} links to {target}"
