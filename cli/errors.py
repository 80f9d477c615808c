"""Turn exceptions into messages and exit codes. Tracebacks appear only with `--debug`."""

import traceback
from typing import Any

from layer_surgeon.errors import ConfigError, LayerSurgeonError

EXIT_FAILED = 1
EXIT_USAGE = 2


class UsageError(LayerSurgeonError):
    """The command line itself is wrong. Exits with code 2."""


# Rows of exception type, exit code and message; {error} is the exception's own text. The first match wins.
_TABLE: list[tuple[type[BaseException], int, str]] = [
    (UsageError, EXIT_USAGE, "{error}"),
    (ConfigError, EXIT_USAGE, "{error}"),
    (LayerSurgeonError, EXIT_FAILED, "{error}"),
    (KeyboardInterrupt, EXIT_FAILED, "Interrupted. Finished work is kept. Run the same command to continue."),
    (MemoryError, EXIT_FAILED, "Out of memory. Use a smaller batch or a smaller model."),
    (OSError, EXIT_FAILED, "The operating system reported an error: {error}"),
    (BaseException, EXIT_FAILED, "Unexpected {kind}: {error}. Run again with --debug and report the output."),
]


def describe(error: BaseException) -> tuple[int, str]:
    """Return the exit code and the message for an exception."""
    for kind, code, template in _TABLE:
        if isinstance(error, kind):
            return code, template.format(error=error, kind=type(error).__name__)
    raise AssertionError("the last row matches everything")


def as_document(error: BaseException, message: str) -> dict[str, Any]:
    """Return the JSON document that `--json` prints for a failure."""
    return {"error": {"type": type(error).__name__, "message": message}}


def format_traceback(error: BaseException) -> str:
    """Return the whole traceback, for `--debug`."""
    return "".join(traceback.format_exception(error))
