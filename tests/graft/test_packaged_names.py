"""Every command and function that takes a source or a host also takes `packaged:NAME`."""

import hashlib
import json

import pytest
import torch
from typer.testing import CliRunner

import layer_surgeon as ls
from layer_surgeon._loading import load_tokenizer
from layer_surgeon.checkpoint import packaged
from layer_surgeon.checkpoint.packaged import PackagedModel
from layer_surgeon.errors import CheckpointError, SourceError, SourceNotFoundError
from layer_surgeon.workspace import Workspace
from layer_surgeon_cli.main import app
from tests.support.gguf_models import write_model
from tests.support.packages import install, install_archive


@pytest.fixture
def site(tmp_path, monkeypatch):
    """A folder for made-up packages, and a cache folder of its own."""
    monkeypatch.syspath_prepend(str(tmp_path / "site"))
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    return tmp_path / "site"


@pytest.fixture
def gguf_file(site, tmp_path, monkeypatch):
    """A GGUF model that is also `packaged:toy`, cut into three packages."""
    file = write_model(tmp_path / "toy.gguf", "llama", "Q8_0")
    content = file.read_bytes()
    size = -(-len(content) // 3)
    for number in range(3):
        part = content[number * size : (number + 1) * size]
        install(site, f"toy-part{number}", "1.0", f"data/part{number}.bin", part)
    record = PackagedModel(
        packages=tuple(f"toy-part{number}" for number in range(3)),
        version="1.0",
        file="toy.gguf",
        part=r"[^/]+/data/part\d\.bin",
        sha256=hashlib.sha256(content).hexdigest(),
        install="toy",
    )
    monkeypatch.setattr(packaged, "PARTED", {"toy": record})
    return file


@pytest.fixture
def bert(host_folder, site, monkeypatch):
    """A host that is also `packaged:tiny-bert`, an archive in three packages."""
    folder = host_folder("bert")
    record = install_archive(site, "tiny-bert", {path.name: path.read_bytes() for path in folder.iterdir()})
    monkeypatch.setattr(packaged, "ARCHIVES", {"tiny-bert": record})
    return folder


def run(*arguments):
    result = CliRunner().invoke(app, [*arguments, "--json"])
    assert result.exit_code == 0, result.stderr
    return json.loads(result.stdout)


def test_a_layer_is_read_from_the_parts_without_joining_them(gguf_file, tmp_path):
    ckpt = ls.open_checkpoint("packaged:toy")
    assert ckpt.layer_tensors(-1) == ls.open_checkpoint(gguf_file).layer_tensors(-1)
    artifact = ls.extract_layer("packaged:toy", workspace=Workspace(tmp_path / "work"))
    assert artifact.path.name == "toy-L1"
    assert artifact.config["source"]["name"] == "packaged:toy"
    assert artifact.sha256 == ls.extract_layer(gguf_file, output=tmp_path / "layer").sha256


def test_commands_take_the_name(gguf_file, bert, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert run("inspect", "packaged:toy")["num_layers"] == 2
    run("extract", "packaged:toy", "--layer", "-1")
    made = run("graft", "packaged:tiny-bert")
    assert made["path"].endswith("tiny-bert+toy-L1")
    assert run("profile", "packaged:tiny-bert", "--length", "16")


def test_a_graft_onto_the_name_is_the_graft_onto_the_folder(bert, artifact):
    grafts = []
    for host in ("packaged:tiny-bert", bert):
        torch.manual_seed(0)
        grafts.append(ls.graft_layer(host, artifact))
    assert grafts[0].config.host["name"] == "packaged:tiny-bert"
    states = [model.state_dict() for model in grafts]
    assert states[0].keys() == states[1].keys()
    assert all(torch.equal(states[0][name], states[1][name]) for name in states[0])
    assert load_tokenizer("packaged:tiny-bert")("a good film") == load_tokenizer(bert)("a good film")


def test_an_archive_with_foreign_files_is_refused(bert, artifact, tmp_path):
    ls.graft_layer("packaged:tiny-bert", artifact)
    (tmp_path / "cache" / "layer_surgeon" / "tiny-bert" / "adapter_config.json").write_text("{}")
    with pytest.raises(SourceError, match=r"contains adapter_config\.json, which is not part of tiny-bert. Delete"):
        ls.graft_layer("packaged:tiny-bert", artifact)


def test_a_gguf_model_is_not_a_host(gguf_file, artifact):
    with pytest.raises(SourceError, match=r"packaged:toy is a GGUF file.*As a host, choose packaged:"):
        ls.graft_layer("packaged:toy", artifact)


def test_unknown_names_and_damaged_packages_are_refused(gguf_file, site, artifact):
    with pytest.raises(SourceNotFoundError, match=r"no packaged model 'nothing'\. There are: .*toy"):
        ls.open_checkpoint("packaged:nothing")
    with pytest.raises(SourceNotFoundError, match=r"no packaged model 'nothing'"):
        ls.graft_layer("packaged:nothing", artifact)
    part = site / "toy_part1" / "data" / "part1.bin"
    part.write_bytes(bytes(part.stat().st_size))
    with pytest.raises(CheckpointError, match="has the sha256"):
        ls.open_checkpoint("packaged:toy")
