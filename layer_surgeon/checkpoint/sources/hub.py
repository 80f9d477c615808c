"""Checkpoints in a repo on the Hugging Face Hub, read in parts at one commit, without downloading them."""

import hashlib
from collections.abc import Iterator
from typing import Any

from huggingface_hub import HfApi, constants
from huggingface_hub.errors import HFValidationError, LocalTokenNotFoundError
from huggingface_hub.utils import build_hf_headers  # type: ignore[attr-defined]  # exported lazily

from layer_surgeon._version import __version__
from layer_surgeon.checkpoint.sources.base import Source
from layer_surgeon.checkpoint.sources.hub_cache import CachedFiles, CachedHubSource, part_of_repo
from layer_surgeon.checkpoint.sources.hub_errors import Asker, HubLimits, Tries, retried
from layer_surgeon.checkpoint.sources.hub_ranges import HubFile, HubFiles
from layer_surgeon.errors import SourceAccessError, SourceError, SourceNotFoundError


def open_hub(repo_id: str, *, revision: str | None = None, token: str | bool | None = None, path: str = "") -> Source:
    """Open a model repo on the Hub or, where HF_HUB_OFFLINE is set, as far as it lies in the local Hub cache.

    Args:
        repo_id: The repo, such as `meta-llama/Llama-3.1-8B`.
        revision: A branch, tag or commit; None is the main branch.
        token: An access token; None or True takes the one that is logged in, False sends none.
        path: A subfolder of the repo, or a checkpoint file in it; empty for all of the repo.

    Raises:
        SourceNotFoundError: There is no such repo, revision or path.
        SourceAccessError: The repo is gated or private, and the token is missing or not accepted.
        SourceError: The Hub can't be reached, or may not be asked and the cache has nothing of it.
    """
    if constants.HF_HUB_OFFLINE:
        return CachedHubSource(repo_id, revision=revision, path=path)
    return HubSource(repo_id, revision=revision, token=token, path=path)


class HubSource:
    """A model repo on the Hub at one commit, which is settled when the object is made.

    A file of that commit that lies in the local Hub cache, with the size and hash that the Hub lists, is read there.

    What is checked of the bytes: a file that is read whole by its hash; a part of a file by the commit that the Hub
    names for it, by its ETag, which has to stay the same, and by its position, its length and the file's size. A hash
    of a part does not exist on the Hub, so that a server that sends wrong bytes of the right number is not found out.

    Args:
        repo_id: The repo, such as `meta-llama/Llama-3.1-8B`.
        revision: A branch, tag or commit; None is the main branch.
        token: An access token; None or True takes the one that is logged in, False sends none.
        endpoint: The Hub's URL; None is HF_ENDPOINT's, or https://huggingface.co.
        path: A subfolder of the repo, or a checkpoint file in it; empty for all of the repo.

    Raises:
        SourceNotFoundError: There is no such repo, or no such revision or path of it.
        SourceAccessError: The token is not valid.
        SourceError: The Hub can't be reached, or limits the rate of requests.
    """

    kind = "hub"
    # 436 MB over links of 80 ms and 50 MB/s each: 1.43 s over 8, 1.00 s over 16; 32 gain nothing on two cores.
    connections = 16
    limits = HubLimits()
    """Timeouts and tries. An attribute of the class: making an object already asks the Hub."""

    def __init__(
        self,
        repo_id: str,
        *,
        revision: str | None = None,
        token: str | bool | None = None,
        endpoint: str | None = None,
        path: str = "",
    ) -> None:
        self.name = f"{repo_id}/{path}" if path else repo_id
        self.endpoint = (endpoint or constants.ENDPOINT).rstrip("/")
        headers = _headers(token)
        self._asker = Asker(
            endpoint=self.endpoint, repo_id=repo_id, revision=revision, has_token="authorization" in headers
        )
        info = self._ask_for_repo(headers)
        self.commit: str | None = info.sha
        listed = {entry.rfilename: _listed(entry) for entry in info.siblings or []}
        self._listed = {name: listed[file] for name, file in part_of_repo(listed, path).items()}
        if path and not self._listed:
            raise self._not_found(path)
        self._cached = CachedFiles(repo_id, info.sha)
        self._files = HubFiles(self._asker, info.sha, headers, self.limits)

    def list_files(self) -> dict[str, int | None]:
        """All files of the commit and their sizes, known since the object was made."""
        return {name: file.size for name, file in sorted(self._listed.items())}

    def size(self, file: str) -> int:
        """The size of `file` in bytes."""
        listed = self._find(file)
        return retried(Tries(self._title(file), self.limits), lambda: self._files.size(listed))

    def version(self, file: str) -> str:
        """The commit, and the hash that the Hub lists for the file in it."""
        listed = self._find(file)
        return f"{self.commit} {listed.sha256 or listed.blob_id or ''}".strip()

    def read_file(self, file: str, max_bytes: int) -> bytes:
        """The whole of a small file, compared with the hash that the Hub lists for it."""
        listed = self._find(file)
        if (size := self.size(file)) > max_bytes:
            raise SourceError(
                f"{self._title(file)} has {size:,} bytes, over the {max_bytes:,} that such a file may have. "
                "Check that it is the right file."
            )
        cached = self._cached.find(listed)
        if cached is None and listed.in_git:
            content = self._files.whole(listed)
        else:
            content = self.read_range(file, 0, size)
        if not _has_listed_hash(listed, content):
            if cached is not None:
                raise SourceError(
                    f"{cached.root / listed.name} in the local Hub cache is damaged: it has other bytes than the Hub "
                    f"lists. Remove it, or get it again with `hf download --force-download`."
                )
            raise SourceError(
                f"{self._title(file)} arrived with other bytes than the Hub lists: its hash is wrong. "
                "Something between here and the Hub changes what it carries (a mirror, a proxy): go around it."
            )
        return content

    def read_range(self, file: str, start: int, length: int) -> bytes:
        """Exactly `length` bytes from `start`."""
        return b"".join(bytes(chunk) for chunk in self.stream_range(file, start, length))

    def stream_range(self, file: str, start: int, length: int) -> Iterator[memoryview]:
        """Exactly `length` bytes from `start`, in chunks that share one buffer; retries go on where it stopped."""
        size = self.size(file)
        if start < 0 or length < 0 or start + length > size:
            raise SourceError(
                f"{self._title(file)} ends at byte {size:,}, but bytes {start:,} to {start + length:,} are wanted. "
                "The file on the Hub is truncated, or the index that points into it belongs to another one."
            )
        listed = self._find(file)
        cached = self._cached.find(listed)
        if cached is not None:
            yield from cached.stream_range(listed.name, start, length)
        else:
            yield from self._files.stream(listed, start, length)

    def _title(self, file: str) -> str:
        return f"{file} of {self.name}"

    def _find(self, file: str) -> HubFile:
        if file not in self._listed:
            raise self._not_found(file)
        return self._listed[file]

    def _not_found(self, file: str) -> SourceNotFoundError:
        return SourceNotFoundError(
            f"The repo {self._asker.repo_id} on {self.endpoint} has no file {file!r} at commit {self.commit}. "
            f"See what it has at {self._asker.url}/tree/{self.commit}."
        )

    def _ask_for_repo(self, headers: dict[str, str]) -> Any:
        """The repo's commit and files, from one request."""
        api = HfApi(
            endpoint=self.endpoint,
            token=headers.get("authorization", "").removeprefix("Bearer ") or False,
            library_name="layer_surgeon",
            library_version=__version__,
        )

        def ask() -> Any:
            with self._asker.asking_for(f"The repo {self._asker.repo_id}"):
                return api.model_info(
                    self._asker.repo_id,
                    revision=self._asker.revision,
                    timeout=self.limits.read_timeout,
                    files_metadata=True,
                )

        try:
            info = retried(Tries(f"The repo {self._asker.repo_id}", self.limits, self.limits.contact_tries), ask)
        except HFValidationError as error:
            raise SourceNotFoundError(f"{self._asker.repo_id!r} can't be a repo on the Hub: {error}") from error
        except (ValueError, TypeError, KeyError, AttributeError) as error:
            raise self._no_hub() from error
        if not info.sha:
            raise self._no_hub()
        return info

    def _no_hub(self) -> SourceError:
        return SourceError(
            f"{self.endpoint} does not answer as a Hub does when it is asked for {self._asker.repo_id}. Check "
            "HF_ENDPOINT, and whether the network wants a login in the browser first."
        )


def _headers(token: str | bool | None) -> dict[str, str]:
    """What goes along with each request: who asks and, where there is one, the token."""
    if isinstance(token, str) and not (token.strip().isascii() and token.strip().isprintable()):
        raise SourceAccessError("The access token holds characters that no token has. Copy it once more.")
    try:
        headers: dict[str, str] = build_hf_headers(
            token=token.strip() or False if isinstance(token, str) else token,
            library_name="layer_surgeon",
            library_version=__version__,
        )
    except LocalTokenNotFoundError as error:
        raise SourceAccessError("There is no access token on this machine. Run `hf auth login`.") from error
    return headers


def _listed(entry: Any) -> HubFile:
    lfs = entry.lfs
    return HubFile(
        name=entry.rfilename, size=entry.size, blob_id=entry.blob_id, sha256=lfs.sha256 if lfs is not None else None
    )


def _has_listed_hash(file: HubFile, content: bytes) -> bool:
    """Whether `content` is what the Hub lists; True where it lists no hash."""
    if file.sha256 is not None:
        return hashlib.sha256(content).hexdigest() == file.sha256
    if file.blob_id is not None:
        git = hashlib.sha1(b"blob %d\0" % len(content), usedforsecurity=False)
        git.update(content)
        return git.hexdigest() == file.blob_id
    return True
