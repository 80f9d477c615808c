"""Translate errors of transformers and huggingface_hub into ours."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager

from huggingface_hub.errors import (
    EntryNotFoundError,
    GatedRepoError,
    HFValidationError,
    LocalEntryNotFoundError,
    RepositoryNotFoundError,
    RevisionNotFoundError,
    StrictDataclassError,
)
from safetensors import SafetensorError

from layer_surgeon._format import list_names
from layer_surgeon._text import first_line
from layer_surgeon.errors import (
    GraftError,
    LayerSurgeonError,
    SourceAccessError,
    SourceError,
    SourceNotFoundError,
)

# What transformers raises for an invalid value, depending on the family and the version.
_INVALID_VALUE_ERRORS = (
    *(AttributeError, LookupError, TypeError, ValueError, ArithmeticError, AssertionError),
    StrictDataclassError,
)


@contextmanager
def hub_errors(subject: str) -> Iterator[None]:
    """Translate errors of loading `subject`, such as "The host 'bert'", into ours.

    Raises:
        SourceError: The folder, repo or revision doesn't exist or may not be read, or the Hub can't be reached.
        GraftError: It is not a model.
    """
    try:
        yield
    except LayerSurgeonError:
        raise
    except (OSError, HFValidationError) as error:
        raise _explain(error, subject) from error
    except (SafetensorError, RuntimeError) as error:
        reason = first_line(error)
        hint = "Get them again."
        if "ignore_mismatched_sizes" in str(error):
            reason = "their shapes don't match its config.json."
            if subject.startswith("The graft"):
                hint += (
                    " If you passed num_labels or other settings to from_pretrained, pass ignore_mismatched_sizes=True "
                    "too, or call model.set_labels([...]) after loading."
                )
        raise GraftError(f"{subject} has weights that can't be loaded: {reason} {hint}") from error


@contextmanager
def config_errors(subject: str, arguments: Sequence[str] = ()) -> Iterator[None]:
    """Translate the errors that transformers raises for invalid values in a config.json into ours.

    Args:
        subject: The graft, as it is named in a message.
        arguments: The names of what the caller passed to from_pretrained, which can be invalid too.

    Raises:
        GraftError: The config.json or an argument can't be used; the message has the original error.
    """
    try:
        yield
    except _INVALID_VALUE_ERRORS as error:
        if isinstance(error, LayerSurgeonError):
            raise
        reason = f"{type(error).__name__}: {first_line(error)}"
        damage = "was changed or damaged. Get it again, or make it again."
        if arguments:
            raise GraftError(
                f"{subject} can't be loaded with {list_names(arguments)}: {reason}. If what you passed is valid, the "
                f"graft's config.json {damage}"
            ) from error
        raise GraftError(f"{subject} has a config.json that can't be used: {reason}. It {damage}") from error


def _explain(error: Exception, subject: str) -> LayerSurgeonError:
    chain = list(_chain(error))
    # Check for gated repos first, because their error is a subclass of "repository not found".
    if any(isinstance(link, GatedRepoError) for link in chain):
        return SourceAccessError(
            f"{subject} is gated. Ask for access on its page on the Hub, log in with `hf auth login`, or pass a token "
            "of an account that has access."
        )
    if any(isinstance(link, RevisionNotFoundError) for link in chain):
        return SourceNotFoundError(f"{subject} doesn't have this revision. Check the branch, tag or commit.")
    if any(isinstance(link, RepositoryNotFoundError | HFValidationError) for link in chain):
        return SourceNotFoundError(
            f"{subject} is neither a local folder nor a repo on the Hub. Check the name; a private repo needs a token "
            "(`hf auth login`)."
        )
    if any(isinstance(link, LocalEntryNotFoundError | ConnectionError | TimeoutError) for link in chain):
        return SourceError(
            f"{subject} is not on this machine, and the Hub can't be reached: {first_line(error)} Check the "
            "connection, or name a local folder."
        )
    if any(isinstance(link, EntryNotFoundError) for link in chain):
        return GraftError(f"{subject} lacks a file of a transformers model: {first_line(error)}")
    if any(isinstance(link, PermissionError) for link in chain):
        return SourceAccessError(f"{subject} can't be read by this user. Change its permissions.")
    return SourceError(f"{subject} can't be loaded: {first_line(error)}")


def _chain(error: BaseException | None) -> Iterator[BaseException]:
    seen: set[int] = set()
    while error is not None and id(error) not in seen:
        seen.add(id(error))
        yield error
        error = error.__cause__ or error.__context__
