"""Write docs/commands.md from the code of the commands: `python tools/generate_commands.py`. A test compares them."""

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

Generated from the code of the commands by `tools/generate_commands.py`. `surgeon COMMAND --help` shows the same.

Results go to stdout, progress and notices to stderr. Colours and progress bars only appear on a terminal. Exit code 0
means success, 1 failure, and 2 that the command line itself is wrong. With `--json`, a failure prints
`{"error": {"type": ..., "message": ...}}`.

Every command has these options:
"""
COMMON = ("workspace", "json_", "quiet", "debug")


def plain(text: str | None) -> str:
    """Remove terminal markup from a help text, and escape it for a table cell."""
    return re.sub(r"(?<!\\)\[/?[a-z ]*\]", "", text or "").replace("\\[", "[").replace("|", "\\|")


def value_of(kind: Any, metavar: str | None = None) -> str:
    """The value of an option, such as ` INTEGER` or ` cls or mean`; empty for a switch."""
    if typing.get_origin(kind) in (typing.Union, types.UnionType):
        kind = next(alternative for alternative in typing.get_args(kind) if alternative is not type(None))
    if kind is bool:
        return ""
    if typing.get_origin(kind) is typing.Literal:
        return " " + " or ".join(map(str, typing.get_args(kind)))
    if typing.get_origin(kind) is list:
        return f"{value_of(typing.get_args(kind)[0], metavar)} (repeatable)"
    if metavar is not None:
        return f" {metavar}"
    return {int: " INTEGER", float: " NUMBER", Path: " PATH"}.get(kind, " TEXT")


def names_of(parameter: inspect.Parameter, info: Any) -> str:
    """The names of an option."""
    # In Annotated, typer stores the first name as the default until it reads the function.
    first = [info.default] if isinstance(info.default, str) and info.default.startswith("-") else []
    declared = [*first, *(info.param_decls or [])]
    if not any(name.startswith("--") for name in declared):
        declared = ["--" + parameter.name.strip("_").replace("_", "-"), *declared]
        # Without explicit names, typer adds a second name to a switch.
        kind = typing.get_args(parameter.annotation)[0]
        if kind is bool or bool in typing.get_args(kind):
            declared.append("--no-" + declared[0].removeprefix("--"))
    return ", ".join(f"`{name}`" for name in declared)


def split(name: str) -> tuple[list[Any], list[Any], list[Any], str]:
    """The arguments, options and common options of a command as (parameter, info) pairs, and its help."""
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
    """A Markdown table of options."""
    rows = ["| option | description |", "|---|---|"]
    for parameter, info in options:
        kind = typing.get_args(parameter.annotation)[0]
        required = " (required)" if parameter.default is inspect.Parameter.empty else ""
        rows.append(f"| {names_of(parameter, info)}{value_of(kind, info.metavar)}{required} | {plain(info.help)} |")
    return "\n".join(rows)


def section_of(name: str) -> str:
    """The section of one command."""
    arguments, options, _, text = split(name)
    argument_names = [
        parameter.name.upper() if parameter.default is inspect.Parameter.empty else f"[{parameter.name.upper()}]"
        for parameter, _ in arguments
    ]
    parts = [
        f"## {name}",
        "```\n" + " ".join([f"surgeon {name}", *argument_names, "[OPTIONS]"]) + "\n```",
        plain(text).strip(),
    ]
    if arguments:
        rows = [f"| `{parameter.name.upper()}` | {plain(info.help)} |" for parameter, info in arguments]
        parts.append("\n".join(["| argument | description |", "|---|---|", *rows]))
    if options:
        parts.append(table(options))
    return "\n\n".join(parts)


def page() -> str:
    """The whole page."""
    _, _, common, _ = split("env")
    return "\n\n".join([HEAD.strip(), table(common), *(section_of(name) for name in COMMANDS)]) + "\n"


if __name__ == "__main__":
    PAGE.write_text(page(), encoding="utf-8")
