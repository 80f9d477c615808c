"""The help of a command has the complete name and help text of every setting, also on a terminal of 80 columns."""

import re
from dataclasses import fields

import pytest

from layer_surgeon.finetune.config import FinetuneConfig
from layer_surgeon.graft.config import GraftConfig
from layer_surgeon_cli.main import COMMANDS
from tests.support.command_line import surgeon_here


def squeezed(text):
    """Without white space, because words are broken at the end of a line."""
    return re.sub(r"\s", "", text)


@pytest.mark.parametrize(("command", "settings"), [("graft", GraftConfig), ("finetune", FinetuneConfig)])
def test_help_has_the_whole_text_of_every_setting(tmp_path, monkeypatch, command, settings):
    monkeypatch.setenv("COLUMNS", "80")
    help_text = surgeon_here(command, "--help", cwd=tmp_path).out
    for field in fields(settings):
        assert re.search(rf"^  --{field.name.replace('_', '-')} ", help_text, re.MULTILINE), field.name
        assert squeezed(str(field.metadata["help"])) in squeezed(help_text), field.name
    assert "[dim]" not in help_text
    assert len(help_text.splitlines()) < 200


@pytest.mark.parametrize("command", COMMANDS)
def test_no_name_of_an_option_is_cut(tmp_path, monkeypatch, command):
    monkeypatch.setenv("COLUMNS", "80")
    help_text = surgeon_here(command, "--help", cwd=tmp_path).out
    assert not re.search(r"^ .{0,3}-[^ ]*(\.\.\.|…)", help_text, re.MULTILINE)
    assert "Common options:" in help_text
