"""Every error that layer_surgeon raises on purpose.

    LayerSurgeonError
    ├── CheckpointError (ValueError)               bad or truncated file, inconsistent index or header
    ├── SourceError (OSError)                      the place where a checkpoint lies could not be read
    │   ├── SourceNotFoundError                    no such repo, revision, folder or file
    │   ├── SourceAccessError                      gated or private: no token, or a token that is not accepted
    │   └── SourceChangedError                     the files changed between two reads
    ├── LayerNotFoundError (IndexError)            the checkpoint has no such layer
    ├── UnsupportedArchitectureError (ValueError)  the model family can't be served, and why
    ├── ArtifactError (ValueError)                 a folder is not a layer artifact, is damaged, or is in use
    ├── GraftError (ValueError)                    host, donor and settings don't fit each other
    ├── ConfigError (ValueError)                   a setting has a value that can't be used
    ├── DataError (ValueError)                     a data set can't be used as it is
    ├── TrainingError (RuntimeError)               training can't go on
    └── WorkspaceError (OSError)                   the workspace lacks what a command wants

A message says what was found, what was expected, and what to do about it.
"""

from layer_surgeon._text import printable, without_secrets_in

# What a message is quoted from may be a hostile file: a tensor's name of 25 MB, or one that steers a terminal.
_MAX_CHARACTERS = 2000
_LAST_CHARACTERS = 400


class LayerSurgeonError(Exception):
    """Base of all errors of this package; catch it to catch them all.

    Args:
        message: For a person. One that is too long to be read loses its middle, what can't be printed is escaped, and
            URLs lose their passwords and signatures.
    """

    def __init__(self, message: str = "") -> None:
        super().__init__(_readable(message))


class CheckpointError(LayerSurgeonError, ValueError):
    """A checkpoint's bytes are not what its headers, index or format promise."""


class SourceError(LayerSurgeonError, OSError):
    """A folder, file, repo or URL could not be read."""


class SourceNotFoundError(SourceError):
    """There is no such repo, revision, folder or file."""


class SourceAccessError(SourceError):
    """A repo is gated or private, and the token is missing or not accepted."""


class SourceChangedError(SourceError):
    """The source's files changed between two reads of one extraction."""


class LayerNotFoundError(LayerSurgeonError, IndexError):
    """The checkpoint has no layer of the asked index."""


class UnsupportedArchitectureError(LayerSurgeonError, ValueError):
    """The model's family has no decoder layers that can be taken out."""


class ArtifactError(LayerSurgeonError, ValueError):
    """A folder is not a whole layer artifact, or already holds something else."""


class GraftError(LayerSurgeonError, ValueError):
    """Host, donor, task and settings don't fit each other."""


class ConfigError(LayerSurgeonError, ValueError):
    """A setting has a value that can't be used."""


class DataError(LayerSurgeonError, ValueError):
    """A data set, a column or a label can't be used as it is."""


class TrainingError(LayerSurgeonError, RuntimeError):
    """Training can't go on."""


class WorkspaceError(LayerSurgeonError, OSError):
    """The workspace lacks, or can't hold, what a command wants."""


def _readable(message: str) -> str:
    # Secrets first: what is cut out of the middle must not be half of a URL.
    message = without_secrets_in(message)
    if len(message) > _MAX_CHARACTERS:
        first = message[: _MAX_CHARACTERS - _LAST_CHARACTERS]
        message = f"{first} [...] {message[-_LAST_CHARACTERS:]}"
    return printable(message, keep="\n")
