"""Two tiny siblings of one family that all tests of this folder share. Nothing may change their folders."""

import shutil
from pathlib import Path

import pytest

from tests.support.tiny_models import save_quietly, tiny_llama

FIXTURES = Path(__file__).resolve().parents[1] / "fixtures" / "made_by_04c75f7"


@pytest.fixture(scope="session")
def siblings(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with the llamas `base` and `other`: 4 layers, float32, the same tokenizer, different licences."""
    folder = tmp_path_factory.mktemp("siblings")
    for seed, (name, licence) in enumerate({"base": "apache-2.0", "other": "llama3.1"}.items()):
        save_quietly(tiny_llama(seed=seed), folder / name)
        for file in ("tokenizer.json", "tokenizer_config.json"):
            shutil.copy(FIXTURES / "tiny-bert" / file, folder / name)
        (folder / name / "README.md").write_text(f"---\nlicense: {licence}\n---\n# A model\n")
        (folder / name / "LICENSE").write_text(f"The terms of {licence}")
        (folder / name / "chat_template.jinja").write_text("{{ messages }}")
    return folder
