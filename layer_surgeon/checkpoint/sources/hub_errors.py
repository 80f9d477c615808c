"""Explain the errors of the Hub."""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from urllib.parse import quote

from huggingface_hub.errors import (
    DisabledRepoError,
    EntryNotFoundError,
    GatedRepoError,
    HfHubHTTPError,
    OfflineModeIsEnabled,
    RepositoryNotFoundError,
    RevisionNotFoundError,
)

from layer_surgeon.checkpoint.sources.retry import TroubleError, is_transient, trouble_of_status
from layer_surgeon.errors import LayerSurgeonError, SourceAccessError, SourceError, SourceNotFoundError

# Base class of all exceptions of huggingface_hub's HTTP client: httpx up to 1.x, httpx2 since 2.0.
CLIENT_ERROR: type[Exception] = HfHubHTTPError.__bases__[0]


@dataclass(frozen=True, kw_only=True)
class Asker:
    """The context of a request to the Hub, as error messages need it.

    Attributes:
        endpoint: The Hub's URL.
        repo_id: The repo.
        revision: The revision that the user asked for; None is the main branch.
        has_token: Whether an access token is sent.
    """

    endpoint: str
    repo_id: str
    revision: str | None
    has_token: bool

    @property
    def url(self) -> str:
        """The URL of the repo's page, where users accept its conditions."""
        return f"{self.endpoint}/{self.repo_id}"

    def file_url(self, file: str, revision: str) -> str:
        """Return the URL of a file at a branch, tag or commit."""
        return f"{self.url}/resolve/{quote(revision, safe='')}/{quote(file)}"

    @contextmanager
    def asking_for(self, subject: str) -> Iterator[None]:
        """Turn the exceptions of huggingface_hub and its client into TroubleError or an error of this package.

        Args:
            subject: The file that is requested, or the repo itself, used in error messages.
        """
        try:
            yield
        except (LayerSurgeonError, TroubleError):
            raise
        except OfflineModeIsEnabled as error:
            raise SourceError(
                f"{subject} is on the Hub, but HF_HUB_OFFLINE is set. Unset it, or give the path of a local "
                "folder with the checkpoint."
            ) from error
        except HfHubHTTPError as error:
            raise self._refusal(error, subject) from error
        except (CLIENT_ERROR, OSError) as error:
            reason = f"{type(error).__name__}: {error}" if str(error) else type(error).__name__
            raise TroubleError(
                f"{self.endpoint} or its CDN failed to respond ({reason})",
                stale_url=True,
                advice="Check the network, HF_ENDPOINT and the proxy settings, then run the same command again.",
            ) from error

    def _refusal(self, error: HfHubHTTPError, subject: str) -> LayerSurgeonError | TroubleError:
        """Build the error that explains an error status of the Hub.

        GatedRepoError is tested first, because it is a subclass of RepositoryNotFoundError.
        """
        status = error.response.status_code
        hub_message = f' The Hub says: "{error.server_message}"' if error.server_message else ""
        if isinstance(error, GatedRepoError):
            return self._gated(hub_message)
        if isinstance(error, RepositoryNotFoundError):
            return SourceNotFoundError(
                f"There is no model repo {self.repo_id!r} on {self.endpoint}, or it is private and "
                f"{'the token that was sent has no access' if self.has_token else 'no token was sent'}. Check the "
                "spelling. For a private repo, log in with `hf auth login` or pass the token of an account with access."
            )
        if isinstance(error, RevisionNotFoundError):
            return SourceNotFoundError(
                f"The repo {self.repo_id} on {self.endpoint} has no branch, tag or commit {self.revision!r}. "
                f"Its branches and commits are listed at {self.url}/tree/main. Leave the revision out to read main."
            )
        if isinstance(error, EntryNotFoundError):
            return SourceNotFoundError(f"{subject} is not on {self.endpoint}. Check its name at {self.url}/tree/main.")
        if is_transient(status):
            return trouble_of_status(status, error.response.headers, sender="the Hub")
        if status == 401:
            return self._unauthorized(hub_message)
        if status == 403 or isinstance(error, DisabledRepoError):
            return SourceAccessError(
                f"The Hub refuses access to {subject} (status {status}).{hub_message} See {self.url}."
            )
        return SourceError(
            f"The Hub answered with status {status} for {subject}.{hub_message} Check {self.url} in a browser."
        )

    def _gated(self, hub_message: str) -> SourceAccessError:
        if not self.has_token:
            return SourceAccessError(
                f"{self.repo_id} is gated, and no access token was sent. Open {self.url}, log in and accept its "
                "conditions. Then run `hf auth login` here (or set HF_TOKEN, or pass a token) and try again."
            )
        return SourceAccessError(
            f"{self.repo_id} is gated, and the account of the token that was sent has no access yet.{hub_message} "
            f"Log in as that account, open {self.url} and accept its conditions (some owners approve each request). "
            "A fine-grained token also needs the permission to read public gated repos."
        )

    def _unauthorized(self, hub_message: str) -> SourceAccessError:
        if not self.has_token:
            return SourceAccessError(
                f"{self.endpoint} requires a login for {self.repo_id}, but no access token was sent.{hub_message} "
                "Run `hf auth login`, set HF_TOKEN, or pass a token."
            )
        return SourceAccessError(
            f"{self.endpoint} rejected the access token that was sent: it is mistyped, expired or "
            f"revoked.{hub_message} Create a new one at {self.endpoint}/settings/tokens, then pass it or log in "
            "with `hf auth login`."
        )
