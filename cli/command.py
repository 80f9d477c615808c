"""What all commands share: the common options, options made from a settings dataclass, and error handling."""

import contextlib
import inspect
import os
import sys
import types
import typing
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from dataclasses import MISSING, Field, fields
from pathlib import Path
from types import MappingProxyType
from typing import Annotated, Any

import typer

from layer_surgeon._io import parse_json
from layer_surgeon._launched import is_main_process
from layer_surgeon._text import printable
from layer_surgeon.errors import LayerSurgeonError, TrainingError
from layer_surgeon.workspace import Workspace

from .errors import UsageError, as_document, describe, format_traceback
from .library_logs import hide_library_warnings
from .surgeon_command import SurgeonCommand
from .ui import Ui

_COMMON_PANEL = "Common options"
_WORKSPACE_VARIABLE = "SURGEON_WORKSPACE"
_COMMON: dict[str, Any] = {
    "workspace": Annotated[
        Path | None,
        typer.Option(
            envvar=_WORKSPACE_VARIABLE, help="Folder of layers, grafts and runs.", rich_help_panel=_COMMON_PANEL
        ),
    ],
    "json_": Annotated[
        bool,
        typer.Option(
            "--json", help="Print one JSON document on stdout and nothing else.", rich_help_panel=_COMMON_PANEL
        ),
    ],
    "quiet": Annotated[
        bool, typer.Option("--quiet", "-q", help="Show no progress and no notices.", rich_help_panel=_COMMON_PANEL)
    ],
    "debug": Annotated[bool, typer.Option("--debug", help="Show tracebacks.", rich_help_panel=_COMMON_PANEL)],
}
# An option of the commands that load a graft.
DonorOption = Annotated[
    str | None,
    typer.Option(
        help="The donor layer of a graft that was saved without it: folder or repo id of a layer artifact. Its "
        "sha256 must be the one in the graft."
    ),
]


def new_app() -> typer.Typer:
    """Make the typer application for the one command of a module."""
    # Without rich, whose tables cut the names of options at 80 columns.
    return typer.Typer(add_completion=False, pretty_exceptions_enable=False, rich_markup_mode=None)


def command(
    app: typer.Typer,
    *,
    settings: type | None = None,
    without: Collection[str] = (),
    defaults: Mapping[str, str] = MappingProxyType({}),
    panel: str = "Settings",
    command_class: type[SurgeonCommand] = SurgeonCommand,
) -> Callable[[Callable[..., Any]], Callable[..., Any]]:
    """Register a function as a command.

    The function receives its own parameters and `ui`. With a `settings` dataclass it also receives `settings`: a dict
    of the fields that were set on the command line. It returns the document that `--json` prints. Without `--json` it
    prints its results itself.

    Args:
        app: The application made by `new_app`.
        settings: A dataclass whose fields become options. The help texts come from the fields' metadata.
        without: Names of fields that do not become options, because the command has a better way to set them.
        defaults: By field, the default that the help names instead of the field's, where the command has another one.
        panel: The heading of these options in the help.
        command_class: The class of the typer command, which parses the arguments.
    """

    def decorate(function: Callable[..., Any]) -> Callable[..., Any]:
        own_parameters = [
            p for p in inspect.signature(function).parameters.values() if p.name not in ("ui", "settings")
        ]
        options = [] if settings is None else _settings_options(settings, without, defaults, panel)
        text_fields = set() if settings is None else _text_fields(settings)
        common = [_parameter(name, kind, None if name == "workspace" else False) for name, kind in _COMMON.items()]

        def run(**values: Any) -> None:
            # If several processes train together, only the first one prints.
            json_, quiet = values.pop("json_") and is_main_process(), values.pop("quiet") or not is_main_process()
            folder = values.pop("workspace")
            ui = Ui(as_json=json_, quiet=quiet, debug=values.pop("debug"), workspace=Workspace(folder))
            if not ui.debug:
                hide_library_warnings()
            with _Guard(ui), _default_workspace(folder):
                if settings is not None:
                    option_values = {p.name: values.pop(p.name) for p in options}
                    values["settings"] = {
                        name: value if name in text_fields else _parse(name, value)
                        for name, value in option_values.items()
                        if value is not None
                    }
                # Other libraries may print to stdout, which must only have the JSON document.
                with contextlib.redirect_stdout(sys.stderr) if json_ else contextlib.nullcontext():
                    document = function(ui=ui, **values)
                if json_:
                    ui.document(document)

        parameters = [*own_parameters, *options, *common]
        run.__signature__ = inspect.Signature(parameters)  # type: ignore[attr-defined]  # typer reads this
        run.__annotations__ = {}
        run.__doc__ = function.__doc__
        app.command(cls=command_class)(run)
        return function

    return decorate


def only_verify(others: Sequence[object]) -> None:
    """Refuse other options next to `--verify`.

    Raises:
        UsageError: One of their values is set.
    """
    if any(others):
        raise UsageError("--verify only checks what was written before. Leave out the other options.")


@contextlib.contextmanager
def nothing_kept() -> Iterator[None]:
    """Say after Ctrl-C that nothing was written, for commands that can't be continued."""
    try:
        yield
    except KeyboardInterrupt as error:
        raise TrainingError("Interrupted. Nothing was written.") from error


class usage:  # noqa: N801  # used as `with usage():`
    """Turn our own errors into usage errors (exit code 2), for values from the command line."""

    def __enter__(self) -> None:
        """Do nothing."""

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: object) -> None:
        """Re-raise our errors as `UsageError`."""
        if isinstance(error, LayerSurgeonError):
            raise UsageError(str(error)) from error


@contextlib.contextmanager
def _default_workspace(folder: Path | None) -> Iterator[None]:
    """Make the folder of `--workspace` the default of this process and of those that it starts.

    A graft that was saved without its donor layer looks for the layer there.
    """
    previous = os.environ.get(_WORKSPACE_VARIABLE)
    if folder is not None:
        os.environ[_WORKSPACE_VARIABLE] = str(folder)
    try:
        yield
    finally:
        if previous is not None:
            os.environ[_WORKSPACE_VARIABLE] = previous
        elif folder is not None:
            os.environ.pop(_WORKSPACE_VARIABLE, None)


class _Guard:
    """Show an exception as a message, and exit with the right code."""

    def __init__(self, ui: Ui) -> None:
        self._ui = ui

    def __enter__(self) -> None:
        """Do nothing."""

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: object) -> None:
        """Report the error, then exit with 1 or 2. Exceptions that typer handles itself pass through."""
        if error is None or _is_handled_by_typer(error):
            return
        self._ui.progress.end()
        code, message = describe(error)
        if not is_main_process() and isinstance(error, LayerSurgeonError) and not isinstance(error, TrainingError):
            # Before training, every process meets the same error. Only the first one reports it.
            raise typer.Exit(code) from error
        if self._ui.debug:
            self._ui.err.print(printable(format_traceback(error)), markup=False, highlight=False, soft_wrap=True)
        self._ui.error(message)
        if self._ui.as_json:
            # Perhaps stdout is what failed. The message is on stderr already.
            with contextlib.suppress(OSError, AttributeError):
                self._ui.document(as_document(error, message))
        raise typer.Exit(code) from error


def _is_handled_by_typer(error: BaseException) -> bool:
    return isinstance(error, SystemExit | typer.Exit | typer.Abort | typer.BadParameter | BrokenPipeError)


def _parameter(name: str, annotation: Any, default: Any) -> inspect.Parameter:
    return inspect.Parameter(name, inspect.Parameter.KEYWORD_ONLY, default=default, annotation=annotation)


def _settings_options(
    settings: type, without: Collection[str], defaults: Mapping[str, str], panel: str
) -> list[inspect.Parameter]:
    hints = typing.get_type_hints(settings)
    options = []
    for field in fields(settings):
        if field.name in without:
            continue
        # None means that the option was not set, so it does not override the configuration file.
        option = typer.Option(
            help=_help_text(field, defaults.get(field.name)), rich_help_panel=panel, show_default=False
        )
        annotation: Any = Annotated[_option_type(field, hints[field.name]) | None, option]
        options.append(_parameter(field.name, annotation, None))
    return options


def _text_fields(settings: type) -> set[str]:
    """Fields that take any text, even if it looks like a number or JSON. For example, a column may be called 3."""
    return {name for name, hint in typing.get_type_hints(settings).items() if _alternatives(hint) == [str]}


def _alternatives(hint: Any) -> list[Any]:
    """The types that a field takes, without None."""
    if typing.get_origin(hint) not in (typing.Union, types.UnionType):
        return [hint]
    return [kind for kind in typing.get_args(hint) if kind is not type(None)]


def _option_type(field: "Field[Any]", hint: Any) -> Any:
    """The type that typer parses for a field: text for all types that have no simple form on a command line."""
    if field.metadata.get("choices") is not None:
        return typing.Literal[field.metadata["choices"]()]
    alternatives = _alternatives(hint)
    if len(alternatives) == 1:
        only = alternatives[0]
        if only in (int, float, bool, str, Path) or typing.get_origin(only) is typing.Literal:
            return only
    return str


def _help_text(field: "Field[Any]", default: str | None) -> str:
    # Without the backslash, rich takes words in brackets for markup and removes them.
    text = str(field.metadata.get("help", "")).replace("[", r"\[")
    if default is None and field.default is not MISSING and field.default not in (None, False):
        default = str(field.default)
    return text if default is None else f"{text} [dim](default: {default})[/]"


def _parse(name: str, value: Any) -> Any:
    """Parse numbers and JSON, as in `--site 3` or `--id2label '{"0": "bad"}'`. Other text stays as it is."""
    if not isinstance(value, str) or not value or not (value[0] in "{[" or value.lstrip("-").isdigit()):
        return value
    try:
        return parse_json(value)
    except ValueError as error:
        raise UsageError(f"--{name.replace('_', '-')}: {value!r} is not valid JSON ({error}).") from error
