"""Fixtures of the checkpoint tests: a Hub on loopback, and readers with short waits."""

from collections.abc import Iterator
from pathlib import Path

import fsspec
import pytest
from huggingface_hub import constants

from layer_surgeon.checkpoint.sources.fsspec_files import FsspecFiles
from layer_surgeon.checkpoint.sources.http_files import HttpFiles
from layer_surgeon.checkpoint.sources.hub import HubSource
from layer_surgeon.checkpoint.sources.retry import HubLimits
from tests.support.checkpoints import TINY, write_sparse_checkpoint
from tests.support.loopback_hub import LoopbackHub
from tests.support.url_checkpoints import FOLDER


@pytest.fixture
def hub(monkeypatch: pytest.MonkeyPatch) -> Iterator[LoopbackHub]:
    """An empty Hub. Its readers retry immediately and don't send the token of the current user."""
    monkeypatch.setattr(HubSource, "limits", HubLimits(base_wait=0.001, max_wait=0.002, read_timeout=5.0))
    # Telemetry sends a request to the real Hub once a day.
    monkeypatch.setattr(constants, "HF_HUB_DISABLE_TELEMETRY", True)
    monkeypatch.setattr(constants, "HF_HUB_DISABLE_IMPLICIT_TOKEN", True)
    with LoopbackHub() as hub:
        yield hub


@pytest.fixture
def impatient(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let readers of URLs other than the Hub's retry immediately."""
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
