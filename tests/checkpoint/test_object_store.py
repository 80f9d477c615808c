"""Checkpoints in object stores and other fsspec file systems."""

import os
from pathlib import Path
from typing import Any

import fsspec
import pytest

from layer_surgeon.checkpoint.sources import open_source
from layer_surgeon.checkpoint.sources.fsspec_files import PIECE_BYTES, FsspecFiles
from layer_surgeon.errors import LayerSurgeonError, SourceAccessError, SourceChangedError, SourceError
from tests.support.url_checkpoints import SHARD, content_of, same_layer

pytestmark = pytest.mark.usefixtures("impatient")


def test_an_object_store(memory: dict[str, bytes]) -> None:
    source = open_source("memory://store/m/")
    assert (source.name, source.kind, source.commit) == ("memory://store/m", "url", None)
    assert source.list_files() == {
        "LICENSE": 0,
        "config.json": 8,
        "model.safetensors": len(SHARD),
        "other.gguf": 4,
    }
    assert source.read_file("config.json", 8) == b'{"a": 1}'
    assert source.read_range("model.safetensors", 5, len(SHARD) - 5) == SHARD[5:]
    with pytest.raises(SourceError, match="ends at byte"):
        source.read_range("model.safetensors", 5, len(SHARD))
    with pytest.raises(SourceError, match="the limit of 7"):
        source.read_file("config.json", 7)
    assert open_source("memory://store/m/other.gguf").list_files() == {"LICENSE": 0, "config.json": 8, "other.gguf": 4}


def test_a_layer_from_an_object_store(donor: Path, tmp_path: Path) -> None:
    system = fsspec.filesystem("memory")
    for name, content in content_of(donor).items():
        system.pipe_file(f"/bucket/tiny/{name}", content)
    artifact = same_layer("memory://bucket/tiny", donor, tmp_path)
    assert artifact.config["source"]["name"] == "memory://bucket/tiny"
    system.rm("/bucket", recursive=True)


def test_an_object_that_is_replaced_is_noticed(memory: dict[str, bytes]) -> None:
    source = open_source("memory://store/m")
    source.read_range("model.safetensors", 0, 10)
    fsspec.filesystem("memory").pipe_file("/store/m/model.safetensors", bytes(len(SHARD)))
    with pytest.raises(SourceChangedError, match="changed while it was being read"):
        source.read_range("model.safetensors", 10, 10)


@pytest.mark.parametrize(
    ("spoil", "words"),
    [
        (lambda content: content[:-1], "sent only 99 of the 100 requested bytes"),
        (lambda content: content + b"x", "can't serve parts of files"),
    ],
    ids=["short", "long"],
)
def test_an_object_store_that_miscounts(
    memory: dict[str, bytes], monkeypatch: pytest.MonkeyPatch, spoil: Any, words: str
) -> None:
    system = type(fsspec.filesystem("memory"))
    right = system.cat_file
    monkeypatch.setattr(system, "cat_file", lambda self, *args, **kwargs: spoil(right(self, *args, **kwargs)))
    with pytest.raises(SourceError, match=words):
        open_source("memory://store/m").read_range("model.safetensors", 10, 100)


def test_an_object_store_with_temporary_errors(memory: dict[str, bytes], monkeypatch: pytest.MonkeyPatch) -> None:
    system = type(fsspec.filesystem("memory"))
    right, left = system.cat_file, [TimeoutError(), ConnectionResetError()]

    def stumble(self: Any, *args: Any, **kwargs: Any) -> bytes:
        if left:
            raise left.pop()
        content: bytes = right(self, *args, **kwargs)
        return content

    monkeypatch.setattr(system, "cat_file", stumble)
    assert open_source("memory://store/m").read_range("model.safetensors", 10, 100) == SHARD[10:110]


def test_pieces_stay_small_and_nothing_is_read_ahead(tmp_path: Path) -> None:
    """In a file system that only has `open`, such as sftp, fsspec's default reads 5 MiB more for each range."""
    content = os.urandom(PIECE_BYTES + 1000)
    (tmp_path / "model.safetensors").write_bytes(content)
    files = FsspecFiles(f"file://{tmp_path}")
    assert type(files._fs).cat_file is fsspec.AbstractFileSystem.cat_file
    pieces = list(files.read("model.safetensors", 10, len(content) - 10, files.stat("model.safetensors")))
    assert [len(piece) for piece in pieces] == [PIECE_BYTES, 990]
    assert b"".join(pieces) == content[10:]


def test_a_store_whose_package_is_missing(monkeypatch: pytest.MonkeyPatch) -> None:
    def missing(*_args: object, **_settings: object) -> None:
        raise ImportError("Install s3fs to access S3")

    monkeypatch.setattr(fsspec.core, "url_to_fs", missing)
    with pytest.raises(SourceError, match="pip install s3fs"):
        open_source("s3://bucket/prefix")


def test_every_error_is_a_source_error(memory: dict[str, bytes], monkeypatch: pytest.MonkeyPatch) -> None:
    class NoCredentialsError(Exception):
        """An error without a builtin base class, such as botocore's."""

    def refuse(self: object, *_args: object, **_settings: object) -> None:
        raise NoCredentialsError("Unable to locate credentials")

    monkeypatch.setattr(type(fsspec.filesystem("memory")), "ls", refuse)
    with pytest.raises(SourceAccessError, match="Log in"):
        open_source("memory://store/m")
    assert issubclass(SourceAccessError, LayerSurgeonError)
