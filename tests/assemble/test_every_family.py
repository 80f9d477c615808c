"""Models assembled from layers of every family compute what these layers compute in their own places, or are refused.

Loaded with plain `AutoModelForCausalLM`; `tests.support.assembly_walk` has the reference.
"""

import json

import pytest
import torch
import transformers

from layer_surgeon import AssemblyRecipe, assemble_model
from layer_surgeon.errors import CheckpointError, UnsupportedArchitectureError
from tests.support.assembly_walk import LAYERS, SELECTIONS, Family, is_family, load_logits, relative_difference
from tools import generate_assembly_families as tool
from tools.assembly_page import page

TABLE = json.loads(tool.OUTPUT.read_text())
FAMILIES = sorted(name for name in (*TABLE["families"], *TABLE["refused"]) if is_family(name))
SAME_VERSION = transformers.__version__ == TABLE["transformers"]
HOW_TO_UPDATE = "run tools/generate_assembly_families.py"


def test_page_shows_the_table():
    assert tool.PAGE.read_text() == page(TABLE), HOW_TO_UPDATE


def test_most_families_do_everything():
    refusals = {name: set(family.get("refuses", ())) for name, family in TABLE["families"].items()}
    assert sum(not refused & set(SELECTIONS) for refused in refusals.values()) >= 120
    assert sum("exact_expansion" in family for family in TABLE["families"].values()) >= 60


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("model_type", FAMILIES)
def test_family(model_type, tmp_path):
    try:
        tiny = Family(model_type, tmp_path)
    except RuntimeError:
        if SAME_VERSION:
            raise
        pytest.skip(f"transformers {transformers.__version__} can't build a tiny {model_type}")
    refuses = TABLE["families"].get(model_type, {}).get("refuses", {})
    for name, selection in SELECTIONS.items():
        recipe = AssemblyRecipe.of(
            tiny.folders[0],
            layers=[layer for _, layer in selection],
            replace={
                position: (tiny.folders[model], layer) for position, (model, layer) in enumerate(selection) if model
            },
        )
        if not is_assembled(recipe, tmp_path / name):
            assert model_type in TABLE["refused"] or name in refuses or not SAME_VERSION, HOW_TO_UPDATE
            continue
        assert name not in refuses or not SAME_VERSION, HOW_TO_UPDATE
        logits = load_logits(tmp_path / name, tiny.input_ids)
        assert relative_difference(logits, tiny.expected(selection)) <= tool.MAX_DIFFERENCE, name
    recipe = AssemblyRecipe.of(tiny.folders[0], layers=list(range(LAYERS)), expand=2)
    if not is_assembled(recipe, tmp_path / "expand"):
        assert model_type in TABLE["refused"] or "expand" in refuses or not SAME_VERSION, HOW_TO_UPDATE
        return
    logits = load_logits(tmp_path / "expand", tiny.input_ids)
    if "exact_expansion" in TABLE["families"][model_type]:
        assert torch.equal(logits, tiny.logits())
    assert relative_difference(logits, tiny.logits()) <= tool.MAX_DIFFERENCE


def is_assembled(recipe: AssemblyRecipe, folder) -> bool:
    """Assemble a model. False if its family is refused by name, and nothing is written."""
    try:
        assemble_model(recipe, folder)
    except UnsupportedArchitectureError as error:
        message = str(error)
    except CheckpointError as error:
        # A config that counts other layers than the tensors, which only families that are refused write.
        message = f"{error} {TABLE['refused']}"
    else:
        return True
    model_type = json.loads((folder.parent / "model" / "config.json").read_text())["model_type"]
    assert model_type in message
    assert not [path.name for path in folder.parent.iterdir() if path.name.startswith(folder.name)]
    return False
