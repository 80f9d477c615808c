"""Whether and when to repeat a request to the Hub or another server."""

import logging
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from datetime import UTC, datetime
from email.utils import parsedate_to_datetime
from typing import TypeVar

from huggingface_hub import constants
from huggingface_hub.utils import parse_ratelimit_headers  # type: ignore[attr-defined]  # exported lazily

from layer_surgeon.checkpoint.sources.base import CHUNK_BYTES, STOPPED
from layer_surgeon.errors import SourceError

_LOGGER = logging.getLogger(__name__)
_Result = TypeVar("_Result")

# The status codes that huggingface_hub retries, and 425, with which a proxy defers a repeated request.
_RETRY_STATUSES = (408, 425, 429)
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
            pause(seconds)
            if (stopped := STOPPED.get()) is not None and stopped.is_set():
                raise SourceError(f"{self._subject} was not read: the copy was stopped.") from trouble


def pause(seconds: float) -> None:
    """Wait, or return early if the thread is stopped."""
    stopped = STOPPED.get()
    if stopped is None:
        time.sleep(seconds)
    else:
        stopped.wait(seconds)


def retried(tries: Tries, action: Callable[[], _Result]) -> _Result:
    """Call `action` until it succeeds, and return its result."""
    while True:
        try:
            return action()
        except TroubleError as trouble:
            tries.wait(trouble)


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
    except (ValueError, OverflowError):
        return None
    date = date if date.tzinfo else date.replace(tzinfo=UTC)
    return max(0.0, (date - datetime.now(UTC)).total_seconds())
