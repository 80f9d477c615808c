"""A plan, a study.yaml or a cell's file from a stranger: names and values are checked, and their size is limited."""

import contextlib
import dataclasses
import json
import random
import re

import pytest

from layer_surgeon._yaml import dump_yaml, parse_yaml
from layer_surgeon.errors import ConfigError
from layer_surgeon.study.arms import Arm, DonorSpec
from layer_surgeon.study.data import DataSpec
from layer_surgeon.study.plan import Cell, StudyPlan
from layer_surgeon.study.preset import scale_down
from layer_surgeon.study.synthesis_config import SynthesisConfig

SIGNED = "https://someone:hunter2@models.example/llm.safetensors?X-Signature=abc123&token=t0ps3cret"
SECRETS = ("hunter2", "abc123", "t0ps3cret", "someone")


def content(**changes):
    plan = StudyPlan.from_dict({"donor": "some/llm", "data": ["films.jsonl"], "seeds": [1], "arms": ["host", "graft"]})
    return {**json.loads(json.dumps(plan.as_dict())), **changes}


def written(tmp_path, values):
    path = tmp_path / "study.yaml"
    path.write_text(dump_yaml(values))
    return path


def arm(**changes):
    donor = {"source": "some/llm", "layers": [-1], "revision": None, "dtype": None}
    return {"name": "graft", "kind": "graft", "host": "bert", "donor": donor, **changes}


def donor(**changes):
    return {"source": "some/llm", "layers": [-1], "revision": None, "dtype": None, **changes}


def data(**changes):
    return {"name": "films", "train": ["films.jsonl"], "validation": [], "test": [], "labels": {}, **changes}


def test_the_plan_that_is_changed_below_is_good(tmp_path):
    assert StudyPlan.read(written(tmp_path, content())).as_dict() == content()
    assert StudyPlan.read(written(tmp_path, content(arms=[arm()], reference="graft"))).arms[0].name == "graft"


@pytest.mark.parametrize(
    "changes",
    [
        {"name": "../../elsewhere"},
        {"name": "/tmp/elsewhere"},
        {"name": 5},
        {"data": [data(name="/any/dir")], "tests": {"/any/dir": ["/any/dir"]}},
        {"data": [data(name="..")], "tests": {"..": [".."]}},
        {"data": [data(name="a\\b")], "tests": {"a\\b": ["a\\b"]}},
        {"data": [data(name="a" * 300)], "tests": {"a" * 300: ["a" * 300]}},
        {"data": [data(train="films.jsonl")]},
        {"data": [data(columns={"text_colum": "text"})]},
        {"data": ["films"]},
        {"data": []},
        {"tests": {"films": ["../films"]}},
        {"tests": {"films": []}},
        {"tests": {}},
        {"tests": ["films"]},
        {"arms": [arm(donor=donor(layers=["/../../x"]))], "reference": "graft"},
        {"arms": [arm(donor=donor(layers="12"))], "reference": "graft"},
        {"arms": [arm(donor=donor(layers=[True]))], "reference": "graft"},
        {"arms": [arm(donor=donor(layers=[10**9]))], "reference": "graft"},
        {"arms": [arm(donor=donor(layers=[]))], "reference": "graft"},
        {"arms": [arm(donor=donor(revision=7))], "reference": "graft"},
        {"arms": [arm(donor=donor(more=7))], "reference": "graft"},
        {"arms": [arm(donor="some/llm")], "reference": "graft"},
        {"arms": [arm(kind="unknown")], "reference": "graft"},
        {"arms": [arm(name="a\x1b[2J")], "reference": "a\x1b[2J"},
        {"arms": [arm(name="")], "reference": ""},
        {"arms": [arm(host=["bert"])], "reference": "graft"},
        {"arms": [arm(graft={"poling": "cls"})], "reference": "graft"},
        {"arms": [arm(graft={"task": "causal-lm"})], "reference": "graft"},
        {"arms": [arm(finetune={"epochs": 1})], "reference": "graft"},
        {"arms": [arm(control="narrow-head")], "reference": "graft"},
        {"arms": [arm(), arm()], "reference": "graft"},
        {"arms": [arm(), "host"]},
        {"arms": {"a": 1}},
        {"arms": []},
        {"task": "unknown"},
        {"task": ["seq2seq"]},
        {"metric": "<img src=x onerror=alert(1)>"},
        {"metric": "perplexity"},
        {"metric": None},
        {"reference": "nobody"},
        {"focus": "nobody"},
        {"seeds": [-1]},
        {"seeds": [2**32]},
        {"seeds": ["1"]},
        {"seeds": [1, 1]},
        {"seeds": []},
        {"fractions": [0.0]},
        {"fractions": [float("nan")]},
        {"fractions": [float("inf")]},
        {"fractions": [True]},
        {"fractions": ["1"]},
        {"test_fraction": 2},
        {"finetune": []},
        {"finetune": {"num_epochs": float("nan")}},
        {"finetune": {"seed": [[[]]], "more": 1}},
        {"title": "x" * 20_000},
        {"title": None},
        {"keep_models": "yes"},
        {"more": 1},
    ],
    ids=lambda changes: json.dumps(changes)[:60],
)
def test_a_complete_plan_is_checked_like_one_of_a_user(tmp_path, changes):
    with pytest.raises(ConfigError, match=r"study\.yaml is not the plan of a study"):
        StudyPlan.read(written(tmp_path, content(**changes)))


def test_a_cell_is_checked_too():
    plan = StudyPlan.from_dict({"donor": "some/llm", "data": ["films.jsonl"], "seeds": [1], "arms": ["host"]})
    cell = plan.cells()[0]
    assert Cell.from_dict(json.loads(json.dumps(cell.as_dict()))) == cell
    for changes in ({"data": "../../x"}, {"tests": ["/x"]}, {"seed": "1"}, {"task": "unknown"}, {"keep_model": 1}):
        with pytest.raises(ConfigError):
            Cell.from_dict({**cell.as_dict(), **changes})
    with pytest.raises(ConfigError, match="Give its arm or its data set a shorter name"):
        dataclasses.replace(cell, arm=dataclasses.replace(cell.arm, name="a" * 180))


def test_settings_of_lora_change_the_adapters_and_nothing_else():
    """peft imports the module in megatron_core, and loads the files that configs of other methods name."""
    good = {"r": 4, "lora_alpha": 8, "target_modules": ["query"], "init_lora_weights": "gaussian"}
    assert Arm(name="lora", kind="lora", host="bert", donor=None, lora=good).lora == good
    for name, value in {
        "megatron_core": "evil",
        "megatron_config": {},
        "auto_mapping": {"base_model_class": "x"},
        "base_model_name_or_path": "other/model",
        "loftq_config": {},
        "eva_config": {},
        "arrow_config": {},
        "init_lora_weights": "loftq",
    }.items():
        with pytest.raises(ConfigError, match=r"lora"):
            Arm(name="lora", kind="lora", host="bert", donor=None, lora={name: value})


@pytest.mark.parametrize(
    "settings",
    [
        {"per_label": 10**9},
        {"per_label": "many"},
        {"batch_size": 10**6},
        {"max_new_tokens": 10**9},
        {"temperature": float("nan")},
        {"model": ["gpt2"]},
        {"prompts": {"a": 1}},
        {"trust_remote_code": True},
    ],
)
def test_settings_of_written_texts(settings):
    with pytest.raises(ConfigError):
        Arm(name="zerogen", kind="zerogen", host="bert", donor=None, synthetic=settings)
    with pytest.raises(ConfigError):
        SynthesisConfig.from_settings(None, settings)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        (
            {"seeds": list(range(20_000)), "fractions": [k / 1e6 for k in range(1, 20_000)]},
            "799,960,000 trainings",
        ),
        (
            {
                "arms": [{"name": f"a{k}", "like": "graft"} for k in range(2_000)],
                "hosts": [f"h{k}" for k in range(2_000)],
            },
            "4,000,000 arms",
        ),
        ({"donors": [f"d{k}" for k in range(2_000)], "layers": list(range(2_000))}, "4,000,000 layers of donors"),
        ({"data": [f"d{k}.jsonl" for k in range(2_000)], "tests": "all"}, "4,000,000 pairs of data sets"),
        ({"layers": "0:1000000000"}, "it must be a list"),
        ({"layers": [list(range(20_000))]}, "20,000 layers"),
        ({"arms": [{"name": f"a{k}", "like": f"a{k + 1}"} for k in range(3_000)]}, "Too many arms"),
    ],
    ids=["seeds", "arms", "layers", "tests", "a range", "layers of one donor", "like"],
)
def test_sizes_are_counted_before_lists_are_made(changes, message):
    with pytest.raises(ConfigError, match=message):
        StudyPlan.from_dict({"donor": "some/llm", "data": ["films.jsonl"], "arms": ["host", "graft"], **changes})


def test_a_bomb_of_aliases_is_not_expanded(tmp_path):
    lines = ["a0: &a0 [1, 1, 1, 1, 1, 1, 1, 1, 1, 1]"]
    lines += [f"a{k}: &a{k} [{', '.join([f'*a{k - 1}'] * 10)}]" for k in range(1, 12)]
    (tmp_path / "plan.yaml").write_text("\n".join(lines))
    with pytest.raises(ConfigError, match="aliases"):
        StudyPlan.read(tmp_path / "plan.yaml")


def test_what_is_stored_of_a_url_has_no_secret():
    plan = StudyPlan.from_dict(
        {"donors": [SIGNED, {"source": SIGNED.replace("llm", "other"), "layer": 3}], "data": ["films.jsonl"]}
    )
    text = json.dumps(plan.as_dict()) + " ".join(cell.id for cell in plan.cells())
    text += json.dumps([cell.as_dict() for cell in plan.cells()]) + " ".join(arm.name for arm in plan.arms)
    assert not [secret for secret in SECRETS if secret in text]
    assert plan.arms[1].donor.source == SIGNED
    bare = StudyPlan.from_dict(
        {
            "donors": [
                "https://models.example/llm.safetensors",
                {"source": "https://models.example/other.safetensors", "layer": 3},
            ],
            "data": ["films.jsonl"],
        }
    )
    assert [cell.id for cell in plan.cells()] == [cell.id for cell in bare.cells()]
    assert plan.as_dict() == bare.as_dict()


def test_a_source_is_shown_without_its_secret():
    spec = DonorSpec(source=SIGNED, revision="main")
    assert (spec.name, spec.text) == ("llm-L-1", "https://models.example/llm.safetensors (revision main)")
    assert not [secret for secret in SECRETS if secret in json.dumps(DataSpec(name="d", train=(SIGNED,)).as_dict())]


JUNK = (None, True, 0, -1, 10**30, 0.5, float("nan"), float("inf"), "", "x", "../x", [], [[]], ["x"], [1], {}, {"x": 1})
KEYS = (
    *("name", "title", "task", "host", "hosts", "donor", "donors", "arms", "data", "tests", "fractions", "seeds"),
    *("finetune", "graft", "reference", "focus", "metric", "test_fraction", "keep_models", "layers"),
)


@pytest.mark.parametrize("seed", range(40))
def test_any_values_make_a_plan_or_a_config_error(seed, tmp_path):
    draw = random.Random(seed)
    parts = (*JUNK, *(parse_yaml(text) for text in ("2024-01-01", "!!set {a, b}", "!!binary aGk=", f"0x{'f' * 9000}")))
    for _ in range(40):
        value = draw.choice(parts)
        inner = draw.choice(({"name": value}, {"name": "x", draw.choice(KEYS): value}, [value], value))
        changes = {key: draw.choice((value, inner, [inner])) for key in draw.sample(KEYS, draw.choice((1, 1, 2)))}
        made = None
        with contextlib.suppress(ConfigError):
            made = StudyPlan.from_dict({"donor": "some/llm", "data": ["films.jsonl"], "seeds": [1], **changes})
        if made is not None:
            assert all(re.fullmatch(r"[A-Za-z0-9._+-]+", cell.id) for cell in made.cells())
            path = tmp_path / "plan.yaml"
            made.write(path)
            assert StudyPlan.read(path).as_dict() == made.as_dict()
        with contextlib.suppress(ConfigError):
            scale_down({"arms": ["host"], **changes}, value)
        part = {**arm(), draw.choice(list(arm())): inner}
        for read in (Arm.from_dict, DataSpec.from_dict):
            # What isn't a mapping of the right names is said by StudyPlan.read.
            with contextlib.suppress(ConfigError, TypeError, KeyError, AttributeError):
                read(part)
