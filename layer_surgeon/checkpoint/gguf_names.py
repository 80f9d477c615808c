"""Find out how transformers loads the tensors of a GGUF file: the name and the shape that each one gets.

The answers come from transformers itself. It builds the model of the config (on the meta device), maps its tensor names
to those of GGUF, and has a processor per architecture that undoes the changes of llama.cpp (permuted rotary rows, norms
stored plus one, transposed matrices). Some of this code imports torch, so GGUF is the only format whose reading imports
torch.
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

_LAYER_INDEX = re.compile(r"(?:^|\.)\d+\.")
_ADVICE = "Use the model's safetensors checkpoint."


class _Outline:
    """A model without the modules inside its layers, for transformers' name map.

    transformers builds gguf's whole name table again for each module: 313 times 17 ms for the 18 layers of
    Gemma-3-270M, and more than ten times as long for 80 layers. The names of the base model are needed, because Bloom's
    files have no prefix. The names inside a layer are not, because they lack the layer's index and never match.
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
    """The map from the tensors of a GGUF file to those of the transformers model.

    Attributes:
        name_of: The transformers name of each tensor that the model loads, by GGUF name.
        shape_of: The shape of each tensor in the model, by transformers name.
    """

    name_of: Mapping[str, str]
    shape_of: Mapping[str, tuple[int, ...]]


def map_names(header: GgufHeader, config: Mapping[str, Any]) -> NameMap:
    """Map each tensor of the file to the tensor of the model that transformers loads it into.

    Raises:
        UnsupportedArchitectureError: transformers has no decoder for the config, or builds its layers from the tensors
            of the file in an unsupported way, such as merged experts.
        CheckpointError: A layer lacks a tensor.
    """
    _check_loader(header)
    try:
        # Weights and buffers are on the meta device and take no memory. 70B shapes take 25 ms, the imports 2 s.
        with init_empty_weights(include_buffers=True):
            model = AutoModelForCausalLM.from_config(AutoConfig.for_model(**config), trust_remote_code=False)
        shape_of = {name: tuple(tensor.shape) for name, tensor in model.state_dict().items()}
        processor = tensor_processor(header.architecture, config)
        mapping: dict[str, str] = get_gguf_hf_weights_map(_Outline(model), processor)
    # Config classes, models and gguf's table have their own exceptions for what they don't support.
    except Exception as error:
        raise UnsupportedArchitectureError(
            f"transformers {transformers.__version__} can't build a decoder from {header.file}, a GGUF file of the "
            f"architecture {header.architecture!r}: {in_one_line(error)}. {_ADVICE}"
        ) from error
    gguf_names = {tensor.name for tensor in header.tensors}
    name_of = {gguf_name: name for gguf_name, name in mapping.items() if gguf_name in gguf_names and name in shape_of}
    _check_layers_are_whole(header, shape_of, mapping, name_of)
    return NameMap(name_of=name_of, shape_of=shape_of)


def tensor_processor(architecture: str, config: Mapping[str, Any]) -> Any:
    """Return transformers' own converter for the tensors of an architecture."""
    return TENSOR_PROCESSORS.get(architecture, TensorProcessor)(config=dict(config))


def try_processor(processor: Any, gguf_name: str, shape: tuple[int, ...]) -> tuple[bool, tuple[int, ...]]:
    """Find out how transformers changes a dequantised tensor, with an array of its shape that takes no memory.

    Args:
        processor: The processor from `tensor_processor`.
        gguf_name: The GGUF name of the tensor.
        shape: Its sizes in the file, outermost first.

    Returns:
        Whether transformers loads the tensor unchanged (the processor returns the same array), and its shape in the
        model.

    Raises:
        UnsupportedArchitectureError: transformers merges the tensor with others or leaves it out.
        CheckpointError: The shape does not fit the config.
    """
    # -1, because Mamba's processor takes the logarithm of the negated values.
    probe = np.broadcast_to(np.float32(-1), shape)
    try:
        result = processor.process(weights=probe, name=gguf_name)
    except (ValueError, IndexError, KeyError, ArithmeticError) as error:
        raise CheckpointError(
            f"The GGUF tensor {gguf_name!r} has the shape {shape}, which does not fit the file's metadata: {error}. "
            "Get the file again, or convert the model again."
        ) from error
    if result.name != gguf_name:
        raise UnsupportedArchitectureError(
            f"transformers does not load the GGUF tensor {gguf_name!r} as a separate tensor. {_ADVICE}"
        )
    loaded_shape: tuple[int, ...] = result.weights.shape
    return result.weights is probe, loaded_shape


def _check_loader(header: GgufHeader) -> None:
    """Refuse an architecture that transformers only loads with its newer converters, which need torch tensors."""
    if find_spec("transformers.integrations.gguf") is None:
        return
    supported = import_module("transformers.integrations.gguf").is_gguf_arch_supported(header.architecture)
    if supported and header.architecture not in TENSOR_PROCESSORS:
        raise UnsupportedArchitectureError(
            f"{header.file} is a GGUF file of the architecture {header.architecture!r}, whose tensors transformers "
            f"rearranges in a way that is not supported here. {_ADVICE}"
        )


def _check_layers_are_whole(
    header: GgufHeader, shape_of: Mapping[str, tuple[int, ...]], mapping: Mapping[str, str], name_of: Mapping[str, str]
) -> None:
    if len(set(name_of.values())) != len(name_of):
        shared_name = next(name for name in name_of.values() if list(name_of.values()).count(name) > 1)
        merged_tensors = sorted(gguf_name for gguf_name, name in name_of.items() if name == shared_name)
        raise UnsupportedArchitectureError(
            f"transformers merges the GGUF tensors {', '.join(merged_tensors)} into {shared_name}, which is not "
            f"supported here. {_ADVICE}"
        )
    mapped_names, loaded_names = set(mapping.values()), set(name_of.values())
    for name in shape_of:
        if _LAYER_INDEX.search(name) is None or name in loaded_names:
            continue
        if name in mapped_names:
            missing = next(gguf_name for gguf_name, mapped in mapping.items() if mapped == name)
            raise CheckpointError(
                f"{header.file} has no tensor {missing!r}, which the model needs as {name}. The file is incomplete, or "
                "its metadata belongs to another model: get it again."
            )
        raise UnsupportedArchitectureError(
            f"The model in {header.file} (architecture {header.architecture!r}) needs {name}, which transformers does "
            f"not load from a single GGUF tensor. {_ADVICE}"
        )
