"""Folders in object stores and other file systems, through fsspec: s3://, gs://, abfs://, sftp://, memory://, ..."""

import hashlib
from collections.abc import Iterator
from contextlib import contextmanager

import fsspec  # type: ignore[import-untyped]  # it has no types
from fsspec.registry import known_implementations  # type: ignore[import-untyped]  # it has no types

from layer_surgeon.checkpoint.sources.hub_errors import HubLimits, TroubleError
from layer_surgeon.checkpoint.sources.shards import without_other_models
from layer_surgeon.checkpoint.sources.url import Stat, changed
from layer_surgeon.errors import LayerSurgeonError, SourceAccessError, SourceError, SourceNotFoundError

# A piece is in memory as a whole, once per connection. S3 serves 4 MiB about as fast as any larger piece.
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
# What tells one version of a file from the next in the answers of the file systems in use.
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
    """A folder in a file system that fsspec knows. May be used from several threads at once.

    Credentials and other settings are found where the file system's own package looks for them (AWS_PROFILE,
    GOOGLE_APPLICATION_CREDENTIALS, ~/.config/fsspec/*.json, FSSPEC_S3_ENDPOINT_URL, ...).

    Args:
        url: The folder's URL.

    Raises:
        SourceNotFoundError: fsspec knows no such protocol.
        SourceError: The package for this protocol is missing, or can't be set up.
    """

    limits = HubLimits(tries=3, contact_tries=1)
    """Tries on top of those that the store's own package makes: s3fs takes 6 s to give up once."""

    def __init__(self, url: str) -> None:
        self._protocol = url.partition("://")[0].lower()
        self._host = f"The {self._protocol} file system"
        try:
            # Nothing may come from a listing that was made before.
            self._fs, root = fsspec.core.url_to_fs(url, skip_instance_cache=True, use_listings_cache=False)
        except ImportError as error:
            raise self._missing_package() from error
        except Exception as error:
            # Each has its own: a ValueError for an unknown protocol, an exception of paramiko for a wrong password.
            raise SourceNotFoundError(
                f"A {self._protocol}:// URL can't be opened here ({type(error).__name__}: {error}). It can be https, "
                f"file, hf, {', '.join(_PACKAGES)}, or another protocol that fsspec knows."
            ) from error
        self._root = str(root).rstrip("/")

    def list_files(self, file: str | None) -> dict[str, int | None]:
        """The files right in the folder."""
        with self._explained(self._root or "the root"):
            self._fs.invalidate_cache()
            entries = self._fs.ls(self._root or self._fs.root_marker, detail=True)
        found: dict[str, int | None] = {}
        for entry in entries:
            name = str(entry["name"]).rstrip("/").rpartition("/")[2]
            if entry.get("type") == "file" and name.isprintable():
                size = entry.get("size")
                found[name] = size if isinstance(size, int) else None
        if file is None:
            return found
        if file not in found:
            raise SourceNotFoundError(f"There is no file {file} in {self._protocol}://{self._root}. Check the URL.")
        return without_other_models(found, file)

    def stat(self, file: str) -> Stat:
        """Size and version, asked anew."""
        with self._explained(file):
            self._fs.invalidate_cache()
            info = self._fs.info(self._path(file))
        size = info.get("size")
        if info.get("type") == "directory" or not isinstance(size, int):
            raise SourceError(f"{file} in {self._protocol}://{self._root} is no file with a known size.")
        parts = [f"{key}={info[key]}" for key in _VERSION_KEYS if info.get(key) is not None]
        # Hashed: it is only compared, and a list of times and tags is no help to a reader.
        version = hashlib.sha256("\n".join(parts).encode()).hexdigest()[:12] if parts else None
        return Stat(size=size, version=version, lasting=version)

    def read(self, file: str, start: int, length: int, stat: Stat) -> Iterator[bytes]:
        """Pieces of at most PIECE_BYTES. The last one waits until the file has proved to be the same as at first."""
        end = start + length
        while start < end:
            stop = min(start + PIECE_BYTES, end)
            with self._explained(file):
                piece = self._read_piece(self._path(file), start, stop)
            if len(piece) > stop - start:
                raise TroubleError(
                    f"{self._host} sent {len(piece)} bytes of {file} where {stop - start} were asked for",
                    bad_answer=True,
                    advice="It can't serve parts of files: download the folder and give its path.",
                )
            short = len(piece) < stop - start
            if (short or stop == end) and (now := self.stat(file)) != stat:
                raise changed(f"{file} in {self._protocol}://{self._root}", stat, now)
            if short:
                raise TroubleError(f"{self._host} sent {len(piece)} of the {stop - start} bytes of {file} asked for")
            yield piece
            start = stop

    def _read_piece(self, path: str, start: int, stop: int) -> bytes:
        if self._fs.async_impl or type(self._fs).cat_file is not fsspec.AbstractFileSystem.cat_file:
            content: bytes = self._fs.cat_file(path, start=start, end=stop)
            return content
        # fsspec's own cat_file opens with a cache that reads 5 MiB further than was asked for.
        with self._fs.open(path, "rb", cache_type="none") as opened:
            opened.seek(start)
            return bytes(opened.read(stop - start))

    def _path(self, file: str) -> str:
        return f"{self._root}/{file}"

    def _missing_package(self) -> SourceError:
        package = _PACKAGES.get(self._protocol)
        advice = f"pip install {package}" if package else known_implementations[self._protocol].get("err", "")
        return SourceError(f"{self._protocol}:// needs a package that is not installed: {advice}")

    @contextmanager
    def _explained(self, what: str) -> Iterator[None]:
        """Turn what any file system may raise into TroubleError, or an error of ours."""
        try:
            yield
        except (LayerSurgeonError, TroubleError):
            raise
        except (FileNotFoundError, NotADirectoryError, IsADirectoryError) as error:
            raise SourceNotFoundError(f"{self._host} has no {what} ({error}). Check the URL.") from error
        except Exception as error:
            reason = f"{type(error).__name__}: {error}" if str(error) else type(error).__name__
            # Each file system has its own classes: NoCredentialsError of botocore, DefaultCredentialsError of google.
            if isinstance(error, PermissionError) or "credential" in type(error).__name__.lower():
                raise SourceAccessError(
                    f"{self._host} refuses access to {what} ({reason}). Log in as the tools of that store do "
                    "(for s3 `aws configure` or AWS_ACCESS_KEY_ID), or ask for the right to read it."
                ) from error
            raise TroubleError(
                f"{self._host} did not answer as it should ({reason})",
                advice="Check the network, the URL and the store's settings, and run the same command again.",
            ) from error
