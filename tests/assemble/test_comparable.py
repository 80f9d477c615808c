"""Older and newer forms of a config agree if transformers makes the same of both, and differ otherwise."""

import json
from copy import deepcopy

import pytest
import transformers
from transformers import CONFIG_MAPPING

from layer_surgeon.assemble.family_table import family_table
from layer_surgeon.assemble.ignored_settings import NOT_COMPARED
from layer_surgeon.assemble.layer_settings import _per_layer, _Settings
from layer_surgeon.errors import AssemblyError, LayerSurgeonError
from tests.support.assembly_walk import is_family, walk_overrides
from tests.support.tiny_models import tiny_config

FAMILIES = sorted(name for name in family_table()["families"] if is_family(name))
# Sources may differ in windows that no layer uses.
NOT_CHANGED = ("sliding_window", "use_sliding_window")
# Families that ignore what a config states, or derive a value in another way than the table can say. Some forms of
# theirs are refused although they are the same.
UNCLEAR = ("apertus", "apertus1p5_text", "bailing_hybrid", "cwm", "inkling_text", "moshi", "ministral3")


def saved(config):
    """What the installed transformers makes of a config, or None if it refuses it."""
    try:
        made = CONFIG_MAPPING[config["model_type"]].from_dict(deepcopy(config))
    except Exception:  # noqa: BLE001 - the classes check their settings with errors of many types
        return None
    return json.loads(made.to_json_string(use_diff=False))


def refusal(first, second):
    try:
        _Settings(first).check_same(_Settings(second))
        _Settings(second).check_same(_Settings(first))
    except AssemblyError as error:
        return str(error)
    return None


def same(first, second):
    """Whether transformers makes the same of two configs, apart from settings that need not be equal."""
    return compared(saved(first)) == compared(saved(second))


def compared(settings):
    if not isinstance(settings, dict):
        return settings
    return {name: compared(value) for name, value in settings.items() if name not in NOT_COMPARED and value is not None}


def older_forms(config):
    """Forms of a config as older versions of transformers, or other tools, write it."""
    usual = saved({"model_type": config["model_type"]})
    yield (
        "usual values left out",
        {name: value for name, value in config.items() if name == "model_type" or usual.get(name) != value},
    )
    spellings = family_table()["families"][config["model_type"]].get("spellings", {})
    for name, paths in spellings.items():
        older = deepcopy(config)
        values = [take(older, path) for path in paths]
        if values and values[0] is not None and values == values[:1] * len(values):
            yield name, {**older, name: values[0]}
    rope = config.get("rope_parameters") or {}
    for kind, part in rope.items():
        if isinstance(part, dict):
            yield (
                f"rope of {kind}",
                {**config, "rope_parameters": {**rope, kind: {"rope_type": "linear", "factor": 2.0}}},
            )
    if "rope_theta" in rope:
        older = {name: value for name, value in config.items() if name != "rope_parameters"}
        yield (
            "rope",
            {**older, **{name: rope[name] for name in ("rope_theta", "partial_rotary_factor") if name in rope}},
        )
        for scaling in (
            {"type": "linear", "factor": 2.0},
            {"rope_type": "llama3", "factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0},
            {"type": "yarn", "factor": 4.0},
        ):
            yield "rope_scaling", {**older, "rope_scaling": scaling}


def take(config, path):
    *sections, name = path.split(".")
    for section in sections:
        config = config.get(section) or {}
    return config.pop(name, None)


def changed(config, ignored):
    for name, value in config.items():
        if name in ignored:
            continue
        if isinstance(value, bool):
            yield name, {**config, name: not value}
        elif isinstance(value, int | float):
            yield name, {**config, name: value * 2}
        elif isinstance(value, dict):
            if "rope_type" in value and name != "rope_parameters":
                yield name, {**config, name: None}
            yield from ((f"{name}.{key}", {**config, name: inner}) for key, inner in changed(value, ignored))


@pytest.mark.skipif(
    transformers.__version__ != family_table()["transformers"], reason="other versions read other forms"
)
@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("model_type", FAMILIES)
def test_older_and_newer_forms(model_type):
    overrides = walk_overrides(model_type)
    config = json.loads(tiny_config(model_type, **overrides).to_json_string(use_diff=False))
    ignored = {*NOT_CHANGED, *NOT_COMPARED, *_per_layer(family_table()["families"][model_type])}
    wrong, num_compared = [], 0
    for form, older in older_forms(config):
        newer = saved(older)
        if newer is None or not newer.get("model_type"):
            continue
        try:
            if (message := refusal(older, newer)) is not None and model_type not in UNCLEAR:
                wrong.append(f"refused: {form}: {message}")
            for name, other in changed(older, ignored):
                if saved(other) is not None and not same(other, older) and refusal(other, newer) is None:
                    wrong.append(f"accepted: {form} with another {name}")
            num_compared += 1
        except LayerSurgeonError:  # The family's own rules refuse this form.
            continue
    assert num_compared
    assert not wrong
