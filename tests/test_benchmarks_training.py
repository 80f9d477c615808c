"""The training benchmarks at tiny sizes: each arm does what it says, and verdicts follow from the numbers."""

import pytest

from benchmarks import finetune, gpu, states
from layer_surgeon.extract import LayerArtifact
from layer_surgeon.finetune import FinetuneConfig
from tests.support.classification import rows, save_host, word_tokenizer
from tests.support.tiny_models import cut_artifact, save_quietly, tiny_llama

HOST = {"hidden_size": 16, "num_attention_heads": 2, "intermediate_size": 24, "vocab_size": 40}
DONOR = {**gpu.LLAMA_8B, "hidden_size": 32, "intermediate_size": 48, "num_attention_heads": 4, "num_key_value_heads": 2}
SETTING = gpu.Setting(device="cpu", layers=1, batch=2, length=6, steps=1, host=HOST, donor=DONOR)


@pytest.fixture(scope="module")
def parts(tmp_path_factory):
    root = tmp_path_factory.mktemp("parts")
    save_quietly(tiny_llama(seed=5), root / "llm")
    return finetune.Parts(
        host=save_host(root / "host"),
        donor=LayerArtifact.open(cut_artifact(root / "llm", [3], root / "layer")),
        train=rows(40),
        validation=rows(8, seed=1),
        config=FinetuneConfig(num_epochs=1, batch_size=8, max_length=32),
    )


@pytest.mark.parametrize("arm", [finetune.OURS, finetune.FIXED, finetune.HOST_ALONE])
def test_arm_trains_one_epoch(parts, tmp_path, arm):
    run = finetune.run_arm(arm, 2023, parts, tmp_path)
    assert (run["arm"], run["seed"], run["steps"]) == (arm, 2023, 5)
    assert run["examples"] == {"train": 40, "validation": 8}
    assert run["seconds"] > 0
    assert run["cpu_seconds"] > 0


def test_fixed_padding():
    one = [{"input_ids": [1, 4, 2], "attention_mask": [1, 1, 1]}]
    plain = word_tokenizer().pad(one, padding=True, return_tensors="pt")
    fixed = finetune.padding_to(10, word_tokenizer()).pad(one, padding=True, return_tensors="pt")
    assert plain["input_ids"].shape == (1, 3)
    assert fixed["input_ids"].shape == (1, 10)
    assert fixed["attention_mask"].sum() == 3


def test_verdicts_follow_from_the_numbers():
    def runs(ours, fixed, alone, accuracies):
        seconds = {"ours": ours, "fixed": fixed, "host alone": alone}
        return [
            {
                "arm": arm,
                "seed": seed,
                "seconds": taken,
                "cpu_seconds": taken,
                "accuracy": accuracy + (arm == "fixed") * accuracies[1],
            }
            for arm, taken in seconds.items()
            for seed, accuracy in enumerate(accuracies[0])
        ]

    good = finetune.summarise(runs(10, 30, 9.5, ([0.8, 0.82, 0.84], 0.01)))
    assert good["fixed_over_ours"] == pytest.approx(3)
    assert good["deviation"]["ours"] == pytest.approx(0.02)
    assert all(good["aims"].values())
    bad = finetune.summarise(runs(10, 20, 5, ([0.8, 0.82, 0.84], 0.03)))
    assert not any(bad["aims"].values())
    assert finetune.show(bad).count("NOT MET") == 3


def test_data_is_in_two_files(tmp_path):
    assert finetune.find_data(None) == ("sentences-imdb", None)
    for name in ("train", "validation"):
        (tmp_path / f"{name}.tsv").write_text("text\tlabel\n")
    assert finetune.find_data(tmp_path) == (str(tmp_path / "train.tsv"), str(tmp_path / "validation.tsv"))
    with pytest.raises(SystemExit, match=r"has no train\.csv"):
        finetune.find_data(tmp_path / "other")


def test_gpu_arms_are_measured_and_losses_compared():
    alone, grafted = (gpu.measure_arm(SETTING, arm) for arm in (gpu.HOST_ALONE, gpu.GRAFTED))
    check = gpu.check_losses(SETTING, 2)
    assert check["differences"]["fp32"] == 0
    assert 0 < check["differences"]["bf16"] < 0.05
    assert check["cpu fp32"][0] != check["cpu fp32"][1]
    assert check["agrees"]
    assert "losses agree" in gpu.show([alone, grafted], check)


def test_different_gpu_losses_are_reported(monkeypatch):
    take = gpu.take_steps

    def wrong(setting, *arguments, **settings):
        taken = take(setting, *arguments, **settings)
        return [(loss + 0.1 * (setting.precision == "bf16"), seconds) for loss, seconds in taken]

    monkeypatch.setattr(gpu, "take_steps", wrong)
    assert not gpu.check_losses(SETTING, 1)["agrees"]


def test_the_verdict_on_kept_states_follows_from_the_numbers():
    def run(arm, cpu_seconds, weights="a", loss=0.5):
        numbers = {"cpu_seconds": cpu_seconds, "reading_cpu_seconds": 3.0, "accuracy": 0.7, "loss": loss}
        return {"arm": arm, "seed": 1, "weights": weights, **numbers}

    def summary(kept_seconds, computed_weights):
        others = [run(states.COMPUTED, 30.0, computed_weights), run(states.IN_BATCHES, 25.0, "b", 0.51)]
        return states.summarise([run(states.HOST_ALONE, 10.0), run(states.KEPT, kept_seconds), *others])

    good, bad = summary(10.9, "a"), summary(11.1, "c")
    assert all(good["aims"].values())
    assert not any(bad["aims"].values())
    assert good["over_host_alone"][states.COMPUTED] == 3.0
    assert good["largest_difference_in_loss_in_batches"] == pytest.approx(0.01)
    shown = states.show(bad, 1234)
    assert shown.count("NOT MET") == 2
    assert "1,234 bytes" in shown
