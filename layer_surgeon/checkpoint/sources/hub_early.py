"""Read small files of a repo while the Hub still resolves the commit, which saves a round trip."""

import hashlib
from collections.abc import Iterable
from concurrent.futures import ThreadPoolExecutor
from types import TracebackType
from typing import Self
from urllib.parse import urljoin

from huggingface_hub import get_session

from layer_surgeon.checkpoint.sources.hub_errors import CLIENT_ERROR, Asker
from layer_surgeon.checkpoint.sources.hub_ranges import HubFile, same_origin
from layer_surgeon.checkpoint.sources.retry import HubLimits
from layer_surgeon.checkpoint.sources.shards import MAX_INDEX_BYTES

# The Hub redirects small files once, to a cache on the same host.
_MAX_REDIRECTS = 2


class EarlyFiles:
    """Context manager that reads small files at a branch or tag in the background, and waits for them at its end.

    The branch may move, and the commit's list of files is not known yet. So a content only counts if it has the hash
    that the Hub lists for the file later. Each file is requested once. If that fails, the file is read again as usual,
    which retries and explains errors.

    Args:
        asker: The Hub and the repo.
        headers: Headers of the requests, with the token.
        limits: Timeouts.
        files: The paths of the files in the repo. They need not exist.
    """

    def __init__(self, asker: Asker, headers: dict[str, str], limits: HubLimits, files: Iterable[str]) -> None:
        self._asker, self._limits = asker, limits
        self._headers = headers | {"accept-encoding": "identity"}
        self._files = list(files)
        self._contents: dict[str, bytes | None] = {}
        self._pool = ThreadPoolExecutor(max(1, len(self._files)), thread_name_prefix="early")

    def __enter__(self) -> Self:
        self._reads = {file: self._pool.submit(self._read, file) for file in self._files}
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._pool.shutdown()
        self._contents = {file: read.result() for file, read in self._reads.items()}

    def take(self, file: HubFile) -> bytes | None:
        """Return the content of `file` if it was read and has the listed hash, and forget it. Otherwise return None."""
        content = self._contents.pop(file.name, None)
        return content if content is not None and has_listed_hash(file, content) else None

    def _read(self, file: str) -> bytes | None:
        """Return the content of a file; None if it doesn't exist or can't be read."""
        asker = self._asker
        url = asker.file_url(file, asker.revision or "main")
        try:
            for _ in range(1 + _MAX_REDIRECTS):
                with get_session().stream(
                    "GET", url, headers=self._headers, timeout=self._limits.timeout, follow_redirects=False
                ) as response:
                    if response.status_code == 200:
                        return _read_body(response.iter_raw())
                    if "location" not in response.headers:
                        return None
                    url = urljoin(url, response.headers["location"])
                if not same_origin(url, asker.endpoint):
                    return None  # The token must not leave the Hub.
        except (CLIENT_ERROR, OSError, ValueError):
            return None
        return None


def has_listed_hash(file: HubFile, content: bytes) -> bool:
    """Return True if the Hub lists a hash for `file`, and `content` has it."""
    if file.sha256 is not None:
        return hashlib.sha256(content).hexdigest() == file.sha256
    blob_hash = hashlib.sha1(b"blob %d\0" % len(content), usedforsecurity=False)
    blob_hash.update(content)
    return blob_hash.hexdigest() == file.blob_id


def _read_body(pieces: Iterable[bytes]) -> bytes | None:
    content = bytearray()
    for piece in pieces:
        content += piece
        if len(content) > MAX_INDEX_BYTES:
            return None
    return bytes(content)
