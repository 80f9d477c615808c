"""Exports to ONNX and `torch.export` compute the same as the graft, and failed exports leave no files."""

import importlib.util
import json
import shlex
from pathlib import Path

import pytest
import torch
from transformers import AutoTokenizer

from layer_surgeon.errors import ConfigError, GraftError, WorkspaceError
from layer_surgeon.graft import GraftedModel, SurgeonGraftConfig, export, export_model, graft_layer
from layer_surgeon.workspace import Workspace
from tests.graft.conftest import host_model, make_inputs, word_tokenizer
from tests.support.command_line import surgeon_here
from tests.support.page_blocks import blocks_of
from tests.support.preloaded import run_code
from tests.support.recorder import Recorder

pytestmark = [
    # torch 2.11 says so where transformers compiles parts of DeBERTa.
    pytest.mark.filterwarnings("ignore:`torch.jit.script` is deprecated:DeprecationWarning"),
    # and where torch.export.load reads a file.
    pytest.mark.filterwarnings("ignore:The given buffer is not writable:UserWarning"),
]

onnxruntime = pytest.importorskip("onnxruntime")
ROOT = Path(__file__).parents[2]


def documented(page):
    """The arguments of each `surgeon export` of a page."""
    texts = [block.text for block in blocks_of((ROOT / page).read_text()) if block.kind == "command"]
    return [shlex.split(text, comments=True)[1:] for text in texts if text.startswith("surgeon export")]


# As on the pages, whose test leaves them out.
TO_ONNX, TO_TORCH = documented("docs/share.md")
OF_THE_LATEST = ["export", "--format", "onnx", "--output", "model.onnx"]


@pytest.fixture
def stored(artifact, stack, own_stack, tmp_path):
    """Store a graft with a tokenizer, and return its folder."""

    def make(model_type="bert", task="text-classification", **settings):
        overrides = settings.pop("host", {})
        donor = artifact
        if "donor_reads" in settings:
            donor = own_stack if "donor_tokens" in settings else stack
        model = graft_layer(host_model(model_type, **overrides), donor, task, **settings)
        model.save_pretrained(tmp_path / "graft")
        word_tokenizer().save_pretrained(tmp_path / "graft")
        return tmp_path / "graft"

    return make


def padded(batch, length, *, segments=False):
    inputs = make_inputs(batch, length)
    for row in range(1, batch):
        inputs["attention_mask"][row, length - row :] = 0
    if segments:
        inputs["token_type_ids"] = (torch.arange(length) > length // 2).long().expand(batch, -1).contiguous()
    return inputs


def run_onnx(path, inputs):
    session = onnxruntime.InferenceSession(str(path))
    found = session.run(None, {name: value.numpy() for name, value in inputs.items()})
    return dict(zip([output.name for output in session.get_outputs()], map(torch.from_numpy, found), strict=True))


@pytest.fixture(scope="module")
def by_command(artifact, tmp_path_factory):
    """A folder with a graft of BERT and its export to ONNX, the command's output, and the converted program."""
    folder = tmp_path_factory.mktemp("command")
    model = graft_layer(host_model("bert"), artifact, id2label={"0": "bad", "1": "good"})
    model.save_pretrained(folder / "my-run")
    word_tokenizer().save_pretrained(folder / "my-run")
    convert, programs = torch.onnx.export, []

    def keep(*arguments, **keywords):
        programs.append(convert(*arguments, **keywords))
        return programs[0]

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(torch.onnx, "export", keep)
        result = surgeon_here(*TO_ONNX, "--json", cwd=folder)
    assert result.code == 0, result.err
    return folder, result.document(), programs[0]


@pytest.mark.parametrize(
    ("model_type", "task", "settings"),
    [
        # In bfloat16 the donor is exported in float32.
        ("t5", "text-classification", {"pooling": "mean", "donor_dtype": "bfloat16", "host": {"num_layers": 1}}),
        ("llama", "token-classification", {"host": {"num_hidden_layers": 1}}),
        ("deberta-v2", "question-answering", {"host": {"num_hidden_layers": 1}}),
        ("modernbert", "feature-extraction", {}),
        ("bert", "feature-extraction", {"site": 0, "residual": "gated", "pooling": "none"}),
        ("distilbert", "text-classification", {"donor_reads": "text"}),
        ("bert", "feature-extraction", {"donor_reads": "text", "donor_tokens": "own"}),
    ],
)
@torch.no_grad()
def test_onnx_computes_what_the_graft_computes(model_type, task, settings, stored, tmp_path):
    folder = stored(model_type, task, **settings)
    config = SurgeonGraftConfig.from_pretrained(folder)
    config.graft = {**config.graft, "donor_dtype": "float32"}
    model = GraftedModel.from_pretrained(folder, config=config)
    if model.gate is not None:
        model.gate.fill_(0.5)
        model.save_pretrained(folder)
    result = export_model(folder, tmp_path / "out/graft.onnx")
    assert (result.path, result.task) == (tmp_path / "out/graft.onnx", task)
    assert result.max_difference < 1e-5
    assert [path.name for path in result.path.parent.iterdir()] == ["graft.onnx"]
    compare_with_graft(model, result.path, result.outputs)


def compare_with_graft(model, path, outputs):
    for batch, length in ((2, 9), (1, 1), (5, 20)):
        inputs = padded(batch, length, segments=model.config.host_config.model_type == "bert")
        if model.config.settings.donor_tokens == "own":
            inputs |= {f"donor_{name}": value for name, value in make_inputs(batch, length + 3, seed=5).items()}
        expected, found = model(**inputs), run_onnx(path, inputs)
        assert tuple(found) == tuple(outputs)
        for name, value in found.items():
            kept = inputs["attention_mask"].bool() if value.shape[:2] == (batch, length) else slice(None)
            torch.testing.assert_close(value[kept], expected[name][kept], rtol=1e-5, atol=1e-5)


@torch.no_grad()
def test_metadata_of_the_onnx_file(by_command):
    folder, _, _ = by_command
    session = onnxruntime.InferenceSession(str(folder / "my-run.onnx"))
    inputs = {value.name: (value.shape, value.type) for value in session.get_inputs()}
    assert inputs == {
        name: (["batch", "length"], "tensor(int64)") for name in ("input_ids", "attention_mask", "token_type_ids")
    }
    said = session.get_modelmeta().custom_metadata_map
    assert said["task"] == "text-classification"
    assert json.loads(said["labels"]) == ["bad", "good"]
    assert json.loads(said["donor"])["layer_indices"] == [3]


@torch.no_grad()
def test_torch_export_computes_what_the_graft_computes(stored, tmp_path):
    """With a donor in bfloat16; `test_the_command` has one in float32."""
    folder = stored("llama", "token-classification", donor_dtype="bfloat16")
    progress = Recorder()
    result = export_model(folder, tmp_path / "graft.pt2", format="torch", progress=progress)
    assert result.outputs == ("logits",)
    (notice,) = progress.notices
    assert "is an untrained graft: its head has random weights, so its results mean nothing" in notice
    compare_with_program(GraftedModel.from_pretrained(folder), result.path)


def compare_with_program(model, path):
    program = torch.export.load(path).module()
    for shape in ((2, 9), (1, 1), (4, 17)):
        inputs = padded(*shape, segments=model.config.host_config.model_type == "bert")
        kept = inputs["attention_mask"].bool() if model.config.task == "token-classification" else slice(None)
        (found,) = program(*inputs.values())
        torch.testing.assert_close(found[kept], model(**inputs).logits[kept], rtol=1e-5, atol=1e-5)


def write_again(program, monkeypatch):
    """Replace the two steps of a conversion to ONNX, which take seconds, by a converted program."""
    monkeypatch.setattr(torch.export, "export", lambda *_, **__: None)
    monkeypatch.setattr(torch.onnx, "export", lambda *_, **__: program)


def test_large_weights_are_in_a_second_file(by_command, tmp_path, monkeypatch):
    """The program that the command converted is written again, twice."""
    from torch.onnx._internal.exporter import _onnx_program

    folder, _, program = by_command
    folder, path = folder / "my-run", tmp_path / "graft.onnx"
    write_again(program, monkeypatch)
    with monkeypatch.context() as patch:
        patch.setattr(_onnx_program, "_LARGE_MODEL_THRESHOLD", 1000)
        result = export_model(folder, path)
    assert result.files == (path, tmp_path / "graft.onnx.data")
    assert result.num_bytes == sum(file.stat().st_size for file in result.files)
    inputs = padded(2, 9, segments=True)
    before = run_onnx(path, inputs)["logits"]
    # A later file of one piece takes the old weights along.
    assert export_model(folder, path, force=True).files == (path,)
    assert not (tmp_path / "graft.onnx.data").exists()
    torch.testing.assert_close(run_onnx(path, inputs)["logits"], before)


@pytest.mark.parametrize("factor", [1.01, torch.nan])
def test_program_with_other_results_is_not_kept(factor, stored, tmp_path, monkeypatch):
    folder, kept = stored("bert"), tmp_path / "graft.onnx"
    kept.write_text("before")

    def wrong(exported, batches, path, *_):
        path.write_text("odd")
        return [tuple(value.detach() * factor for value in exported(*batch)) for batch in batches]

    monkeypatch.setattr(export, "_write", wrong)
    with pytest.raises(GraftError, match="computes something else than the graft: the largest difference is .*0.0001"):
        export_model(folder, kept, force=True)
    assert kept.read_text() == "before"
    assert sorted(path.name for path in tmp_path.iterdir()) == ["graft", "graft.onnx"]


@pytest.mark.parametrize("error", [OSError(28, "No space left on device"), ValueError("op is odd\nadvice")])
def test_failed_export_leaves_no_files(error, stored, tmp_path, monkeypatch):
    def fail(*_):
        raise error

    monkeypatch.setattr(torch.export, "export", lambda *_, **__: None)
    monkeypatch.setattr(export, "_save_onnx", fail)
    kind, message = (
        (WorkspaceError, "can't be written: No space left on device. Make room")
        if isinstance(error, OSError)
        else (GraftError, r"can't convert .* \(host bert\) to onnx: op is odd Update torch, or choose another format")
    )
    with pytest.raises(kind, match=message):
        export_model(stored("bert"), tmp_path / "out/graft.onnx")
    assert list((tmp_path / "out").iterdir()) == []


def test_what_is_refused(stored, artifact, tmp_path, monkeypatch):
    folder = stored("bert")
    with pytest.raises(ConfigError, match="format is 'tflite'; it must be one of onnx, torch"):
        export_model(folder, tmp_path / "x", format="tflite")
    (tmp_path / "x.onnx").write_text("mine")
    with pytest.raises(WorkspaceError, match="x.onnx already exists. Replace it with --force"):
        export_model(folder, tmp_path / "x.onnx")
    with pytest.raises(WorkspaceError, match="is a folder. Name a file with --output"):
        export_model(folder, tmp_path, force=True)
    with pytest.raises(GraftError, match="is not a grafted model: its model_type is 'llama'.*surgeon graft"):
        export_model(artifact.parent / "llm", tmp_path / "y.onnx")
    find = importlib.util.find_spec
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None if name == "onnxscript" else find(name))
    with pytest.raises(ConfigError, match=r"export to ONNX: onnxscript\. Install them with: pip install onnxscript"):
        export_model(folder, tmp_path / "y.onnx")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["graft", "x.onnx"]


@pytest.mark.parametrize(("model_type", "task"), [("t5", "seq2seq"), ("llama", "causal-lm")])
def test_tasks_that_generate_text_cant_be_exported(model_type, task, artifact, tmp_path):
    from transformers import AutoModelForCausalLM, AutoModelForSeq2SeqLM

    auto = AutoModelForSeq2SeqLM if task == "seq2seq" else AutoModelForCausalLM
    graft_layer(host_model(model_type, auto=auto), artifact, task).save_pretrained(tmp_path / "graft")
    with pytest.raises(GraftError, match=f"is {task}, which generates text step by step.*can be exported: text-cl"):
        export_model(tmp_path / "graft", tmp_path / "y.onnx")


@torch.no_grad()
def test_the_command(by_command):
    folder, document, _ = by_command
    model = GraftedModel.from_pretrained(folder / "my-run")
    assert (document["path"], document["outputs"]) == ("my-run.onnx", ["logits"])
    assert document["max_difference"] < 1e-5
    compare_with_graft(model, folder / "my-run.onnx", ["logits"])
    tokens = AutoTokenizer.from_pretrained(folder / "my-run")(
        ["a film", "the plot was good"], padding=True, return_tensors="pt"
    )
    tokens["token_type_ids"] = torch.zeros_like(tokens["input_ids"])
    found = run_onnx(folder / "my-run.onnx", tokens)["logits"]
    torch.testing.assert_close(found, model(**tokens).logits, rtol=1e-5, atol=1e-5)
    again = surgeon_here("export", "my-run", cwd=folder)
    assert again.code == 1
    assert "my-run.onnx already exists. Replace it with --force" in again.err
    shown = surgeon_here(*TO_TORCH, cwd=folder)
    assert shown.code == 0, shown.err
    assert "largest difference from the graft" in shown.out
    compare_with_program(model, folder / "my-run.pt2")
    assert "Traceback" not in shown.err
    # In a process without this package.
    script = (
        "import sys, torch; p = torch.export.load('my-run.pt2').module(); i = torch.ones(2, 5, dtype=torch.long);"
        "print(p(i, i, i * 0)[0].shape, 'layer_surgeon' in sys.modules)"
    )
    done = run_code(script, cwd=folder, bare=True)
    assert done.stdout.strip() == "torch.Size([2, 2]) False"
    assert sorted(path.name for path in folder.iterdir() if path.suffix) == ["my-run.onnx", "my-run.pt2"]


def test_the_command_exports_the_latest_graft(by_command, tmp_path, monkeypatch):
    """The program that `by_command` converted is written again."""
    folder, _, program = by_command
    Workspace(tmp_path / "surgery").set_latest("graft", folder / "my-run")
    write_again(program, monkeypatch)
    result = surgeon_here(*OF_THE_LATEST, cwd=tmp_path)
    assert result.code == 0, result.err
    inputs = padded(2, 9, segments=True)
    expected = run_onnx(folder / "my-run.onnx", inputs)["logits"]
    torch.testing.assert_close(run_onnx(tmp_path / "model.onnx", inputs)["logits"], expected)


def test_the_extra_is_named_as_in_the_message():
    text = (Path(__file__).parents[2] / "pyproject.toml").read_text()
    assert '\nexport = ["onnx' in text
    assert all(f'"{package}>=' in text for package in export._ONNX_PACKAGES)
