"""What a loopback Hub holds: repos of models and data sets, their commits and their files. Plain data, no sockets."""

import hashlib
import json
import struct
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

# As on the Hub, where .gitattributes decides: weights are stored apart from git, and served by the CDN.
LARGE_SUFFIXES = (".safetensors", ".bin", ".gguf", ".parquet", ".pt", ".h5", ".msgpack")
# A sparse stand-in for a 5 GB shard has no hash that anyone could check; hashing its holes would take seconds.
_HASHED_UP_TO = 64 << 20
READ_BYTES = 256 << 10

FileSource = bytes | str | Path


@dataclass(frozen=True)
class Content:
    """The bytes of one file of one commit: held in memory, or read from a file on disk when they are asked for."""

    data: bytes | Path
    large: bool

    @cached_property
    def size(self) -> int:
        return len(self.data) if isinstance(self.data, bytes) else self.data.stat().st_size

    @cached_property
    def sha256(self) -> str:
        """The sha256 of the content; of its path and size where a file is too large to be hashed."""
        digest = hashlib.sha256()
        if isinstance(self.data, Path) and self.size > _HASHED_UP_TO:
            digest.update(f"{self.data} {self.size}".encode())
        else:
            for chunk in self.read(0, self.size):
                digest.update(chunk)
        return digest.hexdigest()

    @cached_property
    def oid(self) -> str:
        """The git object id: of the file, or of the pointer that git holds in a large file's place."""
        if self.large:
            pointer = f"version https://git-lfs.github.com/spec/v1\noid sha256:{self.sha256}\nsize {self.size}\n"
            return _git_blob(len(pointer), [pointer.encode()])
        return _git_blob(self.size, self.read(0, self.size))

    @property
    def etag(self) -> str:
        return self.sha256 if self.large else self.oid

    def read(self, start: int, length: int) -> Iterator[bytes]:
        """Bytes `start` to `start + length` in pieces, without holding more than one of them."""
        if isinstance(self.data, bytes):
            for position in range(start, start + length, READ_BYTES):
                yield self.data[position : min(position + READ_BYTES, start + length)]
            return
        with self.data.open("rb") as file:
            file.seek(start)
            while length > 0 and (chunk := file.read(min(READ_BYTES, length))):
                length -= len(chunk)
                yield chunk

    def whole(self) -> bytes:
        return b"".join(self.read(0, self.size))


def _git_blob(size: int, chunks: Any) -> str:
    digest = hashlib.sha1(b"blob %d\0" % size, usedforsecurity=False)
    for chunk in chunks:
        digest.update(chunk)
    return digest.hexdigest()


@dataclass
class Repo:
    """A repo: commits, the branches and tags that name them, and who may read it.

    Attributes:
        repo_id: `owner/name`, or `name` alone.
        kind: `models` or `datasets`, as in the API's paths.
        gated: False, `auto` or `manual`: everyone sees that it exists, accepted tokens read its files.
        private: Only accepted tokens see that it exists.
        accepted: The tokens that may read a gated or private repo.
        refusal: What a gated repo says to a token that it does not accept.
    """

    repo_id: str
    kind: str = "models"
    gated: bool | str = False
    private: bool = False
    accepted: set[str] = field(default_factory=set)
    refusal: str = ""
    commits: dict[str, dict[str, Content]] = field(default_factory=dict)
    refs: dict[str, str] = field(default_factory=dict)

    def commit(self, files: Mapping[str, FileSource] | Path, *, branch: str = "main", keep: bool = False) -> str:
        """Add a commit, move `branch` to it, and return its id.

        Args:
            files: The whole content: file name -> bytes, text or a path on disk; or a folder.
            branch: The branch that moves to it; it is created if need be.
            keep: Whether the files of the branch's last commit that `files` does not name stay.
        """
        contents = dict(self.commits[self.refs[branch]]) if keep else {}
        contents |= {name: _content(name, data) for name, data in _files_of(files).items()}
        digest = hashlib.sha1(f"{self.repo_id} {len(self.commits)}".encode(), usedforsecurity=False)
        for name, content in sorted(contents.items()):
            digest.update(f"{name} {content.oid}".encode())
        commit = digest.hexdigest()
        self.commits[commit] = contents
        self.refs[branch] = commit
        return commit

    def resolve(self, revision: str) -> str | None:
        """The commit that a branch, tag or commit id names."""
        return revision if revision in self.commits else self.refs.get(revision)

    def card_data(self, commit: str) -> dict[str, str]:
        """The plain `key: value` lines of the README's front matter: enough for licence and base model."""
        readme = self.commits[commit].get("README.md")
        if readme is None or not (text := readme.whole().decode()).startswith("---\n"):
            return {}
        lines = text.split("---\n", 2)[1].splitlines()
        pairs = (line.split(":", 1) for line in lines if ":" in line and not line.startswith((" ", "-")))
        return {key.strip(): value.strip() for key, value in pairs if value.strip()}

    def description(self, commit: str, *, with_blobs: bool) -> dict[str, Any]:
        """What `/api/models/<repo>` answers."""
        siblings = []
        for name, content in sorted(self.commits[commit].items()):
            entry: dict[str, Any] = {"rfilename": name}
            if with_blobs:
                entry |= {"blobId": content.oid, "size": content.size}
                if content.large:
                    entry["lfs"] = {"sha256": content.sha256, "size": content.size, "pointerSize": 134}
            siblings.append(entry)
        card = self.card_data(commit)
        return {
            "_id": commit[:24],
            "id": self.repo_id,
            "modelId": self.repo_id,
            "author": self.repo_id.partition("/")[0],
            "sha": commit,
            "gated": self.gated,
            "private": self.private,
            "disabled": False,
            "lastModified": "2026-01-01T00:00:00.000Z",
            "createdAt": "2026-01-01T00:00:00.000Z",
            "downloads": 0,
            "likes": 0,
            "tags": [f"license:{card['license']}"] if "license" in card else [],
            "cardData": card,
            "siblings": siblings,
        }

    def tree(self, commit: str, folder: str, *, recursive: bool) -> list[dict[str, Any]] | None:
        """What `/api/models/<repo>/tree/<revision>/<folder>` answers; None if there is no such folder."""
        prefix = f"{folder}/" if folder else ""
        entries: dict[str, dict[str, Any]] = {}
        for name, content in sorted(self.commits[commit].items()):
            if not name.startswith(prefix):
                continue
            parts = name[len(prefix) :].split("/")
            for depth in range(1, len(parts) if recursive else min(len(parts), 2)):
                path = prefix + "/".join(parts[:depth])
                entries.setdefault(path, {"type": "directory", "oid": commit, "size": 0, "path": path})
            if recursive or len(parts) == 1:
                entries[name] = file_entry(name, content)
        return list(entries.values()) if entries or not folder else None

    def paths_info(self, commit: str, paths: list[str]) -> list[dict[str, Any]]:
        """What `/api/models/<repo>/paths-info/<revision>` answers: paths that do not exist are left out."""
        files = self.commits[commit]
        found = []
        for path in paths:
            if path in files:
                found.append(file_entry(path, files[path]))
            elif any(name.startswith(f"{path}/") for name in files):
                found.append({"type": "directory", "oid": commit, "size": 0, "path": path})
        return found

    def safetensors_metadata(self, commit: str, index_file: str) -> dict[str, Any]:
        """What `/api/models/<repo>/safetensors-metadata/<index>` answers: the header of every shard."""
        files = self.commits[commit]
        index = json.loads(files[index_file].whole())
        headers = {}
        for shard in sorted(set(index["weight_map"].values())):
            (length,) = struct.unpack("<Q", b"".join(files[shard].read(0, 8)))
            headers[shard] = json.loads(b"".join(files[shard].read(8, length)))
        return {"index": {"metadata": index.get("metadata", {})}, "headers": headers}


def file_entry(name: str, content: Content) -> dict[str, Any]:
    """One file as `tree` and `paths-info` list it."""
    entry: dict[str, Any] = {"type": "file", "oid": content.oid, "size": content.size, "path": name}
    if content.large:
        entry["lfs"] = {"oid": content.sha256, "size": content.size, "pointerSize": 134}
    return entry


def _files_of(files: Mapping[str, FileSource] | Path) -> dict[str, FileSource]:
    if isinstance(files, Path):
        return {path.relative_to(files).as_posix(): path for path in sorted(files.rglob("*")) if path.is_file()}
    return dict(files)


def _content(name: str, data: FileSource) -> Content:
    raw = data.encode() if isinstance(data, str) else data
    return Content(raw, large=name.endswith(LARGE_SUFFIXES))
