"""docs/security.md names tests that exist, and every file of security tests."""

import ast
import re
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
PAGE = (ROOT / "docs/security.md").read_text()


def test_every_attack_has_a_test():
    named = re.findall(r"`(tests/[\w/]+\.py)::(\w+)`", PAGE)
    assert len(named) > 40
    for file, name in named:
        definitions = [node for node in ast.parse((ROOT / file).read_text()).body if hasattr(node, "name")]
        assert name in {definition.name for definition in definitions}, f"{file}::{name}"


def test_every_limit_is_the_one_in_force():
    from layer_surgeon import _io, _limits, _yaml

    for number in (_limits.MAX_LAYERS, _limits.MAX_EXPERTS, _limits.MAX_LABELS, _limits.MAX_TRAININGS):
        assert f"| {number:,} |" in PAGE
    assert f"| {_yaml.MAX_CHARACTERS:,} characters |" in PAGE
    assert f"| {_io.MAX_JSON_BYTES // 10**6} MB |" in PAGE
