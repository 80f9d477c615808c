"""The files and messages of a run, the models it accepts, and what remains after a failure."""

import json
import math

import pytest
import torch
import yaml
from transformers import AutoModelForSequenceClassification, AutoTokenizer, pipeline

from layer_surgeon._loading import load_tokenizer
from layer_surgeon.errors import ConfigError, DataError, GraftError, SourceNotFoundError, TrainingError, WorkspaceError
from layer_surgeon.finetune import finetune_model, trainer
from layer_surgeon.finetune.trainer import SurgeonTrainer
from layer_surgeon.graft import GraftedModel, graft_layer
from layer_surgeon.workspace import Workspace
from tests.graft.conftest import host_model
from tests.support.classification import Recorder, classifier, rows, word_tokenizer
from tests.support.tiny_models import save_quietly
from tests.support.training import TRAIN, train

pytestmark = pytest.mark.charts

# ---- the folder


def test_folder(graft, workspace):
    result = train(graft, workspace)
    assert result.path == workspace.folder("run", "data-tiny-bert+tiny-llama-L3") == workspace.latest("run")
    assert {path.name for path in result.path.iterdir()} == {
        "README.md",
        "config.json",
        "confusion_matrix.png",
        "donor",
        "loss_curve.png",
        "run.yaml",
        "model.safetensors",
        "results.json",
        "tokenizer.json",
        "tokenizer_config.json",
    }
    assert [path.name for path in result.path.parent.iterdir()] == [result.path.name]
    stored = json.loads((result.path / "results.json").read_text())
    assert stored.pop("folder") == str(result.path.resolve())
    assert stored == json.loads(json.dumps(result.as_dict()))
    assert stored["config"]["learning_rate"] == 2e-3
    assert stored["data"]["splits"]["train"]["per_class"] == {"0": 24, "1": 24}
    assert stored["parameters"]["trained"] + stored["parameters"]["frozen"] == stored["parameters"]["total"]
    assert stored["parameters"]["frozen"] == sum(p.numel() for p in result.model.donor.parameters())
    assert (result.path / "loss_curve.png").read_bytes().startswith(b"\x89PNG")


def test_card(graft, workspace):
    result = train(graft, workspace)
    _, front, body = (result.path / "README.md").read_text().split("---\n", 2)
    index = yaml.safe_load(front)["model-index"][0]
    values = {
        (entry["dataset"]["split"], metric["name"]): metric["value"]
        for entry in index["results"]
        for metric in entry["metrics"]
    }
    assert values["test", "Accuracy"] == pytest.approx(result.test.accuracy, abs=1e-6)
    assert values["validation", "Macro F1"] == pytest.approx(result.validation.macro_f1, abs=1e-6)
    assert f"{result.num_trained_parameters:,} of {result.num_parameters:,} parameters" in body


def test_pipeline_takes_the_folder(workspace):
    result = train(classifier(), workspace)
    classify = pipeline("text-classification", model=str(result.path), device="cpu")
    assert classify("the film was good")[0]["label"] in ("0", "1")


def test_second_run_gets_a_number(graft, workspace):
    first, second = train(graft, workspace, max_steps=1), train(graft, workspace, max_steps=1)
    assert second.path == first.path.with_name(first.path.name + "-2")
    assert workspace.latest("run") == second.path


def test_output_in_use(graft, workspace, tmp_path):
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine/notes.txt").write_text("keep me")
    with pytest.raises(WorkspaceError, match="already exists and is not an empty folder"):
        train(graft, workspace, output=tmp_path / "mine")
    assert [path.name for path in (tmp_path / "mine").iterdir()] == ["notes.txt"]
    train(graft, workspace, output=tmp_path / "run", max_steps=1)
    with pytest.raises(WorkspaceError, match="already contains a finished run"):
        train(graft, workspace, output=tmp_path / "run", max_steps=1)


def test_output_that_can_not_be_written(graft, workspace, tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(WorkspaceError, match="can't be written"):
        train(graft, workspace, output=tmp_path / "file" / "run")


# ---- progress


@pytest.mark.parametrize("output", [".", "", "/", ".."])
def test_output_without_a_name(graft, workspace, output):
    with pytest.raises(WorkspaceError, match="The run is written next to its folder and then moved"):
        train(graft, workspace, output=output)


def test_home_folder(graft, workspace, tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path))
    assert train(graft, workspace, output="~/runs/a").path == tmp_path / "runs/a"


def test_a_workspace_that_can_not_be_written_is_a_notice(graft, tmp_path):
    (tmp_path / "file").write_text("")
    progress = Recorder()
    result = train(graft, Workspace(tmp_path / "file/surgery"), output=tmp_path / "run", progress=progress)
    assert (result.path / "results.json").is_file()
    assert any("is complete, but not recorded as the latest run" in notice for notice in progress.notices)


def test_a_short_last_epoch_has_a_loss(workspace, monkeypatch):
    monkeypatch.setattr(trainer, "_LOGS_PER_RUN", 2)  # one each 10 steps
    result = train(classifier(), workspace, data=rows(50), batch_size=2, num_epochs=1.05)
    assert [epoch.step for epoch in result.history] == [20, 21]
    assert all(math.isfinite(epoch.training_loss) for epoch in result.history)


def test_progress(graft, workspace):
    progress = Recorder()
    train(graft, workspace, progress=progress)
    assert progress.steps == [
        ("Training", 12, "steps"),
        ("Validating", 16, "examples"),
        ("Testing", 12, "examples"),
    ]
    assert progress.amounts == [12, 16, 12]
    assert "data: 48 train, 16 validation, 12 test examples, 2 classes." in progress.notices
    assert any("val accuracy" in values for values in progress.values)
    assert sum("loss" in values for values in progress.values) == 12


def test_nothing_is_printed(graft, workspace, capfd, caplog):
    train(graft, workspace)
    out, err = capfd.readouterr()
    assert (out, err) == ("", "")
    assert caplog.records == []


def test_truncation_is_reported(graft, workspace):
    progress = Recorder()
    result = train(graft, workspace, progress=progress, max_length=6, max_steps=1)
    cut = result.data["truncated"]["train"]
    assert 0 < cut < 48
    assert any(
        f"{cut} of 48 training texts" in notice and "longer than 6 tokens" in notice for notice in progress.notices
    )


# ---- models


def test_plain_model_from_a_folder_gets_the_datas_classes(host, workspace):
    three = [row | {"label": ("a", "b", "c")[i % 3]} for i, row in enumerate(rows(30))]
    result = train(host, workspace, data=three)
    loaded = AutoModelForSequenceClassification.from_pretrained(result.path)
    assert loaded.config.id2label == {0: "a", 1: "b", 2: "c"}
    assert AutoTokenizer.from_pretrained(result.path).pad_token == "[PAD]"


def test_a_decoder_without_a_padding_id(workspace, tmp_path):
    """It is loaded again for three classes, and needs the id again."""
    host_model("gpt2", auto=AutoModelForSequenceClassification, pad_token_id=None).save_pretrained(tmp_path / "gpt2")
    word_tokenizer().save_pretrained(tmp_path / "gpt2")
    three = [row | {"label": ("a", "b", "c")[i % 3]} for i, row in enumerate(rows(30))]
    result = train(tmp_path / "gpt2", workspace, data=three, max_steps=1)
    assert result.model.config.pad_token_id is not None


def test_graft_gets_the_datas_classes(graft, workspace):
    three = [row | {"label": ("a", "b", "c")[i % 3]} for i, row in enumerate(rows(30))]
    result = train(graft, workspace, data=three)
    loaded = GraftedModel.from_pretrained(result.path)
    assert loaded.config.id2label == {0: "a", 1: "b", 2: "c"}
    assert loaded.head.out.out_features == 3


def test_loaded_model_with_other_classes(workspace):
    with pytest.raises(GraftError, match="has 5 classes, but the data has 2"):
        train(classifier(num_labels=5), workspace)


def test_pairs(graft, workspace):
    pairs = [{"premise": r["text"], "hypothesis": "the end", "label": r["label"]} for r in rows(40)]
    result = train(graft, workspace, data=pairs, max_steps=2)
    assert result.data["columns"]["text_pair"] == "hypothesis"


def test_half_precision_weights_are_trained_in_float32(workspace, tmp_path):
    classifier().half().save_pretrained(tmp_path / "half")
    word_tokenizer().save_pretrained(tmp_path / "half")
    result = train(tmp_path / "half", workspace, max_steps=1)
    assert {parameter.dtype for parameter in result.model.parameters()} == {torch.float32}


def test_a_graft_in_half_precision_is_trained_in_float32(graft, workspace, tmp_path):
    GraftedModel.from_pretrained(graft).to(torch.bfloat16).save_pretrained(tmp_path / "half")
    word_tokenizer().save_pretrained(tmp_path / "half")
    result = train(tmp_path / "half", workspace, max_steps=1)
    assert {value.dtype for value in result.model.parameters() if value.requires_grad} == {torch.float32}


def test_graft_for_another_task(host, artifact, workspace):
    model = graft_layer(host, artifact, task="feature-extraction")
    with pytest.raises(GraftError, match="is for feature-extraction, which can't be fine-tuned"):
        train(model, workspace)


def test_no_such_model(workspace, tmp_path):
    with pytest.raises(SourceNotFoundError, match="There is no model folder"):
        train(str(tmp_path / "nothing"), workspace)
    (tmp_path / "empty").mkdir()
    with pytest.raises(SourceNotFoundError, match=r"has no config\.json"):
        train(str(tmp_path / "empty"), workspace)
    with pytest.raises(GraftError, match="A dict is not a transformers text-classification model"):
        finetune_model({}, TRAIN, workspace=workspace)


def test_no_tokenizer(workspace):
    with pytest.raises(ConfigError, match="Pass tokenizer="):
        finetune_model(classifier(), TRAIN, workspace=workspace)


@pytest.mark.parametrize("family", ["deberta-v2", "splinter", "t5", "gemma3_text"])
def test_tokenizers_that_know_nothing_are_refused(family, tmp_path):
    (tmp_path / "config.json").write_text(json.dumps({"model_type": family}))
    with pytest.raises(ValueError, match="the tokenizer's files are missing"):
        load_tokenizer(tmp_path)


def test_a_folder_without_tokenizer_files(tmp_path, workspace):
    """transformers makes a tokenizer that knows the special tokens only."""
    save_quietly(classifier(), tmp_path / "bare")
    assert len(AutoTokenizer.from_pretrained(tmp_path / "bare")) == 5
    with pytest.raises(GraftError, match=r"no usable .*bare \(the tokenizer's files are missing\)\. Save one there"):
        train(str(tmp_path / "bare"), workspace)


def test_unavailable_device_and_precision(graft, workspace):
    if not torch.cuda.is_available():
        with pytest.raises(ConfigError, match="device is 'cuda', but this machine has only: "):
            train(graft, workspace, device="cuda")
    with pytest.raises(ConfigError, match="needs a GPU"):
        train(graft, workspace, device="cpu", precision="fp16")


def test_no_room_for_a_token(graft, workspace):
    with pytest.raises(ConfigError, match="max_length is 2, but 2 tokens are special"):
        train(graft, workspace, max_length=2)


# ---- failures leave nothing behind


def test_bad_data_leaves_nothing(graft, workspace):
    with pytest.raises(DataError):
        train(graft, workspace, data=[{"text": "a", "label": 0}])
    assert not workspace.root.exists()


def test_diverging_loss(workspace):
    model = classifier()
    with torch.no_grad():
        model.classifier.weight.fill_(math.nan)
    with pytest.raises(TrainingError, match=r"The loss is nan at step 1: .*--learning-rate.* nothing was kept"):
        train(model, workspace)
    assert not workspace.root.exists()


@pytest.mark.parametrize(
    ("raised", "expected", "says"),
    [
        (torch.OutOfMemoryError("CUDA out of memory"), TrainingError, "--batch-size"),
        (OSError(28, "No space left on device"), WorkspaceError, "No space left on device"),
        (RuntimeError("[enforce fail] PytorchStreamWriter failed"), WorkspaceError, "disk may be full"),
    ],
)
def test_library_errors_are_converted(workspace, monkeypatch, raised, expected, says):
    def fail(self, *arguments, **keywords):
        raise raised

    monkeypatch.setattr(SurgeonTrainer, "training_step", fail)
    with pytest.raises(expected) as error:
        train(classifier(), workspace)
    assert says in str(error.value)
    assert not workspace.root.exists()
