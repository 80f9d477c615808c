"""The loopback Hub works with the libraries that read the real Hub."""

import json
import os
import subprocess
import sys
from pathlib import Path
from time import monotonic

import pytest

from layer_surgeon.checkpoint.sources.hub import HubSource
from tests.support.loopback_hub import LoopbackHub


def run(hub: LoopbackHub, home: Path, code: str) -> str:
    clean = {name: value for name, value in os.environ.items() if not name.startswith(("HF_", "HUGGING"))}
    done = subprocess.run(
        [sys.executable, "-c", code],
        env=clean | {"OMP_NUM_THREADS": "1", "HF_ENDPOINT": hub.endpoint, "HF_HOME": str(home)},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_snapshot_download(hub: LoopbackHub, tmp_path: Path) -> None:
    weights = os.urandom(100_000)
    repo = hub.add_repo("owner/name", {"config.json": "{}", "model.safetensors": weights, "sub/x.txt": "hi"})
    output = run(hub, tmp_path, "import huggingface_hub as h; print(h.snapshot_download('owner/name'))")
    folder = Path(output.strip())
    assert folder.name == repo.refs["main"]
    assert (folder / "model.safetensors").read_bytes() == weights
    assert (folder / "sub/x.txt").read_text() == "hi"
    assert hub.count("GET", "model.safetensors", "cdn") == 1


@pytest.mark.slow
def test_a_model_of_transformers(hub: LoopbackHub, tmp_path: Path) -> None:
    code = (
        "from transformers import BertConfig, BertModel\n"
        "BertModel(BertConfig(hidden_size=8, num_hidden_layers=1, num_attention_heads=1, intermediate_size=8,"
        f"vocab_size=10)).save_pretrained({str(tmp_path / 'model')!r})"
    )
    run(hub, tmp_path, code)
    hub.add_repo("owner/bert", tmp_path / "model")
    output = run(
        hub,
        tmp_path,
        "from transformers import AutoModel; print(type(AutoModel.from_pretrained('owner/bert')).__name__)",
    )
    assert "BertModel" in output
    assert hub.count("GET", "model.safetensors", "cdn") == 1


def test_a_dataset_of_datasets(hub: LoopbackHub, tmp_path: Path) -> None:
    rows = "\n".join(json.dumps({"text": f"row {k}", "label": k % 2}) for k in range(20))
    hub.add_repo("SetFit/sst2", {"README.md": "# sst2", "train.jsonl": rows, "dev.jsonl": rows}, kind="datasets")
    code = (
        "import datasets\n"
        "data = datasets.load_dataset('SetFit/sst2')\n"
        "print({name: len(split) for name, split in data.items()}, data['train'][3])"
    )
    output = run(hub, tmp_path, code)
    assert output.strip() == "{'train': 20, 'validation': 20} {'text': 'row 3', 'label': 1}"


def test_the_metadata_api_can_be_switched_off(hub: LoopbackHub, tmp_path: Path) -> None:
    hub.router.metadata_api = False
    hub.add_repo("owner/name", {"config.json": "{}"})
    code = (
        "from huggingface_hub import HfApi, get_session\n"
        "print(get_session().get(HfApi().endpoint + '/api/models/owner/name/safetensors-metadata/x').status_code)\n"
        "print(HfApi().list_repo_refs('owner/name').branches[0].name)\n"
        "print(HfApi().get_paths_info('owner/name', ['config.json'])[0].size)"
    )
    assert run(hub, tmp_path, code).split() == ["404", "main", "2"]


@pytest.mark.usefixtures("hub")
def test_latency_and_bandwidth_take_their_time() -> None:
    with LoopbackHub(latency=0.05, bytes_per_second=1e6) as slow:
        slow.add_repo("owner/name", {"model.safetensors": bytes(200_000)})
        started = monotonic()
        source = HubSource("owner/name", endpoint=slow.endpoint)
        assert monotonic() - started >= 0.1
        started = monotonic()
        assert source.read_range("model.safetensors", 0, 200_000) == bytes(200_000)
        assert monotonic() - started >= 0.05 + 0.1 + 0.2
