"""A tiny graft in a folder, made once."""

from pathlib import Path
from typing import Any

import pytest
from transformers.utils import logging

from layer_surgeon.graft import GraftConfig, save_graft
from layer_surgeon.workspace import Workspace
from tests.support.classification import save_host
from tests.support.tiny_models import cut_artifact, save_quietly, tiny_llama


@pytest.fixture(autouse=True)
def _no_bars() -> Any:
    logging.disable_progress_bar()
    yield
    logging.enable_progress_bar()


@pytest.fixture
def workspace(tmp_path: Path) -> Workspace:
    return Workspace(tmp_path / "surgery")


@pytest.fixture(scope="session")
def host(tmp_path_factory: pytest.TempPathFactory) -> Path:
    logging.disable_progress_bar()
    return save_host(tmp_path_factory.mktemp("hosts") / "tiny-bert")


@pytest.fixture(scope="session")
def artifact(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Layer 3 of a tiny Llama."""
    folder = tmp_path_factory.mktemp("donors")
    save_quietly(tiny_llama(seed=5), folder / "llm")
    return cut_artifact(folder / "llm", [3], folder / "tiny-llama-L3")


@pytest.fixture(scope="session")
def graft(host: Path, artifact: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A stored graft of the two, with two labels."""
    root = tmp_path_factory.mktemp("grafts")
    return save_graft(
        host,
        artifact,
        config=GraftConfig(),
        output=root / "tiny-bert+tiny-llama-L3",
        seed=7,
        workspace=Workspace(root / "surgery"),
    ).path
