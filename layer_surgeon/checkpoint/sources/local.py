"""Read checkpoints on a local disk: a folder, or one file with its config next to it. Standard library only."""

import os
import re
import stat
from collections.abc import Iterable, Iterator
from io import FileIO
from pathlib import Path, PurePosixPath

from layer_surgeon._folders import resolve_blob
from layer_surgeon.checkpoint.sources.base import CHUNK_BYTES
from layer_surgeon.checkpoint.sources.shards import without_other_models
from layer_surgeon.checkpoint.types import ByteRange
from layer_surgeon.errors import SourceAccessError, SourceChangedError, SourceError, SourceNotFoundError

COMMIT = re.compile(r"[0-9a-f]{40}")
SHA256 = re.compile(r"[0-9a-f]{64}")
_TEMPLATES = "additional_chat_templates/"


class FolderSource:
    """A local folder, such as the snapshot of a repo in the Hub's cache, read in place.

    Only files in the folder are read. Symbolic links that lead outside are refused, so that an untrusted index can't
    point to `/etc/...`. The one exception is a snapshot in the Hub's cache, whose links lead to its `blobs` folder.

    Args:
        root: The folder.
        name: The path that the user typed.
    """

    kind = "folder"
    repo_id: str | None = None
    connections = 1

    def __init__(self, root: Path, *, name: str) -> None:
        self.name = name
        self.root = root.resolve()
        self._blobs: Path | None = None
        self.commit: str | None = None
        if self.root.parent.name == "snapshots":
            self._blobs = self.root.parent.parent / "blobs"
            self.commit = self.root.name if COMMIT.fullmatch(self.root.name) else None
        self._identities: dict[str, tuple[int, int]] = {}

    def list_files(self) -> dict[str, int | None]:
        """Return the sizes of the files in the folder itself, and of chat templates in their subfolder.

        Other subfolders are not searched: the folder might be `/`.
        """
        files: dict[str, int | None] = {}
        try:
            for prefix in ("", _TEMPLATES) if (self.root / _TEMPLATES).is_dir() else ("",):
                with os.scandir(self.root / prefix) as entries:
                    for entry in entries:
                        # A dangling link in a half-cleaned cache has no size and counts as missing.
                        if entry.is_file():
                            files[f"{prefix}{entry.name}"] = entry.stat().st_size
        except OSError as error:
            raise explain(error, f"The folder {self.name}") from error
        return dict(sorted(files.items()))

    def size(self, file: str) -> int:
        """Return the size of `file` in bytes."""
        with self._open(file) as reader:
            return os.fstat(reader.fileno()).st_size

    def version(self, file: str) -> str | None:
        """Return None: reading a local file again is faster than checking what was already read of it."""
        return None

    def sha256(self, file: str) -> str | None:
        """Return the name of the blob for a file in the Hub's cache, which is its sha256 on the Hub; otherwise None."""
        if self._blobs is None:
            return None
        target = resolve_blob(self._path_of(file))
        return target.name if target.parent == self._blobs.resolve() and SHA256.fullmatch(target.name) else None

    def read_file(self, file: str, max_bytes: int) -> bytes:
        """Return the whole content of a small file."""
        with self._open(file) as reader:
            content = reader.read(max_bytes + 1)
        if len(content) > max_bytes:
            raise SourceError(
                f"{self._path_of(file)} is larger than the limit of {max_bytes:,} bytes for such a file. "
                "Check that it is the right file."
            )
        return content

    def read_range(self, file: str, start: int, length: int) -> bytes:
        """Return exactly `length` bytes from `start`."""
        with self._open(file) as reader:
            self._check_bounds(file, reader, start, length)
            reader.seek(start)
            content = reader.read(length)
        if len(content) != length:
            raise self._too_short(file, start, length, start + len(content))
        return content

    def stream_range(self, file: str, start: int, length: int) -> Iterator[memoryview]:
        """Yield exactly `length` bytes from `start`, in chunks that share one buffer."""
        with self._open(file) as reader:
            self._check_bounds(file, reader, start, length)
            reader.seek(start)
            buffer = memoryview(bytearray(min(CHUNK_BYTES, length)))
            done = 0
            while done < length:
                try:
                    count = reader.readinto(buffer[: length - done])
                except OSError as error:
                    raise explain(error, str(self._path_of(file))) from error
                if not count:
                    raise self._too_short(file, start, length, start + done)
                yield buffer[:count]
                done += count

    def will_need(self, ranges: Iterable[ByteRange]) -> None:
        """Ask the operating system to read byte ranges into its cache. Returns at once; does nothing on macOS."""
        if hasattr(os, "posix_fadvise"):
            for byte_range in ranges:
                with self._open(byte_range.file) as reader:
                    os.posix_fadvise(reader.fileno(), byte_range.start, byte_range.length, os.POSIX_FADV_WILLNEED)

    def _path_of(self, file: str) -> Path:
        """Return the path of `file`, which must be in the folder or, for a Hub snapshot, in its blobs."""
        relative = PurePosixPath(file)
        if not file or "\\" in file or "\0" in file or relative.is_absolute() or ".." in relative.parts:
            raise SourceError(
                f"{self.name} refers to the file {file!r}, which is outside its folder. The checkpoint's index is "
                "wrong or malicious: get the checkpoint again from a source that you trust."
            )
        path = self.root / relative
        try:
            target = resolve_blob(path)
        except (OSError, RuntimeError) as error:
            raise SourceError(
                f"The link {path} can't be resolved: {error}. Replace it with the file itself."
            ) from error
        if target.is_relative_to(self.root) or (self._blobs is not None and target.is_relative_to(self._blobs)):
            return path
        raise SourceError(
            f"{path} is a symbolic link to {target}, outside the checkpoint's folder, and is not followed. "
            "Replace the link with the file, or give the folder that contains the file."
        )

    def _open(self, file: str) -> FileIO:
        path = self._path_of(file)
        try:
            # O_NONBLOCK: opening a named pipe in place of a shard must not block forever.
            reader = FileIO(os.open(path, os.O_RDONLY | os.O_NONBLOCK), "rb")
            file_stat = os.fstat(reader.fileno())
        except OSError as error:
            raise explain(error, f"The file {path}") from error
        if not stat.S_ISREG(file_stat.st_mode):
            reader.close()
            raise SourceError(f"{path} is not a regular file. Replace it with the file itself.")
        identity = (file_stat.st_size, file_stat.st_mtime_ns)
        if self._identities.setdefault(file, identity) != identity:
            reader.close()
            raise SourceChangedError(f"{path} changed while it was being read. Start again when nothing writes to it.")
        return reader

    def _check_bounds(self, file: str, reader: FileIO, start: int, length: int) -> None:
        size = os.fstat(reader.fileno()).st_size
        if start < 0 or length < 0 or start + length > size:
            raise self._too_short(file, start, length, size)

    def _too_short(self, file: str, start: int, length: int, size: int) -> SourceError:
        return SourceError(
            f"{self._path_of(file)} ends at byte {size:,}, but bytes {start:,} to {start + length:,} were requested. "
            "The file is truncated: copy or download it again."
        )


class FileSource(FolderSource):
    """One checkpoint file, and the files next to it that are not other checkpoints: config, licence, model card.

    Args:
        path: The file.
        name: The path that the user typed.
    """

    kind = "file"

    def __init__(self, path: Path, *, name: str) -> None:
        super().__init__(path.parent, name=name)
        self.file = path.name
        """The name of the checkpoint file in its folder."""

    def list_files(self) -> dict[str, int | None]:
        """Return the file and its neighbours, without the weights of other models."""
        return without_other_models(super().list_files(), self.file)


def explain(error: OSError, subject: str) -> SourceError:
    """Return our error for one of the operating system; `subject` begins the message."""
    if isinstance(error, FileNotFoundError | NotADirectoryError):
        return SourceNotFoundError(f"{subject} does not exist. Check the name, or get the file.")
    if isinstance(error, PermissionError):
        return SourceAccessError(f"{subject} is not readable by this user. Change its permissions.")
    return SourceError(f"{subject} can't be read: {error.strerror or error}.")
