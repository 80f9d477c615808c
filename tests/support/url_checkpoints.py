"""What the tests of checkpoints at URLs read: a small folder, and a donor whose layer must be the same anywhere."""

import os
from pathlib import Path

import layer_surgeon as ls
from layer_surgeon.checkpoint.sources import CHUNK_BYTES

SHARD = os.urandom(3 * CHUNK_BYTES + 12_345)
FOLDER = {"m/model.safetensors": SHARD, "m/config.json": b'{"a": 1}', "m/LICENSE": b"", "m/other.gguf": b"GGUF"}


def content_of(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir()}


def same_layer(source: str, donor: Path, tmp_path: Path) -> ls.LayerArtifact:
    """The layer at `source`, after its weights have proved to be those of the local folder."""
    expected = ls.extract_layer(donor, -1, tmp_path / "expected")
    found = ls.extract_layer(source, -1, tmp_path / "found")
    assert found.sha256 == expected.sha256
    assert (found.path / "LICENSE").read_text() == "terms"
    return found
