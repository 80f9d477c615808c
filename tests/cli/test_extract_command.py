"""`surgeon inspect` and `surgeon extract` on local folders."""

import json
import subprocess
import sys

import pytest

from tests.support.checkpoints import LLAMA_8B, LLAMA_70B, write_sparse_checkpoint
from tests.support.command_line import SURGEON, surgeon, surgeon_here

TINY = LLAMA_8B | {
    "hidden_size": 16,
    "intermediate_size": 24,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "num_hidden_layers": 4,
    "vocab_size": 40,
}


@pytest.fixture
def donor(tmp_path):
    return write_sparse_checkpoint(tmp_path / "donor", TINY, range(4), max_shard_bytes=8_000)


def test_inspect(donor, tmp_path):
    result = surgeon_here("inspect", donor, cwd=tmp_path)
    assert result.code == 0
    assert "llama" in result.out
    assert "model.layers" in result.out
    document = surgeon_here("inspect", donor, "--json", cwd=tmp_path).document()
    assert document["num_layers"] == len(document["layers"]) == 4
    assert document["whole"]["num_bytes"] == document["rest"]["num_bytes"] + sum(
        layer["num_bytes"] for layer in document["layers"]
    )
    assert document["config"] == TINY


def test_extract_into_the_workspace(donor, tmp_path):
    result = surgeon_here("extract", donor, cwd=tmp_path)
    assert result.code == 0, result.err
    assert "surgeon graft" in result.out
    assert (tmp_path / "surgery" / "layers" / "donor-L3" / "model.safetensors").is_file()
    state = json.loads((tmp_path / "surgery" / "workspace.json").read_text())
    assert state == {"layer": "layers/donor-L3"}


def test_extract_in_json(donor, tmp_path):
    result = surgeon_here("extract", donor, "-l", "0", "-l", "-1", "-o", "out", "--json", cwd=tmp_path)
    assert result.code == 0, result.err
    document = result.document()
    assert document["layer_indices"] == [0, 3]
    assert document["path"] == "out"
    repeated = surgeon_here("extract", donor, "-l", "0", "-l", "-1", "-o", "out", "--json", "--quiet", cwd=tmp_path)
    assert repeated.document() == document
    assert repeated.err == ""


def test_several_layers_by_a_slice(donor, tmp_path):
    result = surgeon_here("extract", donor, "--layer", "-2:", "-o", "out", "--json", cwd=tmp_path)
    assert result.document()["layer_indices"] == [2, 3]


def test_verify(donor, tmp_path):
    assert surgeon_here("extract", donor, "-o", "out", cwd=tmp_path).code == 0
    intact = surgeon("extract", "--verify", "out", cwd=tmp_path)
    assert intact.code == 0
    assert "All 9 tensors" in intact.out
    weights = tmp_path / "out" / "model.safetensors"
    raw = bytearray(weights.read_bytes())
    raw[-1] ^= 1
    weights.write_bytes(raw)
    damaged = surgeon_here("extract", "out", "--verify", cwd=tmp_path)
    assert damaged.code == 1
    assert "differs from the one recorded during extraction" in damaged.err


def test_a_dry_run_writes_nothing(donor, tmp_path):
    before = sorted(tmp_path.rglob("*"))
    result = surgeon_here("extract", donor, "--layer", "1", "--dry-run", "--json", cwd=tmp_path)
    document = result.document()
    assert document["num_bytes"] == sum(tensor["num_bytes"] for tensor in document["tensors"])
    assert "tensors" in surgeon_here("extract", donor, "--layer", "1", "--dry-run", cwd=tmp_path).out
    assert sorted(tmp_path.rglob("*")) == before


@pytest.mark.parametrize("variable", [True, False])
def test_the_workspace_can_be_chosen(donor, tmp_path, variable):
    if variable:
        result = surgeon("extract", donor, cwd=tmp_path, env={"SURGEON_WORKSPACE": "elsewhere"})
    else:
        result = surgeon_here("extract", donor, "--workspace", "elsewhere", cwd=tmp_path)
    assert result.code == 0
    assert (tmp_path / "elsewhere" / "layers" / "donor-L3").is_dir()


def test_layer_99_of_32(tmp_path):
    donor = write_sparse_checkpoint(tmp_path / "llama", LLAMA_8B, [])
    result = surgeon_here("extract", donor, "--layer", "99", cwd=tmp_path)
    assert result.code == 1
    assert "has 32 layers, so there is no layer 99. Choose 0 to 31" in result.err
    assert not (tmp_path / "surgery").exists()


def test_not_a_decoder(tmp_path):
    donor = write_sparse_checkpoint(
        tmp_path / "bert", TINY | {"model_type": "bert", "architectures": ["BertModel"]}, []
    )
    result = surgeon_here("extract", donor, cwd=tmp_path)
    assert result.code == 1
    assert "not a decoder model" in result.err
    assert not (tmp_path / "surgery").exists()


def test_a_full_disk(donor, tmp_path):
    # A limit on the file size makes the write fail, as a full disk does.
    limit = "import resource, signal, sys, subprocess; signal.signal(signal.SIGXFSZ, signal.SIG_IGN); "
    limit += "resource.setrlimit(resource.RLIMIT_FSIZE, (2000, 2000)); sys.exit(subprocess.call(sys.argv[1:]))"
    command = [sys.executable, "-c", limit, SURGEON, "extract", donor]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, check=False)
    assert done.returncode == 1
    assert "is full" in done.stderr
    assert not (tmp_path / "surgery").exists()


@pytest.mark.slow
@pytest.mark.parametrize(
    ("config", "num_bytes"), [(LLAMA_8B, 436_224_000), (LLAMA_70B, 1_711_308_800)], ids=["8B", "70B"]
)
def test_memory_does_not_grow_with_the_model(tmp_path, config, num_bytes):
    # The layer has no data in this sparse file. Only its length matters here, and the reads are the same.
    donor = write_sparse_checkpoint(tmp_path / "llama", config, [])
    peak_of = "import resource, subprocess, sys; subprocess.run(sys.argv[1:], check=True, stdout=subprocess.DEVNULL); "
    peak_of += "print(resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss)"
    command = [sys.executable, "-c", peak_of, SURGEON, "extract", donor, "--layer", "-1", "--output", tmp_path / "out"]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, check=True)
    peak = int(done.stdout) * (1 if sys.platform == "darwin" else 1024)
    assert 10e6 < peak < 100e6
    assert (tmp_path / "out" / "model.safetensors").stat().st_size - num_bytes < 4_000
