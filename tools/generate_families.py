"""Find the transformers families whose layers can be extracted, and write the table and the page about them.

    python tools/generate_families.py [--output FILE] [--page FILE] [--only FAMILY ...]

The table is layer_surgeon/checkpoint/families.json, the page docs/families.md.

For every decoder family of the installed transformers, the script builds a tiny random model, saves it, extracts layers
from the checkpoint, loads them as `DonorLayer`, and compares them with the same layers inside the whole model, with and
without padding. A family is only supported if every difference is exactly 0. A family for which no tiny model can be
built from general settings is listed as untested. Such layers are checked by the `donor` package, which checks every
layer that it loads.
"""

import argparse
import gc
import json
import signal
import sys
import tempfile
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
import transformers
from safetensors import safe_open
from transformers import CONFIG_MAPPING, AutoModelForCausalLM
from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING_NAMES

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))

from layer_surgeon.checkpoint import open_checkpoint  # noqa: E402
from layer_surgeon.checkpoint.stack import family_record  # noqa: E402
from layer_surgeon.donor import DonorLayer, DonorStack  # noqa: E402
from layer_surgeon.donor.checkpoint_names import checkpoint_names  # noqa: E402
from layer_surgeon.donor.entrance import EntrancePlan, plan_entrance  # noqa: E402
from layer_surgeon.donor.family import family_config, find_stack, model_class  # noqa: E402
from layer_surgeon.donor.probe import probe_layer  # noqa: E402
from layer_surgeon.errors import LayerSurgeonError  # noqa: E402
from layer_surgeon.extract import extract_layer  # noqa: E402
from layer_surgeon.extract.embeddings import find_embeddings  # noqa: E402
from tests.support.exactness import difference  # noqa: E402
from tests.support.tiny_models import cut_artifact, layers_prefix, model_from, save_quietly, tiny_config  # noqa: E402
from tests.support.tiny_stacks import save_stack, stack_difference  # noqa: E402
from tools.families_page import page  # noqa: E402

OUTPUT = ROOT / "layer_surgeon" / "checkpoint" / "families.json"
PAGE = ROOT / "docs" / "families.md"
SECONDS = 60
MAX_PARAMETERS = 20_000_000
PADDINGS = ("none", "left", "right")

# Settings that some families need, in addition to small sizes, for a tiny model with all their kinds of layers.
HYBRID = ["linear_attention", "full_attention"] * 2
NEEDS: dict[str, dict[str, Any]] = {
    "bailing_hybrid": {"layer_types": HYBRID},
    "bamba": {"attn_layer_indices": [1, 3]},
    "cohere_compass_text": {"rope_parameters": {"full_attention": {"rope_type": "default", "rope_theta": 10000.0}}},
    "dbrx": {"attn_config": {"kv_n_heads": 2, "rope_theta": 10000.0}},
    "dory": {"n_input_layers": 1, "n_output_layers": 1},
    "gemma3n_text": {"layer_types": ["sliding_attention", "full_attention"] * 2, "num_kv_shared_layers": 0},
    "gpt_neo": {"attention_types": [[["global", "local"], 2]], "window_size": 5},
    "granitemoehybrid": {"layer_types": HYBRID},
    "inkling2_loop_text": {"unpadded_vocab_size": 96},
    "inkling2_text": {"unpadded_vocab_size": 96},
    "jamba": {"attn_layer_period": 2, "attn_layer_offset": 1},
    # Its defaults, 32 heads of 128, take a second per layer without its kernels.
    "kimi_linear": {"layer_types": HYBRID, "linear_head_dim": 8, "linear_num_heads": 4},
    "lfm2_moe": {"layer_types": ["conv", "full_attention"] * 2},
    # The texts have 19 tokens, which is more than two chunks.
    "mamba2": {"num_heads": 8, "head_dim": 8, "n_groups": 1, "state_size": 8, "chunk_size": 8},
    "nemotron_h": {
        "mamba_num_heads": 8,
        "mamba_head_dim": 8,
        "n_groups": 1,
        "ssm_state_size": 8,
        "chunk_size": 8,
        "moe_shared_expert_intermediate_size": 16,
    },
    "reformer": {"axial_pos_embds": False},
    "xlnet": {"d_head": 8},
    "xmod": {"default_language": "en_XX"},
    "zaya": {"num_experts_per_tok": 1},
}


# Settings with which models have more weights before their first layer than with the tests' small sizes.
MORE_EMBEDDINGS: dict[str, dict[str, Any]] = {
    "electra": {"embedding_size": 16},
    "ernie": {"use_task_id": True},
    "opt": {"word_embed_proj_dim": 16},
}


class UntestedError(Exception):
    """No tiny model of the family could be built or run."""


class RefusedError(Exception):
    """The layers of the family are not supported."""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--output", type=Path, default=OUTPUT)
    parser.add_argument("--page", type=Path, default=PAGE)
    parser.add_argument(
        "--only", nargs="+", help="examine only these families, and print the result without writing files"
    )
    options = parser.parse_args()
    transformers.logging.set_verbosity_error()
    warnings.simplefilter("ignore")
    table: dict[str, Any] = {
        "transformers": transformers.__version__,
        "families": {},
        "refused": {},
        "untested": {},
    }
    for model_type in options.only or text_families():
        try:
            with time_limit(SECONDS):
                table["families"][model_type] = examine(model_type)
            print(f"{model_type:32} exact", flush=True)
        except RefusedError as reason:
            table["refused"][model_type] = str(reason)
            print(f"{model_type:32} REFUSED: {reason}", flush=True)
        except UntestedError as reason:
            table["untested"][model_type] = str(reason)
            print(f"{model_type:32} untested: {reason}", flush=True)
        gc.collect()
    counts = ", ".join(f"{len(table[key])} {key}" for key in ("families", "refused", "untested"))
    print(f"transformers {transformers.__version__}: {counts}")
    if not options.only:
        options.output.write_text(json.dumps(table, indent=1, sort_keys=True) + "\n")
        options.page.write_text(page(table))


def text_families() -> list[str]:
    """Return every model_type with a causal language model. For multimodal models it is that of the text part."""
    model_types = set()
    for model_type in MODEL_FOR_CAUSAL_LM_MAPPING_NAMES:
        if model_type not in CONFIG_MAPPING:
            continue
        try:
            text = CONFIG_MAPPING[model_type]().get_text_config(decoder=True)
        except Exception:  # noqa: BLE001 - a config without defaults, which `examine` reports
            model_types.add(model_type)
            continue
        model_types.add(text.model_type if text.model_type in CONFIG_MAPPING else model_type)
    return sorted(model_types)


def examine(model_type: str) -> dict[str, Any]:
    """Return the table row of a family whose layers are exact."""
    try:
        return compare(make_model(model_type))
    except (RefusedError, UntestedError):
        if getattr(CONFIG_MAPPING[model_type], "is_decoder", None) is not False:
            raise
    # Families such as BERT use bidirectional attention unless they are configured as decoders.
    return {**compare(make_model(model_type, is_decoder=True)), "needs_is_decoder": True}


def compare(model: Any) -> dict[str, Any]:
    """Compare all layers of a model, and return their names in a checkpoint."""
    try:
        with torch.device("meta"):
            stack = find_stack(model_class(model.config)(model.config))
    except LayerSurgeonError as error:
        raise RefusedError(shorten(error)) from error
    with tempfile.TemporaryDirectory() as folder:
        checkpoint = Path(folder) / "checkpoint"
        try:
            save_quietly(model, checkpoint)
        except Exception as error:
            raise UntestedError(f"saving: {shorten(error)}") from error
        with safe_open(checkpoint / "model.safetensors", framework="pt") as file:
            names = list(file.keys())
        whole = layers_prefix(names).rstrip(".")
        before, traits = check_stack(model, checkpoint, stack if whole.endswith(stack) else whole)
        # Each layer of an exact stack got and returned what it does in the model, so one of them is enough here.
        indices = range(model.config.num_hidden_layers)
        served = [*traits[:-1], *check(model, checkpoint, indices[-1:] if traits else indices)]
        own_names = check_own_names(model, names, Path(folder) / "own-names")
    return {
        "stack": stack if whole.endswith(stack) else whole,
        "num_layers": type(model.config).attribute_map.get("num_hidden_layers", "num_hidden_layers"),
        "default_layers": type(model.config)().num_hidden_layers,
        "base_prefix": whole.removesuffix(stack).rstrip(".") if whole.endswith(stack) else "",
        "kind": "causal",
        "bidirectional": all(not traits.not_bidirectional for traits in served),
        **before,
        **({} if own_names else {"own_names_refused": True}),
    }


def make_model(model_type: str, **overrides: Any) -> Any:
    """Build a tiny model of a family, and check that it runs."""
    try:
        config = tiny_config(model_type, **NEEDS.get(model_type, {}), **overrides)
    except Exception as error:
        raise UntestedError(f"config: {shorten(error)}") from error
    if config.is_encoder_decoder:
        raise RefusedError("it is an encoder-decoder family, and its decoder layers read an encoder's output")
    try:
        with torch.device("meta"):
            size = sum(parameter.numel() for parameter in AutoModelForCausalLM.from_config(config).parameters())
        if size > MAX_PARAMETERS:
            raise UntestedError(f"its smallest model from general settings has {size:,} parameters")
        model = model_from(config)
        with torch.no_grad():
            model(input_ids=torch.arange(3, 22)[None])
    except UntestedError:
        raise
    except Exception as error:
        raise UntestedError(f"model: {shorten(error)}") from error
    return model


def check(model: Any, checkpoint: Path, indices: Sequence[int]) -> list[Any]:
    """Compare layers inside the model with `DonorLayer`s from its checkpoint. Returns the traits of these."""
    served, refusals = [], []
    number = model.config.num_hidden_layers
    for index in indices:
        try:
            donor = DonorLayer.from_pretrained(cut_artifact(checkpoint, [index], checkpoint / f"layer-{index}"))
        except LayerSurgeonError as error:
            refusals.append(error)
            continue
        traits = donor.probe()[0]
        if traits.not_causal is not None:
            raise RefusedError(traits.not_causal)
        for padding in PADDINGS:
            largest_difference = difference(model, donor, index, padding)
            if largest_difference != 0:
                raise RefusedError(
                    f"layer {index} of {number} alone differs by {largest_difference:.2g} (padding: {padding})"
                )
        served.append(traits)
    # Some layers of a family may be unsupported, such as those that share keys and values. The default is the last.
    if len(refusals) > len(served):
        raise RefusedError(shorten(refusals[0])) from refusals[0]
    return served


def check_stack(model: Any, checkpoint: Path, stack_path: str) -> tuple[dict[str, Any], list[Any]]:
    """Compare a `DonorStack` of all layers with the model at each depth.

    Returns a record of what acts before layer 0, and the traits of the layers. The list of traits is empty if the stack
    isn't exact.

    `embeddings` are the names of its weights, also of those that only some models of the family have
    (`optional_embeddings`). `token_table` is the one with a row per token, if nothing else depends on the token ids.
    `stored_as` has the names in a checkpoint that differ, relative to the same prefix as the layers'.
    """
    try:
        opened = open_checkpoint(checkpoint)
        plan = plan_entrance(family_config(dict(opened.config)))
        names = checkpoint_names(plan.outline, plan.shapes, opened)
        if "embeddings" in (family_record(opened.model_type) or {}) and find_embeddings(opened).names != names:
            raise RefusedError(f"extract finds other embeddings than {names}")
        stack = DonorStack.from_pretrained(save_stack(model, opened.num_layers, checkpoint.with_name("stack")))
    except LayerSurgeonError as error:
        return {"embeddings_refused": shorten(error)}, []
    for padding in PADDINGS:
        largest_difference = stack_difference(model, stack, padding)
        if largest_difference != 0:
            return {"embeddings_refused": f"its states differ by {largest_difference:.2g} (padding: {padding})"}, []
    root = opened.layer_prefix(0).removesuffix(f"{stack_path}.0.")
    stored_as = {name: stored.removeprefix(root) for name, stored in names.items() if stored != root + name}
    optional = more_embeddings(opened.model_type, plan)
    before = {
        "embeddings": [*plan.shapes, *optional],
        **({"optional_embeddings": optional} if optional else {}),
        "token_table": plan.token_table if reads_only_table(stack, plan) else None,
        **({"stored_as": stored_as} if stored_as else {}),
    }
    layers = stack.layers
    return before, [
        probe_layer(scaffold, layer, layers.hidden_size)
        for scaffold, layer in zip(layers.scaffolds, layers.layers, strict=True)
    ]


def more_embeddings(family: str, plan: EntrancePlan) -> list[str]:
    """Names of weights that only some models of a family have before their first layer."""
    if family not in MORE_EMBEDDINGS:
        return []
    settings = NEEDS.get(family, {}) | MORE_EMBEDDINGS[family] | {"is_decoder": True}
    more = plan_entrance(family_config(tiny_config(family, **settings).to_dict()))
    return [name for name in more.shapes if name not in plan.shapes]


def reads_only_table(stack: DonorStack, plan: EntrancePlan) -> bool:
    """Whether the token ids only matter as row numbers of the table of tokens.

    Not if there is a second table, or if positions are counted from the ids that are not padding.
    """
    if plan.token_table is None:
        return False
    seen: list[list[torch.Tensor]] = []
    table = stack.entrance.model.get_submodule(plan.token_table.removesuffix(".weight"))

    def keep(module: torch.nn.Module, args: Any, kwargs: Any) -> None:
        if module is not table:
            seen[-1] += [value for value in (*args, *kwargs.values()) if isinstance(value, torch.Tensor)]

    modules = [stack.entrance.model.get_submodule(path) for path in plan.modules]
    handles = [module.register_forward_pre_hook(keep, with_kwargs=True) for module in modules]
    for input_ids in (torch.arange(19)[None], torch.arange(19).flip(0)[None]):
        seen.append([])
        with torch.no_grad():
            stack(input_ids)
    for handle in handles:
        handle.remove()
    first, second = ([value for value in values if not value.is_floating_point()] for values in seen)
    return len(first) == len(second) and all(map(torch.equal, first, second))


def check_own_names(model: Any, original_names: list[str], checkpoint: Path) -> bool:
    """Compare the last layer from a checkpoint with the names of the model, such as fused experts.

    `save_pretrained(save_original_format=False)` writes such checkpoints.

    Returns:
        False if such a checkpoint is refused. True if it is exact, or has the same names as the original format.
    """
    save_quietly(model, checkpoint, save_original_format=False)
    with safe_open(checkpoint / "model.safetensors", framework="pt") as file:
        if set(file.keys()) == set(original_names):
            return True
    try:
        donor = DonorLayer.from_pretrained(extract_layer(checkpoint, -1, checkpoint / "layer").path)
    except LayerSurgeonError:
        return False
    largest_difference = difference(model, donor, model.config.num_hidden_layers - 1, "left")
    if largest_difference != 0:
        raise RefusedError(f"with the model's own names, its last layer differs by {largest_difference:.2g}")
    return True


def shorten(error: Exception) -> str:
    text = " ".join(str(error).split()) or type(error).__name__
    return text if len(text) <= 240 else f"{text[:237]}..."


@contextmanager
def time_limit(seconds: int) -> Iterator[None]:
    def expire(*_: Any) -> None:
        raise UntestedError(f"took more than {seconds} s")

    # Processor time, so that a busy machine gives the same table.
    previous = signal.signal(signal.SIGPROF, expire)
    signal.setitimer(signal.ITIMER_PROF, seconds)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_PROF, 0)
        signal.signal(signal.SIGPROF, previous)


if __name__ == "__main__":
    main()
