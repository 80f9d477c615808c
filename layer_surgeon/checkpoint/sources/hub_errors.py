"""Explain the errors of the Hub and other servers, and decide how long to wait before a retry."""

import logging
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from datetime import UTC, datetime
from email.utils import parsedate_to_datetime
from typing import TypeVar

from huggingface_hub import constants
from huggingface_hub.errors import (
    DisabledRepoError,
    EntryNotFoundError,
    GatedRepoError,
    HfHubHTTPError,
    OfflineModeIsEnabled,
    RepositoryNotFoundError,
    RevisionNotFoundError,
)
from huggingface_hub.utils import parse_ratelimit_headers  # type: ignore[attr-defined]  # exported lazily

from layer_surgeon.checkpoint.sources.base import CHUNK_BYTES
from layer_surgeon.errors import LayerSurgeonError, SourceAccessError, SourceError, SourceNotFoundError

_LOGGER = logging.getLogger(__name__)
_Result = TypeVar("_Result")

# The status codes that huggingface_hub retries, and 425, with which a proxy defers a repeated request.
_RETRY_STATUSES = (408, 425, 429)
# Base class of all exceptions of huggingface_hub's HTTP client: httpx up to 1.x, httpx2 since 2.0.
CLIENT_ERROR: type[Exception] = HfHubHTTPError.__bases__[0]
_LOG_WAIT_FROM_SECONDS = 5.0


@dataclass(frozen=True, kw_only=True)
class HubLimits:
    """Limits on timeouts and retries when reading from a server. All times are in seconds.

    Attributes:
        tries: Maximum attempts per request if responses are missing, cut off, or ask to retry later. The count is reset
            whenever `CHUNK_BYTES` have arrived.
        contact_tries: The same for the very first request. It is lower, so that a missing network is reported soon.
        bad_answer_tries: Maximum attempts if the responses break the protocol. A second attempt may reach another
            server behind a load balancer. More would not help: a proxy that ignores ranges always does so.
        refusal_tries: Maximum attempts if a signed URL is refused. The second one uses a new URL.
        base_wait: Wait before the second attempt. It doubles with each further attempt.
        max_wait: Upper limit of the doubling wait.
        longest_asked_wait: Longest wait that a server may ask for. The Hub's rate limits use windows of 300 seconds.
        connect_timeout: Maximum time to establish a connection.
        read_timeout: Maximum time without any data. Defaults to HF_HUB_DOWNLOAD_TIMEOUT.
    """

    tries: int = 6
    contact_tries: int = 3
    bad_answer_tries: int = 2
    refusal_tries: int = 2
    base_wait: float = 1.0
    max_wait: float = 16.0
    longest_asked_wait: float = 330.0
    connect_timeout: float = 10.0
    read_timeout: float = field(default_factory=lambda: float(constants.HF_HUB_DOWNLOAD_TIMEOUT))

    @property
    def timeout(self) -> tuple[float, float, float, float]:
        """The timeouts of a request: connect, read, write, and wait for a free connection in the pool."""
        return (self.connect_timeout, self.read_timeout, self.read_timeout, 10 * self.read_timeout)


class TroubleError(Exception):
    """One attempt failed, but another may succeed. Internal to this package.

    Args:
        problem: Description of the problem, as a clause without a full stop.
        asked_wait: Seconds that the server asked to wait.
        bad_answer: Whether the response broke the protocol. False if it is missing or incomplete.
        stale_url: Whether a new URL for the file may help.
        refused: Whether a signed URL was refused without saying that it has expired.
        at_once: Whether the first retry can start without a wait.
        advice: What the user can do if all attempts fail.
    """

    def __init__(
        self,
        problem: str,
        *,
        asked_wait: float | None = None,
        bad_answer: bool = False,
        stale_url: bool = False,
        refused: bool = False,
        at_once: bool = False,
        advice: str = "Check the connection and run the same command again: it resumes where it stopped.",
    ) -> None:
        super().__init__(problem)
        self.problem, self.asked_wait, self.bad_answer = problem, asked_wait, bad_answer
        self.stale_url, self.refused, self.at_once, self.advice = stale_url, refused, at_once, advice


class Tries:
    """Count the failed attempts of one read, and wait between them.

    Args:
        subject: The file or repo that is read, used as the subject of error messages.
        limits: The timeouts and retries.
        tries: Maximum number of attempts; None means `limits.tries`.
    """

    def __init__(self, subject: str, limits: HubLimits, tries: int | None = None) -> None:
        self._subject, self._limits = subject, limits
        self._tries = limits.tries if tries is None else tries
        self._failed = 0
        self._bad_answers = 0
        self._refusals = 0

    def progressed(self, num_bytes: int) -> None:
        """Reset the counts after bytes have arrived. Responses that broke the protocol stay counted."""
        if num_bytes > 0:
            self._refusals = 0
        if num_bytes >= CHUNK_BYTES:
            self._failed = 0

    def wait(self, trouble: TroubleError) -> None:
        """Wait until the next attempt is due.

        Raises:
            SourceError: No attempts are left, or the server asks for a longer wait than the limit.
        """
        self._failed += 1
        self._bad_answers += trouble.bad_answer
        self._refusals += trouble.refused
        limits = self._limits
        seconds = min(limits.base_wait * 2 ** (self._failed - 1), limits.max_wait)
        if trouble.asked_wait is not None:
            seconds = max(seconds, trouble.asked_wait)
        spent = (
            self._failed >= self._tries
            or self._bad_answers >= limits.bad_answer_tries
            or self._refusals >= limits.refusal_tries
        )
        if spent or seconds > limits.longest_asked_wait:
            times = f" (tried {self._failed} times)" if self._failed > 1 else ""
            raise SourceError(f"{self._subject} can't be read: {trouble.problem}{times}. {trouble.advice}") from trouble
        if seconds >= _LOG_WAIT_FROM_SECONDS:
            _LOGGER.warning("%s: %s. Retrying in %.0f s.", self._subject, trouble.problem, seconds)
        if self._failed > 1 or not trouble.at_once:
            time.sleep(seconds)


def retried(tries: Tries, action: Callable[[], _Result]) -> _Result:
    """Call `action` until it succeeds, and return its result."""
    while True:
        try:
            return action()
        except TroubleError as trouble:
            tries.wait(trouble)


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


def is_transient(status: int) -> bool:
    """Return True if the same request may succeed later."""
    return status in _RETRY_STATUSES or status >= 500


def trouble_of_status(status: int, headers: Mapping[str, str], *, sender: str) -> TroubleError:
    """Build the error for a status such as 429 or 503, with the wait that the headers ask for."""
    wait = _asked_wait(status, headers)
    if status != 429:
        return TroubleError(f"{sender} answered with status {status}", asked_wait=wait)
    wait_request = "" if wait is None else f", wait {wait:.0f} s"
    return TroubleError(
        f"{sender} received too many requests from this machine (status 429{wait_request})",
        asked_wait=wait,
        advice="Wait that long and run the same command again. The limits are higher after `hf auth login`.",
    )


def _asked_wait(status: int, headers: Mapping[str, str]) -> float | None:
    """Return the wait in seconds that RateLimit or Retry-After (a number or a date) asks for; None without one."""
    limit = parse_ratelimit_headers(headers) if status == 429 else None
    if limit is not None and limit.remaining == 0:
        return float(limit.reset_in_seconds)
    value = headers.get("Retry-After", "").strip()
    if value.isdecimal():
        return float(value)
    try:
        date = parsedate_to_datetime(value)
    except ValueError:
        return None
    date = date if date.tzinfo else date.replace(tzinfo=UTC)
    return max(0.0, (date - datetime.now(UTC)).total_seconds())
