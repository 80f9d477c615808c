"""Every format gives the same layer from every place, and the table in the docs lists exactly these combinations."""

import re
from collections.abc import Iterator
from functools import partial
from pathlib import Path

import fsspec
import pytest
import s3fs
import torch

from layer_surgeon import LayerArtifact, extract_layer
from layer_surgeon.checkpoint.sources import hub as hub_module
from layer_surgeon.checkpoint.sources.hub import HubSource
from tests.support.checkpoints import TINY, write_sparse_checkpoint
from tests.support.gguf_models import write_model
from tests.support.http_folder import HttpFolder
from tests.support.loopback_hub import LoopbackHub
from tests.support.s3_server import IGNORED, run_s3
from tests.support.torch_files import tiny_state_dict, write_checkpoint

pytestmark = pytest.mark.filterwarnings(IGNORED)
PAGE = Path(__file__).resolve().parents[2] / "docs" / "checkpoint.md"
FORMATS = ("safetensors", "safetensors, sharded", "PyTorch `.bin`", "PyTorch `.bin`, sharded", "GGUF", "GGUF, split")
PLACES = ("folder", "Hub", "part of a repo", "web server", "S3", "`memory://`")


def make(form: str, folder: Path) -> tuple[Path, str]:
    """Make a tiny checkpoint; return its folder, and the file to name it by (empty for the folder itself)."""
    if form.startswith("safetensors"):
        limit = 60_000 if "sharded" in form else 1 << 40
        write_sparse_checkpoint(folder, TINY, [0, 1, 2], max_shard_bytes=limit)
        if "sharded" in form:
            return folder, ""
        (folder / "model.safetensors.index.json").unlink()
        next(folder.glob("*.safetensors")).rename(folder / "model.safetensors")
        return folder, "model.safetensors"
    if form.startswith("PyTorch"):
        write_checkpoint(folder, tiny_state_dict(torch.bfloat16), shards=3 if "sharded" in form else 0)
        return folder, "" if "sharded" in form else "pytorch_model.bin"
    folder.mkdir()
    path = write_model(
        folder / "model.gguf", "llama", "Q8_0", split={"split_max_tensors": 8} if "split" in form else None
    )
    if "split" in form:
        path.unlink()
        return folder, "model-00002-of-00003.gguf"
    return folder, path.name


@pytest.fixture(scope="module", params=FORMATS)
def made(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, str, LayerArtifact]:
    folder, file = make(request.param, tmp_path_factory.mktemp("made") / "model")
    (folder / "LICENSE").write_text("terms")
    return folder, file, extract_layer(folder, -1, tmp_path_factory.mktemp("expected") / "layer")


@pytest.fixture(scope="module")
def bucket() -> Iterator[s3fs.S3FileSystem]:
    with run_s3() as store:
        yield store


@pytest.fixture
def urls(
    made: tuple[Path, str, LayerArtifact], bucket: s3fs.S3FileSystem, monkeypatch: pytest.MonkeyPatch
) -> Iterator[dict[str, str]]:
    """The name of the checkpoint in each place."""
    folder, file, _ = made
    files = {path.name: path.read_bytes() for path in folder.iterdir()}
    memory = fsspec.filesystem("memory")
    for name, content in files.items():
        memory.pipe_file(f"/matrix/{name}", content)
        bucket.pipe_file(f"bucket/models/{name}", content)
    with LoopbackHub() as hub, HttpFolder({f"m/{name}": content for name, content in files.items()}) as web:
        monkeypatch.setattr(hub_module, "HubSource", partial(HubSource, endpoint=hub.endpoint))
        hub.add_repo("owner/flat", folder)
        hub.add_repo("owner/deep", {f"sub/{name}": content for name, content in files.items()})
        # A web server has no listing, so a file without a standard name must be part of the URL.
        file_path = f"/{file}" if file.endswith(".gguf") else ""
        yield {
            "folder": str(folder / file),
            "Hub": "owner/flat",
            "part of a repo": f"hf://owner/deep/sub/{file}".rstrip("/"),
            "web server": f"{web.url}/m{file_path}",
            "S3": f"s3://bucket/models/{file}",
            "`memory://`": f"memory://matrix/{file}",
        }
    memory.rm("/matrix", recursive=True)
    bucket.rm("bucket/models", recursive=True)


@pytest.mark.parametrize("place", PLACES)
def test_layer_is_the_same_from_every_place(
    made: tuple[Path, str, LayerArtifact], urls: dict[str, str], place: str, tmp_path: Path
) -> None:
    artifact = extract_layer(urls[place], -1, tmp_path / "layer")
    artifact.verify()
    assert artifact.sha256 == made[2].sha256
    assert (artifact.path / "LICENSE").read_text() == "terms"


def test_docs_list_the_tested_combinations() -> None:
    rows = [re.split(r"\s*\|\s*", line.strip("| ")) for line in PAGE.read_text().splitlines() if line.startswith("|")]
    head = next(position for position, row in enumerate(rows) if row[0] == "format" and row[1] == "folder")
    assert tuple(rows[head][1:]) == PLACES
    assert {row[0]: row[1:] for row in rows[head + 2 : head + 2 + len(FORMATS)]} == {
        form: ["tested"] * len(PLACES) for form in FORMATS
    }
