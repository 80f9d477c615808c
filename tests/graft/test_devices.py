"""Devices, number formats and memory: device maps, accelerate, `to`, gradient checkpointing."""

import copy
import importlib

import pytest
import torch
from accelerate import Accelerator, dispatch_model
from accelerate.state import AcceleratorState
from transformers import AutoModelForSequenceClassification, Trainer, TrainingArguments

from layer_surgeon.errors import GraftError
from layer_surgeon.graft import GraftedModel, graft_layer
from layer_surgeon.graft.devices import plan_devices
from tests.graft.conftest import host_model, make_inputs
from tests.support.graft_suite import padded_inputs, plain_host, targets

TASK = "text-classification"


@pytest.fixture(scope="module")
def stored(artifact, tmp_path_factory):
    folder = tmp_path_factory.mktemp("devices")
    graft_layer(host_model("bert"), artifact, residual="gated").save_pretrained(folder)
    return folder


PARTS = {"host": "cpu", "proj_in": "cpu", "proj_out": "cpu", "residual_gate": "cpu", "head": "cpu"}


@pytest.mark.parametrize(
    "device_map", ["cpu", {"": "cpu"}, PARTS, PARTS | {"donor": "cpu"}, torch.device("cpu")], ids=str
)
@torch.no_grad()
def test_device_maps(device_map, stored):
    model = AutoModelForSequenceClassification.from_pretrained(stored, device_map=device_map)
    assert {p.device.type for p in model.parameters()} == {"cpu"}
    assert torch.equal(model(**make_inputs()).logits, GraftedModel.from_pretrained(stored)(**make_inputs()).logits)


@pytest.mark.parametrize("way", ["auto", "balanced", "balanced_low_0", "sequential"])
@torch.no_grad()
def test_automatic_device_maps(way, stored, monkeypatch):
    monkeypatch.setattr("torch.cuda.is_available", lambda: False)
    model = GraftedModel.from_pretrained(stored, device_map=way, max_memory={"cpu": "1GB"})
    assert torch.equal(model(**make_inputs()).logits, GraftedModel.from_pretrained(stored)(**make_inputs()).logits)


def test_device_map_includes_the_donor_and_doesnt_split_it(stored):
    config = GraftedModel.from_pretrained(stored).config
    model_class = GraftedModel._class_for(TASK)
    donor = sum(p.numel() * 4 for p in GraftedModel.from_pretrained(stored).donor.parameters())
    whole = sum(p.numel() * 4 for p in GraftedModel.from_pretrained(stored).parameters())
    for first, expected in ((whole - donor // 2, "cpu"), (whole * 2, 0)):
        memory = {0: first, "cpu": whole * 4}
        kwargs, device = plan_devices(model_class, config, {"device_map": "sequential", "max_memory": memory})
        assert device == expected
        assert not [name for name in kwargs["device_map"] if name.startswith("donor")]
    assert plan_devices(model_class, config, {}) == ({}, None)
    assert "DonorLayer" in GraftedModel.from_pretrained(stored)._no_split_modules


@torch.no_grad()
def test_a_host_on_disk(stored, tmp_path):
    model = GraftedModel.from_pretrained(stored, device_map=PARTS | {"host": "disk"}, offload_folder=tmp_path)
    assert next(model.host.parameters()).device.type == "meta"
    assert {p.device.type for p in model.donor.parameters()} == {"cpu"}
    assert model.hf_device_map["donor"] == "cpu"
    assert torch.equal(model(**make_inputs()).logits, GraftedModel.from_pretrained(stored)(**make_inputs()).logits)


@torch.no_grad()
def test_projections_on_disk(stored, tmp_path):
    """Their weights are on the meta device, where the donor layer can't be moved."""
    model = GraftedModel.from_pretrained(
        stored, device_map=PARTS | {"proj_in": "disk", "donor": "disk"}, offload_folder=tmp_path
    )
    assert {p.device.type for p in model.donor.parameters()} == {"cpu"}
    assert torch.equal(model(**make_inputs()).logits, GraftedModel.from_pretrained(stored)(**make_inputs()).logits)


@torch.no_grad()
def test_dispatching_a_loaded_graft(stored, tmp_path):
    model = GraftedModel.from_pretrained(stored)
    expected = model(**make_inputs()).logits
    model = dispatch_model(model, PARTS | {"donor": "disk"}, main_device="cpu", offload_dir=tmp_path, force_hooks=True)
    assert next(model.donor.parameters()).device.type == "meta"
    assert torch.equal(model(**make_inputs()).logits, expected)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@torch.no_grad()
def test_to_a_dtype_converts_all_weights(dtype, artifact):
    model = graft_layer(host_model("bert"), artifact, "token-classification")
    expected = model(**padded_inputs()).logits
    half = copy.deepcopy(model).half() if dtype == torch.float16 else copy.deepcopy(model).to(dtype)
    assert {p.dtype for p in half.parameters()} == {dtype}
    # The rotary angles stay exact, as the family's own code has them whatever its weights.
    assert {b.dtype for name, b in half.donor.named_buffers() if "inv_freq" in name} == {torch.float32}
    found = half(**padded_inputs()).logits
    assert found.dtype == dtype
    keep = padded_inputs()["attention_mask"].bool()
    torch.testing.assert_close(found.float()[keep], expected[keep], rtol=0.05, atol=0.05)


@torch.no_grad()
def test_dtype_of_from_pretrained_doesnt_apply_to_the_donor(stored):
    model = GraftedModel.from_pretrained(stored, dtype=torch.bfloat16)
    assert {p.dtype for p in model.donor.parameters()} == {torch.float32}
    rest = {p.dtype for name, p in model.named_parameters() if not name.startswith("donor.")}
    assert rest == {torch.bfloat16}
    assert model(**make_inputs()).logits.dtype == torch.bfloat16


def test_attention_of_from_pretrained_is_the_hosts(stored):
    model = AutoModelForSequenceClassification.from_pretrained(stored, attn_implementation="eager")
    assert model.host.config._attn_implementation == "eager"
    assert model.donor.config._attn_implementation == "sdpa"
    model.donor.set_attn_implementation("eager")
    assert {layer.self_attn.config._attn_implementation for layer in model.donor.layers} == {"eager"}


def test_data_parallel_is_refused(artifact, monkeypatch):
    # Copying to GPUs is the only part of it that needs them.
    copying = importlib.import_module("torch.nn.parallel.replicate")
    monkeypatch.setattr(copying, "_get_device_index", lambda device, optional: device)
    monkeypatch.setattr(copying, "_broadcast_coalesced_reshape", lambda tensors, devices, detach: [tensors] * 2)
    with pytest.raises(GraftError, match="Start one process per GPU"):
        copying.replicate(graft_layer(host_model("bert"), artifact), [0, 1])


@pytest.fixture
def _fresh_accelerate():
    """accelerate's choice of number formats applies to the whole process."""
    AcceleratorState._reset_state(reset_partial_state=True)
    yield
    AcceleratorState._reset_state(reset_partial_state=True)


@pytest.mark.usefixtures("_fresh_accelerate")
@pytest.mark.parametrize("mixed_precision", ["no", "bf16"])
def test_accelerate_prepares_a_graft(mixed_precision, artifact):
    accelerator = Accelerator(cpu=True, mixed_precision=mixed_precision)
    model = graft_layer(host_model("bert"), artifact)
    optimizer = torch.optim.SGD([p for p in model.parameters() if p.requires_grad], lr=0.5)
    before = {name: value.clone() for name, value in model.state_dict().items()}
    model, optimizer = accelerator.prepare(model, optimizer)
    model.train()
    accelerator.backward(model(**make_inputs(), labels=torch.tensor([0, 1, 1])).loss)
    optimizer.step()
    after = accelerator.unwrap_model(model).state_dict()
    changed = {name.split(".")[0] for name in before if not torch.equal(before[name], after[name])}
    assert changed == {"host", "proj_in", "proj_out", "head"}


@pytest.mark.parametrize(
    ("model_type", "task"), [("bert", TASK), ("llama", "causal-lm"), ("t5", "seq2seq"), ("bart", "seq2seq")]
)
def test_checkpointing_gives_the_same_gradients(model_type, task, artifact):
    def gradients(checkpointing):
        torch.manual_seed(0)
        model = graft_layer(plain_host(model_type, task), artifact, task)
        model.train()
        if checkpointing:
            getattr(model, "activation_checkpointing_enable", model.gradient_checkpointing_enable)()
        torch.manual_seed(1)
        model(**padded_inputs(), **targets(task)).loss.backward()
        return {name: p.grad for name, p in model.named_parameters() if p.grad is not None}

    plain, checkpointed = gradients(False), gradients(True)
    assert plain.keys() == checkpointed.keys()
    for name, value in plain.items():
        torch.testing.assert_close(checkpointed[name], value, msg=name)


def test_trainer_with_checkpointing(artifact, tmp_path):
    model = graft_layer(host_model("bert"), artifact)
    runs = []
    model.host.encoder.layer[0].attention.register_forward_hook(lambda *_: runs.append(1))
    # transformers' newer name for it.
    name = "activation_checkpointing"
    name = name if name in TrainingArguments.__dataclass_fields__ else "gradient_checkpointing"
    rows = [
        {"input_ids": ids.tolist(), "attention_mask": [1] * 9, "labels": row % 2}
        for row, ids in enumerate(make_inputs(batch=2)["input_ids"])
    ]
    arguments = TrainingArguments(
        output_dir=str(tmp_path),
        max_steps=1,
        report_to=[],
        disable_tqdm=True,
        use_cpu=True,
        save_strategy="no",
        dataloader_pin_memory=False,
        **{name: True},
    )
    before = model.proj_in.weight.clone()
    Trainer(model=model, args=arguments, train_dataset=rows).train()
    assert len(runs) == 2, "once forwards, once again for the gradients"
    assert not torch.equal(model.proj_in.weight, before)
