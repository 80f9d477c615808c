"""Gather the pieces of a response body into chunks of equal size, and check the total number of bytes."""

from collections.abc import Callable, Iterable, Iterator

from layer_surgeon.checkpoint.sources.base import CHUNK_BYTES
from layer_surgeon.checkpoint.sources.retry import TroubleError


def gather(
    length: int, pieces: Iterable[bytes], sender: object, bad_answer: Callable[[str], TroubleError]
) -> Iterator[memoryview]:
    """Gather `pieces` into chunks of CHUNK_BYTES that share one buffer.

    The last chunk is only yielded once the body has ended.

    Args:
        length: The expected number of bytes.
        pieces: The body, as it arrives.
        sender: The host that sends it, used as the subject of error messages.
        bad_answer: Builds the error for an answer that breaks the protocol, from a description.

    Raises:
        TroubleError: The body has more or fewer bytes than expected.
        Exception: Any exception that the client raises while the body arrives.
    """
    buffer = bytearray(min(CHUNK_BYTES, length))
    view = memoryview(buffer)
    filled = done = 0
    remaining_pieces = iter(pieces)
    while True:
        try:
            piece = next(remaining_pieces, None)
        except Exception:
            # The body was cut off, but the bytes so far are good and need not be requested again.
            if filled:
                yield view[:filled]
            raise
        if piece is None:
            break
        if done + filled + len(piece) > length:
            raise bad_answer(f"it sent more than the {length} bytes that were requested")
        unread = memoryview(piece)
        while unread:
            if filled == len(buffer):
                yield view
                done, filled = done + filled, 0
            count = min(len(unread), len(buffer) - filled)
            view[filled : filled + count] = unread[:count]
            filled, unread = filled + count, unread[count:]
    if filled:
        yield view[:filled]
    if done + filled < length:
        raise TroubleError(f"{sender} ended its response after {done + filled} of {length} bytes")
