"""Gather a response body into chunks of equal size, and check the total number of bytes."""

from collections.abc import Callable, Iterable, Iterator

from layer_surgeon.checkpoint.sources.base import CHUNK_BYTES
from layer_surgeon.checkpoint.sources.retry import TroubleError


def gather(
    length: int, pieces: Iterable[bytes], sender: object, bad_answer: Callable[[str], TroubleError]
) -> Iterator[memoryview]:
    """Yield a body in chunks of CHUNK_BYTES that share one buffer.

    The last chunk is only yielded once the body has ended, so that its connection can be used again.

    Args:
        length: The expected number of bytes.
        pieces: The body, in pieces of any size.
        sender: The host that sends it, used as the subject of error messages.
        bad_answer: Builds the error for an answer that breaks the protocol, from a description.

    Raises:
        TroubleError: The body has more or fewer bytes than expected.
        Exception: Any exception that the client raises while the body arrives.
    """
    view = memoryview(bytearray(min(CHUNK_BYTES, length)))
    filled = done = 0
    arriving = iter(pieces)
    while True:
        try:
            unread = memoryview(next(arriving))
        except StopIteration:
            break
        except Exception:
            # The body was cut off, but the bytes so far are good and need not be requested again.
            if filled:
                yield view[:filled]
            raise
        if len(unread) > length - done - filled:
            raise bad_answer(f"it sent more than the {length} bytes that were requested")
        while unread:
            if filled == len(view):
                yield view
                done, filled = done + filled, 0
            count = min(len(view) - filled, len(unread))
            view[filled : filled + count] = unread[:count]
            filled, unread = filled + count, unread[count:]
    if filled:
        yield view[:filled]
    if done + filled < length:
        raise TroubleError(f"{sender} ended its response after {done + filled} of {length} bytes")
