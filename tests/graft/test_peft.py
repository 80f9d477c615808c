"""Adapters on a graft: on the host, together with trained projections and head; never on the frozen donor layer."""

import copy

import pytest
import torch
from safetensors import safe_open
from transformers import AutoModel, AutoModelForSeq2SeqLM, Trainer, TrainingArguments

from layer_surgeon.errors import GraftError
from layer_surgeon.graft import GraftedModel, adapter_settings, graft_layer
from tests.graft.conftest import host_model, make_inputs
from tests.support.graft_suite import outputs, padded_inputs, targets

peft = pytest.importorskip("peft")

pytestmark = [
    # peft asks the place a model came from for its config, to see whether its vocabulary has grown.
    pytest.mark.filterwarnings("ignore:Could not find a config file in:UserWarning"),
    # peft calls transformers by names that have newer ones.
    pytest.mark.filterwarnings("ignore:.*is deprecated and will be removed in v6:FutureWarning"),
]

CLASSES = [("bert", "text-classification"), ("llama", "token-classification"), ("t5", "seq2seq")]
GRAFTS = [(*classes, "host") for classes in CLASSES] + [(*CLASSES[0], "text"), (*CLASSES[2], "text")]


@pytest.fixture(scope="module")
def donors(artifact, stack):
    return {"host": artifact, "text": stack}


def new_graft(artifact, model_type="bert", task="text-classification", **settings):
    auto = AutoModelForSeq2SeqLM if task == "seq2seq" else AutoModel
    torch.manual_seed(0)
    return graft_layer(host_model(model_type, auto=auto), artifact, task, **settings)


def with_lora(model, **settings):
    return peft.get_peft_model(model, peft.LoraConfig(r=4, **adapter_settings(model) | settings))


def take_step(model, task):
    before = {name: value.clone() for name, value in model.state_dict().items()}
    model.train()
    model(**padded_inputs(), **targets(task)).loss.backward()
    torch.optim.SGD([p for p in model.parameters() if p.requires_grad], lr=0.5).step()
    model.eval()
    return {name for name, value in model.state_dict().items() if not torch.equal(value, before[name])}


@pytest.mark.parametrize(("model_type", "task", "reads"), GRAFTS)
def test_lora_is_on_the_host_alone(model_type, task, reads, donors):
    model = with_lora(new_graft(donors[reads], model_type, task, donor_reads=reads))
    lora = {name.split(".")[2] for name, _ in model.named_parameters() if "lora_" in name}
    assert lora == {"host"}
    changed = take_step(model, task)
    parts = {name.removeprefix("base_model.model.").split(".")[0] for name in changed}
    fresh = {"proj_in", "proj_out"} if reads == "host" else {"donor_norm", "proj_out"}
    if task != "seq2seq":
        fresh |= {"head"}
    elif reads == "text":
        fresh = {"residual_gate"}  # It starts at zero, and so does the gradient of the others.
    assert parts == {"host"} | fresh
    assert all("lora_B" in name or "lora_A" in name for name in changed if name.startswith("base_model.model.host"))
    assert all("modules_to_save" in name for name in changed if not name.startswith("base_model.model.host"))


@pytest.mark.parametrize(("model_type", "task", "reads"), GRAFTS)
def test_an_adapter_is_stored_and_loaded_onto_a_fresh_graft(model_type, task, reads, donors, tmp_path):
    fresh = new_graft(donors[reads], model_type, task, donor_reads=reads)
    model = with_lora(copy.deepcopy(fresh))
    take_step(model, task)
    model.save_pretrained(tmp_path / "adapter")
    with safe_open(tmp_path / "adapter/adapter_model.safetensors", framework="pt") as file:
        names = set(file.keys())
    assert not [name for name in names if ".donor." in name]
    assert [name for name in names if name.endswith("proj_out.weight")]
    assert len([name for name in names if ".donor_norm." in name]) == (4 if reads == "text" else 0)
    loaded = peft.PeftModel.from_pretrained(fresh, tmp_path / "adapter")
    inputs = padded_inputs()
    with torch.no_grad():
        assert torch.equal(outputs(loaded, task, inputs), outputs(model, task, inputs))


@pytest.mark.parametrize(("model_type", "task", "reads"), GRAFTS)
@torch.no_grad()
def test_a_merged_adapter_leaves_an_ordinary_graft(model_type, task, reads, donors, tmp_path):
    model = with_lora(new_graft(donors[reads], model_type, task, donor_reads=reads))
    with torch.enable_grad():
        take_step(model, task)
    inputs = padded_inputs()
    expected = outputs(model, task, inputs)
    merged = model.merge_and_unload()
    assert isinstance(merged, GraftedModel)
    torch.testing.assert_close(
        outputs(merged, task, inputs), expected, rtol=1e-4, atol=1e-5 * float(expected.abs().max())
    )
    merged.save_pretrained(tmp_path / "merged")
    again = GraftedModel.from_pretrained(tmp_path / "merged")
    assert torch.equal(outputs(again, task, inputs), outputs(merged, task, inputs))


@pytest.mark.parametrize("model_type", ["bert", "llama"])
def test_all_linear_layers_without_our_settings(model_type, artifact):
    """The usual peft settings also reach the donor layer, so they are refused before training starts."""
    model = peft.get_peft_model(
        new_graft(artifact, model_type), peft.LoraConfig(task_type="SEQ_CLS", target_modules="all-linear")
    )
    with pytest.raises(GraftError, match=r"has 14 weights in the donor layer, such as layers.0.*exclude_modules"):
        model.train()
    assert not model.training or not model.base_model.model.training


def test_an_adapter_on_a_projection_with_a_scale_is_refused(artifact):
    settings = {"target_modules": ["proj_in"], "modules_to_save": ["proj_out", "head"]}
    model = peft.get_peft_model(new_graft(artifact, projection_init="matched"), peft.LoraConfig(**settings))
    with pytest.raises(GraftError, match=r"adapter on proj_in, .* modules_to_save=\['proj_in'\]"):
        model.train()
    with_lora(new_graft(artifact, projection_init="matched")).train()


def test_warning_names_parts_that_would_stay_random(artifact):
    settings = {"task_type": "SEQ_CLS", "target_modules": ["query", "value"]}
    model = peft.get_peft_model(new_graft(artifact), peft.LoraConfig(**settings))
    with pytest.warns(UserWarning, match="This adapter doesn't train proj_in, proj_out, head"):
        model.train()
    fresh = ["proj_in", "proj_out", "head"]
    peft.get_peft_model(new_graft(artifact), peft.LoraConfig(**settings, modules_to_save=fresh)).train()
    # What is trained already may well stay as it is: nothing is said where nothing is trained.
    model.eval()


def test_the_task_type_of_peft_changes_nothing(artifact):
    model = with_lora(new_graft(artifact), task_type="SEQ_CLS")
    assert {name.split(".")[2] for name in take_step(model, "text-classification")} == {
        "host",
        "proj_in",
        "proj_out",
        "head",
    }


def test_the_gate_is_trained_too(artifact):
    model = with_lora(new_graft(artifact, residual="gated"))
    assert {name.split(".")[2] for name in take_step(model, "text-classification")} == {"host", "residual_gate", "head"}
    assert model.base_model.model.gate.item() != 0
    # Behind a gate of zero the projections get no gradient in the first step.
    assert "proj_in" in {name.split(".")[2] for name in take_step(model, "text-classification")}
    merged = model.merge_and_unload()
    assert merged.gate.item() != 0
    assert "residual_gate.weight" in merged.state_dict()


def test_trained_donor_may_have_an_adapter(artifact):
    model = new_graft(artifact, train_donor=True)
    settings = adapter_settings(model) | {"exclude_modules": None}
    model = peft.get_peft_model(model, peft.LoraConfig(r=4, **settings))
    assert "donor" in {name.split(".")[2] for name in take_step(model, "text-classification")}


def test_trainer(artifact, tmp_path):
    model = with_lora(new_graft(artifact), task_type="SEQ_CLS")
    rows = [
        {"input_ids": ids.tolist(), "attention_mask": [1] * 9, "labels": row % 2}
        for row, ids in enumerate(make_inputs(batch=4)["input_ids"])
    ]
    arguments = TrainingArguments(
        output_dir=str(tmp_path),
        max_steps=2,
        per_device_train_batch_size=2,
        gradient_checkpointing=True,
        report_to=[],
        disable_tqdm=True,
        use_cpu=True,
        save_steps=1,
        dataloader_pin_memory=False,
    )
    trainer = Trainer(model=model, args=arguments, train_dataset=rows)
    trainer.train()
    names = {path.name for path in (tmp_path / "checkpoint-2").iterdir()}
    assert "adapter_model.safetensors" in names
    assert "model.safetensors" not in names
    assert not [name for name in names if ".donor." in name]
