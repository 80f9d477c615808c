"""Read several sources as one."""

from collections.abc import Iterator, Sequence

from layer_surgeon.checkpoint.sources import Chunk, Source


def joint_name(number: int, file: str) -> str:
    """Return the name of a file among those of several sources."""
    return f"{number}/{file}"


def own_name(joint: str) -> tuple[int, str]:
    """Return the number of the source and the name of the file in it: the reverse of `joint_name`."""
    number, _, file = joint.partition("/")
    return int(number), file


class SeveralSources:
    """The byte ranges of several sources, for one copy.

    Args:
        sources: The sources. Files of the first are named `0/<file>`, and so on.

    Attributes:
        connections: How many ranges to read in parallel.
    """

    def __init__(self, sources: Sequence[Source]) -> None:
        self._sources = tuple(sources)
        self.connections = max(source.connections for source in sources)

    def stream_range(self, file: str, start: int, length: int) -> Iterator[Chunk]:
        """Yield exactly `length` bytes from `start`, in chunks.

        Raises:
            SourceError: The source can't be read.
        """
        number, name = own_name(file)
        return self._sources[number].stream_range(name, start, length)
