"""The commands and the code on the page "Read one layer" work as written."""

import re
from functools import partial
from pathlib import Path

import pytest

from layer_surgeon.checkpoint.sources import hub as hub_module
from layer_surgeon.checkpoint.sources.hub import HubSource
from tests.support.checkpoints import LLAMA_8B, write_sparse_checkpoint
from tests.support.command_line import surgeon, surgeon_forked
from tests.support.gguf_models import write_model
from tests.support.loopback_hub import LoopbackHub
from tests.support.small_tokenizers import word_level, wordpiece

ROOT = Path(__file__).resolve().parents[2]
BLOCKS = re.findall(r"^```(python)?\n(.*?)^```", (ROOT / "docs" / "extract.md").read_text(), re.MULTILINE | re.DOTALL)
# The same number of layers as the real model, but tiny.
TINY = LLAMA_8B | {
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "vocab_size": 40,
}


@pytest.fixture(scope="module")
def donor(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = write_sparse_checkpoint(tmp_path_factory.mktemp("donor"), TINY, range(32))
    return word_level(["<unk>", "A", "text.", "Another", "one.", *(f"w{number}" for number in range(35))], folder)


@pytest.mark.slow
def test_commands(donor: Path, tmp_path: Path) -> None:
    write_model(tmp_path / "model-Q4_K_M.gguf", "llama", "Q8_0")
    commands = [line for language, block in BLOCKS if not language for line in block.splitlines()]
    assert len(commands) >= 9
    with LoopbackHub() as hub:
        hub.add_repo("meta-llama/Llama-3.1-8B", donor)
        hub.add_repo("bert-base-uncased", wordpiece(["w3", "##w4"], tmp_path / "host"))
        for command in commands:
            name, *arguments = command.split()
            assert name == "surgeon"
            run = surgeon_forked if "--vocabulary" in arguments else surgeon  # needs torch
            done = run(*arguments, cwd=tmp_path, env={"HF_ENDPOINT": hub.endpoint})
            assert done.code == 0, f"{command}: {done.err}"


def test_code(donor: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("SURGEON_WORKSPACE", raising=False)
    code = [block for language, block in BLOCKS if language == "python"]
    assert code
    with LoopbackHub() as hub:
        hub.add_repo("meta-llama/Llama-3.1-8B", donor)
        monkeypatch.setattr(hub_module, "HubSource", partial(HubSource, endpoint=hub.endpoint))
        for block in code:
            exec(compile(block, "docs/extract.md", "exec"), {})  # noqa: S102 - our own page
    assert (tmp_path / "surgery" / "layers").is_dir()
