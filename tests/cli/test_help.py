"""The help of a command has the complete help text of every setting."""

from dataclasses import fields

import pytest

from layer_surgeon.finetune.config import FinetuneConfig
from layer_surgeon.graft.config import GraftConfig
from tests.support.command_line import surgeon


@pytest.mark.parametrize(("command", "settings"), [("graft", GraftConfig), ("finetune", FinetuneConfig)])
def test_help_has_the_whole_text_of_every_setting(tmp_path, command, settings):
    help_text = surgeon(command, "--help", cwd=tmp_path, env={"COLUMNS": "600"}).out
    for field in fields(settings):
        assert str(field.metadata["help"]) in help_text, field.name
