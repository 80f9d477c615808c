"""The rules for GGUF files are those of the installed transformers: configs, names and shapes.

`tests/extract/test_gguf_codec.py` compares the numbers, and the config of Gemma's real file.
"""

import json
from pathlib import Path
from typing import Any

import gguf
import pytest
from accelerate import init_empty_weights
from transformers import AutoConfig, AutoModelForCausalLM
from transformers.integrations.gguf import GGUF_CONFIG_ARCHS
from transformers.modeling_gguf_pytorch_utils import TENSOR_PROCESSORS, TensorProcessor, get_gguf_hf_weights_map

from layer_surgeon.checkpoint.gguf import GgufTable
from layer_surgeon.checkpoint.sources import FileSource
from tests.support.gguf_models import transformers_config, write_model
from tools import generate_gguf_families as tool

TABLE = json.loads(tool.OUTPUT.read_text())
HOW_TO_UPDATE = "run tools/generate_gguf_families.py"
# 5.17 reads LFM2's metadata with an older table, which lacks a few settings.
READS_ALL_OF_LFM2 = "lfm2" in GGUF_CONFIG_ARCHS

# Metadata that files of an architecture may have or lack, and settings that follow from the tensors.
FEW_KEYS = {"attention.head_count": 8, "attention.head_count_kv": 1}
VARIANTS: list[tuple[str, dict[str, Any], dict[str, Any]]] = [
    *((architecture, {}, {}) for architecture in TABLE["families"]),
    *((architecture, FEW_KEYS, {}) for architecture in TABLE["families"] if architecture != "lfm2"),
    *((name, {"rope.dimension_count": None, "vocab_size": None}, {}) for name in ("llama", "qwen2", "gemma3")),
    *((name, {"attention.head_count_kv": None}, {}) for name in ("llama", "phi3", "mamba")),
    ("gemma2", {"attention.key_length": 32, "attention.sliding_window": 7}, {}),
    ("gemma3", {"attention.key_length": 32, "rope.freq_base": 1e6}, {}),
    ("llama", {"rope.dimension_count": 32, "vocab_size": None}, {}),
    ("lfm2", {"block_count": 4, "attention.head_count_kv": [0, 4, 0, 4]}, {"conv_bias": True}),
    ("mamba", {"ssm.inner_size": 768, "ssm.conv_kernel": 3}, {}),
    ("stablelm", {}, {"use_qkv_bias": True}),
    ("stablelm", {}, {"use_parallel_residual": False}),
    ("stablelm", {}, {"use_qkv_bias": True, "use_parallel_residual": False}),
]


def _open(path: Path) -> GgufTable:
    return GgufTable(FileSource(path, name=str(path)), path.name)


@pytest.mark.parametrize("architecture", TABLE["families"])
def test_table_agrees_with_the_tool(architecture: str) -> None:
    assert tool.examine(architecture) == TABLE["families"][architecture], HOW_TO_UPDATE


@pytest.mark.parametrize("architecture", [name for name in tool.architectures() if name not in TABLE["families"]])
def test_refused_architectures_agree_with_the_tool(architecture: str) -> None:
    with pytest.raises(tool.RefusedError) as refusal:
        tool.examine(architecture)
    assert str(refusal.value) == TABLE["refused"][architecture], HOW_TO_UPDATE


def test_table_has_every_architecture_and_type() -> None:
    assert set(TABLE["families"]) | set(TABLE["refused"]) == {*tool.architectures(), *tool.REFUSED}
    for kind, sizes in gguf.GGML_QUANT_SIZES.items():
        assert TABLE["types"][str(kind.value)] == [kind.name, *sizes], HOW_TO_UPDATE
    for kind in gguf.LlamaFileType:
        assert TABLE["file_types"][str(kind.value)] == kind.name, HOW_TO_UPDATE


@pytest.mark.parametrize(("architecture", "metadata", "config"), VARIANTS)
def test_file_is_read_as_by_transformers(
    architecture: str, metadata: dict[str, Any], config: dict[str, Any], tmp_path: Path
) -> None:
    path = write_model(tmp_path / "model.gguf", architecture, config=config, **metadata)
    table = _open(path)
    assert config.items() <= table.config.items()
    if architecture != "lfm2" or READS_ALL_OF_LFM2:
        assert table.config == transformers_config(path)
    with init_empty_weights(include_buffers=True):
        model = AutoModelForCausalLM.from_config(AutoConfig.for_model(**table.config))
    shapes = {name: tuple(tensor.shape) for name, tensor in model.state_dict().items()}
    expected_names = get_gguf_hf_weights_map(model, TENSOR_PROCESSORS.get(architecture, TensorProcessor)(config={}))
    names = [tensor.name for tensor in gguf.GGUFReader(path).tensors]
    assert list(table.files()) == [expected_names[name] for name in names]
    assert {info.name: info.shape for info in table.tensors(table.files())} == {
        name: shapes[name] for name in table.files()
    }
    assert set(shapes) - set(table.files()) <= {"lm_head.weight"}


@pytest.mark.skipif(READS_ALL_OF_LFM2, reason="transformers reads all of LFM2's metadata")
def test_lfm2_config_differs_from_old_versions_only_in_what_they_do_not_read(tmp_path: Path) -> None:
    path = write_model(tmp_path / "model.gguf", "lfm2")
    ours = AutoConfig.for_model(**_open(path).config).to_dict()
    theirs = AutoConfig.from_pretrained(path.parent, gguf_file=path.name).to_dict()
    assert {key for key in ours if ours[key] != theirs.get(key)} <= {
        *("norm_eps", "bos_token_id", "architectures", "full_attn_idxs", "_name_or_path", "_commit_hash")
    }
