"""Read folders in object stores and other file systems through fsspec: s3://, gs://, abfs://, sftp://, ..."""

import hashlib
from collections.abc import Iterable, Iterator
from contextlib import contextmanager

import fsspec  # type: ignore[import-untyped]  # it has no types
from fsspec.registry import known_implementations  # type: ignore[import-untyped]  # it has no types

from layer_surgeon.checkpoint.sources.retry import HubLimits, TroubleError
from layer_surgeon.checkpoint.sources.shards import without_other_models
from layer_surgeon.checkpoint.sources.url import Stat, changed
from layer_surgeon.errors import LayerSurgeonError, SourceAccessError, SourceError, SourceNotFoundError

# Each connection holds one whole piece in memory. S3 serves 4 MiB about as fast as larger pieces.
PIECE_BYTES = 4 << 20
_PACKAGES = {
    "s3": "s3fs",
    "s3a": "s3fs",
    "gs": "gcsfs",
    "gcs": "gcsfs",
    "az": "adlfs",
    "abfs": "adlfs",
    "abfss": "adlfs",
    "adl": "adlfs",
    "oci": "ocifs",
    "oss": "ossfs",
    "sftp": "paramiko",
    "ssh": "paramiko",
    "smb": "smbprotocol",
    "webdav": "webdav4[fsspec]",
}
# The keys by which file systems report the version of a file.
_VERSION_KEYS = (
    "ETag",
    "etag",
    "VersionId",
    "version_id",
    "generation",
    "md5Hash",
    "content_md5",
    "crc32c",
    "LastModified",
    "last_modified",
    "updated",
    "mtime",
    "created",
)


class FsspecFiles:
    """A folder in a file system that fsspec supports. Thread-safe.

    Credentials and other settings come from where the file system's own package looks for them (AWS_PROFILE,
    GOOGLE_APPLICATION_CREDENTIALS, ~/.config/fsspec/*.json, FSSPEC_S3_ENDPOINT_URL, ...).

    Args:
        url: The folder's URL.

    Raises:
        SourceNotFoundError: fsspec does not support the protocol, or its package can't be set up.
        SourceError: The package for this protocol is missing.
    """

    limits = HubLimits(tries=3, contact_tries=1)
    """Retries on top of those in the store's own package: s3fs alone takes 6 s before it gives up."""

    def __init__(self, url: str) -> None:
        self._protocol = url.partition("://")[0].lower()
        self._host = f"The {self._protocol} file system"
        try:
            # No caches: a listing from an earlier call could be stale.
            self._fs, root = fsspec.core.url_to_fs(url, skip_instance_cache=True, use_listings_cache=False)
        except ImportError as error:
            raise self._missing_package() from error
        except Exception as error:
            # Any type is possible: a ValueError for an unknown protocol, paramiko's own exception for a wrong password.
            raise SourceNotFoundError(
                f"The {self._protocol}:// URL can't be opened ({type(error).__name__}: {error}). Supported protocols "
                f"are https, file, hf, {', '.join(_PACKAGES)}, and others that fsspec knows."
            ) from error
        self._root = str(root).rstrip("/")

    def list_files(self, file: str | None) -> dict[str, int | None]:
        """Return the size of every file in the folder itself, by name. Subfolders are not searched."""
        with self._explained(self._root or "the root"):
            self._fs.invalidate_cache()
            entries = self._fs.ls(self._root or self._fs.root_marker, detail=True)
        sizes: dict[str, int | None] = {}
        for entry in entries:
            name = str(entry["name"]).rstrip("/").rpartition("/")[2]
            if entry.get("type") == "file" and name.isprintable():
                size = entry.get("size")
                sizes[name] = size if isinstance(size, int) else None
        if file is None:
            return sizes
        if file not in sizes:
            raise SourceNotFoundError(f"There is no file {file} in {self._protocol}://{self._root}. Check the URL.")
        return without_other_models(sizes, file)

    def find(self, names: Iterable[str]) -> dict[str, int | None]:
        """Return nothing: `list_files` lists the whole folder."""
        return {}

    def stat(self, file: str) -> Stat:
        """Request the size and version of a file, without any cache."""
        with self._explained(file):
            self._fs.invalidate_cache()
            info = self._fs.info(self._path(file))
        size = info.get("size")
        if info.get("type") == "directory" or not isinstance(size, int):
            raise SourceError(
                f"{file} in {self._protocol}://{self._root} is not a file with a known size. Check the URL."
            )
        version_fields = [f"{key}={info[key]}" for key in _VERSION_KEYS if info.get(key) is not None]
        # Hashed because it is only compared, and a list of times and tags does not help the reader of a message.
        version = hashlib.sha256("\n".join(version_fields).encode()).hexdigest()[:12] if version_fields else None
        return Stat(size=size, version=version, lasting=version)

    def read(self, file: str, start: int, length: int, stat: Stat) -> Iterator[bytes]:
        """Yield pieces of at most PIECE_BYTES. Before the last piece, check that the file has not changed."""
        end = start + length
        while start < end:
            stop = min(start + PIECE_BYTES, end)
            with self._explained(file):
                piece = self._read_piece(self._path(file), start, stop)
            if len(piece) > stop - start:
                raise TroubleError(
                    f"{self._host} sent {len(piece)} bytes of {file}, but {stop - start} were requested",
                    bad_answer=True,
                    advice="It can't serve parts of files. Download the folder and use its local path.",
                )
            short = len(piece) < stop - start
            if (short or stop == end) and (current_stat := self.stat(file)) != stat:
                raise changed(f"{file} in {self._protocol}://{self._root}", stat, current_stat)
            if short:
                raise TroubleError(
                    f"{self._host} sent only {len(piece)} of the {stop - start} requested bytes of {file}"
                )
            yield piece
            start = stop

    def _read_piece(self, path: str, start: int, stop: int) -> bytes:
        if self._fs.async_impl or type(self._fs).cat_file is not fsspec.AbstractFileSystem.cat_file:
            content: bytes = self._fs.cat_file(path, start=start, end=stop)
            return content
        # fsspec's default cat_file opens the file with a cache that reads 5 MiB ahead.
        with self._fs.open(path, "rb", cache_type="none") as opened:
            opened.seek(start)
            return bytes(opened.read(stop - start))

    def _path(self, file: str) -> str:
        return f"{self._root}/{file}"

    def _missing_package(self) -> SourceError:
        package = _PACKAGES.get(self._protocol)
        advice = f"pip install {package}" if package else known_implementations[self._protocol].get("err", "")
        return SourceError(f"Reading {self._protocol}:// URLs needs a package that is not installed: {advice}")

    @contextmanager
    def _explained(self, path: str) -> Iterator[None]:
        """Turn the exceptions of any file system into TroubleError or one of the package's own errors."""
        try:
            yield
        except (LayerSurgeonError, TroubleError):
            raise
        except (FileNotFoundError, NotADirectoryError, IsADirectoryError) as error:
            raise SourceNotFoundError(f"{self._host} has no {path} ({error}). Check the URL.") from error
        except Exception as error:
            reason = f"{type(error).__name__}: {error}" if str(error) else type(error).__name__
            # File systems have their own classes, such as botocore's NoCredentialsError.
            if isinstance(error, PermissionError) or "credential" in type(error).__name__.lower():
                raise SourceAccessError(
                    f"{self._host} refuses access to {path} ({reason}). Log in with the store's own tools (for s3, "
                    "`aws configure` or AWS_ACCESS_KEY_ID), or ask its owner for read access."
                ) from error
            raise TroubleError(
                f"{self._host} failed to respond ({reason})",
                advice="Check the network, the URL and the store's settings, then run the same command again.",
            ) from error
