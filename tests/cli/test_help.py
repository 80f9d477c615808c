"""No text is lost on the way from a setting's one sentence to the help of a command."""

from dataclasses import fields

import pytest

from layer_surgeon.finetune.config import FinetuneConfig
from layer_surgeon.graft.config import GraftConfig
from tests.support.command_line import surgeon


@pytest.mark.parametrize(("command", "settings"), [("graft", GraftConfig), ("finetune", FinetuneConfig)])
def test_the_help_says_all_that_a_setting_says(tmp_path, command, settings):
    shown = surgeon(command, "--help", cwd=tmp_path, env={"COLUMNS": "600"}).out
    for field in fields(settings):
        assert str(field.metadata["help"]) in shown, field.name
    assert "int8 needs layer-surgeon[int8]." in shown or command != "graft"
