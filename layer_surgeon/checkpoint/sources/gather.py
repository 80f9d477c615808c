"""Read a response body in chunks of equal size, and check the total number of bytes."""

from collections.abc import Callable, Iterator

from layer_surgeon.checkpoint.sources.base import CHUNK_BYTES
from layer_surgeon.checkpoint.sources.direct import ReadInto
from layer_surgeon.checkpoint.sources.retry import TroubleError


def gather(
    length: int, read_into: ReadInto, sender: object, bad_answer: Callable[[str], TroubleError]
) -> Iterator[memoryview]:
    """Read a body in chunks of CHUNK_BYTES that share one buffer.

    The last chunk is only yielded once the body has ended.

    Args:
        length: The expected number of bytes.
        read_into: Reads the body.
        sender: The host that sends it, used as the subject of error messages.
        bad_answer: Builds the error for an answer that breaks the protocol, from a description.

    Raises:
        TroubleError: The body has more or fewer bytes than expected.
        Exception: Any exception that the client raises while the body arrives.
    """
    view = memoryview(bytearray(min(CHUNK_BYTES, length)))
    spare = memoryview(bytearray(1))
    filled = done = 0
    while True:
        try:
            count = read_into(view[filled : length - done] or spare)
        except Exception:
            # The body was cut off, but the bytes so far are good and need not be requested again.
            if filled:
                yield view[:filled]
            raise
        if not count:
            break
        if done + filled == length:
            raise bad_answer(f"it sent more than the {length} bytes that were requested")
        filled += count
        if filled == len(view) and done + filled < length:
            yield view
            done, filled = done + filled, 0
    if filled:
        yield view[:filled]
    if done + filled < length:
        raise TroubleError(f"{sender} ended its response after {done + filled} of {length} bytes")
