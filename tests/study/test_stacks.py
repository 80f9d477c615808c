"""Arms whose donor reads text, and their controls.

A planted truth: the label is whether the one telling word of a text is good or bad, and no such word of the training
texts occurs in a test text. The host can't know the others; in the donor's table of tokens, one feature tells them.
"""

import json
import random
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from transformers import BertModel, LlamaConfig, LlamaForCausalLM

from layer_surgeon.donor import DonorStack
from layer_surgeon.errors import ConfigError
from layer_surgeon.study import compare
from layer_surgeon.study.arms import Arm, DonorSpec
from layer_surgeon.study.compare import run_study
from layer_surgeon.study.controls import permute_weights
from layer_surgeon.study.donor_layers import prepare_layers
from layer_surgeon.study.layout import StudyFolder
from layer_surgeon.study.models import build_model, states_of, tokenizer_of
from layer_surgeon.study.plan import StudyPlan
from layer_surgeon.study.prepare import prepare_study
from layer_surgeon.study.records import read_cell
from tests.support.classification import Recorder, bert_config
from tests.support.classification import tokenizer_of as word_tokenizer_of
from tests.support.studies import run_in_this_process
from tests.support.tiny_models import save_quietly

FILLERS = ["the", "film", "was", "very", "a", "plot", "story", "with"]
KINDS = ("good", "bad")
PARTS = {"train": 20, "validation": 10, "test": 50}
WORDS = {kind: [f"{kind}{number}" for number in range(sum(PARTS.values()))] for kind in KINDS}
ALL_WORDS = [*FILLERS, *WORDS["good"], *WORDS["bad"]]
WIDTH = 32
KNOWING, IGNORANT = ("stack", "own", "stack-alone", "cut"), ("host", "stack-random", "stack-permuted", "stack-shuffled")
OWN = {"name": "own", "like": "stack", "graft": {"donor_tokens": "own"}}


def write_parts(folder):
    rng, start, paths = random.Random(0), 0, {}
    for part, count in PARTS.items():
        rows = []
        for number in range(start, start + count):
            for kind in KINDS:
                words = rng.choices(FILLERS, k=rng.randint(1, 3))
                words.insert(rng.randint(0, len(words)), WORDS[kind][number])
                rows.append({"text": " ".join(words), "label": kind})
        start += count
        paths[part] = str(folder / f"{part}.jsonl")
        (folder / f"{part}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return paths


def knowing_donor(folder):
    """A Llama whose first feature is large for good words, and as large with the other sign for bad ones."""
    torch.manual_seed(1)
    model = LlamaForCausalLM(
        LlamaConfig(
            vocab_size=len(ALL_WORDS) + 4,
            hidden_size=WIDTH,
            intermediate_size=48,
            num_hidden_layers=3,
            num_attention_heads=4,
            num_key_value_heads=2,
            pad_token_id=0,
        )
    )
    first = 4 + len(FILLERS)
    with torch.no_grad():
        table = model.model.embed_tokens.weight.normal_(0, 0.3)
        table[first : first + len(WORDS["good"]), 0] = 5
        table[first + len(WORDS["good"]) :, 0] = -5
    save_quietly(model, folder)
    word_tokenizer_of(ALL_WORDS).save_pretrained(folder)
    return str(folder)


@pytest.fixture(scope="module")
def content(tmp_path_factory):
    folder = tmp_path_factory.mktemp("planted")
    torch.manual_seed(0)
    config = bert_config()
    config.vocab_size = len(ALL_WORDS) + 4
    save_quietly(BertModel(config), folder / "host")
    word_tokenizer_of(ALL_WORDS).save_pretrained(folder / "host")
    return {
        "name": "planted",
        "host": str(folder / "host"),
        "donor": {"source": knowing_donor(folder / "donor"), "layer": "0:2"},
        "arms": [*IGNORANT, "stack", OWN, "stack-alone", "cut"],
        "data": [{"name": "words", **write_parts(folder)}],
        "graft": {"dropout": 0.0},
        "finetune": {"num_epochs": 3, "batch_size": 4, "learning_rate": 5e-3},
        "seeds": [1],
    }


@pytest.fixture(scope="module")
def study(content, tmp_path_factory):
    """All arms, trained with one seed: the plan, the result and the folder."""
    root = tmp_path_factory.mktemp("studies") / "study"
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(compare, "run_local", run_in_this_process)
        result = run_study(StudyPlan.from_dict(content), root)
    assert result.failed == {}
    return result, StudyFolder(root=root)


def test_a_stack_that_knows_the_label_beats_its_controls(study):
    result, _ = study
    rows = {row.arm: row.mean for row in result.summary.tables[0].rows}
    assert min(rows[name] for name in KNOWING) > 0.9, rows
    assert max(rows[name] for name in IGNORANT) < 0.65, rows


def test_what_each_arm_trains(study):
    result, folder = study
    cells = {cell.arm.name: read_cell(folder.result(cell.id)) for cell in StudyPlan.read(folder.plan).cells()}
    trained = {name: cell.parameters.trained for name, cell in cells.items()}
    total = {name: cell.parameters.total for name, cell in cells.items()}
    same = ("stack", "own", "stack-random", "stack-permuted", "stack-shuffled")
    assert {trained[name] for name in same} == {trained["stack"]}
    assert {total[name] for name in same} == {total["stack"]}
    # The donor's norm and its projection, and a head that is as wide again.
    assert trained["stack"] == trained["host"] + 2 * WIDTH + WIDTH * 16 + 16 * 16
    assert trained["stack-alone"] < trained["host"] < total["stack-alone"]
    assert trained["cut"] == total["cut"]
    assert cells["cut"].donor == "donor-L0-1-model"
    assert cells["stack"].donor == "donor-first-2-for-host"
    assert cells["own"].donor == "donor-first-2"
    assert result.summary.verdict


def test_what_a_study_keeps(study):
    """Each form of the layers is made once, and only states that several cells share are kept."""
    _, folder = study
    layers = {path.name for path in folder.path("layers").iterdir() if path.is_dir()}
    assert layers == {"donor-first-2-for-host", "donor-first-2", "donor-L0-1-model"}
    # The tokens of host and donor are the same here, and so are the weights: all arms share one folder of states.
    assert len(list(folder.path("donor-states").iterdir())) == 1
    assert not [path for path in folder.path("runs").iterdir() if path.is_dir()]


# ---- the models


def arm_of(content, arm, **changes):
    plan = StudyPlan.from_dict({**content, "arms": [arm], **changes})
    return plan.cells()[0]


def test_the_same_seed_permutes_in_the_same_way(content, study):
    _, folder = study
    cell = arm_of(content, "stack-permuted")
    permuted = [build_model(cell.arm, cell.task, seed, folder).donor.state_dict() for seed in (1, 1, 2)]
    stored = DonorStack.from_pretrained(str(folder.layer("donor-first-2-for-host"))).state_dict()
    assert permuted[0].keys() == stored.keys()
    for name, weight in stored.items():
        first, again, other = (weights[name] for weights in permuted)
        assert torch.equal(first, again)
        assert torch.equal(first.flatten().sort().values, weight.flatten().sort().values)
        assert torch.equal(first, weight) == torch.equal(first, other) == (weight.ndim == 1)


def test_stacked_matrices_are_permuted_one_by_one():
    experts = torch.nn.Parameter(torch.arange(24.0).view(2, 3, 4))
    module = torch.nn.Module()
    module.experts = experts
    assert permute_weights(module, 0) is module
    assert experts[0].flatten().sort().values.tolist() == list(range(12))
    assert experts[1].flatten().sort().values.tolist() == list(range(12, 24))
    assert experts.flatten().tolist() != list(range(24))


def test_the_host_does_not_matter_to_a_stack_alone(content, study):
    _, folder = study
    cell = arm_of(content, "stack-alone")
    model = build_model(cell.arm, cell.task, 1, folder)
    inputs = {"input_ids": torch.tensor([[1, 5, 14, 2]]), "attention_mask": torch.ones(1, 4, dtype=torch.long)}
    with torch.no_grad():
        before = model(**inputs).logits
        for weight in model.host.parameters():
            weight.mul_(3)
        assert torch.equal(model(**inputs).logits, before)
        model.donor.entrance.model.get_input_embeddings().weight.mul_(3)
        assert not torch.equal(model(**inputs).logits, before)


def test_shuffled_states_are_those_of_other_texts(content, study):
    _, folder = study
    cell = arm_of(content, "stack-shuffled")
    assert states_of(cell, folder).shuffle_seed == 1
    assert states_of(arm_of(content, "stack"), folder).shuffle_seed is None
    assert states_of(cell, folder).folder == folder.path("donor-states")
    assert states_of(arm_of(content, "stack-random"), folder).folder.parent == folder.path("runs")


def test_the_tokenizer_is_the_one_of_the_model_that_reads(content, study):
    _, folder = study
    assert tokenizer_of(arm_of(content, "stack").arm, folder) == content["host"]
    assert tokenizer_of(arm_of(content, "cut").arm, folder) == str(folder.layer("donor-L0-1-model"))
    assert "donor_input_ids" in tokenizer_of(arm_of(content, OWN).arm, folder)("the film")


# ---- plans


def test_a_donor_of_a_plan_takes_the_form_that_its_arm_needs(content):
    plan = StudyPlan.from_dict({**content, "arms": ["graft", "stack", OWN, "cut", "wide-head", "host"]})
    donors = {arm.name: arm.donor for arm in plan.arms}
    assert {name: donor and (donor.form, donor.vocabulary) for name, donor in donors.items()} == {
        "graft": ("layers", None),
        "stack": ("stack", content["host"]),
        "own": ("stack", None),
        "cut": ("model", None),
        "wide-head": ("layers", None),
        "host": None,
    }
    assert all(donor is None or donor.layers == (0, 1) for donor in donors.values())


def test_plans_and_cells_of_stacks_are_read_as_they_were_written(content, tmp_path):
    plan = StudyPlan.from_dict(content)
    plan.write(tmp_path / "study.yaml")
    assert StudyPlan.read(tmp_path / "study.yaml") == plan
    # The names of cells of earlier versions stay the same.
    assert set(DonorSpec(source="m").as_dict()) == {"source", "layers", "revision", "dtype"}


def test_slices_of_layers():
    layers = DonorSpec.parse({"source": "m", "layers": ["0:3", 5, -1]}).layers
    assert layers == (0, 1, 2, 5, -1)
    for bad in ("3:3", "9:1", ":4", "first", "0:99999999"):
        with pytest.raises(ConfigError, match="layers"):
            DonorSpec.parse({"source": "m", "layer": bad})


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"donor": {"source": "m", "layer": -1}}, r"needs the first layers of m, but the plan names the layers -1"),
        ({"arms": [{"name": "x", "control": "wide"}]}, "must be one of projections-only, wide-head, permuted"),
        ({"arms": [{"name": "cut", "donor": None}]}, "The control cut needs a donor"),
        ({"arms": [{"name": "x", "control": "shuffled"}]}, r"The arm x gives each text .*donor_reads host.*needs"),
        ({"arms": ["stack-shuffled"], "task": "token-classification"}, "a state for each token .*Leave the arm out"),
    ],
)
def test_plans_that_cannot_be_run(content, changes, message):
    with pytest.raises(ConfigError, match=message):
        StudyPlan.from_dict({**content, "arms": ["stack"], **changes})


def test_a_layer_artifact_cannot_be_cut(content, study, tmp_path):
    _, folder = study
    source = str(folder.layer("donor-first-2"))
    plan = StudyPlan.from_dict({**content, "donor": {"source": source, "layer": 0}, "arms": ["cut"]})
    with pytest.raises(ConfigError, match="is a layer artifact, but an arm trains the donor's model"):
        prepare_study(plan, StudyFolder(root=tmp_path / "study"), Recorder())


@pytest.mark.parametrize(
    ("arm", "form", "message"),
    [
        ("graft", "stack", r"artifact with embeddings.* Use the arm stack with donor: .* layer: '0:2'"),
        ("wide-head", "stack", "artifact with embeddings"),
        ("stack", "layers", "artifact without embeddings, but an arm's donor reads text"),
        ("stack", "stack", "reads its own tokens, so donor_tokens of its arm must be own"),
    ],
)
def test_an_artifact_must_have_what_the_arm_needs(content, tmp_path, arm, form, message):
    folder = StudyFolder(root=tmp_path)
    made = replace(DonorSpec.parse(content["donor"]), form=form)
    prepare_layers([made], folder, Recorder())
    donor = {"source": str(folder.layer(made.name)), "layer": "0:2"}
    plan = StudyPlan.from_dict({**content, "donor": donor, "arms": [arm]})
    with pytest.raises(ConfigError, match=message):
        prepare_study(plan, folder, Recorder())


def test_lora_of_modules_that_the_host_lacks(content):
    arm = Arm(name="lora", kind="lora", host=content["host"], donor=None, lora={"target_modules": ["wrong"]})
    with pytest.raises(ConfigError, match="The lora settings of an arm don't fit its host: .*wrong"):
        build_model(arm, "text-classification", 0, StudyFolder(root=Path("unused")))


def test_shuffled_states_need_all_texts_in_memory(content, study):
    result, _ = study
    plan = StudyPlan.from_dict({**content, "arms": ["stack-shuffled"], "finetune": {"streaming": True, "max_steps": 2}})
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(compare, "run_local", run_in_this_process)
        failed = run_study(plan, result.path).failed
    assert "can't be shuffled in a stream" in next(iter(failed.values()))
