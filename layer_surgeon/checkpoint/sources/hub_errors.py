"""What can go wrong between here and the Hub, in sentences; and how long to wait before trying once more."""

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

from layer_surgeon.errors import LayerSurgeonError, SourceAccessError, SourceError, SourceNotFoundError

_LOGGER = logging.getLogger(__name__)
_Result = TypeVar("_Result")

# 425 is what a proxy says that does not take a repeated request yet; the rest is what huggingface_hub retries.
_COME_BACK_LATER = (408, 425, 429)
# Base of every exception of the HTTP client that this huggingface_hub uses: httpx up to 1.x, httpx2 from 2.0 on.
CLIENT_ERROR: type[Exception] = HfHubHTTPError.__bases__[0]
_SAID_ALOUD_SECONDS = 5.0


@dataclass(frozen=True, kw_only=True)
class HubLimits:
    """How patient reading from the Hub is. All times are in seconds.

    Attributes:
        tries: How often a request is made in all while answers are missing, cut off, or say to come back later. Tries
            are counted anew after each `CHUNK_BYTES` that arrived.
        contact_tries: The same for the first request of all: without a network, nobody wants to wait long to hear so.
        bad_answer_tries: How often a request is made whose answers break the rules. A proxy that ignores ranges will
            not learn it; a single broken server behind a balancer may have been bad luck.
        base_wait: The wait before the second try; it doubles with each further one.
        max_wait: What the doubling ends at.
        longest_asked_wait: The longest wait that a server may ask for. The Hub counts in windows of 300 seconds.
        connect_timeout: How long a connection may take to come up.
        read_timeout: How long nothing at all may arrive; HF_HUB_DOWNLOAD_TIMEOUT.
    """

    tries: int = 6
    contact_tries: int = 3
    bad_answer_tries: int = 2
    base_wait: float = 1.0
    max_wait: float = 16.0
    longest_asked_wait: float = 330.0
    connect_timeout: float = 10.0
    read_timeout: float = field(default_factory=lambda: float(constants.HF_HUB_DOWNLOAD_TIMEOUT))

    @property
    def timeout(self) -> tuple[float, float, float, float]:
        """The timeouts of a request: connect, read, write, and waiting for a free connection of the pool."""
        return (self.connect_timeout, self.read_timeout, self.read_timeout, 10 * self.read_timeout)


class TroubleError(Exception):
    """One try failed, and another may succeed. Never leaves this package.

    Args:
        what: What was found, as a clause that ends without a full stop.
        asked_wait: Seconds that the server asked to wait.
        bad_answer: Whether the answer broke the rules, rather than not come.
        stale_url: Whether another URL for the file may help.
        at_once: Whether the first repetition need not wait.
        advice: What the user can do if no try succeeds.
    """

    def __init__(
        self,
        what: str,
        *,
        asked_wait: float | None = None,
        bad_answer: bool = False,
        stale_url: bool = False,
        at_once: bool = False,
        advice: str = "Check the connection, and run the same command again: it goes on where it stopped.",
    ) -> None:
        super().__init__(what)
        self.what, self.asked_wait, self.bad_answer = what, asked_wait, bad_answer
        self.stale_url, self.at_once, self.advice = stale_url, at_once, advice


class Tries:
    """The tries that one reading has left.

    Args:
        what: What is being read, as the subject of a sentence.
        limits: How many tries there are.
        tries: Another number of them than the limits'.
    """

    def __init__(self, what: str, limits: HubLimits, tries: int | None = None) -> None:
        self._what, self._limits = what, limits
        self._tries = limits.tries if tries is None else tries
        self._failed = 0
        self._bad_answers = 0

    def start_over(self) -> None:
        """Count anew, because something was achieved. Answers that break the rules stay counted."""
        self._failed = 0

    def wait(self, trouble: TroubleError) -> None:
        """Wait until the next try is due.

        Raises:
            SourceError: There is none, or the server asks for a longer wait than is allowed.
        """
        self._failed += 1
        self._bad_answers += trouble.bad_answer
        limits = self._limits
        seconds = min(limits.base_wait * 2 ** (self._failed - 1), limits.max_wait)
        if trouble.asked_wait is not None:
            seconds = max(seconds, trouble.asked_wait)
        spent = self._failed >= self._tries or self._bad_answers >= limits.bad_answer_tries
        if spent or seconds > limits.longest_asked_wait:
            times = f" (tried {self._failed} times)" if self._failed > 1 else ""
            raise SourceError(f"{self._what} can't be read: {trouble.what}{times}. {trouble.advice}") from trouble
        if seconds >= _SAID_ALOUD_SECONDS:
            _LOGGER.warning("%s: %s. Next try in %.0f s.", self._what, trouble.what, seconds)
        if self._failed > 1 or not trouble.at_once:
            time.sleep(seconds)


def retried(tries: Tries, action: Callable[[], _Result]) -> _Result:
    """What `action` returns, once it does without trouble."""
    while True:
        try:
            return action()
        except TroubleError as trouble:
            tries.wait(trouble)


@dataclass(frozen=True, kw_only=True)
class Asker:
    """Who asks a Hub for what: all that a message about a refusal needs to say.

    Attributes:
        endpoint: The Hub's URL.
        repo_id: The repo.
        revision: What the user asked for; None is the main branch.
        has_token: Whether an access token goes along.
    """

    endpoint: str
    repo_id: str
    revision: str | None
    has_token: bool

    @property
    def url(self) -> str:
        """The repo's page, where conditions are accepted."""
        return f"{self.endpoint}/{self.repo_id}"

    @contextmanager
    def asking_for(self, what: str) -> Iterator[None]:
        """Turn what huggingface_hub and its HTTP client raise into TroubleError, or an error of ours.

        Args:
            what: The file that is asked for, or the repo itself.
        """
        try:
            yield
        except (LayerSurgeonError, TroubleError):
            raise
        except OfflineModeIsEnabled as error:
            raise SourceError(
                f"{what} lies on the Hub, and HF_HUB_OFFLINE is set, so that the Hub may not be asked. Unset it, or "
                "give the path of a local folder with the checkpoint."
            ) from error
        except HfHubHTTPError as error:
            raise self._refusal(error, what) from error
        except (CLIENT_ERROR, OSError) as error:
            reason = f"{type(error).__name__}: {error}" if str(error) else type(error).__name__
            raise TroubleError(
                f"{self.endpoint} or its CDN did not answer as it should ({reason})",
                stale_url=True,
                advice="Check the network, HF_ENDPOINT and the proxy settings, and run the same command again.",
            ) from error

    def _refusal(self, error: HfHubHTTPError, what: str) -> LayerSurgeonError | TroubleError:
        """The error that says what an error status of the Hub means. GatedRepoError is also a 'repo not found'."""
        status = error.response.status_code
        said = f' The Hub says: "{error.server_message}"' if error.server_message else ""
        if isinstance(error, GatedRepoError):
            return self._gated(said)
        if isinstance(error, RepositoryNotFoundError):
            return SourceNotFoundError(
                f"There is no model repo {self.repo_id!r} on {self.endpoint}, or it is private and "
                f"{'the token that was sent may not see it' if self.has_token else 'no token was sent'}. Check the "
                "spelling; for a private repo, log in with `hf auth login` or pass the token of an account that may."
            )
        if isinstance(error, RevisionNotFoundError):
            return SourceNotFoundError(
                f"The repo {self.repo_id} on {self.endpoint} has no branch, tag or commit {self.revision!r}. "
                f"Its branches and commits are listed at {self.url}/tree/main; leave the revision out for main."
            )
        if isinstance(error, EntryNotFoundError):
            return SourceNotFoundError(f"{what} is not on {self.endpoint}. Check {self.url}/tree/main for its name.")
        if is_transient(status):
            return trouble_of_status(status, error.response.headers, who="the Hub")
        if status == 401:
            return self._unauthorized(said)
        if status == 403 or isinstance(error, DisabledRepoError):
            return SourceAccessError(f"The Hub refuses access to {what} (status {status}).{said} See {self.url}.")
        return SourceError(f"The Hub answered {status} when asked for {what}.{said} Check {self.url} in a browser.")

    def _gated(self, said: str) -> SourceAccessError:
        if not self.has_token:
            return SourceAccessError(
                f"{self.repo_id} is gated, and no access token was sent. Open {self.url}, log in and accept its "
                "conditions; then run `hf auth login` here (or set HF_TOKEN, or pass a token) and try again."
            )
        return SourceAccessError(
            f"{self.repo_id} is gated, and the account of the token that was sent has not been granted access.{said} "
            f"Open {self.url}, logged in as that account, and accept its conditions (some owners decide by hand); "
            "a fine-grained token also needs the permission to read public gated repos."
        )

    def _unauthorized(self, said: str) -> SourceAccessError:
        if not self.has_token:
            return SourceAccessError(
                f"{self.endpoint} wants a login for {self.repo_id}, and no access token was sent.{said} "
                "Run `hf auth login`, set HF_TOKEN, or pass a token."
            )
        return SourceAccessError(
            f"{self.endpoint} does not know the access token that was sent: it is mistyped, expired or revoked.{said} "
            f"Make a new one at {self.endpoint}/settings/tokens, and pass it or log in with `hf auth login`."
        )


def is_transient(status: int) -> bool:
    """Whether the same request may get another answer later."""
    return status in _COME_BACK_LATER or status >= 500


def trouble_of_status(status: int, headers: Mapping[str, str], *, who: str) -> TroubleError:
    """The trouble that a status such as 429 or 503 means, with the wait that its headers ask for."""
    wait = _asked_wait(status, headers)
    if status != 429:
        return TroubleError(f"{who} answered with status {status}", asked_wait=wait)
    until = "" if wait is None else f", and asks to wait {wait:.0f} s"
    return TroubleError(
        f"{who} says that too many requests came from here (status 429{until})",
        asked_wait=wait,
        advice="Wait as long as asked and run the same command again; logged in (`hf auth login`) more is allowed.",
    )


def _asked_wait(status: int, headers: Mapping[str, str]) -> float | None:
    """The seconds that RateLimit or Retry-After, as a number or as a date, ask to wait."""
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
