"""Ask transformers how it loads GGUF files, and write its rules to layer_surgeon/checkpoint/gguf_families.json.

    python tools/generate_gguf_families.py [--output FILE] [--only ARCHITECTURE ...]

For each architecture in transformers' own tables, the script builds small models of several sizes (on the meta device)
and records the name that each tensor has in a GGUF file and a formula for each of its sizes. To find out how the file
stores the numbers, it lets transformers load an array of numbers and compares the result with each layout that
`layer_surgeon` knows. It stops if there is no formula or layout for a tensor. An architecture is refused if its tensors
are merged or missing, or if `DonorLayer` can't run its layers.

What transformers only has as code is written here by hand: `FLAGS`, `FIXED` and `LFM2`. The tests compare the config of
every architecture with that of transformers.
"""

import argparse
import json
import math
import re
import sys
import warnings
from collections.abc import Iterator, Mapping
from copy import deepcopy
from importlib.metadata import version
from itertools import combinations, combinations_with_replacement, product
from pathlib import Path
from typing import Any

import gguf
import numpy as np
import transformers
from accelerate import init_empty_weights
from transformers import AutoConfig, AutoModelForCausalLM
from transformers.integrations.ggml import GGUF_CONFIG_MAPPING
from transformers.modeling_gguf_pytorch_utils import TENSOR_PROCESSORS, TensorProcessor, get_gguf_hf_weights_map

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))

from layer_surgeon.checkpoint.gguf_families import Layout, ModelTensor  # noqa: E402
from layer_surgeon.donor import DonorLayer, SurgeonDonorConfig  # noqa: E402
from layer_surgeon.errors import LayerSurgeonError  # noqa: E402
from layer_surgeon.extract.gguf_codec import restore_layout  # noqa: E402

OUTPUT = ROOT / "layer_surgeon" / "checkpoint" / "gguf_families.json"

# transformers' names of architectures, where GGUF has another one.
GGUF_NAMES = {"qwen2_moe": "qwen2moe", "qwen3_moe": "qwen3moe", "gpt_oss": "gpt-oss", "minimax_m2": "minimax-m2"}
NAMES_IN_TRANSFORMERS = {gguf_name: name for name, gguf_name in GGUF_NAMES.items()}
# Not in the tables, or only in those of new versions.
REFUSED = {
    "qwen35": "transformers rearranges its tensors",
    "qwen35moe": "transformers rearranges its tensors",
    "t5encoder": "it is not a decoder",
}

# config key -> a pattern and the value if any tensor's name contains it. Otherwise, the value is the opposite.
TIED = {"tie_word_embeddings": [r"^output\.weight$", False]}
FLAGS = {
    "stablelm": {
        "use_qkv_bias": [r"attn_[qkv]\.bias", True],
        "use_parallel_residual": ["ffn_norm", False],
        **TIED,
    },
    "lfm2": {"conv_bias": [r"^blk\..*shortconv\.in_proj\.bias$", True], **TIED},
    "falcon": {},
    "bloom": {},
}
FIXED: dict[str, dict[str, Any]] = {
    "falcon": {"tie_word_embeddings": True},
    "bloom": {"tie_word_embeddings": True},
    "gemma3": {"model_type": "gemma3_text"},
    "gemma4": {"model_type": "gemma4_text"},
    "lfm2": {
        "architectures": ["Lfm2ForCausalLM"],
        "block_auto_adjust_ff_dim": False,
        "rope_parameters": {"rope_type": "default"},
        "eos_token_id": None,
        "bos_token_id": None,
        "pad_token_id": None,
    },
}
# transformers 5.24 reads LFM2's metadata with code (`integrations.gguf.gguf_config_mapping`), 5.17 with a table that
# lacks the epsilon of the norms and the biases of the convolutions.
LFM2 = {
    "context_length": "max_position_embeddings",
    "embedding_length": "hidden_size",
    "feed_forward_length": "intermediate_size",
    "block_count": "num_hidden_layers",
    "attention.head_count": "num_attention_heads",
    "attention.head_count_kv": "num_key_value_heads",
    "attention.layer_norm_rms_epsilon": "norm_eps",
    "shortconv.l_cache": "conv_L_cache",
    "rope.freq_base": "rope_parameters.rope_theta",
    "vocab_size": None,
}
LAYER_TYPES = {"lfm2": {"key": "lfm2.attention.head_count_kv", "none": "conv", "some": "full_attention"}}

# Metadata of small models, such that different formulas give different sizes.
PROBES: list[dict[str, int]] = [
    {
        "context_length": 130 + number,
        "block_count": 2,
        "embedding_length": heads * width,
        "feed_forward_length": 307 + 4 * number,
        "attention.head_count": heads,
        "attention.head_count_kv": key_heads,
        "rope.dimension_count": head_dim,
        "attention.key_length": head_dim,
        "attention.sliding_window": 16,
        "vocab_size": 2003 + number,
        "shortconv.l_cache": 31 + 8 * number,
        "ssm.conv_kernel": 4 + number,
        "ssm.state_size": 17 + 2 * number,
        "ssm.time_step_rank": 23 + 6 * number,
        "ssm.inner_size": 431 + 2 * number,
        "expert_count": 4,
        "expert_used_count": 2,
    }
    # Of every two of these numbers, the ratio differs from probe to probe.
    for number, (heads, key_heads, width, head_dim) in enumerate([(6, 2, 10, 26), (10, 5, 14, 38), (12, 3, 22, 34)])
]


class RefusedError(Exception):
    """Layers of the architecture can't be extracted. The message is the reason."""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--output", type=Path, default=OUTPUT)
    parser.add_argument("--only", nargs="+", help="examine only these architectures, and print the result")
    options = parser.parse_args()
    transformers.logging.set_verbosity_error()
    warnings.simplefilter("ignore")
    table = make_table(options.only or architectures())
    text = json.dumps(table, indent=1) + "\n"
    if options.only:
        print(text)
    else:
        options.output.write_text(text)


def architectures() -> list[str]:
    """Return GGUF's names of the architectures in transformers' tables."""
    names = {GGUF_NAMES.get(name, name) for name in GGUF_CONFIG_MAPPING if name not in ("general", "tokenizer")}
    return sorted(names)


def make_table(names: list[str]) -> dict[str, Any]:
    """Make the table for the installed versions of transformers and gguf."""
    families, refused = {}, dict(REFUSED)
    for architecture in names:
        try:
            families[architecture] = examine(architecture)
        except RefusedError as reason:
            refused[architecture] = str(reason)
    return {
        "transformers": transformers.__version__,
        "gguf": version("gguf"),
        "types": {
            str(kind.value): [kind.name, *gguf.GGML_QUANT_SIZES[kind]]
            for kind in gguf.GGMLQuantizationType
            if kind in gguf.GGML_QUANT_SIZES
        },
        "file_types": {str(kind.value): kind.name for kind in gguf.LlamaFileType},
        "families": families,
        "refused": refused,
    }


def examine(architecture: str) -> dict[str, Any]:
    """Find the rules of one architecture.

    Raises:
        RefusedError: Layers of the architecture can't be extracted.
    """
    metadata = metadata_keys(architecture)
    flags = FLAGS.get(architecture, TIED)
    fixed = fixed_settings(architecture)
    free_flags = [key for key in flags if key not in TIED]
    variants = [
        [
            Outline(architecture, make_config(architecture, probe, dict(zip(free_flags, values, strict=True))))
            for probe in PROBES
        ]
        for values in product([False, True], repeat=len(free_flags))
    ]
    for outlines in variants:
        outlines[0].check_layers()
    check_donor(variants[0][0])
    sizes = Sizes([outline.config for outline in variants[0]])
    tensors = {}
    for pattern, names in patterns(variants).items():
        # Each probe of the first variant that has the tensor.
        outlines = next(outlines for outlines in variants if any(name in outlines[0].name_of for name in names))
        stored_name = next(name for name in names if name in outlines[0].name_of)
        rule: dict[str, Any] = {
            "name": numbered(outlines[0].name_of[stored_name]),
            "shape": sizes.formulas([outline.shape_of(stored_name) for outline in outlines], stored_name),
            **find_layout(outlines, stored_name),
        }
        conditions = find_conditions(variants, names, [*free_flags, "layer_types"])
        tensors[pattern] = rule | ({"when": conditions} if conditions else {})
    family = {"metadata": metadata, "flags": flags, "fixed": fixed, "defaults": sizes.defaults(), "tensors": tensors}
    return family | ({"layer_types": LAYER_TYPES[architecture]} if architecture in LAYER_TYPES else {})


def metadata_keys(architecture: str) -> dict[str, str]:
    """Return the metadata keys that become settings of the config, and the names of these settings."""
    keys = (
        LFM2 if architecture == "lfm2" else GGUF_CONFIG_MAPPING[NAMES_IN_TRANSFORMERS.get(architecture, architecture)]
    )
    tokenizer = {f"tokenizer.{key}": name for key, name in GGUF_CONFIG_MAPPING["tokenizer"].items()}
    settings = {f"{architecture}.{key}": name for key, name in keys.items()} | tokenizer
    return {key: name for key, name in settings.items() if name is not None}


def fixed_settings(architecture: str) -> dict[str, Any]:
    """Return the settings that do not depend on the file."""
    fixed = deepcopy(FIXED.get(architecture, {}))
    fixed.setdefault("model_type", NAMES_IN_TRANSFORMERS.get(architecture, architecture))
    return fixed


def make_config(architecture: str, probe: Mapping[str, int], flags: Mapping[str, bool]) -> dict[str, Any]:
    """Return the config that transformers makes of the metadata of a probe."""
    # Phi-3's default for the padding token is larger than the vocabulary.
    config: dict[str, Any] = fixed_settings(architecture) | {"pad_token_id": 0, **flags}
    for key, name in metadata_keys(architecture).items():
        value = probe.get(key.removeprefix(f"{architecture}."))
        if value is not None and "." not in name:
            config[name] = value
    config.setdefault("vocab_size", probe["vocab_size"])
    if architecture in LAYER_TYPES:
        config["layer_types"] = [LAYER_TYPES[architecture][key] for key in ("none", "some")]
    return config


class Outline:
    """A model without weights, and transformers' names of its tensors in a GGUF file."""

    def __init__(self, architecture: str, config: dict[str, Any]) -> None:
        self.config = config
        self.processor = TENSOR_PROCESSORS.get(architecture, TensorProcessor)(config=config)
        try:
            full_config = AutoConfig.for_model(**deepcopy(config))
            if full_config.is_encoder_decoder:
                raise RefusedError("it is not a decoder")
            with init_empty_weights(include_buffers=True):
                model = AutoModelForCausalLM.from_config(full_config)
            mapping = get_gguf_hf_weights_map(model, self.processor)
        except RefusedError:
            raise
        except Exception as error:
            raise RefusedError(f"transformers can't build a decoder from it ({first_sentence(error)})") from error
        self._shapes = {name: tuple(tensor.shape) for name, tensor in model.state_dict().items()}
        # transformers maps some names of a model's parts, too. Tensors that the model lacks are ignored on loading.
        self.name_of = {stored: name for stored, name in mapping.items() if name in self._shapes}

    def shape_of(self, stored_name: str) -> tuple[int, ...]:
        return self._shapes[self.name_of[stored_name]]

    def check_layers(self) -> None:
        """Check that each tensor of a layer is loaded from exactly one tensor of a file."""
        for name in self._shapes:
            sources = sorted(stored for stored, loaded in self.name_of.items() if loaded == name)
            if len(sources) > 1:
                raise RefusedError(f"transformers merges the tensors {', '.join(sources)} into {name}")
            if not sources and re.search(r"(?:^|\.)\d+\.", name):
                raise RefusedError(f"transformers does not load {name} from a single tensor")


def check_donor(outline: Outline) -> None:
    """Check that a layer runs on its own."""
    try:
        DonorLayer.from_config(SurgeonDonorConfig(donor_config=deepcopy(outline.config), layer_indices=[0]))
    except LayerSurgeonError as error:
        raise RefusedError(first_sentence(error)) from error


def first_sentence(error: Exception) -> str:
    return " ".join(str(error).split()).split(". ")[0].rstrip(".")


def numbered(name: str) -> str:
    """Replace the layer's index in a name by `{}`."""
    return re.sub(r"(?<=\.)\d+(?=\.)", "{}", name, count=1)


def patterns(variants: list[list[Outline]]) -> dict[str, list[str]]:
    """Return the names in the file by their pattern, in transformers' order."""
    found: dict[str, list[str]] = {}
    for outlines in variants:
        for name in outlines[0].name_of:
            names = found.setdefault(numbered(name), [])
            if name not in names:
                names.append(name)
    return found


def find_conditions(variants: list[list[Outline]], names: list[str], keys: list[str]) -> dict[str, Any]:
    """Find the settings on which the presence of a tensor depends."""
    observations: list[tuple[dict[str, Any], bool]] = []
    for outlines in variants:
        config = outlines[0].config
        layers = range(PROBES[0]["block_count"]) if "{}" in numbered(names[0]) else [0]
        for layer in layers:
            settings = {
                key: config[key][layer] if key == "layer_types" else config[key] for key in keys if key in config
            }
            stored_name = numbered(names[0]).format(layer)
            observations.append((settings, stored_name in outlines[0].name_of))
    known = sorted({(key, value) for settings, _ in observations for key, value in settings.items()}, key=str)
    for count in range(3):
        for conditions in map(dict, combinations(known, count)):
            if all((conditions.items() <= settings.items()) == present for settings, present in observations):
                return conditions
    raise ValueError(f"No settings explain when a model has {names[0]}")


def find_layout(outlines: list[Outline], stored_name: str) -> dict[str, str]:
    """Find the layout in which the file stores a tensor, by letting transformers convert numbers."""
    for layout in Layout:
        head_keys = [key for key in outlines[0].config if "head" in key]
        for key in head_keys if layout in (Layout.ROTARY, Layout.SPLIT_HEADS) else [None]:
            if all(has_layout(outline, stored_name, layout, outline.config.get(key, 1)) for outline in outlines):
                rule = {} if layout is Layout.SAME else {"layout": str(layout)}
                return rule | ({"heads": key} if key is not None else {})
    raise ValueError(f"No known layout is that of {stored_name}")


def has_layout(outline: Outline, stored_name: str, layout: Layout, heads: int) -> bool:
    shape = outline.shape_of(stored_name)
    stored_shape = ModelTensor(name="", shape=shape, layout=layout, heads=heads).stored_shape
    # Mamba's processor takes the logarithm of the negated values.
    values = -np.arange(1, np.prod(shape) + 1, dtype=np.float32)
    tensors: dict[str, Any] = {}
    loaded = outline.processor.process(
        weights=values.reshape(stored_shape), name=stored_name, parsed_parameters={"tensors": tensors}
    )
    # GPT-2's processor stores the output matrix itself.
    result = loaded.weights if loaded.name is not None else next(iter(tensors.values())).numpy()
    try:
        restored = restore_layout(values, shape, layout, heads).reshape(shape)
    except ValueError:
        return False
    return result.shape == shape and np.array_equal(result, restored)


class Sizes:
    """Finds formulas for the sizes of tensors, with the configs of all probes."""

    def __init__(self, configs: list[dict[str, Any]]) -> None:
        self._configs = configs
        names = [key for key, value in configs[0].items() if type(value) is int and not key.endswith("token_id")]
        self._values = {key: tuple(config[key] for config in configs) for key in names}
        if "head_dim" not in names and {"hidden_size", "num_attention_heads"} <= set(names):
            self._values["head_dim"] = self._default("head_dim") or self._ratio()
        self._used: set[str] = set()

    def formulas(self, shapes: list[tuple[int, ...]], name: str) -> list[str]:
        """Find a formula for each dimension of a tensor."""
        columns = zip(*shapes, strict=True)
        return [self._formula(sizes, f"{name}, dimension {number}") for number, sizes in enumerate(columns)]

    def _formula(self, sizes: tuple[int, ...], description: str) -> str:
        for formula, factors in self._candidates():
            if self._evaluate(formula) == sizes:
                self._used |= set(factors)
                return formula
        if len(set(sizes)) == 1:
            return str(sizes[0])
        raise ValueError(f"No formula gives {sizes} for {description}")

    def _candidates(self) -> Iterator[tuple[str, tuple[str, ...]]]:
        names = [name for name in self._values if "layer" not in name and not name.startswith(("max_", "n_ctx"))]
        for name in names:
            yield name, (name,)
        terms = [(f"{count} * {name}", (name,)) for name in names for count in (2, 3, 4)]
        pairs = list(combinations_with_replacement(names, 2))
        terms += [(f"{first} * {second}", (first, second)) for first, second in pairs if first != second]
        yield from terms
        terms += [(f"2 * {first} * {second}", (first, second)) for first, second in pairs if first != second]
        terms = [(name, (name,)) for name in names] + terms
        for (first, factors), (second, other_factors) in combinations(terms, 2):
            yield f"{first} + {second}", (*factors, *other_factors)

    def _evaluate(self, formula: str) -> tuple[int, ...]:
        def value(factor: str, number: int) -> int:
            return int(factor) if factor.isdigit() else self._values[factor][number]

        terms = [term.split(" * ") for term in formula.split(" + ")]
        return tuple(
            sum(math.prod(value(factor, number) for factor in factors) for factors in terms)
            for number in range(len(self._configs))
        )

    def defaults(self) -> dict[str, int | str]:
        """Find what transformers assumes for the sizes that a file lacks."""
        found: dict[str, int | str] = {}
        pending = [name for name in self._values if name in self._used]
        for name in pending:
            values = self._default(name) if name != "head_dim" or self._default(name) else self._ratio()
            if values is None:
                continue
            if len(set(values)) == 1:
                found[name] = values[0]
            elif values == self._ratio():
                found[name] = "hidden_size // num_attention_heads"
            else:
                formulas = (formula for formula, names in self._candidates() if name not in names)
                formula = next((formula for formula in formulas if self._evaluate(formula) == values), None)
                # None: ceil(hidden_size / 16), in Mamba.
                if formula is None:
                    continue
                found[name] = formula
            pending += [other for other in re.findall(r"[a-z_]+", str(found[name])) if other not in (*pending, *found)]
        return found

    def _default(self, name: str) -> tuple[int, ...] | None:
        """Return the value of a setting in each probe if the file does not state it; None if there is none."""
        try:
            configs = [
                AutoConfig.for_model(**deepcopy({key: value for key, value in config.items() if key != name}))
                for config in self._configs
            ]
        except Exception:  # noqa: BLE001 - some sizes don't fit the defaults of others
            configs = [AutoConfig.for_model(self._configs[0]["model_type"]) for _ in self._configs]
        values = tuple(getattr(config, name, None) for config in configs)
        return values if all(type(value) is int for value in values) else None

    def _ratio(self) -> tuple[int, ...] | None:
        if not {"hidden_size", "num_attention_heads"} <= set(self._values):
            return None
        pairs = zip(self._values["hidden_size"], self._values["num_attention_heads"], strict=True)
        return tuple(hidden // heads for hidden, heads in pairs)


if __name__ == "__main__":
    main()
