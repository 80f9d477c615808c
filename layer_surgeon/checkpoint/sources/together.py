"""Small files that are needed together are asked for together: over a network their delays then count once."""

from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor

from layer_surgeon.checkpoint.sources.base import Source


def read_files(source: Source, files: Mapping[str, int]) -> dict[str, bytes]:
    """The whole of some small files.

    Args:
        source: Where they lie.
        files: Their names, and how many bytes each may have.

    Raises:
        SourceError: One of them can't be read; of several, the first one's error.
    """
    workers = min(len(files), source.connections)
    if workers < 2:
        return {file: source.read_file(file, limit) for file, limit in files.items()}
    with ThreadPoolExecutor(workers, thread_name_prefix="read") as pool:
        reads = {file: pool.submit(source.read_file, file, limit) for file, limit in files.items()}
        return {file: read.result() for file, read in reads.items()}
