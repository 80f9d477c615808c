"""What a stranger's files must not do, through the commands as people run them. docs/security.md lists the attacks."""

import shutil
from pathlib import Path
from types import SimpleNamespace

import datasets
import pytest
import yaml
from transformers import BertConfig, LlamaConfig

from layer_surgeon._loading import load_dataset
from layer_surgeon.checkpoint.sources.http_files import HttpFiles
from layer_surgeon.checkpoint.sources.retry import HubLimits
from tests.support.command_line import Result, surgeon, surgeon_forked, surgeon_here, surgeon_together
from tests.support.hostile_folders import plant_model_code, plant_modules, was_run
from tests.support.loopback_hub import LoopbackHub

FIXTURES = Path(__file__).parent / "fixtures/made_by_04c75f7"
# What a person might pipe into a command, and what transformers takes for consent.
CONSENT = "y\nyes\n1\n" * 20


class TestTheCurrentFolder:
    """Modules in the current folder are not ours to run."""

    @pytest.mark.slow
    def test_profile_measures_without_them(self, tmp_path):
        """And what it measures in processes of their own is plausible."""
        sizes = {"hidden_size": 256, "intermediate_size": 256, "num_hidden_layers": 2, "num_attention_heads": 4}
        BertConfig(**sizes, vocab_size=20000).save_pretrained(tmp_path)
        sizes = {"hidden_size": 2048, "intermediate_size": 4096, "num_attention_heads": 8}
        LlamaConfig(**sizes, vocab_size=8).save_pretrained(tmp_path / "donor")
        plant_modules(tmp_path)
        arguments = ("--batch", 2, "--length", 4, "--repeats", 2, "--device", "cpu", "--json")
        done = surgeon("profile", ".", "--donor", "donor", "--measure", *arguments, cwd=tmp_path)
        assert not was_run(tmp_path)
        assert done.code == 0, done.err
        alone, grafted = (done.document()[name] for name in ("alone", "grafted"))
        for model in (alone, grafted):
            measured = model["measured"]
            parts = model["parts"].values()
            num_bytes, trained = (sum(part[key] for part in parts) for key in ("num_bytes", "trained"))
            assert 0 < measured["forward_seconds"] < measured["training_seconds"]
            assert measured["forward_peak_bytes"] > 0.9 * num_bytes
            # Gradients and AdamW's two averages of everything that is trained.
            assert measured["training_peak_bytes"] > 0.9 * (num_bytes + 3 * 4 * trained)
            assert measured["device"].startswith("cpu, ")
            assert measured["repeats"] == 2
        frozen = grafted["parts"]["donor"]["num_bytes"]
        added = grafted["measured"]["forward_peak_bytes"] - alone["measured"]["forward_peak_bytes"]
        assert added > 0.8 * frozen

    @pytest.mark.slow
    def test_compare_trains_without_them(self, tmp_path):
        shutil.copytree(FIXTURES, tmp_path, dirs_exist_ok=True)
        study = tmp_path / "study"
        shutil.copytree(study, tmp_path, dirs_exist_ok=True)
        plan = yaml.safe_load((study / "study.yaml").read_text())
        # A cell for each of the two workers. tests/test_made_before.py reads the finished cells.
        changes = {"seeds": [3], "data": plan["data"][:1], "tests": {"films": ["films"]}}
        (tmp_path / "study.yaml").write_text(yaml.safe_dump(plan | changes))
        plant_modules(tmp_path)
        done = surgeon("compare", "--output", ".", "--workers", "2", "--json", cwd=tmp_path)
        assert not was_run(tmp_path)
        assert done.document()["done"] == 2, done.err

    @pytest.mark.slow
    def test_finetune_trains_in_two_processes_without_them(self, tmp_path):
        shutil.copytree(FIXTURES / "graft", tmp_path, dirs_exist_ok=True)
        shutil.copy(FIXTURES / "films.jsonl", tmp_path)
        plant_modules(tmp_path)
        settings = ("--num-processes", "2", "--num-epochs", "1", "--batch-size", "4", "--output", "run", "--json")
        done = surgeon("finetune", ".", "--dataset", "films.jsonl", *settings, cwd=tmp_path)
        assert not was_run(tmp_path)
        assert done.code == 0, done.err
        document = done.document()
        # 19 examples, of which the processes take 8 at a time.
        assert document["history"][0]["step"] == 3
        assert document["device"].endswith("2 processes)")
        assert (tmp_path / document["path"] / "model.safetensors").is_file()


class TestCodeOfAModel:
    """A model that brings Python code is refused without a question, whatever is piped into the command."""

    @pytest.fixture
    def model(self, tmp_path) -> Path:
        folder = tmp_path / "model"
        shutil.copytree(FIXTURES / "tiny-bert", folder)
        plant_model_code(folder)
        return folder

    @pytest.mark.parametrize(
        "command",
        [
            ("finetune", "model", "--dataset", "films.jsonl", "--output", "run"),
            ("evaluate", "model", "--dataset", "films.jsonl"),
            ("predict", "--model", "model", "A film."),
            ("graft", "model", "--donor", "layer"),
            ("profile", "model"),
            ("synthesize", "model", "--label", "good", "--label", "bad", "--output", "texts.jsonl"),
        ],
        ids=lambda command: command[0],
    )
    def test_it_is_refused(self, model, tmp_path, command):
        shutil.copytree(FIXTURES / "layer", tmp_path / "layer")
        shutil.copy(FIXTURES / "films.jsonl", tmp_path)
        done = surgeon_here(*command, cwd=tmp_path, stdin=CONSENT)
        assert not was_run(model)
        assert done.code in (1, 2)
        assert "Do you wish to run" not in done.out + done.err
        assert "error:" in done.err
        assert "Unexpected" not in done.err

    def test_neither_does_the_tokenizer_of_a_sound_model_run(self, tmp_path):
        folder = tmp_path / "model"
        shutil.copytree(FIXTURES / "run", folder)
        config = (folder / "config.json").read_text()
        plant_model_code(folder)
        (folder / "config.json").write_text(config)
        (folder / "tokenizer.json").unlink()
        done = surgeon_forked("predict", "--model", "model", "A film.", cwd=tmp_path, stdin=CONSENT)
        assert not was_run(folder)
        assert done.code in (1, 2)
        assert "Do you wish to run" not in done.err


WAYS = ("path", "dots", "url", "other-repo", "file-chain", "local-chain", "web-chain")


@pytest.fixture(scope="module")
def attempts(tmp_path_factory) -> dict[str, tuple[Result, list[str]]]:
    """What the command printed for a data set of each kind, and what it asked the Hub for: in one process."""
    folder = tmp_path_factory.mktemp("data-sets")
    shutil.copy(FIXTURES / "films.jsonl", folder / "private.jsonl")
    shutil.copytree(FIXTURES / "graft", folder / "graft")
    rows = (FIXTURES / "films.jsonl").read_bytes()
    with LoopbackHub() as hub:
        hub.add_repo("owner/other", {"private.jsonl": rows}, kind="datasets")
        for way in WAYS:
            own_file = f"hf://datasets/owner/{way}/films.jsonl"
            named = {
                "path": str(folder / "private.jsonl"),
                "dots": f"../../../../../../..{folder}/private.jsonl",
                "url": f"{hub.endpoint}/datasets/owner/other/resolve/main/private.jsonl",
                "other-repo": "hf://datasets/owner/other/private.jsonl",
                "file-chain": f"file://{folder}/private.jsonl::{own_file}",
                "local-chain": f"local://{folder}/private.jsonl::{own_file}",
                "web-chain": f"{hub.endpoint}/datasets/owner/other/resolve/main/private.jsonl::{own_file}",
            }[way]
            card = yaml.safe_dump({"configs": [{"config_name": "default", "data_files": named}]})
            files = {"README.md": f"---\n{card}---\n".encode(), "films.jsonl": rows}
            hub.add_repo(f"owner/{way}", files, kind="datasets")
        commands = [("finetune", "graft", "--dataset", f"owner/{way}", "--dry-run") for way in WAYS]
        results = surgeon_together(*commands, cwd=folder, env={"HF_ENDPOINT": hub.endpoint})
        requests = [request.path for request in hub.requests]
    return {way: (result, requests) for way, result in zip(WAYS, results, strict=True)}


class TestDataSets:
    """A data set of the Hub is made of its own files."""

    @pytest.mark.parametrize("way", WAYS)
    def test_its_card_can_name_no_others(self, attempts, way):
        done, requests = attempts[way]
        assert any(f"owner/{way}/" in path for path in requests)
        assert not any("private" in path and "resolve" in path for path in requests)
        assert (done.code, "Unexpected" in done.err, "error:" in done.err) == (1, False, True)
        if way in ("other-repo", "file-chain", "local-chain", "web-chain"):
            # The first is what datasets says since version 5.
            assert any(
                text in " ".join(done.err.split()) for text in (f"belong to owner/{way}", "which is not in the repo")
            )

    @pytest.mark.parametrize(
        ("url", "is_its_own"),
        [
            ("hf://datasets/owner/data@main/a.csv", True),
            ("zip://a.csv::hf://datasets/owner/data@main/data.zip", True),
            ("hf://datasets/owner/data@main/../other/a.csv", False),
            ("file:///etc/hostname::hf://datasets/owner/data@main/a.csv", False),
            ("local:///etc/hostname::hf://datasets/owner/data@main/a.csv", False),
            ("https://mallory.example/a.csv::hf://datasets/owner/data@main/a.csv", False),
            ("zip://a.csv::file:///etc/data.zip::hf://datasets/owner/data@main/a.csv", False),
        ],
    )
    def test_the_address_of_every_file_is_checked(self, monkeypatch, url, is_its_own):
        """Without the check in datasets, which older versions don't have."""
        builder = SimpleNamespace(
            config=SimpleNamespace(data_files={"train": [url]}), as_streaming_dataset=lambda: "rows"
        )
        monkeypatch.setattr(datasets, "load_dataset_builder", lambda *_, **__: builder)
        if is_its_own:
            assert load_dataset("owner/data", streaming=True) == "rows"
        else:
            with pytest.raises(ValueError, match="which is not in the repo"):
                load_dataset("owner/data", streaming=True)


class TestSecrets:
    """A URL's password and signature leave no trace."""

    @pytest.mark.parametrize(
        "command",
        [
            ("graft", "tiny-bert", "--donor"),
            ("finetune",),
            ("predict", "A film.", "--model"),
            ("extract",),
            ("assemble",),
            ("inspect",),
            ("graft",),
            ("profile",),
            ("evaluate", "--dataset", "films.jsonl"),
        ],
        ids=" ".join,
    )
    def test_no_command_shows_them(self, tmp_path, command, monkeypatch):
        monkeypatch.setattr(HttpFiles, "limits", HubLimits(base_wait=0.001, max_wait=0.002))
        shutil.copytree(FIXTURES / "tiny-bert", tmp_path / "tiny-bert")
        shutil.copy(FIXTURES / "films.jsonl", tmp_path)
        for url in ("http://ann:s3cret@127.0.0.1:1x/m.gguf?sig=s3cret", "http://ann:s3cret@127.0.0.1:1/m?sig=s3cret"):
            for form in ((), ("--json",)):
                done = surgeon_here(*command, url, *form, cwd=tmp_path)
                assert done.code in (1, 2)
                assert "s3cret" not in done.out + done.err
                assert "Unexpected" not in done.err


class TestTerminal:
    """What a model calls its labels does not steer the terminal."""

    def test_labels_of_a_model(self, tmp_path):
        shutil.copytree(FIXTURES / "run", tmp_path / "run")
        path = tmp_path / "run/config.json"
        text = path.read_text()
        assert '"negative"' in text
        for name in ("negative", "positive"):
            text = text.replace(f'"{name}"', f'"{name}\\u001b]0;stolen\\u0007\\u009b2J[bold]"')
        path.write_text(text)
        for form in ((), ("--json",)):
            done = surgeon_here("predict", "A film.\x1b[2J", "--model", "run", *form, cwd=tmp_path)
            assert done.code == 0, done.err
            assert not {"\x1b", "\x07", "\x9b"} & set(done.out + done.err)
            assert "[bold]" in done.out
