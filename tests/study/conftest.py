"""Tiny substitutes for the models and data of the demo."""

from pathlib import Path

import pytest

from layer_surgeon.finetune import FinetuneConfig
from layer_surgeon.study import DemoParts, DemoResult, run_demo
from layer_surgeon.workspace import Workspace
from tests.support.classification import rows, save_host
from tests.support.tiny_models import save_quietly, tiny_llama

NAMES = ("negative", "positive")


@pytest.fixture(scope="session")
def llm(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("llm") / "tiny-llama"
    save_quietly(tiny_llama(seed=5), folder)
    return folder


@pytest.fixture(scope="session")
def parts(llm: Path, tmp_path_factory: pytest.TempPathFactory) -> DemoParts:
    def donor(folder: Path, progress: object) -> Path:
        folder.mkdir(parents=True)
        (folder / "made").write_text("once")
        return llm

    return DemoParts(
        host=save_host(tmp_path_factory.mktemp("hosts") / "host"),
        host_name="tiny-bert",
        donor=donor,
        donor_name="tiny-llama",
        train=rows(60, labels=NAMES),
        train_name="films",
        others={"shops": rows(20, seed=1, labels=NAMES), "<food>": rows(20, seed=2, labels=NAMES)},
    )


@pytest.fixture(scope="session")
def config() -> FinetuneConfig:
    return FinetuneConfig(num_epochs=2, batch_size=8, learning_rate=1e-3)


@pytest.fixture(scope="session")
def result(parts: DemoParts, config: FinetuneConfig, tmp_path_factory: pytest.TempPathFactory) -> DemoResult:
    """A complete demo, run once. Tests only read its folder."""
    return run_demo(Workspace(tmp_path_factory.mktemp("demo")), parts=parts, config=config, seeds=(1, 2))
