"""Read the pieces of a plan into memory, for weights that are used at once and not kept."""

import threading
from bisect import bisect_right
from collections.abc import Generator, Sequence

from layer_surgeon.checkpoint.sources import CHUNK_BYTES, Source
from layer_surgeon.checkpoint.sources.base import STOPPED, stoppable_pool
from layer_surgeon.extract.copy import Chunks
from layer_surgeon.extract.plan import CopyPlan, Piece
from layer_surgeon.progress import Progress


def read_tensors(source: Source, plan: CopyPlan, buffers: Sequence[memoryview], progress: Progress) -> None:
    """Read the tensors of a plan, each byte once.

    Args:
        source: The source to read from.
        plan: The byte ranges to read.
        buffers: Receive the bytes of the tensors, in the order of `plan.planned`.
        progress: Receives the number of source bytes as they arrive.

    Raises:
        SourceError: The source can't be read.
    """
    offsets = [tensor.offset for tensor in plan.planned]
    lock = threading.Lock()

    def read(piece: Piece) -> None:
        byte_range = piece.range
        stream = source.stream_range(byte_range.file, byte_range.start, byte_range.length)
        try:
            chunks = Chunks(stream)
            for segment in piece.segments:
                index = bisect_right(offsets, segment.offset) - 1
                position, done = segment.offset - offsets[index], 0
                block = segment.codec.block_bytes
                while done < segment.length:
                    # A conversion holds several copies of a chunk, so limit the chunk to 512 KiB or one block.
                    most = min(segment.length - done, max(block, CHUNK_BYTES // block * block))
                    blocks = chunks.take(most, block)
                    result = segment.codec.convert(blocks, segment.first_block + done // block)
                    buffers[index][position : position + len(result)] = result
                    position, done = position + len(result), done + len(blocks)
                    with lock:
                        progress.advance(len(blocks))
        finally:
            if isinstance(stream, Generator):
                stream.close()

    if len(plan.pieces) <= 1 or source.connections == 1:
        for piece in plan.pieces:
            read(piece)
        return
    stopped = STOPPED.get() or threading.Event()
    with stoppable_pool(min(source.connections, len(plan.pieces)), "read", stopped) as pool:
        try:
            for _ in pool.map(read, plan.pieces):
                pass
        except BaseException:
            stopped.set()
            raise
