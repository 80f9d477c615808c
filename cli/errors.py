"""From an exception to what the terminal shows: one table, and a traceback only with `--debug`."""

import traceback
from typing import Any

from layer_surgeon.errors import ConfigError, LayerSurgeonError

EXIT_FAILED = 1
EXIT_USAGE = 2


class UsageError(LayerSurgeonError):
    """The command line itself is wrong: exit code 2."""


# First match wins. An entry is (type, exit code, what to say; {error} is the exception's own text).
_TABLE: list[tuple[type[BaseException], int, str]] = [
    (UsageError, EXIT_USAGE, "{error}"),
    (ConfigError, EXIT_USAGE, "{error}"),
    (LayerSurgeonError, EXIT_FAILED, "{error}"),
    (KeyboardInterrupt, EXIT_FAILED, "Interrupted. What was finished is kept; the same command goes on from there."),
    (MemoryError, EXIT_FAILED, "Out of memory. Use a smaller batch or a smaller model."),
    (OSError, EXIT_FAILED, "The system refused: {error}"),
    (BaseException, EXIT_FAILED, "Unexpected {kind}: {error}. Run again with --debug and report what it prints."),
]


def describe(error: BaseException) -> tuple[int, str]:
    """Exit code and message for an exception."""
    for kind, code, template in _TABLE:
        if isinstance(error, kind):
            return code, template.format(error=error, kind=type(error).__name__)
    raise AssertionError("the last row matches everything")


def as_document(error: BaseException, message: str) -> dict[str, Any]:
    """The JSON document that `--json` prints for a failure."""
    return {"error": {"type": type(error).__name__, "message": message}}


def format_traceback(error: BaseException) -> str:
    """The whole traceback, for `--debug`."""
    return "".join(traceback.format_exception(error))
