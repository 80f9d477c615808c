"""What all commands share: the common options, options made from a settings dataclass, and the way errors leave."""

import contextlib
import inspect
import sys
import types
import typing
from collections.abc import Callable, Collection
from dataclasses import MISSING, Field, fields
from pathlib import Path
from typing import Annotated, Any

import typer

from layer_surgeon._io import parse_json
from layer_surgeon._text import printable
from layer_surgeon.errors import LayerSurgeonError, TrainingError
from layer_surgeon.workspace import Workspace

from .errors import UsageError, as_document, describe, format_traceback
from .processes import is_main
from .ui import Ui

_COMMON_PANEL = "Everywhere"
_COMMON: dict[str, Any] = {
    "workspace": Annotated[
        Path | None,
        typer.Option(
            envvar="SURGEON_WORKSPACE", help="Where layers, grafts and runs lie.", rich_help_panel=_COMMON_PANEL
        ),
    ],
    "json_": Annotated[
        bool, typer.Option("--json", help="One JSON document on stdout, nothing else.", rich_help_panel=_COMMON_PANEL)
    ],
    "quiet": Annotated[
        bool, typer.Option("--quiet", "-q", help="No progress, no notices.", rich_help_panel=_COMMON_PANEL)
    ],
    "debug": Annotated[bool, typer.Option("--debug", help="Show tracebacks.", rich_help_panel=_COMMON_PANEL)],
}


def new_app() -> typer.Typer:
    """A typer application for the one command of a file."""
    return typer.Typer(add_completion=False, pretty_exceptions_enable=False, rich_markup_mode="rich")


def command(
    app: typer.Typer, *, settings: type | None = None, without: Collection[str] = (), panel: str = "Settings"
) -> Callable[[Callable[..., Any]], Callable[..., Any]]:
    """Register a function as a command.

    The function receives `ui`, its own parameters and, where a `settings` dataclass is given, `given`: a dict of those
    of its fields that were set on the command line. Help texts come from the fields' metadata. What it returns is the
    document that `--json` prints; without `--json` it prints for people itself.

    Args:
        app: The application made by `new_app`.
        settings: A dataclass whose fields become options.
        without: Names of fields that are no option (the command has a better way to set them).
        panel: The heading of those options in the help.
    """

    def decorate(function: Callable[..., Any]) -> Callable[..., Any]:
        own = [p for p in inspect.signature(function).parameters.values() if p.name not in ("ui", "given")]
        options = [] if settings is None else _settings_options(settings, without, panel)
        texts = set() if settings is None else _text_fields(settings)
        common = [_parameter(name, kind, None if name == "workspace" else False) for name, kind in _COMMON.items()]

        def run(**values: Any) -> None:
            # Of several processes that do one thing together the first one speaks for all.
            json_, quiet = values.pop("json_") and is_main(), values.pop("quiet") or not is_main()
            workspace = Workspace(values.pop("workspace"))
            ui = Ui(as_json=json_, quiet=quiet, debug=values.pop("debug"), workspace=workspace)
            with _Guard(ui):
                if settings is not None:
                    taken = {p.name: values.pop(p.name) for p in options}
                    values["given"] = {
                        name: value if name in texts else _parse(name, value)
                        for name, value in taken.items()
                        if value is not None
                    }
                # What other libraries print would else stand beside the one document.
                with contextlib.redirect_stdout(sys.stderr) if json_ else contextlib.nullcontext():
                    document = function(ui=ui, **values)
                if json_:
                    ui.document(document)

        parameters = [*own, *options, *common]
        run.__signature__ = inspect.Signature(parameters)  # type: ignore[attr-defined]  # typer reads the options here
        run.__annotations__ = {}
        run.__doc__ = function.__doc__
        app.command()(run)
        return function

    return decorate


class usage:  # noqa: N801  # used as `with usage():`
    """Turns our own errors into usage errors (exit code 2), for values that came from the command line."""

    def __enter__(self) -> None:
        """Nothing to prepare."""

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: object) -> None:
        """Re-raise our errors as `UsageError`."""
        if isinstance(error, LayerSurgeonError):
            raise UsageError(str(error)) from error


class _Guard:
    """Shows an exception as a message and ends the process with the right code."""

    def __init__(self, ui: Ui) -> None:
        self._ui = ui

    def __enter__(self) -> None:
        """Nothing to prepare."""

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: object) -> None:
        """Report, then exit 1 or 2; exits that typer itself asked for pass through."""
        if error is None or _is_typers(error):
            return
        self._ui.progress.end()
        code, message = describe(error)
        if not is_main() and isinstance(error, LayerSurgeonError) and not isinstance(error, TrainingError):
            # Found before training by all of them; the first one says it.
            raise typer.Exit(code) from error
        if self._ui.debug:
            self._ui.err.print(printable(format_traceback(error)), markup=False, highlight=False, soft_wrap=True)
        self._ui.error(message)
        if self._ui.as_json:
            self._ui.document(as_document(error, message))
        raise typer.Exit(code) from error


def _is_typers(error: BaseException) -> bool:
    return isinstance(error, SystemExit | typer.Exit | typer.Abort | typer.BadParameter | BrokenPipeError)


def _parameter(name: str, annotation: Any, default: Any) -> inspect.Parameter:
    return inspect.Parameter(name, inspect.Parameter.KEYWORD_ONLY, default=default, annotation=annotation)


def _settings_options(settings: type, without: Collection[str], panel: str) -> list[inspect.Parameter]:
    hints = typing.get_type_hints(settings)
    options = []
    for field in fields(settings):
        if field.name in without:
            continue
        # None means "not said", so that a flag overrides a file only where it was given.
        option = typer.Option(help=_help_text(field), rich_help_panel=panel, show_default=False)
        kind: Any = Annotated[_option_type(hints[field.name]) | None, option]
        options.append(_parameter(field.name, kind, None))
    return options


def _text_fields(settings: type) -> set[str]:
    """The fields that take any text, also one that looks like a number or like JSON: a column may be called 3."""
    return {name for name, hint in typing.get_type_hints(settings).items() if _alternatives(hint) == [str]}


def _alternatives(hint: Any) -> list[Any]:
    """What a field takes, beside None."""
    if typing.get_origin(hint) not in (typing.Union, types.UnionType):
        return [hint]
    return [kind for kind in typing.get_args(hint) if kind is not type(None)]


def _option_type(hint: Any) -> Any:
    """The type typer parses for a field; what has no simple form on a command line is taken as text."""
    alternatives = _alternatives(hint)
    if len(alternatives) == 1:
        only = alternatives[0]
        if only in (int, float, bool, str, Path) or typing.get_origin(only) is typing.Literal:
            return only
    return str


def _help_text(field: "Field[Any]") -> str:
    # Else rich takes [int8] for markup, and leaves it out.
    text = str(field.metadata.get("help", "")).replace("[", r"\[")
    default = field.default if field.default is not MISSING else None
    if default is None or default is False:
        return text
    return f"{text} [dim](default: {default})[/]"


def _parse(name: str, value: Any) -> Any:
    """Text that is a number or a JSON object becomes one: `--site 3`, `--id2label '{"0": "bad"}'`."""
    if not isinstance(value, str) or not value or not (value[0] in "{[" or value.lstrip("-").isdigit()):
        return value
    try:
        return parse_json(value)
    except ValueError as error:
        raise UsageError(f"--{name.replace('_', '-')}: {value!r} is not valid JSON ({error}).") from error
