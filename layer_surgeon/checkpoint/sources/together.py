"""Read several small files in parallel, which costs one network round trip instead of one per file."""

from collections.abc import Mapping

from layer_surgeon.checkpoint.sources.base import Source, stoppable_pool


def read_files(source: Source, files: Mapping[str, int]) -> dict[str, bytes]:
    """Read small files as a whole, in parallel if the source allows it.

    Args:
        source: The source to read from.
        files: The maximum size in bytes of each file, by name.

    Raises:
        SourceError: A file can't be read. If several can't, the error is that of the first.
    """
    workers = min(len(files), source.connections)
    if workers < 2:
        return {file: source.read_file(file, max_bytes) for file, max_bytes in files.items()}
    with stoppable_pool(workers, "read") as pool:
        reads = {file: pool.submit(source.read_file, file, max_bytes) for file, max_bytes in files.items()}
        return {file: read.result() for file, read in reads.items()}
