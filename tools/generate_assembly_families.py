"""Find how the layers of each transformers family depend on their numbers, and write the table and the page about it.

    python tools/generate_assembly_families.py [--output FILE] [--page FILE] [--only FAMILY ...]

The table is layer_surgeon/assemble/assembly_families.json, the page docs/assemble_families.md.

For each family of layer_surgeon/checkpoint/families.json, the script builds configs and tiny models (on the meta
device) with many values of each setting. A setting with one value per layer is a list. A setting that changes the kinds
of some layers only is part of a pattern, for which the script finds a rule (`layer_surgeon.assemble.layer_rules`). It
also finds the tensors without which a layer adds nothing. Then it assembles models with all of this and compares their
logits with a reference that uses the original layers at their own numbers. A family is refused if they differ.
"""

import argparse
import json
import random
import re
import sys
import tempfile
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from copy import deepcopy
from inspect import getsource
from itertools import combinations
from pathlib import Path
from typing import Any

import torch
import transformers
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from transformers import CONFIG_MAPPING
from transformers.core_model_loading import revert_weight_conversion

ROOT = Path(__file__).resolve().parents[1]
# The tests are not an installed package, so the imports of this repository follow this line (E402).
sys.path.insert(0, str(ROOT))

from layer_surgeon.assemble.family_table import family_table, module_pattern, residual_outputs  # noqa: E402
from layer_surgeon.assemble.ignored_settings import NOT_COMPARED  # noqa: E402
from layer_surgeon.assemble.layer_rules import Rule, rule_settings, rule_values  # noqa: E402
from layer_surgeon.assemble.layer_settings import LayerChoice, assembled_config  # noqa: E402
from layer_surgeon.donor.family import find_stack, model_class  # noqa: E402
from layer_surgeon.errors import LayerSurgeonError  # noqa: E402
from tests.support.assembly_walk import (  # noqa: E402
    EXPANSION,
    LAYERS,
    SELECTIONS,
    SILENT_POSITIONS,
    Family,
    is_family,
    load_logits,
    relative_difference,
    walk_overrides,
)
from tests.support.exactness import find_layers  # noqa: E402
from tests.support.tiny_models import layers_prefix, tiny_config  # noqa: E402
from tools.assembly_page import page  # noqa: E402
from tools.generate_families import OUTPUT as FAMILIES  # noqa: E402
from tools.generate_families import shorten, time_limit  # noqa: E402

OUTPUT = ROOT / "layer_surgeon" / "assemble" / "assembly_families.json"
PAGE = ROOT / "docs" / "assemble_families.md"
SECONDS = 240
MAX_DIFFERENCE = 1e-6
SAMPLES = 60
# Starts the description of a model that was not refused, but is not right.
WRONG = "wrong:"
# Settings that may be null, which switches something off.
NULLABLE = ("sliding_window", "attention_chunk_size")
# Words in the names of settings that may decide about layers. If an old config has one that no rule explains, its
# layers are unknown.
LAYER_WORDS = re.compile(
    r"^(?!.*(rope|size|theta))(.*(layer|pattern|freq|attn_config|attention_config|every|interval|step|type|offset|dense|idx))"
)
# Settings that only old configs have, in a form that can't be guessed.
LETTERS = {"nemotron_h": {"layers_block_type": "hybrid_override_pattern"}}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--output", type=Path, default=OUTPUT)
    parser.add_argument("--page", type=Path, default=PAGE)
    parser.add_argument("--only", nargs="+", help="examine only these families; the others stay as they are")
    options = parser.parse_args()
    warnings.simplefilter("ignore")
    table: dict[str, Any] = {"transformers": transformers.__version__, "families": {}, "refused": {}}
    for model_type in options.only or json.loads(FAMILIES.read_text())["families"]:
        if not is_family(model_type):
            continue
        with time_limit(SECONDS):
            section, details = examine(model_type)
        table[section][model_type] = details
        print(f"{model_type:28} {section}: {json.dumps(details if options.only else summary(details))}", flush=True)
    if options.only:
        earlier = json.loads(options.output.read_text())
        for section in ("families", "refused"):
            kept = {name: value for name, value in earlier[section].items() if name not in options.only}
            table[section] = {**kept, **table[section]}
    options.output.write_text(json.dumps(table, indent=1, sort_keys=True) + "\n")
    options.page.write_text(page(table))


def summary(details: Any) -> Any:
    if isinstance(details, str):
        return details
    return {
        key: value for key, value in details.items() if key not in ("defaults", "sections", "residual", "num_layers")
    }


def examine(model_type: str) -> tuple[str, Any]:
    """Return the section of the table that a family belongs to, and what the table says about it."""
    family = Study(model_type).details()
    family_table()["families"][model_type] = family
    family_table()["refused"].pop(model_type, None)
    with tempfile.TemporaryDirectory() as folder:
        tiny = Family(model_type, Path(folder))
        identity = tiny.expected([(0, layer) for layer in range(LAYERS)])
        if not relative_difference(identity, tiny.logits()) <= MAX_DIFFERENCE:
            return "refused", "its layers run more than once, or read what earlier layers made"
        family |= find_residual(tiny)
        if "residual" in family:
            family |= {"modules": find_modules(tiny), "silent_unless": loud_switches(tiny, Path(folder))}
        results = {name: check(tiny, Path(folder) / name, selection) for name, selection in SELECTIONS.items()}
        if results["swap"] is not None:
            return "refused", results["swap"].removeprefix(WRONG).strip()
        if any(is_wrong(result) for result in results.values()):
            family |= find_bond(tiny, Path(folder), results)
            results = {name: check(tiny, Path(folder) / f"{name}-2", path) for name, path in SELECTIONS.items()}
        if wrong := [result for result in results.values() if is_wrong(result)]:
            return "refused", wrong[0].removeprefix(WRONG).strip()
        results["expand"], exact = check_expansion(tiny, Path(folder) / "expand")
        if is_wrong(results["expand"]):
            return "refused", results["expand"].removeprefix(WRONG).strip()
        family |= {"exact_expansion": True} if exact else {}
        family["refuses"] = {name: reason for name, reason in results.items() if reason}
        for name in family["lists"]:
            family["lists"][name] |= cross_layer_values(tiny, Path(folder), name)
        family |= bound_switches(tiny, Path(folder)) if "bound" not in family and "counted" not in family else {}
    return "families", {key: value for key, value in family.items() if value not in ({}, [], None)}


# Checks


def assemble(tiny: Family, folder: Path, selection: Sequence[tuple[int, int]], silent: Sequence[int] = ()) -> None:
    """Write a model of the selected layers."""
    choices = [
        LayerChoice(config=tiny.config, layer=layer, silent=position in silent)
        for position, (_, layer) in enumerate(selection)
    ]
    config = assembled_config(tiny.config, choices)
    states = [load_file(path / "model.safetensors") for path in tiny.folders]
    prefix = layers_prefix(list(states[0]))
    names = residual_outputs(tiny.config) if silent else ()
    patterns = [re.compile(re.escape(name).replace(r"\*", r"\d+")) for name in names]
    tensors = {name: tensor for name, tensor in states[0].items() if not re.match(rf"{re.escape(prefix)}\d+\.", name)}
    for position, (model, layer) in enumerate(selection):
        for name, tensor in states[model].items():
            if name.startswith(f"{prefix}{layer}."):
                inner = name.removeprefix(f"{prefix}{layer}.")
                is_zero = position in silent and any(pattern.fullmatch(inner) for pattern in patterns)
                tensors[f"{prefix}{position}.{inner}"] = torch.zeros_like(tensor) if is_zero else tensor.clone()
    folder.mkdir()
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})
    (folder / "config.json").write_text(json.dumps(config))


def is_wrong(result: str | None) -> bool:
    return result is not None and result.startswith(WRONG)


def check(tiny: Family, folder: Path, selection: Sequence[tuple[int, int]]) -> str | None:
    """Return why a model of the selected layers is refused or wrong; None if it is right."""
    try:
        assemble(tiny, folder, selection)
    except LayerSurgeonError as error:
        return shorten(error)
    try:
        difference = relative_difference(load_logits(folder, tiny.input_ids), tiny.expected(selection))
    except Exception as error:  # noqa: BLE001 - whatever transformers raises for a wrong config
        return f"{WRONG} {shorten(error)}"
    return None if difference <= MAX_DIFFERENCE else f"{WRONG} its logits differ by {difference:.2g}"


def check_expansion(tiny: Family, folder: Path) -> tuple[str | None, bool]:
    """Return why the model with inserted layers that add nothing is refused or wrong, and whether it is exact."""
    try:
        assemble(tiny, folder, [(0, layer) for layer in EXPANSION], SILENT_POSITIONS)
    except LayerSurgeonError as error:
        return shorten(error), False
    try:
        difference = relative_difference(load_logits(folder, tiny.input_ids), tiny.logits())
    except Exception as error:  # noqa: BLE001 - as in `check`
        return f"{WRONG} {shorten(error)}", False
    if difference <= MAX_DIFFERENCE:
        return None, difference == 0
    return f"{WRONG} its logits differ by {difference:.2g}", False


def find_bond(tiny: Family, folder: Path, results: Mapping[str, str | None]) -> dict[str, Any]:
    """Find out whether layers depend on their own number, or on the number of layers."""
    kinds = [
        json.dumps(kind) for kind in Study(tiny.config["model_type"]).kinds(walk_overrides(tiny.config["model_type"]))
    ]
    same = next(([a, b] for a, b in combinations(range(LAYERS), 2) if kinds[a] == kinds[b]), None)
    if same is None:
        return {"bound": "all its layers are of different kinds"}
    order = list(range(LAYERS))
    order[same[0]], order[same[1]] = same[1], same[0]
    reordered = check(tiny, folder / "reordered", [(0, layer) for layer in order])
    if results["keep"] is None:
        return {"bound": "its constants follow from the layer's number"}
    if reordered is None:
        return find_scale(tiny, folder) or {"counted": "its constants follow from the number of layers"}
    return {"bound": "its constants follow from the layer's number", "counted": "and from the number of layers"}


def find_scale(tiny: Family, folder: Path) -> dict[str, Any]:
    """Find a setting whose product with a power of the number of layers is what layers compute with."""
    family = family_table()["families"][tiny.config["model_type"]]
    for name, value in family["defaults"].items():
        for exponent in (0.5, -0.5, 1.0, -1.0) if type(value) is float or type(tiny.config.get(name)) is float else ():
            family["scaled_by_count"] = {name: exponent}
            if check(tiny, folder / f"scaled-{name}-{exponent}", SELECTIONS["keep"]) is None:
                return {"scaled_by_count": {name: exponent}}
    del family["scaled_by_count"]
    return {}


def cross_layer_values(tiny: Family, folder: Path, name: str) -> dict[str, Any]:
    """Find values of a list with which a layer reads what another one made, such as `shared` indexers."""
    model_type, refused = tiny.config["model_type"], []
    study = Study(model_type)
    for text in study.other_values(name):
        place = folder / f"{name}-{text}"
        try:
            mixed = Family(model_type, place, **{name: [study.values_of(name)[0], text] * (LAYERS // 2)})
        except Exception:  # noqa: BLE001 - a text that only has a meaning elsewhere
            continue
        result = check(mixed, place / "assembled", [(0, layer) for layer in (0, 3, 2, 1, 4, 5)])
        if is_wrong(result):
            refused.append(text)
    return {"refused": refused} if refused else {}


def bound_switches(tiny: Family, folder: Path) -> dict[str, Any]:
    """Find switches with which layers depend on their own number, by turning each one."""
    model_type = tiny.config["model_type"]
    if not re.search(
        r"layer_id\w* *[-+*/%]|[-+*/%] *\(?(?:self\.)?layer_id", getsource(sys.modules[type(tiny.models[0]).__module__])
    ):
        return {}  # Its code never computes with the number of a layer.
    defaults = CONFIG_MAPPING[model_type]().to_dict()
    bound: dict[str, list[Any]] = {}
    for name, value in defaults.items():
        if type(value) is not bool or name in NOT_COMPARED or name in ("is_decoder", "add_cross_attention"):
            continue
        place = folder / f"switch-{name}"
        try:
            switched = Family(model_type, place, **{name: not value})
            selection = SELECTIONS["stack"]
            assemble(switched, place / "assembled", selection)
            difference = relative_difference(
                load_logits(place / "assembled", switched.input_ids), switched.expected(selection)
            )
        except Exception:  # noqa: BLE001 - not every switch has two positions
            continue
        if difference > MAX_DIFFERENCE * 10:
            bound[name] = [value]
    return {"bound_unless": bound}


# Residual outputs


def find_residual(tiny: Family) -> dict[str, Any]:
    """Find the tensors of a layer that are enough to make it add nothing if they are zero, by trying."""
    layers = find_layers(tiny.models[0])
    found: dict[str, None] = {}
    scalable = True
    seen = set()
    states = torch.randn(tiny._entered.shape, generator=torch.Generator().manual_seed(0))
    for index, layer in enumerate(layers):
        kind = tuple(name for name, _ in layer.named_parameters())
        if kind in seen:
            continue
        seen.add(kind)
        names = zero_outputs(tiny, index, layer, states)
        if names is None:
            return {}
        found.update(dict.fromkeys(disk_names(tiny, index, names)))
        scalable = scalable and is_scalable(tiny, index, layer, names, states)
    return {"residual": sorted(found), **({"scalable": True} if scalable else {})}


def find_modules(tiny: Family) -> list[str]:
    """Find the modules of the layers that have matrices, by their names in the model and in the checkpoint."""
    matrices = {
        name for layer in find_layers(tiny.models[0]) for name, weight in layer.named_parameters() if weight.ndim > 1
    }
    stored = load_file(tiny.folders[0] / "model.safetensors")
    prefix = re.escape(layers_prefix(list(stored)))
    for name, weight in stored.items():
        if weight.ndim > 1 and (match := re.match(rf"{prefix}\d+\.(.+)", name)):
            matrices.add(match[1])
    return sorted(set(map(module_pattern, matrices)))


def loud_switches(tiny: Family, folder: Path) -> dict[str, list[bool]]:
    """Find switches with which a layer adds something although its outputs are zero, by turning each one."""
    model_type = tiny.config["model_type"]
    loud: dict[str, list[bool]] = {}
    for name, value in CONFIG_MAPPING[model_type]().to_dict().items():
        if type(value) is not bool or name in NOT_COMPARED or name in ("is_decoder", "add_cross_attention"):
            continue
        place = folder / f"loud-{name}"
        try:
            switched = Family(model_type, place, **{name: not value})
            assemble(switched, place / "expanded", [(0, layer) for layer in EXPANSION], SILENT_POSITIONS)
            difference = relative_difference(load_logits(place / "expanded", switched.input_ids), switched.logits())
        except Exception:  # noqa: BLE001 - not every switch has two positions
            continue
        if difference > MAX_DIFFERENCE:
            loud[name] = [value]
    return loud


def zero_outputs(tiny: Family, index: int, layer: nn.Module, states: Tensor) -> list[str] | None:
    """Return the weights that have to be zero, the last ones of the computation; None if no weights make it silent."""
    parameters = dict(layer.named_parameters())
    originals = {name: parameter.detach().clone() for name, parameter in parameters.items()}
    order = execution_order(tiny, index, layer, states)

    def silent() -> bool:
        output = tiny.run(tiny.models[0], layer=index, states=states).left[index]
        return torch.equal(output, states)

    def fill(names: Sequence[str]) -> None:
        with torch.no_grad():
            for name, parameter in parameters.items():
                parameter.copy_(torch.zeros_like(parameter) if name in names else originals[name])

    try:
        for start in (list(order), [name for name in order if "norm" not in name and "ln_" not in name]):
            zero = list(start)
            fill(zero)
            if not silent():
                continue
            for name in start:
                remaining = [other for other in zero if other != name]
                fill(remaining)
                if silent():
                    zero = remaining
            return zero
        return None
    finally:
        fill(())


def execution_order(tiny: Family, index: int, layer: nn.Module, states: Tensor) -> list[str]:
    """Return the names of a layer's weights in the order in which they are used."""
    finished: dict[str, int] = {}

    def note(name: str) -> Callable[..., None]:
        def hook(*_: Any) -> None:
            finished.setdefault(name, len(finished))

        return hook

    handles = [module.register_forward_hook(note(name)) for name, module in layer.named_modules()]
    try:
        tiny.run(tiny.models[0], layer=index, states=states)
    finally:
        for handle in handles:
            handle.remove()
    names = [name for name, _ in layer.named_parameters()]
    return sorted(names, key=lambda name: finished.get(name.rpartition(".")[0], -1))


def disk_names(tiny: Family, index: int, names: Sequence[str]) -> list[str]:
    """Return the names of weights in a checkpoint, inside of the layer, with `*` for the numbers of experts."""
    model = tiny.models[0]
    layers = find_layers(model)
    prefix = next(name for name, module in model.named_modules() if module is layers[index])
    state = {
        f"{prefix}.{name}": torch.zeros_like(tensor) if name in names else torch.ones_like(tensor)
        for name, tensor in layers[index].state_dict().items()
    }
    inner = {}
    for name, tensor in revert_weight_conversion(model, state).items():
        inner[name.partition(f".{index}.")[2] or name] = not bool(tensor.any())
    result = set()
    for name in (name for name, is_zero in inner.items() if is_zero):
        pattern = re.sub(r"(?<=\.)\d+(?=\.)", "*", name)
        regex = re.compile(re.escape(pattern).replace(r"\*", r"\d+"))
        result.add(pattern if all(zero for other, zero in inner.items() if regex.fullmatch(other)) else name)
    # Checkpoints may also have the names of the modules, such as one tensor for all experts. And a family's switch may
    # add biases, which have to be zero too.
    result |= set(names)
    return sorted(result | {f"{name.removesuffix('.weight')}.bias" for name in result if name.endswith(".weight")})


def is_scalable(tiny: Family, index: int, layer: nn.Module, names: Sequence[str], states: Tensor) -> bool:
    """Whether half of the weights make the layer add about half, as its parts read what the earlier ones add."""
    parameters = dict(layer.named_parameters())
    originals = {name: parameters[name].detach().clone() for name in names}
    added = []
    for scale in (2**-3, 2**-4):
        with torch.no_grad():
            for name, original in originals.items():
                parameters[name].copy_(original * scale)
        added.append(tiny.run(tiny.models[0], layer=index, states=states).left[index] - states)
    with torch.no_grad():
        for name, original in originals.items():
            parameters[name].copy_(original)
    return bool((added[0] - 2 * added[1]).norm() <= 0.25 * added[0].norm()) and bool(added[0].norm() > 0)


# Settings


class Study:
    """Builds configs and models of one family with many values of its settings."""

    def __init__(self, model_type: str) -> None:
        self.model_type = model_type
        self.config_class = CONFIG_MAPPING[model_type]
        self.row = json.loads(FAMILIES.read_text())["families"][model_type]
        self.count = self.row["num_layers"]
        self.overrides = walk_overrides(model_type)
        self.defaults = self.config_class().to_dict()
        source = getsource(self.config_class)
        self.legacy = [
            name
            for name in dict.fromkeys(re.findall(r'kwargs\.(?:pop|get)\(\s*"(\w+)"|"(\w+)" in kwargs', source))
            for name in name
            if name and name not in self.defaults
        ]
        self.random = random.Random(0)
        self.drivers_of: dict[str, list[str]] = {}

    def details(self) -> dict[str, Any]:
        lists = self.find_lists()
        family: dict[str, Any] = {
            "num_layers": self.count,
            "defaults": {
                name: value
                for name, value in self.defaults.items()
                if value is not None and name not in NOT_COMPARED and type(value) in (int, float, bool, str)
            },
            "lists": lists,
        }
        self.derive(family)
        self.find_patterns(family)
        aliases: dict[str, list[str]] = {}
        for alias, name in self.config_class.attribute_map.items():
            if name in lists:
                aliases.setdefault(name, []).append(alias)
        for name, alias in LETTERS.get(self.model_type, {}).items():
            aliases.setdefault(name, []).append(alias)
        if aliases:
            family["aliases"] = aliases
        family |= {
            "sections": self.find_sections(family),
            "spellings": self.find_spellings(),
            "added_rope": self.find_added_rope(),
            "unstated": self.find_unstated(),
        }
        return family

    # What configs leave out or name otherwise

    def saved(self, **settings: Any) -> dict[str, Any]:
        """Return what the family makes of a config.json with these settings; {} if it refuses them."""
        try:
            return dict(self.config_class(**deepcopy(settings)).to_dict())
        except Exception:  # noqa: BLE001 - the classes check their settings with errors of many types
            return {}

    def find_sections(self, family: Mapping[str, Any]) -> dict[str, Any]:
        """Return the defaults that are lists, or sections of their own."""
        ignored = {*NOT_COMPARED, "per_layer_config", *family["lists"], *family.get("numbers", ())}
        return {
            name: value
            for name, value in json.loads(self.config_class().to_json_string(use_diff=False)).items()
            if isinstance(value, dict | list) and name not in ignored
        }

    def find_spellings(self) -> dict[str, list[str]]:
        """Find older names of settings, and where the family saves their values, by two values of each."""
        found = {}
        sources = "".join(getsource(base) for base in self.config_class.__mro__ if "transformers" in base.__module__)
        names = dict.fromkeys(
            [*self.config_class.attribute_map, *re.findall(r'kwargs\.(?:pop|get)\(\s*"(\w+)"', sources)]
        )
        for name in names:
            if name in self.defaults or name in NOT_COMPARED or name == self.count:
                continue
            for pair in ((64, 128), (0.25, 0.5), (3, 5), (True, False), ("gelu", "relu")):
                saved = [dict(flatten(self.saved(**{name: value}))) for value in pair]
                paths = [
                    path
                    for path in saved[0].keys() & saved[1].keys()
                    if path.split(".")[0] not in (name, "per_layer_config", *NOT_COMPARED)
                    and not path.startswith("_")
                    and all(type(s[path]) is type(v) and s[path] == v for s, v in zip(saved, pair, strict=True))
                ]
                if paths:
                    found[name] = sorted(paths)
                    break
        pair = [{"rope_type": "linear", "rope_theta": 5.0, "factor": factor} for factor in (3.0, 7.0)]
        saved = [dict(flatten(self.saved(rope_scaling=rope))) for rope in pair]
        paths = [path for path in saved[0] if path.endswith(".factor") and saved[0][path] == 3.0]
        paths = [path.removesuffix(".factor") for path in paths if saved[1].get(path) == 7.0]
        if paths not in ([], ["rope_parameters"]):
            found["rope_scaling"] = sorted(paths)
        return found

    def find_added_rope(self) -> dict[str, Any]:
        """Return what the family adds to rotary embeddings of another kind, if that is not what its default has."""
        added = self.saved(rope_scaling={"rope_type": "linear", "factor": 3.0}).get("rope_parameters")
        usual = self.defaults.get("rope_parameters")
        if not isinstance(added, Mapping) or not isinstance(usual, Mapping) or added.get("factor") != 3.0:
            return {}
        parts = [
            {name: part[name] for name in ("rope_theta", "partial_rotary_factor") if name in part}
            for part in (added, usual)
        ]
        return parts[0] if parts[0] != parts[1] else {}

    def find_unstated(self) -> dict[str, str | None]:
        """What some settings are if a config doesn't state them, by changing the others; None if that is not clear."""
        names = [
            name
            for name, value in self.defaults.items()
            if type(value) in (int, float, bool) and name not in NOT_COMPARED
        ]
        drivers: dict[str, dict[str, None]] = {}
        for name in names:
            value = self.defaults[name]
            for trial in [not value] if isinstance(value, bool) else [2 * value, value + 8]:
                saved = self.saved(**{name: trial})
                for other in names:
                    if other != name and saved and saved.get(other) != self.defaults[other]:
                        drivers.setdefault(other, {})[name] = None
        found: dict[str, str | None] = {name: self.expression(name, list(used)) for name, used in drivers.items()}
        # Layers compute with this value even where the family has no such setting.
        if self.defaults.get("head_dim") is None and "head_dim" not in self.config_class.attribute_map:
            found.setdefault("head_dim", "hidden_size // num_attention_heads")
        return found

    def expression(self, name: str, drivers: Sequence[str]) -> str | None:
        """Find how a setting follows from one or two others."""
        samples = []
        for factors in ((1, 1), (2, 2), (4, 2), (2, 4), (6, 2)):
            changes = {
                other: self.defaults[other] * factor
                for other, factor in zip(drivers, factors, strict=False)
                if type(self.defaults[other]) is int
            }
            if saved := self.saved(**changes):
                samples.append(saved)
        a, b = (*drivers, *drivers)[:2] if len(drivers) <= 2 else (None, None)
        if a is None or len(samples) < 3 or any(type(self.defaults[other]) is not int for other in drivers):
            return None
        factor = samples[0][name] / samples[0][a] if samples[0][a] else 0
        candidates = {
            a: [s[a] for s in samples],
            f"{int(factor)} * {a}": [int(factor) * s[a] for s in samples],
            f"{a} + {b}": [s[a] + s[b] for s in samples],
            f"{a} * {b}": [s[a] * s[b] for s in samples],
            f"{a} // {b}": [s[a] // s[b] if s[b] else None for s in samples],
            f"{b} // {a}": [s[b] // s[a] if s[a] else None for s in samples],
        }
        return next((text for text, values in candidates.items() if values == [s[name] for s in samples]), None)

    # Configs

    def config(self, number: int, **overrides: Any) -> Any | None:
        """Make a config; None if the family refuses the settings."""
        settings = {**self.overrides, self.count: number}
        for name, value in self.overrides.items():
            if isinstance(value, list) and len(value) == LAYERS and number != LAYERS:
                settings[name] = [value[index % LAYERS] for index in range(number)]
            elif name == "attention_types":
                settings[name] = [[value[0][0], number // len(value[0][0])]]
        settings = {name: value for name, value in {**settings, **overrides}.items() if value is not ABSENT}
        if self.model_type == "nemotron_h":
            settings.pop(self.count, None)
        try:
            return tiny_config(self.model_type, **settings)
        except Exception:  # noqa: BLE001 - whatever the family's validation raises
            return None

    def written(self, number: int, **overrides: Any) -> dict[str, Any]:
        """Return the config.json of a config."""
        config = self.config(number, **overrides)
        return {} if config is None else json.loads(config.to_json_string(use_diff=False))

    def kinds(self, overrides: Mapping[str, Any], number: int = LAYERS) -> list[dict[str, Any]]:
        """Return the parts of each layer and their plain attributes, of a model without weights; [] if it fails."""
        config = self.config(number, **overrides)
        if config is None:
            return []
        try:
            kinds = layer_parts(config)
        except Exception:  # noqa: BLE001 - whatever the family raises for odd settings
            return []
        for key in {key for kind in kinds for key in kind}:
            values = [json.dumps(kind[key]) for kind in kinds if key in kind]
            # The layer's number, or a constant made from it.
            if len(set(values)) == len(values) > 1:
                for kind in kinds:
                    kind.pop(key, None)
        return kinds

    # Lists

    def find_lists(self) -> dict[str, Any]:
        """Find the settings with one value per layer."""
        configs = {number: self.written(number) for number in (LAYERS, LAYERS + 2)}
        lists: dict[str, Any] = {}
        for name, value in configs[LAYERS].items():
            if all(
                isinstance(config.get(name), list) and len(config[name]) == number for number, config in configs.items()
            ):
                if not self.is_numbers(name):
                    lists[name] = {}
            elif isinstance(value, list) and value and name == "attention_types":
                lists[name] = {"form": "groups"}
            elif (
                isinstance(value, list) and value and all(isinstance(item, str) for item in value) and self.cycles(name)
            ):
                lists[name] = {"form": "cycle"}
        return lists

    def is_numbers(self, name: str) -> bool:
        """Whether a list has the numbers of layers, rather than one value for each."""
        value = self.written(LAYERS).get(name) or []
        if not all(type(item) is int for item in value) or value != sorted(set(value)):
            return False
        return bool(self.written(LAYERS, **{name: [1, 3]}).get(name) == [1, 3])

    def cycles(self, name: str) -> bool:
        """Whether a shorter list is repeated for all layers."""
        value = self.written(LAYERS)[name]
        first, second = self.kinds({name: value}), self.kinds({name: [*value, *value]})
        turned = self.kinds({name: [*value[1:], value[0]]})
        return bool(first) and first == second and bool(turned) and turned != first

    def derive(self, family: dict[str, Any]) -> None:
        """Find how the family derives the lists that a config doesn't state."""
        for name, details in family["lists"].items():
            if details.get("form") in ("groups", "cycle"):
                details["rule"] = None if details["form"] == "groups" else self.word(name)
                continue
            if groups := [other for other, form in family["lists"].items() if form.get("form") == "groups"]:
                details["copy_of"] = groups[0]
                continue
            forced = {
                json.dumps(values[-1])
                for kind in self.values_of(name)
                if (values := self.written(LAYERS, **{name: [kind] * LAYERS}).get(name)) and values[:-1] == [kind] * 5
            }
            if len(forced) == 1 and len(self.values_of(name)) > 1:
                details["last"] = json.loads(forced.pop())
            if len(self.values_of(name)) > 1 and "last" not in details:
                details["needed"] = [
                    kind for kind in self.values_of(name) if not self.kinds({name: self.without(name, kind)})
                ]
            details["rule"] = self.word(name) or self.fit_list(name, family)
            family["lists"][name] = {key: value for key, value in details.items() if value not in ([],)}

        understood = {driver for drivers in self.drivers_of.values() for driver in drivers}
        unknown = [name for name in self.legacy if LAYER_WORDS.search(name) and name not in understood]
        unknown = [name for name in dict.fromkeys(unknown) if name not in LETTERS.get(self.model_type, {}).values()]
        if unknown and any("rule" in details for details in family["lists"].values()):
            family["void"] = unknown

    def values_of(self, name: str) -> list[Any]:
        """Return the values that a list has in the configs of this family."""
        values = [
            *self.written(LAYERS).get(name, []),
            *self.written(24).get(name, []),
            *(self.defaults.get(name) or []),
        ]
        return [json.loads(value) for value in dict.fromkeys(map(json.dumps, values))]

    def other_values(self, name: str) -> list[str]:
        """Return values of a list that no default has, and that make layers of another kind."""
        values = self.values_of(name)
        if not isinstance(values[0], str):
            return []
        texts = dict.fromkeys(re.findall(r'"(\w+)"', getsource(self.config_class)))
        seen = [self.kinds({name: [values[0], other] * (LAYERS // 2)}) for other in values]
        result = []
        for text in texts:
            kinds = self.kinds({name: [values[0], text] * (LAYERS // 2)}) if text not in values else []
            if kinds and kinds not in seen:
                seen.append(kinds)
                result.append(text)
        return result

    def without(self, name: str, kind: Any) -> list[Any]:
        others = [value for value in self.values_of(name) if value != kind]
        return [others[index % len(others)] for index in range(LAYERS)]

    def derived(self, name: str, number: int, **overrides: Any) -> list[Any] | None:
        value = self.written(number, **{name: ABSENT, **overrides}).get(name)
        return value if isinstance(value, list) and len(value) == number else None

    def word(self, name: str) -> dict[str, Any] | None:
        """Find a rule without settings: some first values, then a repeated pattern, then perhaps a last value."""
        lists = {number: self.derived(name, number) for number in (*range(4, 14), 24, 31, 40)}
        if any(values is None for values in lists.values()) or self.drivers(name):
            return None
        longest = lists[40] or []
        for last in (False, True):
            body = longest[:-1] if last else longest
            for start in range(5):
                for period in range(1, 9):
                    word = [body[start + (index - start) % period] for index in range(start, start + period)]
                    turned = [body[start + (index - start) % period] for index in range(period * 5, period * 6)]
                    rule = {
                        **({"prefix": body[:start]} if start else {}),
                        "word": turned if turned else word,
                        **({"last": longest[-1]} if last else {}),
                    }
                    if all(rule_values(rule, {}.__getitem__, number) == values for number, values in lists.items()):
                        return rule
        return None

    def trials(self, name: str) -> list[Any]:
        """Return the values to try for a setting."""
        value = self.defaults.get(name, 1)
        if isinstance(value, bool):
            return [True, False]
        if name in self.legacy:
            return [1, 2, 3, [1, 2], [0, 1, 1, 0, 1, 0]]
        if isinstance(value, int):
            return [0, 1, 2, 3, *([None] if name in NULLABLE else [])]
        if value is None:
            return [5, [1, 2], None]
        if isinstance(value, list) and all(type(item) is int for item in value):
            return [[1, 2], [0, 1, 1, 0, 1, 0]]
        return []

    def drivers(self, name: str) -> list[str]:
        """Find the settings that a derived list depends on, alone or together with others."""
        if name in self.drivers_of:
            return self.drivers_of[name]
        names = [
            other
            for other in (*self.defaults, *self.legacy)
            if other not in (name, self.count) and other not in NOT_COMPARED
        ]
        switches = [{other: not self.defaults[other]} for other in names if isinstance(self.defaults.get(other), bool)]
        found: dict[str, None] = {}
        contexts: list[dict[str, Any]] = [{}]
        for attempt in range(3):
            working: list[dict[str, Any]] = []
            for context in contexts:
                base = self.derived(name, LAYERS, **context)
                for other in names if base is not None else ():
                    for trial in self.trials(other) if other not in found and other not in context else ():
                        values = self.derived(name, LAYERS, **context, **{other: trial})
                        if values is not None and values != base:
                            found.update(dict.fromkeys((*context, other)))
                            working.append({**context, other: trial})
                            break
            # With what has an effect alone, others may have one too. If nothing has, a switch may be off.
            contexts = [*working[:4], *(switches if attempt == 0 else ())]
        self.drivers_of[name] = list(found)
        return self.drivers_of[name]

    def fit_list(self, name: str, family: dict[str, Any]) -> Rule | None:
        """Find the rule of a derived list that depends on settings."""
        drivers = self.drivers(name)
        samples = []
        for _ in range(SAMPLES * 3):
            number = self.random.randint(4, 9)
            overrides = {driver: self.sample(driver, number) for driver in drivers}
            values = self.derived(name, number, **overrides)
            if values is not None:
                samples.append((number, overrides, values))
        kinds = [
            json.loads(kind) for kind in dict.fromkeys(json.dumps(kind) for *_, values in samples for kind in values)
        ]
        if len(kinds) != 2 or len(samples) < 20:
            return None
        target = [value == kinds[0] for *_, values in samples for value in values]
        rule = fit(samples, drivers, target, kinds, self.all_lists(drivers))
        if rule is not None:
            self.note_settings(rule, family, lambda **overrides: self.derived(name, LAYERS, **overrides))
        return rule

    def all_lists(self, drivers: Sequence[str]) -> set[str]:
        written = self.written(LAYERS)
        return {name for name in drivers if isinstance(written.get(name), list) and not self.is_numbers(name)}

    def note_settings(self, rule: Rule, family: dict[str, Any], observe: Callable[..., Any]) -> None:
        """Note the settings of a rule that old configs have, and the default values of these."""
        for condition in rule["when"]:
            for name in condition[1:]:
                if isinstance(name, str) and condition[0] in ("every", "from", "until", "before"):
                    family.setdefault("periods", [])
                    if name not in family["periods"]:
                        family["periods"].append(name)
        for name in rule_settings(rule):
            if name in self.legacy:
                usual = observe(**{name: ABSENT})
                default = next((value for value in range(9) if observe(**{name: value}) == usual), None)
                if default is not None:
                    family["defaults"][name] = default

    def sample(self, name: str, number: int) -> Any:
        """Return a random value of a setting."""
        default, written = self.defaults.get(name, 1), self.written(LAYERS).get(name)
        if isinstance(default, bool):
            return self.random.random() < 0.5
        if isinstance(default, list) or isinstance(written, list):
            if isinstance(written, list) and not self.is_numbers(name):
                return [self.random.choice([0, 1]) for _ in range(number)]
            return sorted(self.random.sample(range(number), self.random.randint(0, number)))
        if name in NULLABLE:
            return self.random.choice([None, 5])
        return self.random.randint(0, 5)

    # Patterns

    def find_patterns(self, family: dict[str, Any]) -> None:
        """Find the rules of what differs between layers although their lists say the same."""
        fixed = {name: value for name, value in self.written(LAYERS).items() if name in family["lists"]}
        self.overrides = {**self.overrides, **{name: value for name, value in fixed.items() if name in self.defaults}}
        drivers = self.pattern_drivers(family)
        samples: list[tuple[int, dict[str, Any], Any]] = []
        for _ in range(SAMPLES * 8 if drivers else 12):
            number = self.random.choice([LAYERS - 1, LAYERS, LAYERS + 1])
            overrides = {driver: self.sample(driver, number) for driver in drivers}
            kinds = self.kinds(overrides, number)
            if len(kinds) == number:
                samples.append((number, overrides, kinds))
            if len(samples) == SAMPLES:
                break
        patterns, explained = [], set()
        for target in targets(samples):
            rule = fit(samples, drivers, target, [True, False], set())
            if rule is None:
                continue
            explained |= set(rule_settings(rule))
            if rule not in patterns:
                patterns.append(rule)
        if self.first_differs(patterns, family["lists"]):
            patterns.append({"when": [["before", 1]], "then": True, "else": False})
        family["patterns"] = patterns
        for rule in patterns:
            self.note_settings(rule, family, lambda **overrides: self.kinds(overrides))
            for condition in rule["when"]:
                if condition[0] in ("in", "not_in"):
                    absent = self.fit_numbers(condition[1], family)
                    if absent is not None:
                        family.setdefault("numbers", {})[condition[1]] = absent
        for rule in family.get("numbers", {}).values():
            explained |= set(rule_settings(rule))
        written = self.written(LAYERS)
        refused = {driver: [written.get(driver)] for driver in drivers if driver not in explained}
        refused |= {
            name: [written[name]]
            for name, value in self.defaults.items()
            if value and written.get(name) == 0 and type(value) is int and self.sizes_follow_count({name: 8})
        }
        if refused:
            family["refused_unless"] = refused

    def first_differs(self, patterns: Sequence[Rule], lists: Mapping[str, Any]) -> bool:
        """Whether the first layer has other parts than all others, whatever the lists and patterns say."""
        written = self.written(LAYERS)
        for rule in patterns:
            values = {name: written.get(name) for name in rule_settings(rule)}
            hits = rule_values(rule, values.__getitem__, LAYERS)
            if hits[0] not in hits[1:]:
                return False
        turned = {name: written[name][::-1] for name in lists if isinstance(written.get(name), list)}
        both = [self.kinds(overrides) for overrides in ({}, turned)]
        return all(both) and any(
            all(kinds[0].get(key) not in [kind.get(key) for kind in kinds[1:]] for kinds in both)
            and all(len({json.dumps(kind.get(key)) for kind in kinds[1:]}) == 1 for kinds in both)
            for key in both[0][0].keys() | both[0][1].keys()
        )

    def sizes_follow_count(self, overrides: Mapping[str, Any]) -> bool:
        """Whether weights outside of the layers have one part per layer."""
        shapes = []
        for number in (LAYERS, LAYERS + 1):
            config = self.config(number, **overrides)
            if config is None:
                return False
            with torch.device("meta"):
                model = model_class(config)(config)
            stack = find_stack(model)
            shapes.append(
                [list(weight.shape) for name, weight in model.named_parameters() if not name.startswith(f"{stack}.")]
            )
        return shapes[0] != shapes[1]

    def pattern_drivers(self, family: Mapping[str, Any]) -> list[str]:
        """Find the settings that change which layers are of one kind, alone or together with another one."""
        names = [
            name
            for name in (*self.defaults, *self.legacy)
            if name not in family["lists"]
            and name != self.count
            and name not in NOT_COMPARED
            and not isinstance(self.defaults.get(name), bool)
        ]
        found: dict[str, None] = {}
        contexts: list[dict[str, Any]] = [{}]
        for _ in range(2):
            working = []
            for context in contexts:
                base = partition(self.kinds(context))
                for name in (name for name in names if name not in context):
                    for trial in self.trials(name):
                        if trial in (0, 1):  # 2 and 3 show it too, and models take time to build
                            continue
                        kinds = self.kinds({**context, name: trial})
                        if len(kinds) == LAYERS and not refines(base, partition(kinds)):
                            found[name] = None
                            working.append({**context, name: trial})
                            break
            contexts = working[:3]
        return list(found)

    def fit_numbers(self, name: str, family: dict[str, Any]) -> Rule | None:
        """Find how the family derives the numbers of layers that a config doesn't state."""
        if not isinstance(self.written(LAYERS, **{name: None}).get(name), list):
            return None

        def numbers(number: int, **overrides: Any) -> list[bool] | None:
            listed = self.written(number, **{**overrides, name: None}).get(name)
            return [index in listed for index in range(number)] if isinstance(listed, list) else None

        drivers = [
            other
            for other in self.defaults
            if other not in (name, self.count)
            and other not in NOT_COMPARED
            and any(numbers(LAYERS, **{other: trial}) not in (None, numbers(LAYERS)) for trial in self.trials(other))
        ]
        samples = []
        for _ in range(SAMPLES):
            number = self.random.randint(4, 9)
            overrides = {driver: self.sample(driver, number) for driver in drivers}
            if (values := numbers(number, **overrides)) is not None:
                samples.append((number, overrides, values))
        target = [value for *_, values in samples for value in values]
        return fit(samples, drivers, target, [True, False], set())


ABSENT = object()


def layer_parts(config: Any) -> list[dict[str, Any]]:
    """Return the classes, plain attributes and shapes of the parts of each layer, of a model without weights."""
    with torch.device("meta"):
        model = model_class(config)(config)
    return [dict(_attributes(layer)) for layer in model.get_submodule(find_stack(model))]


def _attributes(layer: nn.Module) -> Iterator[tuple[str, Any]]:
    for name, module in layer.named_modules():
        yield f"{name}:class", type(module).__name__
        for key, value in vars(module).items():
            if isinstance(value, (bool, int, float, str, type(None))) and not key.startswith("_") and key != "training":
                yield f"{name}:{key}", value
    for name, parameter in layer.named_parameters():
        yield f"{name}:shape", list(parameter.shape)


def flatten(settings: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    """Yield all values in a config with their paths, such as `rope_parameters.rope_theta`."""
    for name, value in settings.items():
        if isinstance(value, Mapping):
            yield from flatten(value, f"{prefix}{name}.")
        else:
            yield f"{prefix}{name}", value


def partition(kinds: Sequence[Mapping[str, Any]]) -> list[int]:
    """Number the kinds of layers by their first occurrence."""
    texts = [json.dumps(kind, sort_keys=True) for kind in kinds]
    return [texts.index(text) for text in texts]


def refines(fine: Sequence[int], coarse: Sequence[int]) -> bool:
    """Whether layers of one kind stay of one kind."""
    return all(coarse[index] == coarse[first] for index, first in enumerate(fine))


def targets(samples: Sequence[tuple[int, Mapping[str, Any], Sequence[Mapping[str, Any]]]]) -> list[list[bool]]:
    """Return everything that differs between layers for a reason other than their number alone, as yes or no."""
    keys = dict.fromkeys(key for *_, kinds in samples for kind in kinds for key in kind)
    unique: dict[tuple[bool, ...], None] = {}
    for key in keys:
        values = [json.dumps(kind.get(key, "absent")) for *_, kinds in samples for kind in kinds]
        within = any(len({json.dumps(kind.get(key, "absent")) for kind in kinds}) > 1 for *_, kinds in samples)
        numbers = [index for number, *_ in samples for index in range(number)]
        if not within or all(
            len({v for v, n in zip(values, numbers, strict=True) if n == i}) == 1 for i in set(numbers)
        ):
            continue
        for value in dict.fromkeys(values):
            vector = tuple(other == value for other in values)
            if tuple(not hit for hit in vector) not in unique:
                unique[vector] = None
    return [list(vector) for vector in unique if any(vector) and not all(vector)]


def fit(
    samples: Sequence[tuple[int, Mapping[str, Any], Any]],
    drivers: Sequence[str],
    target: Sequence[bool],
    kinds: Sequence[Any],
    per_layer: set[str],
) -> Rule | None:
    """Find a rule that gives the target in all samples: which layers have the first of two kinds."""
    columns = {}
    for condition in conditions(drivers, samples, per_layer):
        rule = {"when": [condition], "then": True, "else": False}
        try:
            columns[json.dumps(condition)] = [
                hit for number, overrides, _ in samples for hit in rule_values(rule, overrides.__getitem__, number)
            ]
        except (TypeError, KeyError, ValueError):
            continue
    for then, otherwise, wanted in (
        (kinds[0], kinds[1], list(target)),
        (kinds[1], kinds[0], [not hit for hit in target]),
    ):
        useful = {
            key: column
            for key, column in columns.items()
            if all(c or not w for c, w in zip(column, wanted, strict=True))
        }
        for size in range(1, 5):
            for chosen in combinations(useful, size):
                met = [all(hits) for hits in zip(*(useful[key] for key in chosen), strict=True)]
                if met == wanted:
                    return {"when": [json.loads(key) for key in chosen], "then": then, "else": otherwise}
    return None


def conditions(drivers: Sequence[str], samples: Sequence[Any], per_layer: set[str]) -> Iterator[list[Any]]:
    """Return all conditions that may be part of a rule."""
    yield ["last"]
    yield from (["every", 2, 0, 1], ["every", 2, 1, 1])
    for name in drivers:
        values = [overrides[name] for _, overrides, _ in samples]
        if name in per_layer:
            yield from (["each", name], ["not_each", name])
        elif any(isinstance(value, list) for value in values):
            yield from (["in", name], ["not_in", name])
        elif any(value is None for value in values):
            yield ["set", name]
        elif any(isinstance(value, bool) for value in values):
            yield ["true", name]
        else:
            yield from (["from", name], ["until", name], ["before", name], ["every", name, 0, 1], ["every", name, 1, 1])
            for other in drivers:
                if other != name and all(type(overrides[other]) is int for _, overrides, _ in samples):
                    yield from (["every", name, other, 1], ["every", name, other, -1])


if __name__ == "__main__":
    main()
