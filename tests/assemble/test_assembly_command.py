"""`surgeon assemble`, and the commands that take the folder it writes."""

import json
import shutil
from pathlib import Path

import pytest
import yaml
from transformers import AutoTokenizer

from layer_surgeon import AssembledModel, assemble_model
from layer_surgeon.errors import GraftError
from layer_surgeon.hub import push
from layer_surgeon.hub.push import _assembly_terms, push_graft
from layer_surgeon_cli.errors import EXIT_FAILED, EXIT_USAGE
from tests.assemble.conftest import FIXTURES
from tests.assemble.test_assemble import names_below
from tests.support.command_line import surgeon_here
from tests.support.gguf_models import VOCABULARY, write_model
from tests.support.hub_uploads import UploadRouter
from tests.support.loopback_hub import LoopbackHub
from tests.support.tiny_models import save_quietly, tiny_llama


def test_the_result(siblings, tmp_path):
    shutil.copytree(siblings, tmp_path / "models")
    done = surgeon_here("assemble", "models/base", "--layers", "0:2,1", "-o", "out", cwd=tmp_path)
    assert done.code == 0, done.err
    facts = dict(line.split(maxsplit=1) for line in done.out.splitlines()[:6])
    assert facts["layers"] == "3"
    assert facts["of"] == "models/base"
    assert facts["read"] == "86.7 kB of 152.6 kB"
    assert facts["folder"] == "out"
    assert "train the model before you use it" in done.out
    assert "3 layers: 86.7 kB" in done.err
    verified = surgeon_here("assemble", "--verify", "out", cwd=tmp_path)
    assert "All 30 tensors are byte for byte" in verified.out
    refused = surgeon_here("assemble", "models/base", "-o", "out", "--json", cwd=tmp_path)
    assert refused.code == EXIT_FAILED
    assert refused.document()["error"]["type"] == "ArtifactError"
    forced = surgeon_here("assemble", "models/base", "--expand", "every:4", "-o", "out", "--force", cwd=tmp_path)
    assert forced.code == 0
    assert "train the model" not in forced.out


def test_the_document(siblings, tmp_path):
    arguments = (
        "assemble",
        siblings / "base",
        "--drop",
        "1",
        "--replace",
        f"0={siblings / 'other'}:3",
        "--scale",
        "1=2",
    )
    plan = surgeon_here(*arguments, "--dry-run", "--json", cwd=tmp_path).document()
    assert names_below(tmp_path) == []
    done = surgeon_here(*arguments, "-o", "out", "--json", "--quiet", cwd=tmp_path)
    assert done.err == ""
    document = done.document()
    model = AssembledModel.open(tmp_path / "out")
    assert document["path"] == "out"
    assert document["layers"] == [
        {"source": str(siblings / "other"), "layer": 3},
        {"source": str(siblings / "base"), "layer": 2, "scale": 2.0},
        {"source": str(siblings / "base"), "layer": 3},
    ]
    assert document["num_bytes_read"] == plan["num_bytes"] == plan["num_bytes_read"]
    assert plan["num_out_bytes"] == (tmp_path / "out" / "model.safetensors").stat().st_size
    assert plan["files"] == [{"name": "model.safetensors", "num_bytes": plan["num_out_bytes"]}]
    assert plan["config"] == document["config"] == model.config
    table = surgeon_here(*arguments, "--dry-run", cwd=tmp_path).out
    assert "scaled by 2" in table
    assert f"{plan['num_bytes']:,} bytes" in table


@pytest.mark.parametrize(
    ("arguments", "code", "message"),
    [
        ((), EXIT_USAGE, "Name a model to take layers from, or a recipe with --config"),
        (("base", "--config", "recipe.yaml"), EXIT_USAGE, "but not both"),
        (("--verify",), EXIT_USAGE, "Name the folder of the assembled model to verify"),
        (("--verify", "base"), EXIT_FAILED, "is not an assembled model"),
        (("--config", "recipe.yaml", "--keep", "0"), EXIT_USAGE, "keep can't be combined with a recipe"),
        (("base", "--keep", "0:9"), EXIT_FAILED, "there is no layer 9"),
        (("base", "--keep", "0", "--layers", "1"), EXIT_USAGE, "layers and keep can't be combined"),
    ],
)
def test_errors(siblings, tmp_path, arguments, code, message):
    shutil.copytree(siblings / "base", tmp_path / "base")
    (tmp_path / "recipe.yaml").write_text("slices: [{source: base}]")
    before = names_below(tmp_path)
    done = surgeon_here("assemble", *arguments, cwd=tmp_path)
    assert done.code == code
    assert message in done.err
    assert names_below(tmp_path) == before


@pytest.fixture(scope="module")
def cut(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The first 2 of 4 layers of a bfloat16 llama with BERT's vocabulary."""
    folder = tmp_path_factory.mktemp("cut")
    save_quietly(tiny_llama(vocab_size=30522), folder / "whole")
    for file in ("tokenizer.json", "tokenizer_config.json"):
        shutil.copy(FIXTURES / "tiny-bert" / file, folder / "whole")
    (folder / "whole" / "README.md").write_text("---\nlicense: llama3.1\n---\n")
    return assemble_model(folder / "whole", folder / "small", keep="0:2", dtype="bfloat16").path


def test_finetune_trains_it_with_mean_pooling(cut, tmp_path):
    shutil.copy(FIXTURES / "films.jsonl", tmp_path)
    settings = ("--num-epochs", "1", "--batch-size", "8", "--output", "run")
    task = ("--task", "text-classification", "--dataset", "films.jsonl")
    done = surgeon_here("finetune", cut, *task, *settings, cwd=tmp_path)
    assert done.code == 0, done.err
    config = json.loads((tmp_path / "run" / "config.json").read_text())
    assert config["graft"]["pooling"] == "mean"
    assert config["host_config"]["num_hidden_layers"] == 2
    assert config["dtype"] == "float32"
    predicted = surgeon_here("predict", "--model", "run", "A film.", cwd=tmp_path)
    assert predicted.code == 0, predicted.err
    writing = surgeon_here(
        "finetune", cut, "--task", "causal-lm", "--dataset", "films.jsonl", *settings[:-1], "text", cwd=tmp_path
    )
    assert writing.code == 0, writing.err
    assert json.loads((tmp_path / "text" / "config.json").read_text())["architectures"] == ["LlamaForCausalLM"]


def test_graft_takes_it_as_a_host(cut, tmp_path):
    done = surgeon_here("graft", cut, "--donor", FIXTURES / "layer", "--output", "graft", cwd=tmp_path)
    assert done.code == 0, done.err
    assert json.loads((tmp_path / "graft" / "config.json").read_text())["host_config"]["num_hidden_layers"] == 2


def test_push_uploads_it(cut, siblings, tmp_path, monkeypatch):
    model = assemble_model(
        siblings / "base", tmp_path / "model", replace={0: (siblings / "other", 0)}, max_shard_size="50KB"
    )
    (model.path / ".lock").write_text("")
    with LoopbackHub() as hub:
        hub.router = UploadRouter(hub, {"hf_good"})
        monkeypatch.setattr("huggingface_hub.constants.ENDPOINT", hub.endpoint)
        monkeypatch.setattr("huggingface_hub.hf_api.constants.ENDPOINT", hub.endpoint)
        result = push_graft(model.path, "me/model", token="hf_good")
        repo = hub.router.repos["models", "me/model"]
        files = {name: content.whole() for name, content in repo.commits[repo.refs["main"]].items() if name[0] != "."}
    assert set(result.files) == set(files) == {*names_below(model.path)} - {".lock"}
    assert (result.holds_donor, result.terms) == (True, "apache-2.0 and llama3.1")
    assert str(siblings).encode() not in b"".join(files.values())
    record = yaml.safe_load(files["assembly.yaml"])
    assert [layer["source"] for layer in record["layers"]] == ["./other", "./base", "./base", "./base"]
    assert b'from_pretrained("me/model")' in files["README.md"]


def test_terms_that_are_not_stated(siblings, tmp_path, monkeypatch):
    model = assemble_model(siblings / "base", tmp_path / "model", keep="0")
    assert _assembly_terms(model.path) == "apache-2.0"
    record = model.path / "assembly.yaml"
    text = record.read_text()
    record.write_text(text.replace("license: apache-2.0", "license: null"))
    assert _assembly_terms(model.path) is None
    record.write_text("sources: 3")
    monkeypatch.setattr(push, "upload", None)
    with pytest.raises(GraftError, match="doesn't list the sources"):
        push_graft(model.path, "me/model")


def test_tokenizer_of_a_gguf_file(tmp_path):
    """Its header has the vocabulary, from which the files are made that transformers reads."""
    write_model(tmp_path / "model.gguf", "llama", "Q8_0", general=VOCABULARY)
    done = surgeon_here("assemble", "model.gguf", "--keep", "0", "-o", "out", cwd=tmp_path)
    assert done.code == 0, done.err
    tokenizer = AutoTokenizer.from_pretrained(tmp_path / "out")
    assert tokenizer.convert_ids_to_tokens(tokenizer("ab abc", add_special_tokens=False)["input_ids"]) == [
        *("ab", "Ġab", "c")
    ]
    from_python = assemble_model(tmp_path / "model.gguf", tmp_path / "python", keep="0")
    for name in ("tokenizer.json", "tokenizer_config.json"):
        assert (from_python.path / name).read_bytes() == (tmp_path / "out" / name).read_bytes()
    write_model(tmp_path / "bare.gguf", "llama", "Q8_0")
    done = surgeon_here("assemble", "bare.gguf", "-o", "bare", cwd=tmp_path)
    assert done.code == 0, done.err
    assert "The tokenizer in bare.gguf can't be read" in done.err
    assert "bare.gguf has no tokenizer files, so the new model has none" in done.err
    assert AssembledModel.open(tmp_path / "bare").config["num_hidden_layers"] == 2
