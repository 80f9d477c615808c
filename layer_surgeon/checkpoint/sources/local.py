"""Checkpoints on a local disk: a folder, or one file with its config beside it. Standard library only."""

import os
import re
import stat
from collections.abc import Iterator
from io import FileIO
from pathlib import Path, PurePosixPath

from layer_surgeon.checkpoint.sources.base import CHUNK_BYTES
from layer_surgeon.checkpoint.sources.shards import without_other_models
from layer_surgeon.errors import SourceAccessError, SourceChangedError, SourceError, SourceNotFoundError

_COMMIT = re.compile(r"[0-9a-f]{40}")


class FolderSource:
    """A local folder, such as the snapshot of a repo in the Hub's cache, read in place.

    Only files in the folder are read. A symbolic link that leaves it is refused: an index from a stranger must not
    name `/etc/...`. The links of a snapshot in the Hub's cache, into the `blobs` beside it, are the one exception.

    Args:
        root: The folder.
        name: What the user typed.
    """

    kind = "folder"
    connections = 1

    def __init__(self, root: Path, *, name: str) -> None:
        self.name = name
        self.root = root.resolve()
        self._blobs: Path | None = None
        self.commit: str | None = None
        if self.root.parent.name == "snapshots":
            self._blobs = self.root.parent.parent / "blobs"
            self.commit = self.root.name if _COMMIT.fullmatch(self.root.name) else None
        self._seen: dict[str, tuple[int, int]] = {}

    def list_files(self) -> dict[str, int | None]:
        """The files right in the folder. Subfolders are not searched: the folder might be `/`."""
        files: dict[str, int | None] = {}
        try:
            with os.scandir(self.root) as entries:
                for entry in entries:
                    # A dangling link of a cache that was cleaned halfway has no size, and counts as not there.
                    if entry.is_file():
                        files[entry.name] = entry.stat().st_size
        except OSError as error:
            raise _explain(error, f"The folder {self.name}") from error
        return dict(sorted(files.items()))

    def size(self, file: str) -> int:
        """The size of `file` in bytes."""
        with self._open(file) as opened:
            return os.fstat(opened.fileno()).st_size

    def version(self, file: str) -> str | None:
        """None: a local file is read again sooner than a record of what was read of it is checked."""
        return None

    def read_file(self, file: str, max_bytes: int) -> bytes:
        """The whole of a small file."""
        with self._open(file) as opened:
            content = opened.read(max_bytes + 1)
        if len(content) > max_bytes:
            raise SourceError(
                f"{self._path_of(file)} is over {max_bytes:,} bytes, too long for what it is named as. "
                "Check that it is the right file."
            )
        return content

    def read_range(self, file: str, start: int, length: int) -> bytes:
        """Exactly `length` bytes from `start`."""
        with self._open(file) as opened:
            self._check_bounds(file, opened, start, length)
            opened.seek(start)
            content = opened.read(length)
        if len(content) != length:
            raise self._too_short(file, start, length, start + len(content))
        return content

    def stream_range(self, file: str, start: int, length: int) -> Iterator[memoryview]:
        """Exactly `length` bytes from `start`, in chunks that share one buffer."""
        with self._open(file) as opened:
            self._check_bounds(file, opened, start, length)
            opened.seek(start)
            buffer = memoryview(bytearray(min(CHUNK_BYTES, length)))
            done = 0
            while done < length:
                try:
                    count = opened.readinto(buffer[: length - done])
                except OSError as error:
                    raise _explain(error, str(self._path_of(file))) from error
                if not count:
                    raise self._too_short(file, start, length, start + done)
                yield buffer[:count]
                done += count

    def _path_of(self, file: str) -> Path:
        """The place of `file`, which must lie in the folder or, for a snapshot of the Hub's cache, in its blobs."""
        relative = PurePosixPath(file)
        if not file or "\\" in file or "\0" in file or relative.is_absolute() or ".." in relative.parts:
            raise SourceError(
                f"{self.name} refers to the file {file!r}, which does not lie inside it. The checkpoint's index is "
                "wrong or hostile: get the checkpoint again from a place that you trust."
            )
        path = self.root / relative
        try:
            target = path.resolve()
        except (OSError, RuntimeError) as error:
            raise SourceError(f"{path} can't be followed to a file: {error}. Replace the link by the file.") from error
        if target.is_relative_to(self.root) or (self._blobs is not None and target.is_relative_to(self._blobs)):
            return path
        raise SourceError(
            f"{path} is a symbolic link to {target}, outside of the checkpoint's folder, and is not followed. "
            "Replace the link by the file, or name the folder in which the file lies."
        )

    def _open(self, file: str) -> FileIO:
        path = self._path_of(file)
        try:
            # O_NONBLOCK: opening a named pipe that was put in a shard's place must not wait for ever.
            opened = FileIO(os.open(path, os.O_RDONLY | os.O_NONBLOCK), "rb")
            status = os.fstat(opened.fileno())
        except OSError as error:
            raise _explain(error, f"The file {path}") from error
        if not stat.S_ISREG(status.st_mode):
            opened.close()
            raise SourceError(f"{path} is not an ordinary file. Put the file itself there.")
        identity = (status.st_size, status.st_mtime_ns)
        if self._seen.setdefault(file, identity) != identity:
            opened.close()
            raise SourceChangedError(
                f"{path} was changed while it was being read. Wait until nothing writes it, and start again."
            )
        return opened

    def _check_bounds(self, file: str, opened: FileIO, start: int, length: int) -> None:
        size = os.fstat(opened.fileno()).st_size
        if start < 0 or length < 0 or start + length > size:
            raise self._too_short(file, start, length, size)

    def _too_short(self, file: str, start: int, length: int, size: int) -> SourceError:
        return SourceError(
            f"{self._path_of(file)} ends at byte {size:,}, but bytes {start:,} to {start + length:,} are wanted. "
            "The file is truncated: copy or download it again."
        )


class FileSource(FolderSource):
    """One checkpoint file, and what lies beside it that is not another checkpoint: config, licence, model card.

    Args:
        path: The file.
        name: What the user typed.
    """

    kind = "file"

    def __init__(self, path: Path, *, name: str) -> None:
        super().__init__(path.parent, name=name)
        self.file = path.name
        """The checkpoint file's name in its folder."""

    def list_files(self) -> dict[str, int | None]:
        """The file itself and its neighbours; other weights are left out, but for the other parts of a split model."""
        return without_other_models(super().list_files(), self.file)


def _explain(error: OSError, what: str) -> SourceError:
    if isinstance(error, FileNotFoundError | NotADirectoryError):
        return SourceNotFoundError(f"{what} does not exist. Check the name, or get the file.")
    if isinstance(error, PermissionError):
        return SourceAccessError(f"{what} may not be read by this user. Change its permissions.")
    return SourceError(f"{what} can't be read: {error.strerror or error}.")
