"""Generated pages are up to date, and README and docs only name commands that exist."""

import re
import runpy
from pathlib import Path

import yaml

from layer_surgeon_cli.main import COMMANDS

ROOT = Path(__file__).resolve().parents[2]
PAGES = sorted((ROOT / "docs").rglob("*.md"))
MAX_WORDS = 1500


def pages_of(navigation):
    """The files in a part of mkdocs's navigation."""
    if isinstance(navigation, str):
        return [navigation]
    parts = navigation.values() if isinstance(navigation, dict) else navigation
    return [page for part in parts for page in pages_of(part)]


def test_docs_commands_is_up_to_date():
    generator = runpy.run_path(str(ROOT / "tools" / "generate_commands.py"))
    assert (ROOT / "docs" / "commands.md").read_text() == generator["page"](), "run tools/generate_commands.py"


def test_commands_in_the_docs_exist():
    for page in [ROOT / "README.md", *PAGES]:
        for name in re.findall(r"^surgeon ([a-z]+)", page.read_text(), re.MULTILINE):
            assert name in COMMANDS, f"{page.name}: surgeon {name}"


def test_pages_are_in_the_navigation_and_links_work():
    navigation = pages_of(yaml.safe_load((ROOT / "mkdocs.yml").read_text())["nav"])
    assert len(set(navigation)) == len(navigation)
    for page in PAGES:
        assert page.relative_to(ROOT / "docs").as_posix() in navigation
    for page in [ROOT / "README.md", *PAGES]:
        for target in re.findall(r"\]\(([^)#:]+)(?:#[^)]*)?\)", page.read_text()):
            assert (page.parent / target).exists(), f"{page.name} links to {target}"


def test_only_pages_of_the_reference_are_long():
    for section in yaml.safe_load((ROOT / "mkdocs.yml").read_text())["nav"]:
        for page in pages_of({name: part for name, part in section.items() if name != "Reference"}):
            folder = ROOT if page.startswith("research/") else ROOT / "docs"
            count = len((folder / page).read_text().split())
            assert count <= MAX_WORDS, f"{page} has {count} words"
