"""A Hub on loopback for the tests of this room, and readers that do not wait long."""

from collections.abc import Iterator
from pathlib import Path

import fsspec
import pytest
from huggingface_hub import constants

from layer_surgeon.checkpoint.sources.fsspec_files import FsspecFiles
from layer_surgeon.checkpoint.sources.http_files import HttpFiles
from layer_surgeon.checkpoint.sources.hub import HubSource
from layer_surgeon.checkpoint.sources.hub_errors import HubLimits
from tests.support.checkpoints import TINY, write_sparse_checkpoint
from tests.support.loopback_hub import LoopbackHub
from tests.support.url_checkpoints import FOLDER


@pytest.fixture
def hub(monkeypatch: pytest.MonkeyPatch) -> Iterator[LoopbackHub]:
    """A Hub without repos. Whoever reads from it repeats at once, and sends no token of the machine's user."""
    monkeypatch.setattr(HubSource, "limits", HubLimits(base_wait=0.001, max_wait=0.002, read_timeout=5.0))
    # Telemetry asks the real Hub for a list once a day.
    monkeypatch.setattr(constants, "HF_HUB_DISABLE_TELEMETRY", True)
    monkeypatch.setattr(constants, "HF_HUB_DISABLE_IMPLICIT_TOKEN", True)
    with LoopbackHub() as hub:
        yield hub


@pytest.fixture
def impatient(monkeypatch: pytest.MonkeyPatch) -> None:
    """Readers of other URLs than a Hub's that repeat at once."""
    limits = HubLimits(base_wait=0.001, max_wait=0.002, read_timeout=5.0)
    monkeypatch.setattr(HttpFiles, "limits", limits)
    monkeypatch.setattr(FsspecFiles, "limits", limits)


@pytest.fixture
def memory() -> Iterator[dict[str, bytes]]:
    """The files at memory://store/m."""
    system = fsspec.filesystem("memory")
    for name, content in FOLDER.items():
        system.pipe_file(f"/store/{name}", content)
    yield FOLDER
    system.rm("/store", recursive=True)


@pytest.fixture(scope="module")
def donor(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = write_sparse_checkpoint(tmp_path_factory.mktemp("donor"), TINY, [0, 1, 2], max_shard_bytes=120_000)
    (folder / "LICENSE").write_text("terms")
    return folder
