"""One tiny model of a family and its sibling, and what any selection of their layers has to compute.

The reference sends hidden states through the original models' own layers at their own places: the whole original model
runs, and only what enters and leaves one of its layers is exchanged. So masks, positions and constants are those of the
layer's own number.
"""

import json
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from copy import deepcopy
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from transformers import CONFIG_MAPPING, AutoModelForCausalLM, PreTrainedModel
from transformers.utils import logging

from layer_surgeon.checkpoint.stack import _families_table
from tests.support.exactness import find_layers
from tests.support.tiny_models import model_from, save_quietly, tiny_config
from tools.generate_families import NEEDS

LAYERS = 6
# (model, layer) of each layer of the new model. Model 1 is the sibling. Patterns of two layers go on in all of them.
SELECTIONS: dict[str, list[tuple[int, int]]] = {
    "keep": [(0, layer) for layer in range(4)],
    "drop": [(0, layer) for layer in (0, 1, 4, 5)],
    "stack": [(0, layer) for layer in (0, 1, 2, 3, 2, 3, 4, 5)],
    "swap": [(0, 0), (0, 1), (0, 2), (1, 3), (0, 4), (0, 5)],
}
# Each layer, and after each second one a copy that adds nothing.
EXPANSION = [0, 1, 1, 2, 3, 3, 4, 5, 5]
SILENT_POSITIONS = (2, 5, 8)

# As `NEEDS` of the families' tool, for six layers.
_NEEDS: dict[str, dict[str, Any]] = {
    # With the default, each position attends to all of a short text.
    "axk2": {"index_topk": 4},
    "bamba": {"attn_layer_indices": [1, 3, 5]},
    "cohere2_moe": {"num_shared_experts": 1, "mlp_layer_types": ["dense", *["sparse"] * 5]},
    "deepseek_v32": {"index_topk": 4},
    "dory": {"n_input_layers": 2, "n_output_layers": 2},
    "gemma4_text": {"enable_moe_block": True, "num_experts": 4, "top_k_experts": 2, "moe_intermediate_size": 16},
    "glm_moe_dsa": {"index_topk": 4},
    "granitemoe_swa": {"shared_intermediate_size": 16},
    "granitemoeshared": {"shared_intermediate_size": 16},
    "inkling_text": {"mlp_layer_types": ["dense", *["sparse"] * 5]},
    "lfm2": {"full_attn_idxs": [1, 3, 5]},
    "gpt_neo": {"attention_types": [[["global", "local"], 3]]},
    "nemotron_h": {
        "layers_block_type": ["linear_attention", "moe", "full_attention", "mlp", "linear_attention", "moe"]
    },
    "mellum": {"mlp_layer_types": ["dense", *["sparse"] * 5]},
    "minimax_m3_vl_text": {"mlp_layer_types": ["dense", *["sparse"] * 5]},
    "llama4_text": {"interleave_moe_layer_step": 2},
    "olmo_hybrid": {"layer_types": ["linear_attention", "full_attention"] * 3},
    "qwen2_moe": {"mlp_only_layers": [1]},
    "qwen3_moe": {"mlp_only_layers": [1]},
    "qwen3_next": {"mlp_only_layers": [1]},
    # Otherwise weights and hidden states are halved after each sixth layer, which changes the last bits of a result.
    "rwkv": {"rescale_every": 0},
    # transformers sets the embedding of a padding token to zero whenever it loads a model.
    "youtu": {"pad_token_id": None},
}
# Families with one kind of attention by default, and those whose last layer must have another one.
_MIXED = (
    "dots1",
    "gemma4_text",
    "gemma4_unified_text",
    "laguna",
    "mellum",
    "ministral",
    "qwen2",
    "qwen2_moe",
    "qwen3",
    "smollm3",
)


def is_family(model_type: str) -> bool:
    """Whether the installed transformers has the family."""
    return model_type in CONFIG_MAPPING


def walk_overrides(model_type: str) -> dict[str, Any]:
    """Settings of a tiny model of six layers with more than one kind of layer, if the family has several."""
    family = _families_table()["families"][model_type]
    needs = {**NEEDS.get(model_type, {}), **_NEEDS.get(model_type, {})}
    overrides = {
        name: (value * 2)[:LAYERS] if name == "layer_types" and len(value) < LAYERS else value
        for name, value in needs.items()
    }
    if model_type in _MIXED:
        kinds = ["sliding_attention", "full_attention"]
        overrides |= {"layer_types": kinds * (LAYERS // 2), "use_sliding_window": True}
    if model_type != "nemotron_h":
        overrides[family["num_layers"]] = LAYERS
    if family.get("needs_is_decoder"):
        overrides["is_decoder"] = True
    return overrides


class Run:
    """The hidden states that entered and left each layer when it was first called in one run, and the logits."""

    logits: Tensor

    def __init__(self) -> None:
        self.entered: dict[int, Tensor] = {}
        self.left: dict[int, Tensor] = {}

    def passes_on(self, layer: int, following: int) -> bool:
        """Whether a layer got exactly what another one returned."""
        return following in self.left and torch.equal(self.entered[following], self.left[layer])


def quiet() -> None:
    """Stop transformers from printing progress bars and warnings about tiny models."""
    logging.set_verbosity_error()
    logging.disable_progress_bar()


class Family:
    """A tiny model of a family and its sibling, saved in two folders.

    Attributes:
        folders: Of the model and of its sibling: the same config, other weights.
        config: The config.json of both.
    """

    def __init__(self, model_type: str, folder: Path, **overrides: Any) -> None:
        quiet()
        config = tiny_config(model_type, **{**walk_overrides(model_type), **overrides})
        self.models = [model_from(deepcopy(config), seed=seed) for seed in (0, 1)]
        self.folders = [folder / name for name in ("model", "sibling")]
        for model, path in zip(self.models, self.folders, strict=True):
            save_quietly(model, path)
        self.config: dict[str, Any] = json.loads((self.folders[0] / "config.json").read_text())
        self.input_ids = torch.arange(3, 22)[None]
        whole = self.run(self.models[0])
        self._entered, self._logits = whole.entered[0], whole.logits
        self._states: dict[tuple[tuple[int, int], ...], Tensor] = {}
        self._note([(0, layer) for layer in range(LAYERS)], 0, whole)

    def logits(self) -> Tensor:
        """What the original model computes, [1, seq, vocab]."""
        return self._logits

    def expected(self, selection: Sequence[tuple[int, int]]) -> Tensor:
        """What a model of these layers has to compute, [1, seq, vocab]."""
        states = self._entered
        for start, (model, layer) in enumerate(selection):
            if tuple(selection[: start + 1]) not in self._states:
                self._note(selection, start, self.run(self.models[model], layer=layer, states=states))
            states = self._states[tuple(selection[: start + 1])]
        return self.run(self.models[0], leaving=states).logits

    def _note(self, selection: Sequence[tuple[int, int]], start: int, run: "Run") -> None:
        """Note what the layer at `start` returned, and the following ones, if the model has them in the same order."""
        model, layer = selection[start]
        self._states[tuple(selection[: start + 1])] = run.left[layer]
        for end in range(start + 1, len(selection)):
            before, layer = layer, layer + 1
            if selection[end] != (model, layer) or not run.passes_on(before, layer):
                return
            self._states[tuple(selection[: end + 1])] = run.left[layer]

    def run(
        self,
        model: PreTrainedModel,
        *,
        layer: int | None = None,
        states: Tensor | None = None,
        leaving: Tensor | None = None,
    ) -> "Run":
        """Run a whole model. `states` enter one layer, and `leaving` leave the last one, instead of its own."""
        layers = find_layers(model)
        run = Run()
        with _hooks() as handles:
            if layer is not None and states is not None:
                handles.append(layers[layer].register_forward_pre_hook(_replace_input(states), with_kwargs=True))
            for index, module in enumerate(layers):
                handles.append(module.register_forward_pre_hook(_record_input(run.entered, index), with_kwargs=True))
                handles.append(module.register_forward_hook(_record_output(run.left, index)))
            if leaving is not None:
                handles.append(layers[-1].register_forward_hook(_replace_output(leaving)))
            with torch.no_grad():
                run.logits = model(input_ids=self.input_ids, use_cache=False).logits
        return run


def load_logits(folder: Path, input_ids: Tensor) -> Tensor:
    """Load a folder as anyone does, and return its logits, [1, seq, vocab].

    Raises:
        AssertionError: The folder lacks tensors of the model, or has others.
    """
    model, info = AutoModelForCausalLM.from_pretrained(folder, output_loading_info=True, dtype=torch.float32)
    problems = {kind: sorted(map(str, names)) for kind, names in info.items() if names}
    assert not problems, problems
    with torch.no_grad():
        return model.eval()(input_ids=input_ids, use_cache=False).logits  # type: ignore[no-any-return]


def relative_difference(logits: Tensor, expected: Tensor) -> float:
    """The largest difference of logits, relative to the largest expected one."""
    return ((logits - expected).abs().max() / expected.abs().max()).item()


@contextmanager
def _hooks() -> Iterator[list[Any]]:
    handles: list[Any] = []
    try:
        yield handles
    finally:
        for handle in handles:
            handle.remove()


def _input(args: tuple[Any, ...], kwargs: dict[str, Any]) -> Tensor:
    return args[0] if args else kwargs["hidden_states"]


def _record_input(entered: dict[int, Tensor], index: int) -> Any:
    def hook(_: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        entered.setdefault(index, _input(args, kwargs).clone())

    return hook


def _record_output(left: dict[int, Tensor], index: int) -> Any:
    def hook(_: nn.Module, args: tuple[Any, ...], output: Any) -> None:
        left.setdefault(index, (output[0] if isinstance(output, (tuple, list)) else output).clone())

    return hook


def _replace_input(states: Tensor) -> Any:
    def hook(_: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        if args:
            return (states.clone(), *args[1:]), kwargs
        return args, {**kwargs, "hidden_states": states.clone()}

    return hook


def _replace_output(states: Tensor) -> Any:
    def hook(_: nn.Module, args: tuple[Any, ...], output: Any) -> Any:
        return (states.clone(), *output[1:]) if isinstance(output, (tuple, list)) else states.clone()

    return hook
