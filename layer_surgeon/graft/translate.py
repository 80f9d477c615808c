"""From what transformers and huggingface_hub raise to our own errors."""

from collections.abc import Iterator
from contextlib import contextmanager

from huggingface_hub.errors import (
    EntryNotFoundError,
    GatedRepoError,
    HFValidationError,
    LocalEntryNotFoundError,
    RepositoryNotFoundError,
    RevisionNotFoundError,
)
from safetensors import SafetensorError

from layer_surgeon.errors import (
    GraftError,
    LayerSurgeonError,
    SourceAccessError,
    SourceError,
    SourceNotFoundError,
)


@contextmanager
def hub_errors(what: str) -> Iterator[None]:
    """Turn errors of loading `what` (such as "The host 'bert'") into ours.

    Raises:
        SourceError: There is no such folder, repo or revision; it may not be read; the Hub can't be reached.
        GraftError: What was read is not a model.
    """
    try:
        yield
    except LayerSurgeonError:
        raise
    except (OSError, HFValidationError) as error:
        raise _explain(error, what) from error
    except (SafetensorError, RuntimeError) as error:
        reason = first_line(error)
        if "ignore_mismatched_sizes" in str(error):
            # What transformers says then is about a setting of its own.
            reason = "their shapes are not those that its config.json speaks of."
        raise GraftError(f"{what} has weights that can't be loaded: {reason} Get them again.") from error


@contextmanager
def config_errors(what: str) -> Iterator[None]:
    """Turn what a config.json with values of other kinds makes transformers raise into our error.

    Raises:
        GraftError: Names what was raised.
    """
    try:
        yield
    except (AttributeError, LookupError, TypeError, ValueError, ArithmeticError, AssertionError) as error:
        if isinstance(error, LayerSurgeonError):
            raise
        raise GraftError(
            f"{what} has a config.json that can't be used: {type(error).__name__}: {first_line(error)}. It was changed "
            "or damaged: get it again, or make it again."
        ) from error


def _explain(error: Exception, what: str) -> LayerSurgeonError:
    chain = list(_chain(error))
    # Gated comes first: huggingface_hub makes it a kind of "repository not found".
    if any(isinstance(link, GatedRepoError) for link in chain):
        return SourceAccessError(
            f"{what} is gated. Ask for access on its page on the Hub, log in with `hf auth login`, or pass a token of "
            "the account that was granted access."
        )
    if any(isinstance(link, RevisionNotFoundError) for link in chain):
        return SourceNotFoundError(f"{what} has no such revision. Check the branch, tag or commit.")
    if any(isinstance(link, RepositoryNotFoundError | HFValidationError) for link in chain):
        return SourceNotFoundError(
            f"{what} is neither a folder here nor a repo on the Hub. Check the name; a private repo needs a token "
            "(`hf auth login`)."
        )
    if any(isinstance(link, LocalEntryNotFoundError | ConnectionError | TimeoutError) for link in chain):
        return SourceError(f"{what} is not on this machine, and the Hub can't be reached: {first_line(error)}")
    if any(isinstance(link, EntryNotFoundError) for link in chain):
        return GraftError(f"{what} lacks a file of a transformers model: {first_line(error)}")
    if any(isinstance(link, PermissionError) for link in chain):
        return SourceAccessError(f"{what} may not be read by this user. Change its permissions.")
    return SourceError(f"{what} can't be loaded: {first_line(error)}")


def _chain(error: BaseException | None) -> Iterator[BaseException]:
    seen: set[int] = set()
    while error is not None and id(error) not in seen:
        seen.add(id(error))
        yield error
        error = error.__cause__ or error.__context__


def first_line(error: BaseException) -> str:
    """The first line of an error's message, and its type's name where it has none."""
    return next(iter(str(error).strip().splitlines()), type(error).__name__)
