"""`assembled_config` and `residual_outputs` on plain dictionaries, and their rules compared with transformers."""

import json
import random
import subprocess
import sys
from copy import deepcopy

import pytest
import transformers
from transformers import CONFIG_MAPPING

from layer_surgeon.assemble.layer_rules import rule_values, solve_rule
from layer_surgeon.assemble.layer_settings import LayerChoice, _Settings, assembled_config, residual_outputs
from layer_surgeon.errors import AssemblyError, CheckpointError, UnsupportedArchitectureError
from tests.support.assembly_walk import LAYERS, is_family
from tools import generate_assembly_families as tool

TABLE = json.loads(tool.OUTPUT.read_text())
SAME_VERSION = transformers.__version__ == TABLE["transformers"]
LLAMA = {"model_type": "llama", "num_hidden_layers": 6, "hidden_size": 64}
GEMMA3 = {"model_type": "gemma3_text", "num_hidden_layers": 12, "sliding_window": 512}
FULL, SLIDING = "full_attention", "sliding_attention"


def assemble(config, layers, **options):
    return assembled_config(config, [LayerChoice(config=config, layer=layer, **options) for layer in layers])


class TestNumberOfLayers:
    def test_is_written(self):
        assert assemble(LLAMA, [0, 1, 1]) == {**LLAMA, "num_hidden_layers": 3}

    def test_is_written_under_the_familys_own_name(self):
        config = {"model_type": "gpt2", "n_layer": 4, "n_embd": 8}
        assert assemble(config, [0, 3]) == {**config, "n_layer": 2}

    def test_is_written_under_each_name_of_the_config(self):
        config = {"model_type": "gpt2", "n_layer": 4, "num_hidden_layers": 4, "n_embd": 8}
        assert assemble(config, [0, 3]) == {**config, "n_layer": 2, "num_hidden_layers": 2}

    def test_is_written_into_the_text_config(self):
        config = {"model_type": "gemma3", "text_config": {**GEMMA3}, "vision_config": {"num_hidden_layers": 12}}
        result = assemble(config, range(6))
        assert result == {**config, "text_config": {**GEMMA3, "num_hidden_layers": 6}}

    def test_is_written_into_a_text_config_that_leaves_it_to_its_family(self):
        result = assemble({"model_type": "llava", "text_config": {"model_type": "llama"}}, range(6))
        assert result["text_config"] == {"model_type": "llama", "num_hidden_layers": 6}

    def test_scales_what_is_divided_by_it(self):
        config = {"model_type": "minicpm3", "num_hidden_layers": 9, "scale_depth": 1.5}
        assert assemble(config, [0, 1, 2, 3])["scale_depth"] == pytest.approx(1.0)


class TestLists:
    def test_all_layers_keep_the_config_as_it_is(self):
        config = {**GEMMA3, "sliding_window_pattern": 6, "unknown": [1]}
        assert assemble(config, range(12)) == config

    def test_the_config_is_not_modified(self):
        config = {**GEMMA3, "layer_types": [SLIDING, FULL] * 6}
        before = deepcopy(config)
        assemble(config, [1, 0])
        assert config == before

    def test_stated_values_follow_their_layers(self):
        config = {**GEMMA3, "layer_types": [SLIDING] * 10 + [FULL] * 2}
        assert assemble(config, [0, 11, 1])["layer_types"] == [SLIDING, FULL, SLIDING]

    def test_pattern_that_still_holds_is_kept(self):
        assert assemble(GEMMA3, [*range(12), *range(6)]) == {**GEMMA3, "num_hidden_layers": 18}

    def test_pattern_that_no_longer_holds_becomes_a_list(self):
        result = assemble({**GEMMA3, "sliding_window_pattern": 3}, [0, 2, 2])
        assert result == {**GEMMA3, "num_hidden_layers": 3, "layer_types": [SLIDING, FULL, FULL]}

    def test_pattern_next_to_a_list_is_updated(self):
        result = assemble({**GEMMA3, "sliding_window_pattern": 3}, [0, 2, 3])
        assert (result["layer_types"], result["sliding_window_pattern"]) == ([SLIDING, FULL, SLIDING], 2)

    def test_pattern_of_the_family_becomes_a_list(self):
        assert assemble(GEMMA3, [0, 5])["layer_types"] == [SLIDING, FULL]
        assert assemble({"model_type": "gemma2", "num_hidden_layers": 4}, [1, 1])["layer_types"] == [FULL, FULL]

    def test_threshold_becomes_a_list(self):
        config = {
            "model_type": "qwen2",
            "num_hidden_layers": 4,
            "use_sliding_window": True,
            "sliding_window": 8,
            "max_window_layers": 2,
        }
        result = assemble(config, [3, 0])
        assert result["layer_types"] == [SLIDING, FULL]
        assert "max_window_layers" not in result

    def test_letters_follow_their_layers(self):
        config = {"model_type": "nemotron_h", "num_hidden_layers": 4, "hybrid_override_pattern": "M-M*"}
        result = assemble(config, [0, 3, 1])
        assert (result["hybrid_override_pattern"], result["num_hidden_layers"]) == ("M*-", 3)

    def test_groups_are_expanded(self):
        config = {"model_type": "gpt_neo", "num_layers": 4, "attention_types": [[["global", "local"], 2]]}
        result = {"num_layers": 3, "attention_types": [[["local", "local", "global"], 1]]}
        assert assemble(config, [1, 3, 2]) == {**config, **result}
        config["attention_layers"] = ["global", "local", "global", "local"]
        assert assemble(config, [1, 3, 2]) == {**config, **result, "attention_layers": ["local", "local", "global"]}

    def test_numbers_next_to_a_list_are_updated(self):
        config = {
            "model_type": "lfm2",
            "num_hidden_layers": 3,
            "full_attn_idxs": [1],
            "layer_types": ["conv", FULL, "conv"],
        }
        result = assemble(config, [1, 0, 1])
        assert (result["layer_types"], result["full_attn_idxs"]) == ([FULL, "conv", FULL], [0, 2])

    def test_cycle_is_expanded(self):
        config = {"model_type": "recurrent_gemma", "num_hidden_layers": 6, "block_types": ["recurrent", "attention"]}
        assert assemble(config, [1, 3, 2])["block_types"] == ["attention", "attention", "recurrent"]

    def test_settings_of_single_layers_are_renumbered(self):
        config = {**LLAMA, "per_layer_config": {"05": {"head_dim": 4}, "x": 1}}
        assert assemble(config, [5, 0, 5])["per_layer_config"] == {"0": {"head_dim": 4}, "2": {"head_dim": 4}}

    def test_wrong_number_of_values_is_an_error(self):
        with pytest.raises(CheckpointError, match="3 values for layer_types, but needs one for each of its 12 layers"):
            assemble({**GEMMA3, "layer_types": [FULL] * 3}, [0])
        with pytest.raises(CheckpointError, match="the value '7' for layer_types"):
            assemble({**GEMMA3, "layer_types": 7}, [0])

    @pytest.mark.parametrize("groups", [[[["global"], 10**12]], [["global", 2]], [7], [[["global"], "x"]]])
    def test_invalid_groups_are_an_error(self, groups):
        config = {"model_type": "gpt_neo", "num_layers": 2, "attention_types": groups}
        with pytest.raises(CheckpointError, match="for attention_types, but needs one for each of its 2 layers"):
            assemble(config, [0])

    def test_scale_that_is_not_a_number_is_an_error(self):
        config = {"model_type": "minicpm3", "num_hidden_layers": 4, "scale_depth": "x"}
        with pytest.raises(CheckpointError, match="the scale_depth 'x', but needs a number"):
            assemble(config, [0])

    def test_setting_of_a_wrong_type_is_an_error(self):
        with pytest.raises(CheckpointError, match="sliding_window_pattern: 'x' is not an integer"):
            assemble({**GEMMA3, "sliding_window_pattern": "x"}, [0])

    def test_unknown_derivation_is_refused(self):
        config = {"model_type": "kimi_linear", "num_hidden_layers": 4, "linear_attn_config": {"kda_layers": [1]}}
        with pytest.raises(UnsupportedArchitectureError, match="kimi_linear doesn't state .*_types.*save_pretrained"):
            assemble(config, [0])

    def test_missing_kind_of_layer_is_refused(self):
        config = {"model_type": "olmo_hybrid", "num_hidden_layers": 4, "layer_types": ["linear_attention", FULL] * 2}
        with pytest.raises(UnsupportedArchitectureError, match=f"olmo_hybrid must have at least one .* {FULL}"):
            assemble(config, [0, 2])

    def test_last_layer_that_transformers_changes_is_refused(self):
        config = {"model_type": "gemma4_text", "num_hidden_layers": 4, "layer_types": [SLIDING, FULL] * 2}
        config["hidden_size_per_layer_input"] = 0
        with pytest.raises(UnsupportedArchitectureError, match="last layer of a gemma4_text to full_attention"):
            assemble(config, [0, 1, 2])

    def test_layers_that_read_what_others_made_are_refused(self):
        config = {"model_type": "glm_moe_dsa", "num_hidden_layers": 4, "indexer_types": ["full", "shared"] * 2}
        with pytest.raises(UnsupportedArchitectureError, match="glm_moe_dsa whose indexer_types is shared reads"):
            assemble(config, [0, 1])


class TestPatterns:
    DEEPSEEK = {"model_type": "deepseek_v3", "num_hidden_layers": 6, "first_k_dense_replace": 2}

    def test_threshold_is_set(self):
        assert assemble(self.DEEPSEEK, [0, 2, 3])["first_k_dense_replace"] == 1
        assert assemble(self.DEEPSEEK, [2, 3])["first_k_dense_replace"] == 0
        assert assemble(self.DEEPSEEK, [0, 1, 5]) == {**self.DEEPSEEK, "num_hidden_layers": 3}

    def test_default_of_the_family_counts(self):
        config = {"model_type": "deepseek_v3", "num_hidden_layers": 6}
        assert assemble(config, [0, 1, 2, 3]) == {**config, "num_hidden_layers": 4}
        assert assemble(config, [0, 3])["first_k_dense_replace"] == 1

    def test_order_that_no_value_describes_is_refused(self):
        with pytest.raises(UnsupportedArchitectureError, match=r"deepseek_v3.*\(first_k_dense_replace\)"):
            assemble(self.DEEPSEEK, [3, 0])

    def test_numbers_of_layers_are_set(self):
        config = {"model_type": "qwen3_moe", "num_hidden_layers": 6, "mlp_only_layers": [1], "decoder_sparse_step": 2}
        result = assemble(config, [1, 3, 3, 0])
        assert (result["mlp_only_layers"], result["decoder_sparse_step"]) == ([0, 3], 1)

    def test_derived_numbers_of_layers_are_set(self):
        config = {"model_type": "llama4_text", "num_hidden_layers": 4, "interleave_moe_layer_step": 2}
        assert "moe_layers" not in assemble(config, [0, 1, 0, 1])
        assert assemble(config, [1, 1, 0])["moe_layers"] == [0, 1]

    def test_period_and_offset_are_set(self):
        config = {"model_type": "jamba", "num_hidden_layers": 8, "attn_layer_period": 4, "attn_layer_offset": 2}
        config |= {"expert_layer_period": 2, "expert_layer_offset": 1}
        result = assemble(config, [2, 1, 4, 3, 6])
        assert (result["attn_layer_period"], result["attn_layer_offset"]) == (4, 0)

    def test_first_layer_that_differs_is_refused_elsewhere(self):
        config = {"model_type": "modernbert-decoder", "num_hidden_layers": 4, "layer_types": [FULL, SLIDING] * 2}
        assert assemble(config, [0, 3])["layer_types"] == [FULL, SLIDING]
        with pytest.raises(UnsupportedArchitectureError, match="modernbert-decoder .*first or the last one differs"):
            assemble(config, [1, 3])

    def test_rule_with_a_list_is_solved(self):
        rule = {"when": [["every", "step", 1, 1], ["not_in", "dense"]], "then": True, "else": False}
        solved = solve_rule(rule, {"step": 3, "dense": None}, [True, False, True])
        assert solved == {"step": 1, "dense": [1]}
        assert rule_values(rule, solved.__getitem__, 3) == [True, False, True]


class TestRefusals:
    def test_unknown_family(self):
        with pytest.raises(UnsupportedArchitectureError, match="the layers of no_such depend.*assemble_families.md"):
            assemble({"model_type": "no_such", "num_hidden_layers": 2}, [0])

    def test_refused_family(self):
        with pytest.raises(UnsupportedArchitectureError, match="from layers of dory: "):
            assemble({"model_type": "dory", "num_hidden_layers": 2}, [0])

    def test_constant_of_the_layers_number(self):
        config = {"model_type": "diffllama", "num_hidden_layers": 4}
        assert assemble(config, [0, 1]) == {**config, "num_hidden_layers": 2}
        with pytest.raises(UnsupportedArchitectureError, match="diffllama .*Layer 2 would be layer 1"):
            assemble(config, [0, 2])

    def test_switch_that_makes_layers_depend_on_their_number(self):
        config = {"model_type": "gpt2", "n_layer": 4}
        assert assemble(config, [1])["n_layer"] == 1
        with pytest.raises(UnsupportedArchitectureError, match="with scale_attn_by_inverse_layer_idx True"):
            assemble({**config, "scale_attn_by_inverse_layer_idx": True}, [1])

    def test_pattern_that_is_a_text_next_to_a_list(self):
        types = ["sliding_attention"] * 3 + [FULL]
        config = {"model_type": "exaone4", "num_hidden_layers": 4, "layer_types": types}
        cut = assemble({**config, "sliding_window": 8, "sliding_window_pattern": "LLLG"}, [2, 3])
        assert cut["layer_types"] == types[2:]
        assert "sliding_window_pattern" not in cut

    def test_weights_of_all_layers_in_one_tensor(self):
        config = {"model_type": "gemma4_text", "num_hidden_layers": 2, "layer_types": [FULL] * 2}
        with pytest.raises(UnsupportedArchitectureError, match="gemma4_text with hidden_size_per_layer_input 256"):
            assemble(config, [1])
        assert assemble({**config, "hidden_size_per_layer_input": 0}, [1])["layer_types"] == [FULL]


class TestSources:
    def test_layers_of_a_sibling(self):
        sibling = {**GEMMA3, "num_hidden_layers": 6, "layer_types": [FULL] * 6, "transformers_version": "5.0"}
        choices = [LayerChoice(config=GEMMA3, layer=0), LayerChoice(config=sibling, layer=0)]
        assert assembled_config(GEMMA3, choices)["layer_types"] == [SLIDING, FULL]

    @pytest.mark.parametrize(
        ("settings", "message"),
        [
            ({"rope_theta": 500000.0}, "differ in rope_parameters"),
            ({"rms_norm_eps": 0.1}, "differ in rms_norm_eps: 1e-06 and 0.1"),
            ({"model_type": "mistral"}, "A layer of mistral can't be a layer of llama"),
        ],
    )
    def test_other_settings_are_refused(self, settings, message):
        choices = [LayerChoice(config=LLAMA, layer=0), LayerChoice(config={**LLAMA, **settings}, layer=1)]
        with pytest.raises(AssemblyError, match=message):
            assembled_config(LLAMA, choices)

    @pytest.mark.parametrize(
        ("stated", "is_same"),
        [
            ({"head_dim": 8}, True),
            ({"head_dim": 128}, False),
            ({"num_key_value_heads": 8}, True),
            ({"num_key_value_heads": 32}, False),
            ({"rope_theta": 10000.0}, True),
            ({"rope_parameters": {"rope_type": "default", "rope_theta": 10000.0}}, True),
            ({"do_sample": True, "unsloth_fixed": True, "tokenizer_class": "LlamaTokenizer"}, True),
        ],
    )
    def test_what_one_config_states_and_the_other_does_not(self, stated, is_same):
        """The defaults of the family's class, such as a head_dim of 128, are those of another size."""
        config = {**LLAMA, "num_attention_heads": 8}
        for base, other in ((config, config | stated), (config | stated, config)):
            choices = [LayerChoice(config=base, layer=0), LayerChoice(config=other, layer=1)]
            if is_same:
                assert assembled_config(base, choices) == {**base, "num_hidden_layers": 2}
            else:
                with pytest.raises(AssemblyError, match=f"differ in {next(iter(stated))}: "):
                    assembled_config(base, choices)

    def test_a_window_that_no_layer_uses(self):
        config = {"model_type": "qwen2", "num_hidden_layers": 2, "max_window_layers": 0, "sliding_window": 4096}
        for use, differs in ((False, False), (True, True)):
            base = {**config, "use_sliding_window": use}
            choices = [LayerChoice(config=base, layer=0), LayerChoice(config={**base, "sliding_window": 9}, layer=1)]
            if differs:
                with pytest.raises(AssemblyError, match="differ in sliding_window"):
                    assembled_config(base, choices)
            else:
                assert assembled_config(base, choices)["sliding_window"] == 4096

    @pytest.mark.parametrize(
        "config",
        [
            {"model_type": "kimi_linear", "num_hidden_layers": 2, "linear_attn_config": {"kda_layers": [1]}},
            {"model_type": "qwen3", "num_hidden_layers": 2, "layer_types": [FULL]},
        ],
        ids=["unknown kinds", "another length"],
    )
    def test_all_layers_of_a_config_with_kinds_that_are_not_known(self, config):
        assert assemble(config, [0, 1]) == config

    def test_a_number_may_be_given_for_each_layer(self):
        config = {"model_type": "hunyuan_v1_moe", "num_hidden_layers": 4, "num_experts": 8}
        assert assemble({**config, "moe_topk": [1, 2, 3, 4]}, [0, 2, 2])["moe_topk"] == [1, 3, 3]
        assert assemble({**config, "moe_topk": 2}, [0, 2, 2])["moe_topk"] == 2

    def test_old_and_new_forms_of_the_same_settings_agree(self):
        old = {**LLAMA, "rope_theta": 500000.0, "rope_scaling": {"type": "linear", "factor": 2.0}}
        new = {**LLAMA, "rope_parameters": {"rope_type": "linear", "factor": 2.0, "rope_theta": 500000.0}}
        choices = [LayerChoice(config=old, layer=0), LayerChoice(config=new, layer=1)]
        assert assembled_config(old, choices)["num_hidden_layers"] == 2


class TestResidual:
    def test_names(self):
        assert {"self_attn.o_proj.weight", "mlp.down_proj.weight"} <= set(residual_outputs(LLAMA))
        assert "mlp.experts.*.down_proj.weight" in residual_outputs({"model_type": "qwen3_moe", "num_hidden_layers": 1})

    def test_parts_that_are_not_known_may_add_something(self):
        residual_outputs(LLAMA, ["mlp.up_proj.weight", "self_attn.q_proj.weight"])
        with pytest.raises(
            UnsupportedArchitectureError, match=r"mlp\.shared\.2\.down\.weight, which layers of llama don't have"
        ):
            residual_outputs(LLAMA, ["mlp.up_proj.weight", "mlp.shared.2.down.weight"])

    def test_a_switch_may_make_all_layers_loud(self):
        config = {"model_type": "opt", "num_hidden_layers": 2, "do_layer_norm_before": False}
        with pytest.raises(UnsupportedArchitectureError, match="With do_layer_norm_before False, a layer of opt can't"):
            residual_outputs(config)

    def test_layer_that_ends_with_a_norm_is_refused(self):
        config = {"model_type": "bert", "num_hidden_layers": 2}
        for options in ({"silent": True}, {"scale": 0.5}):
            with pytest.raises(UnsupportedArchitectureError, match="of a bert layer carry everything"):
                assemble(config, [0, 0], **options)

    def test_scale_of_what_is_normalised_is_refused(self):
        config = {"model_type": "gemma2", "num_hidden_layers": 2}
        assert assemble(config, [0, 0], silent=True)["num_hidden_layers"] == 2
        with pytest.raises(UnsupportedArchitectureError, match="gemma2 layer normalises what it adds"):
            assemble(config, [0, 0], scale=0.5)


def test_needs_neither_torch_nor_transformers():
    code = (
        "import sys; from layer_surgeon.assemble.layer_settings import LayerChoice, assembled_config\n"
        f"config = {LLAMA!r}\n"
        "assembled_config(config, [LayerChoice(config=config, layer=1)])\n"
        "assert not {'torch', 'transformers'} & set(sys.modules), sorted(sys.modules)"
    )
    subprocess.run([sys.executable, "-c", code], check=True)


# What transformers does


# Numbers, and settings that only concern caches.
UNUSED = (
    *("layer_idx", "layer_id", "layer_number", "num_hidden_layers"),
    *("sliding_window_pattern", "store_full_length_kv"),
)


def families_with(key):
    return sorted(name for name, family in TABLE["families"].items() if key in family and is_family(name))


def derived_lists():
    for model_type in families_with("lists"):
        for name, details in TABLE["families"][model_type]["lists"].items():
            if details.get("rule") is not None and "form" not in details:
                yield pytest.param(model_type, name, details["rule"], id=f"{model_type}-{name}")


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize(("model_type", "name", "rule"), list(derived_lists()))
def test_transformers_derives_the_same_values(model_type, name, rule):
    study = tool.Study(model_type)
    if name not in study.defaults:
        pytest.skip(f"transformers {transformers.__version__} has no {name}")
    study.random = random.Random(1)
    settings = [setting for setting in tool.rule_settings(rule) if setting != name]
    compared = 0
    for number in range(4, 13):
        overrides = {setting: study.sample(setting, number) for setting in settings} if number % 3 else {}
        values = study.derived(name, number, **overrides)
        # Before 5.24, Llama 4 has chunks without a size.
        if values is None or (not SAME_VERSION and "attention_chunk_size" in overrides):
            continue
        config = {"model_type": model_type, study.count: number, **study.written(number, **overrides), **overrides}
        del config[name]
        derived = _Settings(config).values(name)
        # Versions differ in the names of a kind that all layers have, and such a list is never written.
        assert derived == values or (not SAME_VERSION and len({*values}) == len({*derived}) == 1), overrides
        compared += 1
    assert compared


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("model_type", sorted({*families_with("patterns"), *families_with("lists")}))
def test_any_order_is_right_or_refused(model_type):
    study = tool.Study(model_type)
    config = study.written(LAYERS)
    if not config or (not SAME_VERSION and not study.kinds({})):
        pytest.skip(f"transformers {transformers.__version__} makes no such config")
    originals = parts(config)
    generator = random.Random(0)
    for order in ([0, 1, 2], [1, 2, 3, 4, 5], *(generator.choices(range(LAYERS), k=4) for _ in range(3))):
        try:
            assembled = assemble(config, order)
        except UnsupportedArchitectureError:
            continue
        assert parts(assembled) == [originals[layer] for layer in order], order


def parts(config):
    """The parts of each layer, with their shapes and sizes, but without numbers of layers and unused settings."""
    config = {name: value for name, value in config.items() if name != "time_step_limit"}  # infinity has its own form
    layers = tool.layer_parts(CONFIG_MAPPING[config["model_type"]].from_dict(deepcopy(config)))
    return [{key: value for key, value in layer.items() if not key.endswith(UNUSED)} for layer in layers]
