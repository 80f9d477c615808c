"""Every host with every task and both kinds of donors: formulas, padding, training, saving, Auto classes, pipelines."""

import copy
import re
from pathlib import Path

import pytest
import torch
import transformers
from safetensors import safe_open
from torch.nn import functional
from transformers import AutoTokenizer, pipeline

from layer_surgeon.errors import GraftError
from layer_surgeon.graft import GraftedModel, graft_layer
from layer_surgeon.graft.hosts import host_kind
from layer_surgeon.tasks import TASKS as TRAITS
from tests.graft.conftest import word_tokenizer
from tests.support.graft_reference import tokens_of
from tests.support.graft_suite import (
    KINDS,
    LENGTHS,
    READS,
    REFUSED,
    SERVED,
    TASKS,
    Case,
    alone,
    by_formula,
    outputs,
    padded_inputs,
    plain_host,
    targets,
)

# torch 2.11 says so where transformers compiles parts of DeBERTa.
pytestmark = pytest.mark.filterwarnings("ignore:`torch.jit.script` is deprecated:DeprecationWarning")

PAGE = (Path(__file__).parents[2] / "docs/graft_settings.md").read_text()


@pytest.fixture(scope="module", params=[(*served, reads) for served in SERVED for reads in READS], ids="-".join)
def case(request, llm, artifact, stack):
    host_type, task, reads = request.param
    host = plain_host(host_type, task)
    torch.manual_seed(0)
    model = graft_layer(host, {"host": artifact, "text": stack}[reads], task, donor_reads=reads)
    if reads == "text":
        # As after some training: the gate starts at zero, and the norm without weight and bias.
        for parameter in (*model.donor_norm.parameters(), *([] if model.gate is None else [model.gate])):
            torch.nn.init.normal_(parameter, 1, 0.3)
    return Case(host_type=host_type, task=task, reads=reads, host=host, model=model, llm=llm)


@pytest.fixture(scope="module")
def stored(case, tmp_path_factory):
    """The folder of the graft, with a tokenizer."""
    folder = tmp_path_factory.mktemp("graft")
    case.model.save_pretrained(folder)
    word_tokenizer(padding_side="left" if case.causal else "right").save_pretrained(folder)
    return folder


def assert_close(found, expected, tolerance):
    """Compare with a tolerance relative to the largest value."""
    largest = max(1.0, float(expected.abs().max()))
    torch.testing.assert_close(found, expected, rtol=tolerance, atol=tolerance * largest)


@torch.no_grad()
def test_graft_equals_the_formula(case):
    is_causal = case.causal or case.reads == "text"
    assert case.model.config.settings.attention == ("causal" if is_causal else "bidirectional")
    inputs = padded_inputs()
    found, expected = outputs(case.model, case.task, inputs), by_formula(case, inputs)
    if case.per_token:
        found, expected = (tokens_of(values, inputs["attention_mask"]) for values in (found, expected))
    assert_close(found, expected, 1e-6)


@torch.no_grad()
def test_padding_doesnt_change_the_result(case):
    for side in ("right", "left") if case.causal else ("right",):
        inputs = padded_inputs(side)
        together = outputs(case.model, case.task, inputs)
        for row, length in enumerate(LENGTHS):
            single = alone(inputs, row, side)
            if case.task == "seq2seq":
                # Each text has its own target.
                decoder_ids = padded_targets(row)
                expected = case.model(**single, decoder_input_ids=decoder_ids).logits
            else:
                expected = outputs(case.model, case.task, single)
            place = slice(None)
            if case.per_token:
                place = slice(0, length) if side == "right" else slice(9 - length, 9)
            assert_close(together[[row], place] if case.per_token else together[[row]], expected, 2e-6)


def padded_targets(row):
    return targets("seq2seq")["labels"][[row]]


def test_a_step_changes_all_but_the_donor(case):
    model = copy.deepcopy(case.model)
    before = {name: value.clone() for name, value in model.state_dict().items()}
    model.train()
    out = model(**padded_inputs(), **targets(case.task))
    loss = out.last_hidden_state.square().sum() if case.task == "feature-extraction" else out.loss
    loss.backward()
    assert [name for name, p in model.named_parameters() if p.requires_grad and p.grad is None] == []
    torch.optim.SGD([p for p in model.parameters() if p.requires_grad], lr=0.05).step()
    changed = {name.split(".")[0] for name, value in model.state_dict().items() if not torch.equal(value, before[name])}
    new = {"head"} if TRAITS[case.task].head else set()
    if case.reads == "text":
        new |= {"donor_norm"} if new else {"donor_norm", "residual_gate"}
    else:
        new |= {"proj_in"}
    assert changed == {"host", "proj_out"} | new
    assert not model.donor.training
    assert all(torch.equal(value, before[name]) for name, value in case.model.state_dict().items())


@torch.no_grad()
def test_saving_and_loading_changes_no_bit(case, stored):
    assert (stored / "donor/model.safetensors").is_file()
    with safe_open(stored / "model.safetensors", framework="pt") as file:
        assert not [name for name in file.keys() if name.startswith("donor.")]  # noqa: SIM118  # not a dict
    expected = outputs(case.model, case.task, padded_inputs())
    for loader in (GraftedModel, getattr(transformers, TRAITS[case.task].auto)):
        loaded, info = loader.from_pretrained(stored, output_loading_info=True)
        assert type(loaded) is type(case.model)
        assert not info["missing_keys"]
        assert not info["unexpected_keys"]
        assert loaded.config.settings == case.model.config.settings
        assert torch.equal(outputs(loaded, case.task, padded_inputs()), expected)
        if TRAITS[case.task].generates:
            tied = case.model.get_output_embeddings().weight is case.model.get_input_embeddings().weight
            assert (loaded.get_output_embeddings().weight is loaded.get_input_embeddings().weight) == tied


@torch.no_grad()
def test_pipeline(case, stored):
    name = TRAITS[case.task].pipeline_tag
    if name in ("question-answering", "text2text-generation"):
        with pytest.raises(KeyError, match="Unknown task|removed from transformers"):
            pipeline(name, model=str(stored))
        return
    run = pipeline(name, model=str(stored))
    tokens = AutoTokenizer.from_pretrained(stored)("the film was good", return_tensors="pt")
    text = "the film was good"
    if case.task == "causal-lm":
        (found,) = run(text, max_new_tokens=3, do_sample=False, return_tensors=True)
        ids = case.model.generate(**tokens, max_new_tokens=3, do_sample=False)
        assert found["generated_token_ids"] == ids[0].tolist()
        return
    expected = outputs(case.model, case.task, tokens)
    if case.task == "feature-extraction":
        assert torch.equal(torch.tensor(run(text)), expected)
    elif case.task == "text-classification":
        scores = {entry["label"]: entry["score"] for entry in run(text, top_k=None)}
        found = torch.tensor([[scores["LABEL_0"], scores["LABEL_1"]]])
        torch.testing.assert_close(found, functional.softmax(expected, dim=-1))
    else:
        entries = {entry["index"]: entry["entity"] for entry in run(text, ignore_labels=[])}
        named = {index: f"LABEL_{label}" for index, label in enumerate(expected[0].argmax(-1).tolist())}
        # Special tokens are left out.
        assert entries == {index: named[index] for index in (1, 2, 3, 4)}


@pytest.mark.parametrize(("host_type", "task"), REFUSED, ids="-".join)
def test_unsupported_combinations_say_why(host_type, task, artifact):
    host = plain_host(host_type)
    with pytest.raises(GraftError, match=f"is of kind {KINDS[host_type]}, but {task} needs a host of kind"):
        graft_layer(host, artifact, task)


def test_kind_follows_from_the_config():
    assert {host_type: host_kind(plain_host(host_type).config) for host_type in KINDS} == KINDS


def test_the_page_lists_what_is_tested():
    """Compare each row of its table of hosts and tasks."""
    table = PAGE.partition("<!-- hosts x tasks -->")[2].strip().partition("\n\n")[0].splitlines()
    header, rows = table[0], table[2:]
    assert [cell.strip(" `") for cell in header.strip("|").split("|")][1:] == list(TASKS)
    listed = set()
    for row in rows:
        first, *cells = (cell.strip() for cell in row.strip("|").split("|"))
        for host_type in re.findall(r"`([\w-]+)`", first):
            listed |= {(host_type, task) for task, cell in zip(TASKS, cells, strict=True) if cell == "yes"}
            assert all(cell in ("yes", "no") for cell in cells)
    assert listed == set(SERVED)
