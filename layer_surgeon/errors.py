"""All exceptions that layer_surgeon raises.

    LayerSurgeonError
    ├── CheckpointError (ValueError)               bad or truncated file, inconsistent index or header
    ├── SourceError (OSError)                      a folder, file, repo or URL can't be read
    │   ├── SourceNotFoundError                    no such repo, revision, folder or file
    │   ├── SourceAccessError                      gated or private: no token, or a token that is not accepted
    │   └── SourceChangedError                     the files changed between two reads
    ├── LayerNotFoundError (IndexError)            the checkpoint has no such layer
    ├── UnsupportedArchitectureError (ValueError)  the model family is not supported
    ├── ArtifactError (ValueError)                 a folder is not what it should be, is damaged, or is in use
    ├── AssemblyError (ValueError)                 layers of different models don't fit together
    ├── GraftError (ValueError)                    host, donor and settings don't fit together
    ├── ConfigError (ValueError)                   a setting has an invalid value
    ├── DataError (ValueError)                     a data set can't be used as it is
    ├── TrainingError (RuntimeError)               training can't continue
    └── WorkspaceError (OSError)                   the workspace lacks what a command needs, or can't be written

Each message says what was found, what was expected, and what to do.
"""

from layer_surgeon._text import printable, without_secrets_in

# A message may quote a hostile file, such as a tensor name of 25 MB, or one that controls the terminal.
_MAX_CHARACTERS = 2000
_LAST_CHARACTERS = 400
# Of a longer message, only this much of each end is searched for URLs.
_SEARCHED_CHARACTERS = 20_000


class LayerSurgeonError(Exception):
    """Base class of all exceptions in this package.

    Args:
        message: What was found, what was expected, and what to do. Unprintable characters are escaped, passwords and
            signatures are removed from URLs, and messages of over 2,000 characters lose their middle.
    """

    def __init__(self, message: str = "") -> None:
        super().__init__(_sanitize(message))


class CheckpointError(LayerSurgeonError, ValueError):
    """A checkpoint's content doesn't match its headers, index or format."""


class SourceError(LayerSurgeonError, OSError):
    """A folder, file, repo or URL could not be read."""


class SourceNotFoundError(SourceError):
    """A repo, revision, folder or file doesn't exist."""


class SourceAccessError(SourceError):
    """A repo is gated or private, and the token is missing or not accepted."""


class SourceChangedError(SourceError):
    """The source's files changed between two reads of one extraction."""


class LayerNotFoundError(LayerSurgeonError, IndexError):
    """The checkpoint has no layer with the requested index."""


class UnsupportedArchitectureError(LayerSurgeonError, ValueError):
    """The model family has no decoder layers that can be extracted."""


class ArtifactError(LayerSurgeonError, ValueError):
    """A folder is not a complete layer artifact, or is in use."""


class AssemblyError(LayerSurgeonError, ValueError):
    """Layers of different models don't fit together in one model."""


class GraftError(LayerSurgeonError, ValueError):
    """Host, donor, task and settings don't fit together."""


class ConfigError(LayerSurgeonError, ValueError):
    """A setting has an invalid value."""


class DataError(LayerSurgeonError, ValueError):
    """A data set, a column or a label can't be used as it is."""


class TrainingError(LayerSurgeonError, RuntimeError):
    """Training can't continue."""


class WorkspaceError(LayerSurgeonError, OSError):
    """The workspace lacks what a command needs, or a file can't be written."""


def _sanitize(message: str) -> str:
    if len(message) > 2 * _SEARCHED_CHARACTERS:
        message = message[:_SEARCHED_CHARACTERS] + message[-_SEARCHED_CHARACTERS:]
    # Remove secrets first: the next cut could split a URL, which would then keep its password.
    message = without_secrets_in(message)
    if len(message) > _MAX_CHARACTERS:
        first = message[: _MAX_CHARACTERS - _LAST_CHARACTERS]
        message = f"{first} [...] {message[-_LAST_CHARACTERS:]}"
    return printable(message, keep="\n")
