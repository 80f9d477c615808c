"""Every row of docs/security.md names a test that exists, and every file of security tests is named there."""

import ast
import re
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
PAGE = (ROOT / "docs/security.md").read_text()


def test_every_attack_has_a_test():
    tests = re.findall(r"^\| .+ \| .+ \| (.+) \|$", PAGE.partition("## Attacks and their tests")[2], re.MULTILINE)[1:]
    assert len(tests) > 40
    assert [
        cell for cell in tests if not re.fullmatch(r"`tests/[\w/]+\.py::\w+`(, `tests/[\w/]+\.py::\w+`)*", cell)
    ] == []
    named = re.findall(r"`(tests/[\w/]+\.py)::(\w+)`", PAGE)
    files = {path.relative_to(ROOT).as_posix() for path in (ROOT / "tests").rglob("test_security*.py")}
    assert files - {file for file, _ in named} == {"tests/test_security_page.py"}
    for file, name in named:
        definitions = [node for node in ast.parse((ROOT / file).read_text()).body if hasattr(node, "name")]
        assert name in {definition.name for definition in definitions}, f"{file}::{name}"


def test_every_limit_is_the_one_in_force():
    from layer_surgeon import _io, _limits, _yaml

    limits = {
        "layers of a model": _limits.MAX_LAYERS,
        "experts of a layer": _limits.MAX_EXPERTS,
        "labels": _limits.MAX_LABELS,
        "trainings of a study": _limits.MAX_TRAININGS,
    }
    for name, number in limits.items():
        assert f"| {name} | {number:,} |" in PAGE
    assert f"| {_yaml.MAX_CHARACTERS:,} characters |" in PAGE
    assert f"| a JSON file, except data sets and `tokenizer.json` | {_io.MAX_JSON_BYTES // 10**6} MB |" in PAGE
