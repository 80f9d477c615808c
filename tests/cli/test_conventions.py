"""The conventions of all commands: fast help, only JSON on stdout, exit codes, messages instead of tracebacks."""

import importlib
import statistics
import subprocess
import sys
import time

import pytest
import torch

from layer_surgeon_cli import main
from layer_surgeon_cli.main import COMMANDS
from tests.support.command_line import SURGEON, surgeon, surgeon_here


def test_help_lists_every_command(tmp_path):
    result = surgeon("--help", cwd=tmp_path)
    assert result.code == 0
    for name, summary in COMMANDS.items():
        assert name in result.out
        assert summary.split()[0] in result.out


def test_summaries_match_the_help_of_the_commands():
    for name, summary in COMMANDS.items():
        module = importlib.import_module(f"layer_surgeon_cli.{name}")
        assert getattr(module, name).__doc__.splitlines()[0] == summary


def test_variables_of_other_launchers_are_ignored(tmp_path, monkeypatch):
    monkeypatch.setenv("RANK", "")
    monkeypatch.setenv("WORLD_SIZE", "many")
    assert surgeon("env", "--json", cwd=tmp_path).code == 0


@pytest.mark.parametrize("name", COMMANDS)
def test_every_command_has_help(name, tmp_path):
    result = surgeon_here(name, "--help", cwd=tmp_path)
    assert result.code == 0
    for option in ("--json", "--quiet", "--debug", "--workspace"):
        assert option in result.out
    assert list(tmp_path.iterdir()) == []


def seconds(*command, cwd):
    start = time.perf_counter()
    subprocess.run(command, cwd=cwd, check=True, capture_output=True)
    return time.perf_counter() - start


def test_the_help_names_the_default_of_the_command(tmp_path):
    for name, text in {"evaluate": "(default: that of the run, else 100)", "finetune": "(default: 100)"}.items():
        shown = " ".join(surgeon_here(name, "--help", cwd=tmp_path).out.replace("│", " ").split())
        assert f"longer texts are truncated. {text}" in shown


def test_help_is_fast(tmp_path):
    base, helps = [], []
    for _ in range(7):  # alternating, because a busy machine then slows both
        base.append(seconds(sys.executable, "-c", "import typer, rich", cwd=tmp_path))
        helps.append(seconds(SURGEON, "--help", cwd=tmp_path))
    assert statistics.median(helps) < 2.5 * statistics.median(base)


def test_warnings_of_other_libraries_are_only_shown_with_debug(tmp_path):
    script = """
import logging, sys
from layer_surgeon_cli.library_logs import hide_library_warnings
if sys.argv[1:] != ["--debug"]:
    hide_library_warnings()
logging.getLogger("torchao").warning("Failed to load a kernel")
logging.getLogger("torchao").error("an error")
logging.getLogger("layer_surgeon.checkpoint").warning("Retrying in 10 s")
"""

    def stderr(*arguments):
        command = [sys.executable, "-c", script, *arguments]
        return subprocess.run(command, cwd=tmp_path, check=True, capture_output=True, text=True).stderr.splitlines()

    assert stderr() == ["an error", "Retrying in 10 s"]
    assert stderr("--debug") == ["Failed to load a kernel", "an error", "Retrying in 10 s"]


def test_version(tmp_path):
    assert surgeon("--version", cwd=tmp_path).out.startswith("layer_surgeon 0.")


@pytest.mark.parametrize(
    "arguments",
    [
        ("nonsense",),
        ("extract",),
        ("extract", "x", "--dtype", "int3"),
        ("extract", "x", "--nonsense"),
        ("graft", "x", "--pooling", "y"),
    ],
)
def test_usage_errors_exit_with_2(arguments, tmp_path):
    result = surgeon_here(*arguments, cwd=tmp_path)
    assert result.code == 2
    assert "Traceback" not in result.err
    assert result.out == ""
    assert list(tmp_path.iterdir()) == []


def test_failures_show_a_message_and_exit_with_1(tmp_path):
    result = surgeon("extract", tmp_path / "nowhere", cwd=tmp_path)
    assert result.code == 1
    assert result.err.startswith("error: There is no folder or file")
    assert "Traceback" not in result.err
    assert result.out == ""


def test_failures_in_json(tmp_path):
    result = surgeon("extract", tmp_path / "nowhere", "--json", cwd=tmp_path)
    assert result.code == 1
    assert result.document()["error"]["type"] == "SourceNotFoundError"


def test_debug_shows_the_traceback(tmp_path):
    result = surgeon("extract", tmp_path / "nowhere", "--debug", cwd=tmp_path)
    assert result.code == 1
    assert "Traceback (most recent call last)" in result.err


@pytest.mark.parametrize("command", ["finetune", "evaluate", "predict"])
def test_commands_without_a_workspace(command, tmp_path):
    arguments = {"predict": ("a text",)}.get(command, ())
    result = surgeon(command, *arguments, cwd=tmp_path)
    assert result.code == 1
    assert "holds no" in result.err
    assert "surgeon " in result.err
    assert [path.name for path in tmp_path.iterdir() if path.name != ".hf"] == []


def test_graft_without_a_layer_names_the_command_for_it(tmp_path):
    result = surgeon("graft", "bert-base-uncased", cwd=tmp_path)
    assert result.code == 1
    assert "surgeon extract" in result.err


def test_env(tmp_path):
    document = surgeon("env", "--json", cwd=tmp_path).document()
    assert document["packages"]["torch"] != "not installed"
    assert document["latest"] == {"layer": None, "graft": None, "run": None}
    assert "torch" in surgeon_here("env", cwd=tmp_path).out


def test_datasets(tmp_path):
    document = surgeon("datasets", "--json", cwd=tmp_path).document()
    assert document["sst2"]["hub_id"] == "SetFit/sst2"
    assert {"sst2", "imdb", "tweet_sentiment", "tweet_offensive", "cola", "mnli", "snli", "cr"} <= set(document)
    assert "SetFit/sst2" in surgeon_here("datasets", cwd=tmp_path).out


def test_the_last_collection_is_skipped_only_without_torch(monkeypatch):
    # Modules made with nanobind, such as triton's, report what is not collected at the end as leaks.
    frozen = []
    monkeypatch.setattr(main.gc, "freeze", lambda: frozen.append(True))
    monkeypatch.setitem(sys.modules, "torch", torch)
    main._skip_last_collection()
    assert not frozen
    monkeypatch.delitem(sys.modules, "torch")
    main._skip_last_collection()
    assert frozen
