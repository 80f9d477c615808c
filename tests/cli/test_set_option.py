"""`--set KEY=VALUE` of `compare`, `sweep` and `select`."""

import json

import pytest
import typer
import yaml
from typer.testing import CliRunner

from layer_surgeon.study.plan import StudyPlan
from layer_surgeon_cli import compare
from layer_surgeon_cli.errors import EXIT_USAGE
from layer_surgeon_cli.main import COMMANDS, app
from layer_surgeon_cli.set_option import KEYS, parse_settings

STUDY_COMMANDS = ("compare", "sweep", "select")
MAX_OPTION_NAMES = 32
PLAN = {
    "name": "study",
    "host": "a/bert",
    "donor": {"source": "b/llm", "layer": 3},
    "arms": ["host", "graft"],
    "data": ["sst2"],
    "seeds": [1],
}


def run(*arguments):
    return CliRunner().invoke(app, [str(argument) for argument in arguments], env={"COLUMNS": "1000"})


def message(*arguments):
    """The message of a call that is a usage error."""
    result = run(*arguments)
    assert result.exit_code == EXIT_USAGE, result.output
    assert "Traceback" not in result.stderr
    return " ".join(result.stderr.split())


@pytest.fixture
def plan_file(tmp_path):
    path = tmp_path / "study.yaml"
    path.write_text(yaml.safe_dump(PLAN))
    return path


@pytest.fixture
def plans(monkeypatch):
    """The plans that `surgeon compare` would run."""
    plans = []
    monkeypatch.setattr(compare, "run_plan", lambda plan, *_, **__: plans.append(plan) or {})
    return plans


@pytest.mark.parametrize("name", STUDY_COMMANDS)
def test_the_help_shows_few_option_names(name):
    command = typer.main.get_command(app).get_command(None, name)
    with typer.Context(command, info_name=name) as context:
        parameters = command.get_params(context)
    names = [option for parameter in parameters for option in (*parameter.opts, *parameter.secondary_opts)]
    names = [option for option in names if option.startswith("-")]
    assert {"--config", "--set", "--help"} <= set(names)
    assert len(names) <= MAX_OPTION_NAMES


@pytest.mark.parametrize(
    ("assignment", "section"),
    [
        ("finetune.learning_rate=1e-4", {"finetune": {"learning_rate": 1e-4}}),
        ("finetune.num_epochs=2", {"finetune": {"num_epochs": 2}}),
        ("finetune.precision=bf16", {"finetune": {"precision": "bf16"}}),
        ("finetune.streaming=true", {"finetune": {"streaming": True}}),
        ("finetune.source_prefix='a = b: '", {"finetune": {"source_prefix": "a = b: "}}),
        ("graft.pooling=mean", {"graft": {"pooling": "mean"}}),
        ("graft.site=-1", {"graft": {"site": -1}}),
        ("graft.dropout=5e-2", {"graft": {"dropout": 0.05}}),
    ],
)
def test_a_set_value_makes_the_same_plan_as_in_a_file(assignment, section, plan_file, plans, tmp_path):
    result = run("compare", "--config", plan_file, "--set", assignment)
    assert result.exit_code == 0, result.output
    key, _, text = assignment.partition("=")
    section_name, _, name = key.partition(".")
    other_file = tmp_path / "other.yaml"
    other_file.write_text(f"{plan_file.read_text()}{section_name}:\n  {name}: {text}\n")
    assert run("compare", "--config", other_file).exit_code == 0
    assert plans[0] == plans[1] == StudyPlan.from_dict({**PLAN, **section})
    assert plans[0] != StudyPlan.from_dict(PLAN)


def test_set_overrides_the_plan_and_the_last_value_counts(plan_file, plans):
    plan_file.write_text(yaml.safe_dump({**PLAN, "finetune": {"num_epochs": 9, "batch_size": 4}}))
    run("compare", "-c", plan_file, "--set", "finetune.num_epochs=1", "--set", "finetune.num_epochs=2")
    assert plans[0].finetune == {"num_epochs": 2, "batch_size": 4}


@pytest.mark.parametrize("name", STUDY_COMMANDS)
@pytest.mark.parametrize(
    ("assignment", "expected"),
    [
        ("finetune.learning_rte=1", "no such setting. Did you mean finetune.learning_rate?"),
        ("finetune.learning-rate=1", "Did you mean finetune.learning_rate?"),
        ("graft.poolin=mean", "Did you mean graft.pooling?"),
        ("graft.qqqqqqqq=1", "The settings are: graft.num_labels, "),
        ("study.seeds=1", "The sections are: finetune, graft."),
        ("training.learning_rate=1", "with a known section. Did you mean finetune.learning_rate?"),
        ("pooling=mean", "the form SECTION.NAME, with a known section. Did you mean graft.pooling?"),
        ("finetune.learning_rate", "expected KEY=VALUE"),
        ("finetune.learning_rate=[", "the value is not valid YAML"),
        ("finetune.seed=1", "Use --num-seeds, or `seeds` in the plan."),
        ("graft.task=seq2seq", "Use `task` in the plan."),
        ("finetune.learning_rate=fast", "learning_rate is 'fast'; it must be a number"),
        ("finetune.batch_size=0", "batch_size is 0; it must be a whole number of at least 1"),
        ("graft.pooling=most", "pooling is 'most'; it must be one of cls, "),
    ],
)
def test_a_wrong_setting_is_a_usage_error(name, assignment, expected, plan_file):
    assert expected in message(name, "--config", plan_file, "--set", assignment)


def test_a_wrong_setting_in_json(plan_file):
    result = run("compare", "--config", plan_file, "--set", "finetune.learning_rte=1", "--json")
    assert "Did you mean finetune.learning_rate?" in json.loads(result.stdout)["error"]["message"]


@pytest.mark.parametrize("name", STUDY_COMMANDS)
@pytest.mark.parametrize(
    ("flag", "replacement"),
    [
        (("--learning-rate", "1e-4"), "--set finetune.learning_rate=..."),
        (("--learning-rate=1e-4",), "--set finetune.learning_rate=..."),
        (("--no-group-by-length",), "--set finetune.group_by_length=false"),
        (("--pooling", "mean"), "--set graft.pooling=..."),
    ],
)
def test_an_old_flag_says_what_to_write_instead(name, flag, replacement):
    text = message(name, *flag)
    assert f"No such option: {flag[0].partition('=')[0]}. Use {replacement}" in text


def test_other_unknown_options_are_reported_as_usual():
    text = message("compare", "--presett", "table-5")
    assert "No such option: --presett" in text
    assert "Use --set" not in text


def test_finetune_keeps_its_flags():
    assert "--learning-rate" in run("finetune", "--help").stdout
    assert set(STUDY_COMMANDS) < set(COMMANDS)


def test_keys_are_those_that_a_study_leaves_open():
    assert {"finetune.num_epochs", "graft.site"} <= set(KEYS)
    assert not {"finetune.seed", "finetune.train_fraction", "finetune.task", "graft.task"} & set(KEYS)
    assert parse_settings(None) == {}
