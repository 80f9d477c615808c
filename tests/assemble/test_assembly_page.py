"""The recipes and the code on the page "Assemble models" work as written."""

import re
from collections.abc import Iterator
from pathlib import Path

import pytest

from layer_surgeon import AssembledModel
from tests.support.checkpoints import LLAMA_8B, write_sparse_checkpoint
from tests.support.command_line import surgeon_here
from tests.support.hub_reading import read_from
from tests.support.loopback_hub import LoopbackHub

PAGE = (Path(__file__).resolve().parents[2] / "docs" / "assemble.md").read_text()
BLOCKS = re.findall(r"^```(\w*)\n(.*?)^```$", PAGE, re.MULTILINE | re.DOTALL)
# The same number of layers as the real model, but tiny.
TINY = LLAMA_8B | {
    "hidden_size": 16,
    "intermediate_size": 16,
    "num_attention_heads": 2,
    "num_key_value_heads": 2,
    "vocab_size": 20,
}
LAYERS = {
    "half": range(16),
    "keep": range(4),
    "drop": [*range(21), *range(29, 32)],
    "stack": [*range(24), *range(8, 32)],
    "swap": [*range(12), 11, *range(13, 32)],
    "expand": [layer for first in range(0, 32, 4) for layer in (*range(first, first + 4), first + 3)],
    "two": [*range(20), *range(12, 32)],
    "small": [0, 2, 3],
}


@pytest.fixture
def folder(tmp_path: Path, tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """The current folder, with the two models of the page on the Hub."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("SURGEON_WORKSPACE", raising=False)
    with LoopbackHub() as hub:
        read_from(hub.endpoint, monkeypatch)
        for repo_id in ("meta-llama/Llama-3.1-8B", "NousResearch/Hermes-3-Llama-3.1-8B"):
            hub.add_repo(repo_id, write_sparse_checkpoint(tmp_path_factory.mktemp("repo"), TINY, range(32)))
        yield tmp_path


def test_every_block(folder: Path) -> None:
    for language, block in BLOCKS:
        if language == "yaml":
            (folder / block.splitlines()[0].removeprefix("# ")).write_text(block)
        elif language == "python":
            exec(compile(block, "docs/assemble.md", "exec"), {})  # noqa: S102 - our own page
        else:
            for line in block.splitlines():
                name, *arguments = [word.strip('"') for word in line.split()]
                assert name == "surgeon"
                done = surgeon_here(*arguments, cwd=folder)
                assert done.code == 0, f"{line}: {done.err}"
    made = {path.parent.name: AssembledModel.open(path.parent) for path in folder.glob("*/assembly.yaml")}
    assert {name: [layer["layer"] for layer in model.record["layers"]] for name, model in made.items()} == {
        name: list(layers) for name, layers in LAYERS.items()
    }
    for model in made.values():
        model.verify()
