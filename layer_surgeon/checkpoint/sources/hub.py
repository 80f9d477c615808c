"""Read checkpoints in a repo on the Hugging Face Hub in ranges, at one commit, without downloading them."""

from collections.abc import Iterator, Sequence
from typing import Any
from urllib.parse import quote

# Not HfApi: importing it takes 0.04 s and 5 MB.
from huggingface_hub import constants, get_session
from huggingface_hub.errors import HFValidationError, LocalTokenNotFoundError
from huggingface_hub.utils import (  # type: ignore[attr-defined]  # exported lazily
    build_hf_headers,
    hf_raise_for_status,
    validate_repo_id,
)

from layer_surgeon._version import __version__
from layer_surgeon.checkpoint.sources.base import Source
from layer_surgeon.checkpoint.sources.hub_cache import CachedFiles, CachedHubSource, HubCache, part_of_repo
from layer_surgeon.checkpoint.sources.hub_early import EarlyFiles, has_listed_hash
from layer_surgeon.checkpoint.sources.hub_errors import Asker
from layer_surgeon.checkpoint.sources.hub_ranges import HubFile, HubFiles
from layer_surgeon.checkpoint.sources.retry import HubLimits, Tries, retried
from layer_surgeon.checkpoint.sources.shards import INDEX_FILES, WEIGHTS, lies_inside
from layer_surgeon.errors import SourceAccessError, SourceError, SourceNotFoundError

# The files that most checkpoints have, and that are read first.
_EARLY_FILES = ("config.json", INDEX_FILES[0])


def open_hub(repo_id: str, *, revision: str | None = None, token: str | bool | None = None, path: str = "") -> Source:
    """Open a model repo on the Hub or, if HF_HUB_OFFLINE is set, the part of it that is in the local Hub cache.

    Args:
        repo_id: The repo, such as `meta-llama/Llama-3.1-8B`.
        revision: A branch, tag or commit; None is the main branch.
        token: An access token; None or True takes the one that is logged in, False sends none.
        path: A subfolder of the repo, or a checkpoint file in it; empty for all of the repo.

    Raises:
        SourceNotFoundError: The repo, revision or path does not exist.
        SourceAccessError: The repo is gated or private, and the token is missing or was rejected.
        SourceError: The Hub can't be reached, or HF_HUB_OFFLINE is set and the repo is not in the cache.
    """
    if constants.HF_HUB_OFFLINE:
        return CachedHubSource(repo_id, revision=revision, path=path)
    early_files: tuple[str, ...] = ()
    if not path.endswith(WEIGHTS) and not HubCache(repo_id).root.is_dir():
        early_files = tuple(f"{path}/{file}" if path else file for file in _EARLY_FILES)
    return HubSource(repo_id, revision=revision, token=token, path=path, early_files=early_files)


class HubSource:
    """A model repo on the Hub at one commit, which the constructor resolves.

    A file of that commit is read from the local Hub cache if it is there with the size and hash that the Hub lists.

    A file that is read whole is checked against its hash. A part of a file is checked by the commit that the Hub
    reports, by its ETag (which must not change), and by its position, its length and the size of the file. The Hub
    offers no hash of a part, so a server that sends the right number of wrong bytes goes unnoticed.

    Args:
        repo_id: The repo, such as `meta-llama/Llama-3.1-8B`.
        revision: A branch, tag or commit; None is the main branch.
        token: An access token; None or True takes the one that is logged in, False sends none.
        endpoint: The Hub's URL; None is HF_ENDPOINT's, or https://huggingface.co.
        path: A subfolder of the repo, or a checkpoint file in it; empty for all of the repo.
        early_files: Paths of small files that are requested at the same time as the commit. They need not exist.

    Raises:
        SourceNotFoundError: The repo, revision or path does not exist.
        SourceAccessError: The repo is gated or private, or the token is not valid.
        SourceError: The Hub can't be reached, or its rate limit was exceeded.
    """

    kind = "hub"
    # Measured with 436 MB, connections of 80 ms and 50 MB/s each, two cores: 1.43 s with 8, 1.00 s with 16, and no gain
    # with 32.
    connections = 16
    limits = HubLimits()
    """Timeouts and retries. A class attribute, because the constructor already sends requests."""

    def __init__(
        self,
        repo_id: str,
        *,
        revision: str | None = None,
        token: str | bool | None = None,
        endpoint: str | None = None,
        path: str = "",
        early_files: Sequence[str] = (),
    ) -> None:
        self.repo_id: str | None = repo_id
        self.name = f"{repo_id}/{path}" if path else repo_id
        self.endpoint = (endpoint or constants.ENDPOINT).rstrip("/")
        headers = _headers(token)
        self._asker = Asker(
            endpoint=self.endpoint, repo_id=repo_id, revision=revision, has_token="authorization" in headers
        )
        with EarlyFiles(self._asker, headers, self.limits, early_files) as self._early:
            commit, listed = self._ask_for_repo(headers)
        self.commit: str | None = commit
        self._listed = {name: listed[file] for name, file in part_of_repo(listed, path).items()}
        if path and not self._listed:
            raise self._not_found(path)
        self._cached = CachedFiles(repo_id, commit)
        self._files = HubFiles(self._asker, commit, headers, self.limits)

    def list_files(self) -> dict[str, int | None]:
        """Return the sizes of all files of the commit, as listed by the constructor."""
        return {name: file.size for name, file in sorted(self._listed.items())}

    def size(self, file: str) -> int:
        """Return the size of `file` in bytes."""
        listed = self._listed_file(file)
        return retried(Tries(self._title(file), self.limits), lambda: self._files.size(listed))

    def version(self, file: str) -> str:
        """Return the commit, and the hash that the Hub lists for the file."""
        listed = self._listed_file(file)
        return f"{self.commit} {listed.sha256 or listed.blob_id or ''}".strip()

    def sha256(self, file: str) -> str | None:
        """Return the sha256 that the Hub lists for the file; None for a file stored in git."""
        return self._listed_file(file).sha256

    def read_file(self, file: str, max_bytes: int) -> bytes:
        """Return the whole content of a small file, checked against the hash that the Hub lists."""
        listed = self._listed_file(file)
        if (size := self.size(file)) > max_bytes:
            raise SourceError(
                f"{self._title(file)} has {size:,} bytes, more than the limit of {max_bytes:,} for such a file. "
                "Check that it is the right file."
            )
        cached = self._cached.find(listed)
        if cached is None and (early_content := self._early.take(listed)) is not None:
            return early_content
        if cached is None and listed.in_git:
            content = self._files.whole(listed)
        else:
            content = self.read_range(file, 0, size)
        if (listed.sha256 or listed.blob_id) and not has_listed_hash(listed, content):
            if cached is not None:
                raise SourceError(
                    f"{cached.root / listed.name} in the local Hub cache is damaged: its hash differs from "
                    f"the one that the Hub lists. Remove it, or get it again with `hf download --force-download`."
                )
            raise SourceError(
                f"{self._title(file)} was altered on the way: its hash differs from the one that the Hub lists. "
                "A mirror or proxy between here and the Hub changes the content. Bypass it."
            )
        return content

    def read_range(self, file: str, start: int, length: int) -> bytes:
        """Return exactly `length` bytes from `start`."""
        return b"".join(bytes(chunk) for chunk in self.stream_range(file, start, length))

    def stream_range(self, file: str, start: int, length: int) -> Iterator[memoryview]:
        """Yield exactly `length` bytes from `start`, in chunks that share one buffer, with retries."""
        size = self.size(file)
        if start < 0 or length < 0 or start + length > size:
            raise SourceError(
                f"{self._title(file)} ends at byte {size:,}, but bytes {start:,} to {start + length:,} were "
                "requested. The file on the Hub is truncated, or the index belongs to another file. Check both."
            )
        listed = self._listed_file(file)
        cached = self._cached.find(listed)
        if cached is not None:
            yield from cached.stream_range(listed.name, start, length)
        else:
            yield from self._files.stream(listed, start, length)

    def _title(self, file: str) -> str:
        return f"{file} of {self.name}"

    def _listed_file(self, file: str) -> HubFile:
        if file not in self._listed:
            raise self._not_found(file)
        return self._listed[file]

    def _not_found(self, file: str) -> SourceNotFoundError:
        return SourceNotFoundError(
            f"The repo {self._asker.repo_id} on {self.endpoint} has no file {file!r} at commit {self.commit}. "
            f"Its files are listed at {self._asker.url}/tree/{self.commit}."
        )

    def _ask_for_repo(self, headers: dict[str, str]) -> tuple[str, dict[str, HubFile]]:
        """Return the repo's commit and files, from one request. Names that lead out of the repo are dropped."""
        asker = self._asker
        url = f"{self.endpoint}/api/models/{asker.repo_id}"
        if asker.revision is not None:
            url += f"/revision/{quote(asker.revision, safe='')}"

        def ask() -> Any:
            with asker.asking_for(f"The repo {asker.repo_id}"):
                timeout = self.limits.read_timeout
                response = get_session().get(url, headers=headers, params={"blobs": True}, timeout=timeout)
                hf_raise_for_status(response)
                return response.json()

        try:
            validate_repo_id(asker.repo_id)
            info = retried(Tries(f"The repo {asker.repo_id}", self.limits, self.limits.contact_tries), ask)
            files = [_hub_file(sibling) for sibling in info.get("siblings") or []]
            listed = {file.name: file for file in files if lies_inside(file.name)}
            commit = info["sha"]
        except HFValidationError as error:
            raise SourceNotFoundError(f"{asker.repo_id!r} is not a valid repo id: {error}") from error
        except (ValueError, TypeError, KeyError, AttributeError) as error:
            raise self._not_a_hub() from error
        if not isinstance(commit, str) or not commit:
            raise self._not_a_hub()
        return commit, listed

    def _not_a_hub(self) -> SourceError:
        return SourceError(
            f"{self.endpoint} does not respond like a Hub when asked for {self._asker.repo_id}. Check HF_ENDPOINT, and "
            "whether the network requires a login in the browser first."
        )


def _headers(token: str | bool | None) -> dict[str, str]:
    """Build the headers of every request: the user agent and, if there is one, the token."""
    if isinstance(token, str) and not (token.strip().isascii() and token.strip().isprintable()):
        raise SourceAccessError("The access token contains characters that are not allowed in a token. Copy it again.")
    try:
        headers: dict[str, str] = build_hf_headers(
            token=token.strip() or False if isinstance(token, str) else token,
            library_name="layer_surgeon",
            library_version=__version__,
        )
    except LocalTokenNotFoundError as error:
        raise SourceAccessError("There is no access token on this machine. Run `hf auth login`.") from error
    return headers


def _hub_file(sibling: dict[str, Any]) -> HubFile:
    return HubFile(
        name=sibling["rfilename"],
        size=sibling.get("size"),
        blob_id=sibling.get("blobId"),
        sha256=(sibling.get("lfs") or {}).get("sha256"),
    )
