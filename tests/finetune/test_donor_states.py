"""The states of a frozen donor that reads text: computed once, kept in files, and the same as without files."""

import shutil
import threading

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import BertModel

from layer_surgeon import errors
from layer_surgeon._io import FileLock
from layer_surgeon._vocabulary import vocabulary_sha256
from layer_surgeon.errors import DataError, WorkspaceError
from layer_surgeon.finetune import donor_states
from layer_surgeon.finetune.donor_states import DonorReader, StateCache, StoredStates, _others, donor_key
from layer_surgeon.graft import graft_layer
from tests.graft.conftest import host_table
from tests.support.classification import Recorder, rows, word_tokenizer
from tests.support.finetune_tasks import bert, question_rows, tagged_rows, tiny_bart, tiny_gpt2, translated_rows
from tests.support.finetune_tasks import train as train_task
from tests.support.tiny_models import tiny_llama
from tests.support.tiny_stacks import save_stack
from tests.support.training import TRAIN, same, train, weights


@pytest.fixture(scope="session")
def stack(tmp_path_factory):
    """The first two layers of a tiny Llama, with a table for the 40 tokens of the host."""
    folder = save_stack(tiny_llama(seed=5), 2, tmp_path_factory.mktemp("stacks") / "L0-1")
    return host_table(folder, num_tokens=40, sha256=vocabulary_sha256(word_tokenizer(), "host"))


@pytest.fixture
def reader(host, stack):
    torch.manual_seed(3)
    return graft_layer(host, stack, donor_reads="text")


def per_token(host, stack, **settings):
    """A classifier whose donor's states are joined token by token, before the host's last layer."""
    torch.manual_seed(3)
    return graft_layer(host, stack, donor_reads="text", site=0, pooling="mean", **settings)


def weights_of(model):
    return {name: value.clone() for name, value in model.state_dict().items()}


def kept_files(workspace):
    return sorted((workspace.root / "donor-states").glob("*/*.safetensors"))


def num_calls(model, monkeypatch):
    """Count the passes through the donor."""
    calls = []
    walk = type(model.donor).walk
    monkeypatch.setattr(
        type(model.donor), "walk", lambda self, *args, **kw: (calls.append(1), walk(self, *args, **kw))[1]
    )
    return calls


@pytest.mark.parametrize("make", [lambda host, stack: graft_layer(host, stack, donor_reads="text"), per_token])
def test_kept_states_change_nothing(host, stack, workspace, monkeypatch, make):
    """Two whole trainings: the same weights and scores, bit for bit; the donor reads each text once."""
    results, counts = [], []
    for cache_states in (True, False):
        torch.manual_seed(3)
        model = make(host, stack)
        with monkeypatch.context() as patch:
            calls = num_calls(model, patch)
            results.append(train(model, workspace, cache_states=cache_states))
            counts.append(len(calls))
    kept, computed = results
    assert same(weights(kept), weights(computed))
    assert kept.metrics == computed.metrics
    assert [epoch.as_dict() for epoch in kept.history] == [epoch.as_dict() for epoch in computed.history]
    texts = sum(map(len, TRAIN.values()))
    assert counts[0] == texts
    # Two epochs of training and validation, then both other sets.
    assert counts[1] == 2 * (48 + 16) + 16 + 12


@pytest.mark.parametrize(
    ("task", "make_host", "data"),
    [
        ("token-classification", lambda: bert(BertModel), {"train": tagged_rows(24), "validation": tagged_rows(8)}),
        ("question-answering", lambda: bert(BertModel), {"train": question_rows(24), "validation": question_rows(8)}),
        ("seq2seq", tiny_bart, {"train": translated_rows(24), "validation": translated_rows(8)}),
        (
            "causal-lm",
            tiny_gpt2,
            {"train": [{"text": "anna went to rome ."}] * 24, "validation": [{"text": "bob"}] * 9},
        ),
    ],
)
def test_every_task_uses_kept_states(stack, workspace, task, make_host, data):
    results = []
    for cache_states in (True, False):
        torch.manual_seed(3)
        model = graft_layer(make_host(), stack, task=task, donor_reads="text")
        start = weights_of(model)
        results.append(train_task(model, workspace, data, cache_states=cache_states, max_target_length=8))
        assert not same(weights_of(model), start)
        assert bool(kept_files(workspace)) is True
    kept, computed = results
    assert same(weights(kept), weights(computed))
    assert kept.metrics == computed.metrics


def test_the_model_itself_agrees_up_to_the_padding(reader, workspace, monkeypatch):
    """Without kept states at all, the stack reads padded batches, which changes the last digits."""
    kept = weights(train(reader, workspace))
    monkeypatch.setattr(StateCache, "attach", lambda *_, **__: None)
    torch.manual_seed(3)
    again = graft_layer(reader.host_source[0], reader.donor, donor_reads="text")
    computed = weights(train(again, workspace))
    assert max((kept[name] - computed[name]).abs().max() for name in kept) < 1e-5


def test_seeds_share_the_states(host, stack, workspace, monkeypatch):
    """Another seed holds out other rows: only texts that no run has used yet are read."""
    data = rows(60)
    for seed, expected in ((1, 30), (2, None), (1, 0)):
        torch.manual_seed(seed)
        model = graft_layer(host, stack, donor_reads="text")
        with monkeypatch.context() as patch:
            calls = num_calls(model, patch)
            train(model, workspace, data, train_fraction=0.5, validation_fraction=0.1, max_steps=1, seed=seed)
        assert len(calls) < 30 + 7 if expected is None else len(calls) <= expected + 6
    assert len({path.parent for path in kept_files(workspace)}) == 1
    keys = torch.cat([load_file(path)["keys"] for path in kept_files(workspace)])
    assert len(keys.unique(dim=0)) == len(keys) <= 60


def test_another_donor_has_states_of_its_own(reader, workspace):
    train(reader, workspace, max_steps=1)
    before = donor_key(reader)
    with torch.no_grad():
        next(reader.donor.parameters()).mul_(1.5)
    assert donor_key(reader) != before
    train(reader, workspace, max_steps=1)
    assert len({path.parent for path in kept_files(workspace)}) == 2


def test_the_key_is_of_all_that_decides_the_states(host, stack, reader):
    keys = {
        "mean": donor_key(reader),
        "last": donor_key(graft_layer(host, stack, donor_reads="text", donor_pooling="last")),
        "per token": donor_key(per_token(host, stack)),
        "bfloat16": donor_key(per_token(host, stack, donor_dtype="bfloat16")),
    }
    threads = torch.get_num_threads()
    torch.set_num_threads(threads + 1)
    try:
        keys["threads"] = donor_key(reader)
    finally:
        torch.set_num_threads(threads)
    assert len(set(keys.values())) == len(keys)
    assert donor_key(graft_layer(host, stack, donor_reads="text", join="gated")) == keys["mean"]


def test_states_keep_their_type_and_shape(host, stack, tmp_path):
    model = per_token(host, stack, donor_dtype="bfloat16")
    compute = DonorReader(model)
    features = [{"input_ids": [4, 5, 6]}, {"input_ids": [7]}]
    kept = StoredStates(tmp_path, compute)
    kept.add(features, Recorder())
    assert [list(kept.read(feature).shape) for feature in features] == [[3, 32], [1, 32]]
    assert kept.read(features[0]).dtype == torch.bfloat16
    ids = torch.tensor([[4, 5, 6]])
    assert torch.equal(kept.read(features[0]), model.read_text(ids, torch.ones_like(ids))[0])


def test_nothing_is_kept_for_a_trained_or_missing_donor(host, workspace, graft):
    train(graft, workspace, max_steps=1)
    train(graft_layer(host, None), workspace, max_steps=1)
    assert not (workspace.root / "donor-states").exists()


def test_two_processes_share_one_reading(reader, tmp_path, monkeypatch):
    """The second one waits, says so, and finds all states."""
    compute, features = DonorReader(reader), [{"input_ids": [4, number]} for number in range(5, 15)]
    first, second, progress = StoredStates(tmp_path, compute), StoredStates(tmp_path, compute), Recorder()
    lock = FileLock(tmp_path.resolve() / ".lock")
    lock.take()
    waiting = threading.Thread(target=second.add, args=(features, progress))
    waiting.start()
    first._compute_missing(first._missing({first._key(f): f for f in features}), Recorder())
    while not progress.notices:
        waiting.join(0.01)
    calls = num_calls(reader, monkeypatch)
    lock.release()
    waiting.join()
    assert "Another process is adding states" in progress.notices[0]
    assert not calls
    assert torch.equal(first.read(features[3]), second.read(features[3]))


def test_many_states_are_written_in_several_files(reader, tmp_path, monkeypatch):
    monkeypatch.setattr(donor_states, "_BYTES_PER_FILE", 4 * 32 * 4)
    monkeypatch.setattr(donor_states, "_TOKENS_AT_A_TIME", 4)
    features = [{"input_ids": [4, number]} for number in range(5, 15)]
    StoredStates(tmp_path, DonorReader(reader)).add(features, Recorder())
    assert len(list(tmp_path.glob("*.safetensors"))) == 3
    assert not list(tmp_path.glob(".*"))
    again = StoredStates(tmp_path, DonorReader(reader))
    calls = num_calls(reader, monkeypatch)
    again.add(features, Recorder())
    assert not calls


# ---- what can go wrong


def test_a_full_disk(reader, workspace, monkeypatch):
    usage = shutil.disk_usage(workspace.root.parent)
    monkeypatch.setattr(donor_states.shutil, "disk_usage", lambda _: usage._replace(free=1000))
    message = r"donor's states of 76 texts take 9\.\d kB, and the disk has 1\.0 kB left\. Make room.*--no-cache-states"
    with pytest.raises(WorkspaceError, match=message):
        train(reader, workspace)
    assert not kept_files(workspace)
    assert not list((workspace.root / "runs").glob("*"))


def test_a_folder_that_cannot_be_written(reader, workspace):
    workspace.root.mkdir()
    (workspace.root / "donor-states").write_text("in the way")
    with pytest.raises(WorkspaceError, match=r"donor-states/\w+ can't be written: .*--workspace"):
        train(reader, workspace)


def test_a_write_that_fails(reader, tmp_path, monkeypatch):
    def full(*_: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(donor_states, "save_file", full)
    with pytest.raises(WorkspaceError, match="can't be written: No space left on device"):
        StoredStates(tmp_path, DonorReader(reader)).add([{"input_ids": [4]}], Recorder())
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("damage", "reason"),
    [
        (lambda tensors: tensors | {"states": tensors["states"].half()}, "other types or shapes"),
        (lambda tensors: tensors | {"rows": tensors["rows"] + 1}, "its rows don't fit"),
        (lambda tensors: tensors | {"states": tensors["states"][:, :3].contiguous()}, "another shape"),
        (lambda tensors: {"states": tensors["states"]}, "keys"),
        (None, "header too small"),
    ],
)
def test_a_damaged_file(reader, tmp_path, damage, reason):
    compute, features = DonorReader(reader), [{"input_ids": [4]}, {"input_ids": [5]}]
    StoredStates(tmp_path, compute).add(features, Recorder())
    (path,) = tmp_path.glob("*.safetensors")
    if damage is None:
        path.write_bytes(b"x")
    else:
        save_file(damage({name: value.clone() for name, value in load_file(path).items()}), path)
    with pytest.raises(WorkspaceError, match=rf"has no usable states of a donor \(.*({reason}).*\)\. Delete it"):
        StoredStates(tmp_path, compute).add(features, Recorder())
    assert issubclass(WorkspaceError, errors.LayerSurgeonError)


# ---- shuffled: a control


def test_shuffled_states_are_of_another_text_each_time_and_of_each_text_once():
    for count in (2, 3, 50):
        others = _others(count, 7, "train")
        assert sorted(others) == list(range(count))
        assert all(other != index for index, other in enumerate(others))
    assert _others(50, 7, "train") == _others(50, 7, "test") != _others(50, 8, "train")
    with pytest.raises(DataError, match="the test set has 1 text"):
        _others(1, 7, "test")
