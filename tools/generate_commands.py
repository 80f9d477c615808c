"""Writes docs/commands.md from the commands themselves: `python tools/generate_commands.py`. A test compares."""

import importlib
import inspect
import re
import types
import typing
from pathlib import Path
from typing import Any

import typer

from layer_surgeon_cli.main import COMMANDS

PAGE = Path(__file__).resolve().parent.parent / "docs" / "commands.md"
HEAD = """# Commands

Generated from the commands themselves by `tools/generate_commands.py`; `surgeon COMMAND --help` shows the same.

Results go to stdout, progress and notices to stderr; away from a terminal there are no colours and no bars. Exit codes:
0 done, 1 failed, 2 the command line itself is wrong. A failure with `--json` prints
`{"error": {"type": ..., "message": ...}}`.

Every command has:
"""
COMMON = ("workspace", "json_", "quiet", "debug")


def plain(text: str | None) -> str:
    """Help text without the terminal's markup, safe in a table's cell."""
    return re.sub(r"(?<!\\)\[/?[a-z ]*\]", "", text or "").replace("\\[", "[").replace("|", "\\|")


def value_of(kind: Any) -> str:
    """What an option takes, such as ` INTEGER` or ` cls or mean`; nothing for a switch."""
    if typing.get_origin(kind) in (typing.Union, types.UnionType):
        kind = next(alternative for alternative in typing.get_args(kind) if alternative is not type(None))
    if kind is bool:
        return ""
    if typing.get_origin(kind) is typing.Literal:
        return " " + " or ".join(map(str, typing.get_args(kind)))
    if typing.get_origin(kind) is list:
        return f"{value_of(typing.get_args(kind)[0])} (repeatable)"
    return {int: " INTEGER", float: " NUMBER", Path: " PATH"}.get(kind, " TEXT")


def names_of(parameter: inspect.Parameter, info: Any) -> str:
    """The option's names."""
    # Inside of Annotated typer takes the first name for a default until it reads the function.
    first = [info.default] if isinstance(info.default, str) and info.default.startswith("-") else []
    declared = [*first, *(info.param_decls or [])]
    if not any(name.startswith("--") for name in declared):
        declared = ["--" + parameter.name.strip("_").replace("_", "-"), *declared]
    default = typing.get_args(parameter.annotation)[0]
    if bool in typing.get_args(default) and parameter.default is None:
        declared.append("--no-" + declared[0].removeprefix("--"))
    return ", ".join(f"`{name}`" for name in declared)


def split(name: str) -> tuple[list[Any], list[Any], list[Any], str]:
    """A command's arguments, options and common options as (parameter, info), and its help."""
    function = importlib.import_module(f"layer_surgeon_cli.{name}").app.registered_commands[0].callback
    arguments, options, common = [], [], []
    for parameter in inspect.signature(function).parameters.values():
        _, info = typing.get_args(parameter.annotation)
        if isinstance(info, typer.models.ArgumentInfo):
            arguments.append((parameter, info))
        else:
            (common if parameter.name in COMMON else options).append((parameter, info))
    return arguments, options, common, inspect.getdoc(function) or ""


def table(options: list[Any]) -> str:
    """A table of options."""
    rows = ["| option | what |", "|---|---|"]
    for parameter, info in options:
        kind = typing.get_args(parameter.annotation)[0]
        rows.append(f"| {names_of(parameter, info)}{value_of(kind)} | {plain(info.help)} |")
    return "\n".join(rows)


def section_of(name: str) -> str:
    """One command's part of the page."""
    arguments, options, _, text = split(name)
    shown = [
        parameter.name.upper() if parameter.default is inspect.Parameter.empty else f"[{parameter.name.upper()}]"
        for parameter, _ in arguments
    ]
    parts = [f"## {name}", "```\n" + " ".join([f"surgeon {name}", *shown, "[OPTIONS]"]) + "\n```", plain(text).strip()]
    if arguments:
        rows = [f"| `{parameter.name.upper()}` | {plain(info.help)} |" for parameter, info in arguments]
        parts.append("\n".join(["| argument | what |", "|---|---|", *rows]))
    if options:
        parts.append(table(options))
    return "\n\n".join(parts)


def page() -> str:
    """The whole page."""
    _, _, common, _ = split("env")
    return "\n\n".join([HEAD.strip(), table(common), *(section_of(name) for name in COMMANDS)]) + "\n"


if __name__ == "__main__":
    PAGE.write_text(page(), encoding="utf-8")
