"""Decoder layers are found by structure. Families without any are refused, with the reason."""

import pytest

from layer_surgeon.checkpoint.stack import check_family, count_layers, find_stack
from layer_surgeon.errors import CheckpointError, UnsupportedArchitectureError

LLAMA = {"model_type": "llama", "num_hidden_layers": 3, "architectures": ["LlamaForCausalLM"]}


def stack_names(prefix, count, *inner):
    return [f"{prefix}.{index}.{name}" for index in range(count) for name in inner or ("w", "mlp.experts.7.w")]


@pytest.mark.parametrize(
    ("prefix", "config"),
    [
        ("model.layers", LLAMA),
        ("layers", LLAMA),
        ("transformer.h", {"model_type": "gpt2", "n_layer": 3}),
        ("h", {"model_type": "gpt2", "n_layer": 3}),
        ("gpt_neox.layers", {"model_type": "gpt_neox", "num_hidden_layers": 3}),
        ("model.decoder.layers", {"model_type": "opt", "num_hidden_layers": 3}),
        ("backbone.blocks", {"model_type": "newest", "num_layers": 3, "architectures": ["NewestForCausalLM"]}),
    ],
)
def test_finds_the_stack(prefix, config):
    names = ["model.embed.weight", *stack_names(prefix, 3), "norm.weight"]
    stack = find_stack(names, config)
    assert (stack.prefix, stack.num_layers) == (prefix, 3)
    assert stack.layer_prefix(2) == f"{prefix}.2."
    assert stack.members[1] == (f"{prefix}.1.w", f"{prefix}.1.mlp.experts.7.w")


def test_experts_are_not_taken_for_layers():
    names = [f"model.layers.{i}.mlp.experts.{e}.w" for i in range(3) for e in range(8)]
    assert find_stack(names, LLAMA).prefix == "model.layers"


def test_a_vision_tower_is_not_taken_for_the_decoder():
    config = {"model_type": "llava", "text_config": LLAMA, "architectures": ["LlavaForConditionalGeneration"]}
    names = stack_names("vision_tower.encoder.layers", 24) + stack_names("language_model.model.layers", 3)
    assert find_stack(names, config).prefix == "language_model.model.layers"
    check_family(config)


def test_a_section_may_leave_the_number_of_layers_to_its_family():
    """As in llava-hf/llava-1.5-7b-hf, whose language model is a llama with the default 32 layers."""
    config = {"model_type": "llava", "text_config": {"model_type": "llama"}}
    assert find_stack(stack_names("language_model.model.layers", 32), config).num_layers == 32
    with pytest.raises(CheckpointError, match=r"states 32 layers.*model.layers with 31"):
        find_stack(stack_names("language_model.model.layers", 31), config)
    for text in ({"model_type": "llama", "num_hidden_layers": 0}, {"model_type": "novel"}):
        with pytest.raises(CheckpointError, match="does not state the number of layers"):
            count_layers({"model_type": "llava", "text_config": text})


def test_an_incomplete_checkpoint_is_refused():
    with pytest.raises(CheckpointError, match=r"states 3 layers.*model.layers with 2"):
        find_stack(stack_names("model.layers", 2), LLAMA)
    with pytest.raises(CheckpointError, match="none at all"):
        find_stack(["a", "b"], LLAMA)


def test_two_equal_stacks_are_refused():
    config = {"model_type": "newest", "num_layers": 3}
    with pytest.raises(CheckpointError, match="several stacks"):
        find_stack(stack_names("a.layers", 3) + stack_names("b.layers", 3), config)


@pytest.mark.parametrize("config", [{}, {"num_hidden_layers": 0}, {"num_hidden_layers": "3"}, {"n_layer": True}])
def test_a_config_without_a_number_of_layers_is_refused(config):
    with pytest.raises(CheckpointError, match="does not state the number of layers"):
        count_layers(config)


@pytest.mark.parametrize(
    ("config", "word"),
    [
        ({"model_type": "bert", "architectures": ["BertForMaskedLM"]}, "not a decoder"),
        ({"model_type": "vit", "architectures": ["ViTForImageClassification"]}, "not a decoder"),
        ({"model_type": "t5", "is_encoder_decoder": True}, "encoder-decoder"),
        ({"model_type": "xlm", "architectures": ["XLMWithLMHeadModel"]}, "layer of xlm can't be extracted"),
    ],
)
def test_models_without_a_decoder_are_refused(config, word):
    with pytest.raises(UnsupportedArchitectureError, match=word):
        check_family(config)


@pytest.mark.parametrize("config", [{}, {"model_type": None}, {"model_type": 3}])
def test_a_config_without_a_family_is_refused(config):
    with pytest.raises(CheckpointError, match="model_type"):
        check_family(config)
