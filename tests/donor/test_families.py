"""The table of families agrees with the tool, and has the families that it must have."""

import importlib.util
import json
from pathlib import Path

import pytest
from transformers import CONFIG_MAPPING

from layer_surgeon.donor import DonorLayer, SurgeonDonorConfig
from layer_surgeon.errors import UnsupportedArchitectureError
from tests.support.tiny_models import tiny_config

_ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture(scope="module")
def table():
    return json.loads((_ROOT / "layer_surgeon" / "checkpoint" / "families.json").read_text())


@pytest.fixture(scope="module")
def tool():
    spec = importlib.util.spec_from_file_location("generate_families", _ROOT / "tools" / "generate_families.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.mark.parametrize("family", ["llama", "gpt2", "gpt_neox", "opt", "bloom", "bert"])
def test_table_agrees_with_the_tool(table, tool, family):
    assert tool.examine(family) == table["families"][family]


def test_tool_refuses_with_a_reason(table, tool):
    with pytest.raises(tool.RefusedError) as refusal:
        tool.examine("bart")
    assert str(refusal.value) == table["refused"]["bart"]


def test_table_has_the_common_families(table):
    expected = "llama mistral qwen2 qwen3 gemma2 gemma3_text falcon phi3 gpt_neox gpt2 opt olmo2 smollm3 mixtral"
    assert set(expected.split()) <= set(table["families"])
    assert not {"needs_is_decoder"} & set(table["families"]["gpt_neox"])
    assert table["families"]["bert"]["needs_is_decoder"]
    assert len(table["families"]) > 130
    assert not set(table["families"]) & (set(table["refused"]) | set(table["untested"]))


@pytest.mark.skipif("zaya" not in CONFIG_MAPPING, reason="this transformers is older than the family")
def test_layer_that_reads_other_outputs_of_the_previous_layer_is_refused():
    config = tiny_config("zaya", num_experts_per_tok=1).to_dict()
    DonorLayer.from_config(SurgeonDonorConfig(donor_config=config, layer_indices=[0]))
    with pytest.raises(UnsupportedArchitectureError, match="made by the layer before it.* Take the first layer"):
        DonorLayer.from_config(SurgeonDonorConfig(donor_config=config, layer_indices=[1]))
