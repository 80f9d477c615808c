"""From what a body brings, piece by piece, to chunks of one size whose number of bytes is exact."""

from collections.abc import Callable, Iterable, Iterator

from layer_surgeon.checkpoint.sources.base import CHUNK_BYTES
from layer_surgeon.checkpoint.sources.hub_errors import TroubleError


def gather(
    length: int, pieces: Iterable[bytes], who: object, broken: Callable[[str], TroubleError]
) -> Iterator[memoryview]:
    """`pieces`, gathered into chunks of CHUNK_BYTES in one buffer. The last one waits until the body has ended.

    Args:
        length: How many bytes there have to be.
        pieces: The body, as it arrives.
        who: Who sends it, as the subject of a sentence.
        broken: Makes the error for an answer that breaks the rules.

    Raises:
        TroubleError: There are more bytes, or fewer.
        Exception: What the client raised while the body arrived.
    """
    buffer = bytearray(min(CHUNK_BYTES, length))
    view = memoryview(buffer)
    filled = done = 0
    arriving = iter(pieces)
    while True:
        try:
            piece = next(arriving, None)
        except Exception:
            # What arrived of a body that was cut off is good, and need not be asked for again.
            if filled:
                yield view[:filled]
            raise
        if piece is None:
            break
        if done + filled + len(piece) > length:
            raise broken(f"it sent more than the {length} bytes that were asked for")
        rest = memoryview(piece)
        while rest:
            if filled == len(buffer):
                yield view
                done, filled = done + filled, 0
            count = min(len(rest), len(buffer) - filled)
            view[filled : filled + count] = rest[:count]
            filled, rest = filled + count, rest[count:]
    if filled:
        yield view[:filled]
    if done + filled < length:
        raise TroubleError(f"{who} ended its answer after {done + filled} of {length} bytes")
