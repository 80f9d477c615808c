"""What of a Hub repo already lies in the local Hub cache, and repos that are read from there alone."""

import logging
import re
from collections.abc import Iterable
from io import FileIO
from pathlib import Path, PurePosixPath

from huggingface_hub import constants
from huggingface_hub.file_download import repo_folder_name

from layer_surgeon.checkpoint.sources.hub_ranges import HubFile
from layer_surgeon.checkpoint.sources.local import FolderSource
from layer_surgeon.checkpoint.sources.shards import (
    INDEX_FILES,
    MAX_INDEX_BYTES,
    WEIGHTS,
    shards_of_index,
    without_other_models,
)
from layer_surgeon.errors import SourceError, SourceNotFoundError

_LOGGER = logging.getLogger(__name__)
_COMMIT = re.compile(r"[0-9a-f]{40}")


class HubCache:
    """The part of the local Hub cache (HF_HUB_CACHE, HF_HOME) that belongs to one model repo.

    Args:
        repo_id: The repo.
    """

    def __init__(self, repo_id: str) -> None:
        self.root = Path(constants.HF_HUB_CACHE) / repo_folder_name(repo_id=repo_id, repo_type="model")

    def snapshot(self, commit: str) -> Path | None:
        """The folder with the files of a commit, as far as they were downloaded."""
        folder = self.root / "snapshots" / commit
        return folder if _COMMIT.fullmatch(commit) and folder.is_dir() else None

    def commit_of(self, revision: str) -> str | None:
        """The commit that a branch or tag was when it was last downloaded; a commit is itself."""
        if ".." in revision.split("/") or revision.startswith("/"):
            return None
        try:
            return (self.root / "refs" / revision).read_text().strip()
        except (OSError, ValueError):
            return revision


class CachedFiles:
    """The files of one commit that are in the local cache whole, and are what the Hub lists.

    Args:
        repo_id: The repo.
        commit: The commit that is read.
    """

    def __init__(self, repo_id: str, commit: str) -> None:
        snapshot = HubCache(repo_id).snapshot(commit)
        self._folder = FolderSource(snapshot, name=str(snapshot)) if snapshot is not None else None
        self._good: dict[str, bool] = {}

    def find(self, file: HubFile) -> FolderSource | None:
        """The folder from which `file` can be read instead of from the Hub; None where it has to be asked."""
        if self._folder is None:
            return None
        if file.name not in self._good:
            self._good[file.name] = self._is_good(self._folder, file)
        return self._folder if self._good[file.name] else None

    def _is_good(self, folder: FolderSource, file: HubFile) -> bool:
        path = folder.root / file.name
        if not path.is_file() or file.size is None:
            return False
        size = folder.size(file.name)
        # A blob is named by the hash that the Hub lists. Where links are not possible the file itself lies there.
        blob = path.resolve().name if path.is_symlink() else None
        if size == file.size and (blob is None or blob in (file.sha256, file.blob_id)):
            return True
        _LOGGER.warning(
            "%s is not what the Hub lists (%d bytes, and not %d; or another hash), and is read from the Hub instead.",
            path,
            size,
            file.size,
        )
        return False


class CachedHubSource(FolderSource):
    """A model repo as far as it lies in the local Hub cache, for machines that may not ask the Hub.

    Args:
        repo_id: The repo, such as `meta-llama/Llama-3.1-8B`.
        revision: A branch, tag or commit; None is the main branch, as it was when it was last downloaded.
        path: A subfolder of the repo, or a checkpoint file in it; empty for all of the repo.

    Raises:
        SourceError: The cache has nothing of this revision, or no weights.
    """

    kind = "hub"

    def __init__(self, repo_id: str, *, revision: str | None = None, path: str = "") -> None:
        cache = HubCache(repo_id)
        commit = cache.commit_of(revision or "main")
        snapshot = cache.snapshot(commit) if commit is not None else None
        if snapshot is None:
            wanted = f"the revision {revision}" if revision else "its main branch"
            raise SourceError(
                f"The repo {repo_id} lies on the Hub, and HF_HUB_OFFLINE is set, so that the Hub may not be asked; the "
                f"local cache {cache.root} has nothing of {wanted}. Unset HF_HUB_OFFLINE, get the repo with "
                f"`hf download {repo_id}` where it may, or give the path of a local folder with the checkpoint."
            )
        super().__init__(snapshot, name=f"{repo_id}/{path}" if path else repo_id)
        self._repo_id = repo_id
        present = [found.relative_to(self.root).as_posix() for found in self.root.rglob("*") if found.is_file()]
        self._part = part_of_repo(present, path)
        if not any(file.endswith(WEIGHTS) for file in self._part):
            raise SourceError(
                f"HF_HUB_OFFLINE is set, and of {self.name} at commit {self.commit} the local cache has only "
                f"{', '.join(sorted(self._part)[:5]) or 'nothing'}: no weights. Unset HF_HUB_OFFLINE, or get them "
                f"with `hf download {repo_id}`."
            )

    def list_files(self) -> dict[str, int | None]:
        """The files that are in the cache and, with unknown size, the shards that an index names and that are not."""
        files: dict[str, int | None] = {file: self.size(file) for file in self._part}
        for index in INDEX_FILES:
            if (files.get(index) or MAX_INDEX_BYTES) < MAX_INDEX_BYTES:
                for shard in shards_of_index(self.read_file(index, MAX_INDEX_BYTES)):
                    files.setdefault(shard, None)
        return dict(sorted(files.items()))

    def _path_of(self, file: str) -> Path:
        return super()._path_of(self._part.get(file, file))

    def _open(self, file: str) -> FileIO:
        if file not in self._part:
            raise SourceNotFoundError(
                f"{file} of {self.name} at commit {self.commit} is not in the local Hub cache, and HF_HUB_OFFLINE is "
                f"set. Unset it, or get the file with `hf download {self._repo_id} {file}`."
            )
        return super()._open(file)


def part_of_repo(files: Iterable[str], path: str) -> dict[str, str]:
    """The files of a subfolder, or of one checkpoint file and what lies beside it, by their names there.

    With one part of a split model go the others.

    Args:
        files: The files of the repo.
        path: The subfolder or file; empty for all of the repo.

    Returns:
        The name in the repo of each file, by its name in the part; empty where there is no such part.
    """
    files = list(files)
    if path not in files:
        prefix = f"{path}/" if path else ""
        return {file.removeprefix(prefix): file for file in files if file.startswith(prefix)}
    folder = PurePosixPath(path).parent
    beside = {PurePosixPath(file).name: file for file in files if PurePosixPath(file).parent == folder}
    return without_other_models(beside, PurePosixPath(path).name)
