"""The config.json of a model made of chosen layers.

A layer's behaviour may depend on its number: `layer_types` has a value for each layer, `first_k_dense_replace` makes
the first layers dense, and every sixth layer of Gemma 3 attends to all positions unless the config says otherwise. A
layer at a new number has to keep its behaviour. So each such setting is read for each chosen layer from its source, and
the new config gets it as a list, or as a pattern if the family has no list and the layers still form a pattern.

`assembly_families.json` has the settings of each family, found by comparing (`tools/generate_assembly_families.py`).
This module needs no torch and no transformers.
"""

from collections.abc import Mapping, Sequence
from copy import deepcopy
from dataclasses import dataclass
from typing import Any

from layer_surgeon.assemble.comparable import comparable
from layer_surgeon.assemble.family_table import family_details, residual_outputs
from layer_surgeon.assemble.layer_rules import (
    SAVE_ADVICE,
    Rule,
    collapse_list,
    expand_list,
    rule_settings,
    rule_values,
    solve_rule,
)
from layer_surgeon.checkpoint.stack import count_layers, count_names, states_count, text_config
from layer_surgeon.errors import AssemblyError, CheckpointError, UnsupportedArchitectureError

_MAP = "per_layer_config"


@dataclass(frozen=True, kw_only=True)
class LayerChoice:
    """One layer of the new model, and where it is taken from.

    Attributes:
        config: config.json of the source.
        layer: The layer's index in the source, counted from 0.
        silent: Whether the layer adds nothing to the hidden states at first.
        scale: The factor of what the layer's parts add to the hidden states.
    """

    config: Mapping[str, Any]
    layer: int
    silent: bool = False
    scale: float = 1.0


def assembled_config(base_config: Mapping[str, Any], layers: Sequence[LayerChoice]) -> dict[str, Any]:
    """Make the config.json of a model that consists of the chosen layers, in this order.

    Args:
        base_config: config.json of the source of everything but the layers.
        layers: The layers. If they are all layers of the base in their order, the config stays as it is.

    Raises:
        UnsupportedArchitectureError: No config of the family describes these layers. The message names the setting.
        AssemblyError: The sources differ in a setting that all layers share.
        CheckpointError: A setting of a source has an invalid value.
    """
    base = _Settings(base_config)
    sources: dict[int, _Settings] = {}
    for choice in layers:
        if id(choice.config) not in sources:
            sources[id(choice.config)] = _Settings(choice.config)
    settings = [sources[id(choice.config)] for choice in layers]
    for source in sources.values():
        base.check_same(source)
    for choice, source in zip(layers, settings, strict=True):
        _check_choice(choice, source)
    if all(choice.config == base_config for choice in layers) and [choice.layer for choice in layers] == list(
        range(base.num_layers)
    ):
        return deepcopy(dict(base_config))
    base.check_numbers(layers)
    config = deepcopy(dict(base_config))
    assembled = _Settings(config)
    assembled.set_count(len(layers))
    chosen = [(source, choice.layer) for choice, source in zip(layers, settings, strict=True)]
    _rewrite_lists(assembled, chosen)
    _rewrite_patterns(assembled, chosen)
    _rewrite_map(assembled, chosen)
    return config


class _Settings:
    """The settings of one config that concern its layers.

    Attributes:
        text: The config of the language model, inside of config.json.
        model_type: Its family.
        family: What `assembly_families.json` says about the family.
        num_layers: The number of layers.
    """

    def __init__(self, config: Mapping[str, Any]) -> None:
        self.text: Any = text_config(config)
        self.model_type = str(self.text.get("model_type"))
        self.num_layers = count_layers(config)
        family = family_details(self.model_type)
        # Of some settings, a config has one number for all layers or a list with one for each.
        listed: dict[str, Any] = {name: {} for name in family.get("defaults", ()) if self._is_listed(name)}
        self.family = {**family, "lists": {**listed, **family.get("lists", {})}} if listed else family

    def _is_listed(self, name: str) -> bool:
        value = self.text.get(name)
        return isinstance(value, list) and len(value) == self.num_layers

    def set_count(self, number: int) -> None:
        """Write the number of layers, under each of the names that the config has, and what follows from it."""
        if not states_count(self.text):
            self.text[self.family["num_layers"]] = number
        for name in count_names(self.family):
            if self.text.get(name) == self.num_layers:
                self.text[name] = number
        for name, exponent in self.family.get("scaled_by_count", {}).items():
            value = self.value(name)
            if not isinstance(value, int | float):
                raise CheckpointError(
                    f"config.json has the {name} {value!r}, but needs a number. Get the config again."
                )
            self.text[name] = value * (number / self.num_layers) ** exponent
        self.num_layers = number

    def stated(self, name: str) -> Any:
        """Return a setting's value, under any of its names; None if the config doesn't state it."""
        for key in (name, *self.family.get("aliases", {}).get(name, ())):
            if (value := self.text.get(key)) is not None:
                return value
        return None

    def write(self, name: str, value: Any) -> None:
        """Write a setting under the names that the config has, or else under its own."""
        names = [key for key in (name, *self.family.get("aliases", {}).get(name, ())) if key in self.text]
        for key in names or [name]:
            self.text[key] = value

    def value(self, name: str) -> Any:
        """Return a setting's value: stated, derived as the family derives it, or the family's default."""
        if name in self.family.get("lists", {}):
            return self.values(name)
        if name in self.text and (self.text[name] is not None or name not in self.family.get("numbers", {})):
            return self.text[name]
        if (stated := self.stated(name)) is not None:
            return stated
        if (rule := self.family.get("numbers", {}).get(name)) is not None:
            return [index for index, hit in enumerate(self.rule_values(rule)) if hit]
        return self.family.get("defaults", {}).get(name)

    def values(self, name: str) -> list[Any]:
        """Return a setting with one value per layer.

        Raises:
            UnsupportedArchitectureError: The config doesn't state it, and the family's rule is not known.
            CheckpointError: It has the wrong number of values.
        """
        stated, form = self.stated(name), self.family["lists"][name].get("form", "values")
        if stated in (None, [], ()):
            if (original := self.family["lists"][name].get("copy_of")) is not None:
                return self.values(original)
            rule = self.family["lists"][name].get("rule")
            if rule is None or any(self.text.get(other) for other in self.family.get("void", ())):
                raise UnsupportedArchitectureError(
                    f"The config of this {self.model_type} doesn't state {name}, and layer_surgeon doesn't know which "
                    f"values the family derives for it. {SAVE_ADVICE}"
                )
            return self.rule_values(rule)
        values = expand_list(stated, form, self.num_layers)
        if values is None or len(values) != self.num_layers:
            described = f"{len(values)} values" if values is not None else f"the value {str(stated)[:80]!r}"
            raise CheckpointError(
                f"config.json has {described} for {name}, but needs one for each of its {self.num_layers} layers. Get "
                "the config again, or correct it."
            )
        return values

    def rule_values(self, rule: Rule) -> list[Any]:
        """Evaluate a rule of the family.

        Raises:
            CheckpointError: A setting has a value of the wrong type.
        """
        try:
            return rule_values(rule, self.value, self.num_layers)
        except TypeError as error:
            raise CheckpointError(
                f"A setting in config.json that decides about the layers of {self.model_type} is invalid "
                f"({', '.join(rule_settings(rule))}: {error}). Get the config again, or correct it."
            ) from error

    @property
    def has_no_window(self) -> bool:
        """Whether the kinds of all layers are known, and none of them has a window."""
        if "layer_types" not in self.family.get("lists", {}):
            return False
        try:
            return not any("sliding" in str(kind) for kind in self.values("layer_types"))
        except (UnsupportedArchitectureError, CheckpointError):
            return False

    def check_same(self, other: "_Settings") -> None:
        """Check that the layers of another source compute with the same settings.

        Raises:
            AssemblyError: A setting differs. The message names it.
        """
        if other.model_type != self.model_type:
            raise AssemblyError(
                f"A layer of {other.model_type} can't be a layer of {self.model_type}. Take all layers from models of "
                "one family."
            )
        values, other_values = _comparable(self), _comparable(other)
        for name in sorted(set(values) | set(other_values)):
            if values.get(name) != other_values.get(name) and not (name == "sliding_window" and other.has_no_window):
                raise AssemblyError(
                    f"The sources differ in {name}: {values.get(name)!r} and {other_values.get(name)!r}. A "
                    f"{self.model_type} has one value for all layers, so a layer of one source would compute something "
                    "else in the other. Take layers from models with the same settings."
                )

    def check_numbers(self, layers: Sequence[LayerChoice]) -> None:
        """Check what depends on a layer's number or on the number of layers, and can't be set.

        Raises:
            UnsupportedArchitectureError: A layer would compute something else at its new number.
        """
        for name, allowed in self.family.get("refused_unless", {}).items():
            if (value := self.value(name)) not in (*allowed, None):
                raise UnsupportedArchitectureError(
                    f"Layers of a {self.model_type} with {name} {value!r} share tensors or results with others, so no "
                    f"model can be assembled from them. That is only possible with {name} {allowed[0]!r}."
                )
        moved = next(
            (index for index, choice in enumerate(layers) if not choice.silent and choice.layer != index), None
        )
        reason = self.family.get("bound") or self._bound_setting()
        if reason is not None and moved is not None:
            raise UnsupportedArchitectureError(
                f"A layer of {self.model_type} computes something else at another number, and no setting can change "
                f"that ({reason}). Layer {layers[moved].layer} would be layer {moved}. Keep the first layers, or "
                "replace layers by those with the same number."
            )
        reason = self.family.get("counted")
        if reason is not None and len(layers) != self.num_layers:
            raise UnsupportedArchitectureError(
                f"A layer of {self.model_type} computes something else if the number of layers changes ({reason}): "
                f"from {self.num_layers} to {len(layers)}. Replace layers, but keep their number."
            )

    def _bound_setting(self) -> str | None:
        for name, allowed in self.family.get("bound_unless", {}).items():
            value = self.value(name)
            if value not in allowed:
                return f"with {name} {value!r}"
        return None


def _check_choice(choice: LayerChoice, source: _Settings) -> None:
    if choice.silent or choice.scale != 1.0:
        residual_outputs(choice.config)
    if choice.scale != 1.0 and not source.family.get("scalable"):
        raise UnsupportedArchitectureError(
            f"A {source.model_type} layer normalises what it adds to the hidden states, so scaling its weights doesn't "
            "scale it. Assemble the model without scale."
        )


Chosen = Sequence[tuple[_Settings, int]]


def _rewrite_lists(assembled: _Settings, chosen: Chosen) -> None:
    """Write each setting with one value per layer, unless the family derives these values anyway."""
    # Before the first one is written: a rule may read another list.
    wanted_values = {
        name: [source.values(name)[layer] for source, layer in chosen] for name in assembled.family.get("lists", {})
    }
    for name, wanted in wanted_values.items():
        details = assembled.family["lists"][name]
        _check_values(assembled.model_type, name, wanted, details)
        stated = assembled.stated(name)
        if stated in (None, [], ()) and ("copy_of" in details or _derived(assembled, name) == wanted):
            continue
        assembled.write(name, collapse_list(wanted, details.get("form", "values"), stated))
        if "when" in (details.get("rule") or {}):
            _update_pattern(assembled, details["rule"], wanted)


def _update_pattern(assembled: _Settings, rule: Rule, wanted: Sequence[Any]) -> None:
    """Change the settings of a pattern next to a list, so that readers of the pattern are not misled.

    If no values describe the list, the settings are removed.
    """
    names = [
        name
        for kind, *arguments in rule["when"]
        if kind in ("from", "until", "before", "every", "in", "not_in")
        for name in arguments
        if isinstance(name, str) and assembled.text.get(name) is not None
    ]
    if not names:
        return
    try:
        if assembled.rule_values(rule) == list(wanted):
            return
        solved = solve_rule(rule, {name: assembled.value(name) for name in rule_settings(rule)}, wanted)
    except (CheckpointError, TypeError):
        solved = None  # The pattern may also be text, such as "LLLG" for EXAONE 4.
    for name in names:
        if solved is None or name not in solved:
            del assembled.text[name]
        else:
            assembled.text[name] = solved[name]


def _check_values(model_type: str, name: str, wanted: Sequence[Any], details: Mapping[str, Any]) -> None:
    """Check that the family accepts these values.

    Raises:
        UnsupportedArchitectureError: It doesn't. The message names the value.
    """
    shared = [value for value in wanted if value in details.get("refused", ())]
    if shared:
        raise UnsupportedArchitectureError(
            f"A layer of a {model_type} whose {name} is {shared[0]} reads what an earlier layer made, so "
            "no model can be assembled from such layers. Take a model without them."
        )
    missing = sorted(set(details.get("needed", ())) - set(map(str, wanted)))
    if missing:
        raise UnsupportedArchitectureError(
            f"A {model_type} must have at least one layer whose {name} is {missing[0]}, but the chosen "
            "layers have none. Choose such a layer too."
        )
    if "last" in details and wanted[-1] != details["last"]:
        raise UnsupportedArchitectureError(
            f"transformers sets {name} of the last layer of a {model_type} to {details['last']}, but the "
            f"last chosen layer has {wanted[-1]}. Choose a layer with {details['last']} as the last one."
        )


def _derived(assembled: _Settings, name: str) -> list[Any] | None:
    try:
        return assembled.values(name)
    except (CheckpointError, UnsupportedArchitectureError):
        return None  # It reads a list of the old number of layers, which is rewritten later.


def _rewrite_patterns(assembled: _Settings, chosen: Chosen) -> None:
    """Set the settings of each pattern, if the current values don't describe the chosen layers.

    Raises:
        UnsupportedArchitectureError: No values do.
    """
    for rule in assembled.family.get("patterns", ()):
        wanted = [source.rule_values(rule)[layer] for source, layer in chosen]
        if assembled.rule_values(rule) == wanted:
            continue
        names = rule_settings(rule)
        solved = solve_rule(rule, {name: assembled.value(name) for name in names}, wanted)
        if solved is None:
            raise UnsupportedArchitectureError(
                f"Which layers of a {assembled.model_type} are of which kind follows from their numbers "
                f"({', '.join(names) or 'the first or the last one differs'}), and no values of them describe "
                "the chosen layers. Choose layers in the order of this pattern."
            )
        for name, value in solved.items():
            if assembled.value(name) != value:
                assembled.write(name, value)


def _rewrite_map(assembled: _Settings, chosen: Chosen) -> None:
    """Renumber the settings of single layers, which newer versions of transformers write for any family."""
    if not any(isinstance(source.text.get(_MAP), Mapping) for source, _ in chosen):
        return
    numbered = {}
    for index, (source, layer) in enumerate(chosen):
        overrides = source.text.get(_MAP)
        for number, values in overrides.items() if isinstance(overrides, Mapping) else ():
            # transformers pads the numbers with zeros.
            if str(number).lstrip("0") == str(layer).lstrip("0"):
                numbered[str(index).zfill(len(str(len(chosen) - 1)))] = deepcopy(values)
    assembled.text[_MAP] = numbered


def _comparable(settings: _Settings) -> dict[str, Any]:
    """Return what layers of two sources must have in common, in one form for older and newer configs."""
    family = settings.family
    per_layer = _per_layer(family)
    values = {name: value for name, value in comparable(settings.text, family).items() if name not in per_layer}
    for name, exponent in family.get("scaled_by_count", {}).items():
        if isinstance(value := settings.value(name), int | float):
            values[name] = value / settings.num_layers**exponent
    return values


def _per_layer(family: Mapping[str, Any]) -> set[str]:
    """Return the settings that a source need not share, because they only say which layers are of which kind."""
    per_layer = {*family.get("lists", ()), *family.get("numbers", ()), *family.get("periods", ()), _MAP}
    per_layer |= {alias for aliases in family.get("aliases", {}).values() for alias in aliases}
    per_layer |= {name for rule in family.get("patterns", ()) for name in rule_settings(rule)}
    return per_layer | set(count_names(family))
