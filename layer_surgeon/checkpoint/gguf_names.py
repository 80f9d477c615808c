"""What transformers does to the tensors of a GGUF file on loading: which of its own tensors each becomes, and how.

Both are asked of transformers itself: the names of the model that the config describes, built without memory; its map
between them and GGUF's; and its processor for the architecture, which undoes what llama.cpp did to some tensors
(rotary rows permuted, norms stored plus one, matrices transposed). Some of that lives in modules that import torch, so
reading a GGUF file imports torch, which no other format does.
"""

import re
from collections.abc import Mapping
from dataclasses import dataclass
from importlib import import_module
from importlib.util import find_spec
from typing import Any

import numpy as np
import transformers
from accelerate import init_empty_weights
from transformers import AutoConfig, AutoModelForCausalLM
from transformers.modeling_gguf_pytorch_utils import TENSOR_PROCESSORS, TensorProcessor, get_gguf_hf_weights_map

from layer_surgeon.checkpoint.gguf_config import in_one_line
from layer_surgeon.checkpoint.gguf_header import GgufHeader
from layer_surgeon.errors import CheckpointError, UnsupportedArchitectureError

_OF_A_LAYER = re.compile(r"(?:^|\.)\d+\.")
_ADVICE = "Use the model's safetensors checkpoint."


class _Outline:
    """What transformers' map of names looks at in a model, without the modules inside of layers.

    For each module it makes gguf's whole table anew: 313 times 17 ms for the 18 layers of Gemma-3-270M, and more than
    ten times as long for 80 layers. The base model's own names have to be looked up (Bloom's files have no prefix), but
    names inside of a layer say not which layer they are of, and never match.
    """

    def __init__(self, module: Any) -> None:
        self._module = module
        self.config = getattr(module, "config", None)

    def state_dict(self) -> Mapping[str, Any]:
        tensors: Mapping[str, Any] = self._module.state_dict()
        return tensors

    def named_children(self) -> list[tuple[str, "_Outline"]]:
        return [(name, _Outline(child)) for name, child in self._module.named_children() if not name.isdigit()]


@dataclass(frozen=True, kw_only=True)
class NameMap:
    """Which tensors of transformers' model the tensors of a GGUF file become.

    Attributes:
        name_of: transformers' name of each tensor that the model takes, by GGUF's name.
        shape_of: Its sizes in the model, by transformers' name.
    """

    name_of: Mapping[str, str]
    shape_of: Mapping[str, tuple[int, ...]]


def map_names(header: GgufHeader, config: Mapping[str, Any]) -> NameMap:
    """Ask transformers which tensor of the model each tensor of the file becomes.

    Raises:
        UnsupportedArchitectureError: transformers has no decoder for the config, or makes its layers of the file's
            tensors in a way that is not followed here (merged experts, say).
        CheckpointError: A layer lacks a tensor.
    """
    _check_loader(header)
    try:
        # Without memory: weights and buffers are on the meta device. 70B shapes take 25 ms, the imports 2 s.
        with init_empty_weights(include_buffers=True):
            model = AutoModelForCausalLM.from_config(AutoConfig.for_model(**config))
        shape_of = {name: tuple(tensor.shape) for name, tensor in model.state_dict().items()}
        processor = tensor_processor(header.architecture, config)
        mapping: dict[str, str] = get_gguf_hf_weights_map(_Outline(model), processor)
    # A config class, a model and gguf's table each refuse what they don't know with errors of their own.
    except Exception as error:
        raise UnsupportedArchitectureError(
            f"transformers {transformers.__version__} builds no decoder from {header.file}, a GGUF file of the "
            f"architecture {header.architecture!r}: {in_one_line(error)}. {_ADVICE}"
        ) from error
    present = {entry.name for entry in header.tensors}
    name_of = {gguf_name: name for gguf_name, name in mapping.items() if gguf_name in present and name in shape_of}
    _check_layers_are_whole(header, shape_of, mapping, name_of)
    return NameMap(name_of=name_of, shape_of=shape_of)


def tensor_processor(architecture: str, config: Mapping[str, Any]) -> Any:
    """The converter that transformers itself has for the tensors of an architecture."""
    return TENSOR_PROCESSORS.get(architecture, TensorProcessor)(config=dict(config))


def try_processor(processor: Any, gguf_name: str, shape: tuple[int, ...]) -> tuple[bool, tuple[int, ...]]:
    """Whether transformers takes a dequantised tensor exactly as it is, and the shape that it gives it.

    It is tried on an array of that shape that takes no memory: a processor that has nothing to do hands it back.

    Args:
        processor: What `tensor_processor` gave.
        gguf_name: GGUF's name of the tensor.
        shape: Its sizes in the file, outermost first.

    Raises:
        UnsupportedArchitectureError: It is merged with others or left out.
        CheckpointError: The shape does not fit the config.
    """
    # -1, because Mamba's processor takes the logarithm of the negative.
    trial = np.broadcast_to(np.float32(-1), shape)
    try:
        result = processor.process(weights=trial, name=gguf_name)
    except (ValueError, IndexError, KeyError, ArithmeticError) as error:
        raise CheckpointError(
            f"The GGUF tensor {gguf_name!r} has the sizes {shape}, which don't fit the file's metadata: {error}. "
            "Get the file again, or convert the model again."
        ) from error
    if result.name != gguf_name:
        raise UnsupportedArchitectureError(
            f"transformers does not load the GGUF tensor {gguf_name!r} as a tensor of its own. {_ADVICE}"
        )
    loaded: tuple[int, ...] = result.weights.shape
    return result.weights is trial, loaded


def _check_loader(header: GgufHeader) -> None:
    """Refuse an architecture that transformers loads in its new way only, by converters that need torch tensors."""
    if find_spec("transformers.integrations.gguf") is None:
        return
    supported = import_module("transformers.integrations.gguf").is_gguf_arch_supported(header.architecture)
    if supported and header.architecture not in TENSOR_PROCESSORS:
        raise UnsupportedArchitectureError(
            f"{header.file} is a GGUF file of the architecture {header.architecture!r}, whose tensors transformers "
            f"rearranges in a way that is not followed here. {_ADVICE}"
        )


def _check_layers_are_whole(
    header: GgufHeader, shape_of: Mapping[str, tuple[int, ...]], mapping: Mapping[str, str], name_of: Mapping[str, str]
) -> None:
    if len(set(name_of.values())) != len(name_of):
        twice = next(name for name in name_of.values() if list(name_of.values()).count(name) > 1)
        merged = sorted(gguf_name for gguf_name, name in name_of.items() if name == twice)
        raise UnsupportedArchitectureError(
            f"transformers merges the GGUF tensors {', '.join(merged)} into {twice}, which is not done here. {_ADVICE}"
        )
    known, found = set(mapping.values()), set(name_of.values())
    for name in shape_of:
        if _OF_A_LAYER.search(name) is None or name in found:
            continue
        if name in known:
            missing = next(gguf_name for gguf_name, mapped in mapping.items() if mapped == name)
            raise CheckpointError(
                f"{header.file} has no tensor {missing!r}, which the model needs as {name}. The file is not whole, or "
                "its metadata is another model's: get it again."
            )
        raise UnsupportedArchitectureError(
            f"The model in {header.file} (architecture {header.architecture!r}) has {name}, which transformers does "
            f"not take from a single GGUF tensor. {_ADVICE}"
        )
