"""mergekit's passthrough examples through both tools. Needs mergekit in .venv-peers, where `make bench` installs it."""

import os
import subprocess
from pathlib import Path
from textwrap import dedent

import pytest

from benchmarks.peers import PEERS
from layer_surgeon import assemble_model
from tests.assemble.test_assemble import raw_tensors
from tests.assemble.test_recipe import MERGEKIT
from tests.support.tiny_models import save_quietly, tiny_model

FAMILIES = ("llama", "mistral", "qwen2")
# One process for all recipes: mergekit takes seconds to start.
MERGE = """
import sys
from pathlib import Path
import yaml
from mergekit.config import MergeConfiguration
from mergekit.merge import run_merge
from mergekit.options import MergeOptions
for path in map(Path, sys.argv[1:]):
    config = MergeConfiguration.model_validate(yaml.safe_load(path.read_text()))
    try:
        run_merge(config, str(path.with_suffix("")), MergeOptions(copy_tokenizer=False, quiet=True))
    except Exception as error:
        # mergekit 0.1.5 writes the weights, and then fails on configs with one setting per layer, as of Qwen2.
        if "layer_types" not in str(error.__cause__):
            raise
"""


@pytest.mark.slow
@pytest.mark.skipif(not (PEERS / "python").exists(), reason="mergekit is not installed: make bench")
def test_both_tools_write_the_same_tensors(tmp_path: Path) -> None:
    recipes = []
    for family in FAMILIES:
        folder = tmp_path / family
        for seed, name in enumerate(("one", "two")):
            save_quietly(tiny_model(family, seed=seed, num_hidden_layers=3), folder / name)
        for name, (text, _, _) in MERGEKIT.items():
            recipe = folder / f"{name.replace(' ', '-')}.yaml"
            for model in ("one", "two"):
                text = text.replace(f"model: {model}", f"model: {folder / model}")
            recipe.write_text(dedent(text))
            recipes.append(recipe)
    environment = os.environ | {"HF_HUB_OFFLINE": "1", "OMP_NUM_THREADS": "1"}
    command = [str(PEERS / "python"), "-c", MERGE, *map(str, recipes)]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    for recipe in recipes:
        ours = raw_tensors(assemble_model(str(recipe), recipe.with_suffix(".ours")).path)
        assert ours == raw_tensors(recipe.with_suffix("")), recipe
    assert len(recipes) == len(FAMILIES) * len(MERGEKIT)
