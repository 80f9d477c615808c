"""Find and read files in the local Hub cache, next to the Hub or instead of it."""

import logging
from collections.abc import Iterable
from io import FileIO
from pathlib import Path, PurePosixPath

from huggingface_hub import constants

from layer_surgeon._folders import resolve_blob
from layer_surgeon.checkpoint.sources.hub_ranges import HubFile
from layer_surgeon.checkpoint.sources.local import COMMIT, FolderSource
from layer_surgeon.checkpoint.sources.papers import README_FILE, is_licence_file
from layer_surgeon.checkpoint.sources.shards import (
    INDEX_FILES,
    MAX_INDEX_BYTES,
    WEIGHTS,
    shards_of_index,
    without_other_models,
)
from layer_surgeon.errors import SourceError, SourceNotFoundError

_LOGGER = logging.getLogger(__name__)


class HubCache:
    """The part of the local Hub cache (HF_HUB_CACHE, HF_HOME) that belongs to one model repo.

    Args:
        repo_id: The repo.
    """

    def __init__(self, repo_id: str) -> None:
        self.root = Path(constants.HF_HUB_CACHE) / f"models--{repo_id.replace('/', '--')}"

    def snapshot(self, commit: str) -> Path | None:
        """Return the folder with the downloaded files of a commit, or None if there is none."""
        folder = self.root / "snapshots" / commit
        return folder if COMMIT.fullmatch(commit) and folder.is_dir() else None

    def commit_of(self, revision: str) -> str | None:
        """Return the commit that a branch or tag pointed to when it was last downloaded.

        Any other revision is returned unchanged, because it may be a commit.
        """
        if ".." in revision.split("/") or revision.startswith("/"):
            return None
        try:
            return (self.root / "refs" / revision).read_text().strip()
        except (OSError, ValueError):
            return revision


class CachedFiles:
    """The files of one commit that are complete in the local cache and match what the Hub lists.

    Args:
        repo_id: The repo.
        commit: The commit that is read.
    """

    def __init__(self, repo_id: str, commit: str) -> None:
        snapshot = HubCache(repo_id).snapshot(commit)
        self._folder = FolderSource(snapshot, name=str(snapshot)) if snapshot is not None else None
        self._valid: dict[str, bool] = {}

    def find(self, file: HubFile) -> FolderSource | None:
        """Return the local folder that holds `file`; None if it must be read from the Hub."""
        if self._folder is None:
            return None
        if file.name not in self._valid:
            self._valid[file.name] = self._is_valid(self._folder, file)
        return self._folder if self._valid[file.name] else None

    def _is_valid(self, folder: FolderSource, file: HubFile) -> bool:
        path = folder.root / file.name
        if not path.is_file() or file.size is None:
            return False
        size = folder.size(file.name)
        # The name of a blob is the hash that the Hub lists. Without support for links, the cache holds the file itself.
        blob = resolve_blob(path).name if path.is_symlink() else None
        if size == file.size and (blob is None or blob in (file.sha256, file.blob_id)):
            return True
        _LOGGER.warning(
            "%s differs from what the Hub lists (%d bytes instead of %d, or another hash). Reading it from the Hub.",
            path,
            size,
            file.size,
        )
        return False


class CachedHubSource(FolderSource):
    """The part of a model repo that is in the local Hub cache, for machines that work offline.

    Args:
        repo_id: The repo, such as `meta-llama/Llama-3.1-8B`.
        revision: A branch, tag or commit, in its state at the last download; None is the main branch.
        path: A subfolder of the repo, or a checkpoint file in it; empty for all of the repo.

    Raises:
        SourceError: The cache has no files of this revision, or no weights.
    """

    kind = "hub"

    def __init__(self, repo_id: str, *, revision: str | None = None, path: str = "") -> None:
        cache = HubCache(repo_id)
        commit = cache.commit_of(revision or "main")
        snapshot = cache.snapshot(commit) if commit is not None else None
        if snapshot is None:
            description = f"the revision {revision}" if revision else "its main branch"
            raise SourceError(
                f"HF_HUB_OFFLINE is set, and the local Hub cache {cache.root} has no files of the repo {repo_id} at "
                f"{description}. Unset HF_HUB_OFFLINE, download the repo with `hf download {repo_id}` while online, or "
                "give the path of a local folder with the checkpoint."
            )
        super().__init__(snapshot, name=f"{repo_id}/{path}" if path else repo_id)
        self.repo_id = repo_id
        cached_files = [cached.relative_to(self.root).as_posix() for cached in self.root.rglob("*") if cached.is_file()]
        self._repo_path_of = part_of_repo(cached_files, path)
        if not any(file.endswith(WEIGHTS) for file in self._repo_path_of):
            raise SourceError(
                f"HF_HUB_OFFLINE is set, and the local Hub cache has no weights of {self.name} at commit "
                f"{self.commit}. It only has {', '.join(sorted(self._repo_path_of)[:5]) or 'nothing'}. Unset "
                f"HF_HUB_OFFLINE, or get the weights with `hf download {repo_id}`."
            )

    def list_files(self) -> dict[str, int | None]:
        """Return the cached files and, with size None, the shards that an index names but the cache lacks."""
        files: dict[str, int | None] = {file: self.size(file) for file in self._repo_path_of}
        for index in INDEX_FILES:
            if (files.get(index) or MAX_INDEX_BYTES) < MAX_INDEX_BYTES:
                for shard in shards_of_index(self.read_file(index, MAX_INDEX_BYTES)):
                    files.setdefault(shard, None)
        return dict(sorted(files.items()))

    def _path_of(self, file: str) -> Path:
        return super()._path_of(self._repo_path_of.get(file, file))

    def _open(self, file: str) -> FileIO:
        if file not in self._repo_path_of:
            raise SourceNotFoundError(
                f"{file} of {self.name} at commit {self.commit} is not in the local Hub cache, and HF_HUB_OFFLINE is "
                f"set. Unset it, or download the file with `hf download {self.repo_id} {file}`."
            )
        return super()._open(file)


def part_of_repo(files: Iterable[str], path: str) -> dict[str, str]:
    """Select the files of a subfolder, or one checkpoint file and its neighbours.

    If the file is one part of a split model, the other parts are selected too.

    Args:
        files: The files of the repo.
        path: The subfolder or file; empty for the whole repo.

    Returns:
        The path in the repo of each file, by its path relative to the subfolder. A subfolder without a model card or
        licence files has those of the repo. Empty if `path` does not exist.
    """
    files = list(files)
    if path in files:
        folder = PurePosixPath(path).parent
        neighbours = {PurePosixPath(file).name: file for file in files if PurePosixPath(file).parent == folder}
        part = without_other_models(neighbours, PurePosixPath(path).name)
    else:
        prefix = f"{path}/" if path else ""
        part = {file.removeprefix(prefix): file for file in files if file.startswith(prefix)}
    papers = {file: file for file in files if file == README_FILE or is_licence_file(file)}
    return {**papers, **part} if part else {}
