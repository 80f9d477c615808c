"""Presets: each table and figure of the paper with its models, data and seeds, and its offline version."""

import re
from pathlib import Path

import pytest

from layer_surgeon.errors import ConfigError
from layer_surgeon.finetune.registry import DATASETS
from layer_surgeon.study import compare
from layer_surgeon.study.compare import run_study
from layer_surgeon.study.plan import StudyPlan
from layer_surgeon.study.preset import preset, preset_names, preset_plan, profile_commands
from tests.support.studies import run_in_this_process, tiny_parts, tiny_plan

LLAMA = "meta-llama/Llama-3.1-8B"
BERT = "google-bert/bert-base-uncased"
FIVE = {"sst2", "imdb", "tweet_sentiment", "tweet_offensive", "cola"}
HOSTS = {
    BERT,
    "FacebookAI/roberta-base",
    "google/electra-base-discriminator",
    "microsoft/deberta-base",
    "microsoft/deberta-v3-base",
}
WRITERS = {"facebook/bart-base", "google-t5/t5-base"}
LAYERS = {0, 3, 7, 11, 15, 19, 23, 27, 31}
LARGE = {LLAMA, "meta-llama/Llama-3.1-70B", "Qwen/Qwen2.5-7B", "Qwen/Qwen2.5-32B", "Qwen/Qwen2.5-72B"}
FAMILIES = {
    *(LLAMA, "mistralai/Mistral-7B-v0.1", "mistralai/Mistral-7B-v0.3"),
    *("Qwen/Qwen2-7B", "google/gemma-2-9b", "tiiuae/falcon-7b"),
}
LANGUAGES = {"meta-llama/Meta-Llama-3-8B", "beomi/Llama-3-Open-Ko-8B", "DiscoResearch/Llama3-German-8B"}
MBERT = {"google-bert/bert-base-multilingual-cased"}
TUNED = {LLAMA, "meta-llama/Llama-3.1-8B-Instruct"}
LARGER = {BERT, "google-bert/bert-large-uncased"}
ONE, ZERO = {LLAMA}, {"host", "graft", "zerogen"}
# Hosts, donors, data, kinds of arms, and trainings at full scale: arms x data sets x shares x five seeds.
PAPER = {
    "table-1": (HOSTS, ONE, FIVE | {"mnli", "snli"}, {"host", "graft"}, 10 * 7 * 5),
    "table-1-squad": (HOSTS, ONE, {"squad"}, {"host", "graft"}, 10 * 5),
    "table-2": (WRITERS, ONE, {"multi30k"}, {"host", "graft"}, 4 * 5),
    "table-2-summaries": (WRITERS, ONE, {"cnn_dailymail"}, {"host", "graft"}, 4 * 5),
    "table-3": (LARGER, ONE, {"imdb", "tweet_sentiment", "cr"}, {"host", "graft", "larger-host"}, 3 * 3 * 5),
    "table-4": (MBERT, LANGUAGES, {"nsmc"}, {"host", "graft"}, 4 * 5),
    "table-4-german": (MBERT, LANGUAGES, {"filmstarts"}, {"host", "graft"}, 4 * 5),
    "table-5": ({BERT}, ONE, FIVE, {"host", "random", "random-trained", "graft"}, 4 * 5 * 5),
    "table-6": (LARGER, ONE, FIVE, {"host", "graft", "larger-host"}, 3 * 5 * 5),
    "table-7": ({BERT}, FAMILIES, FIVE, {"host", "graft"}, 7 * 5 * 5),
    "table-8": ({BERT}, {f"Qwen/Qwen2-{size}B" for size in ("0.5", "1.5", "7")}, FIVE, {"host", "graft"}, 4 * 5 * 5),
    "table-9": ({"HuggingFaceTB/SmolLM2-135M"}, ONE, FIVE, {"host", "graft"}, 2 * 5 * 5),
    "table-10": (
        {BERT},
        ONE,
        {"sst2", "imdb", "tweet_sentiment"},
        {"graft", "pool-mean", "pool-mean-padding"},
        3 * 3 * 5,
    ),
    "table-11": ({BERT}, ONE, {"sst2", "imdb", "tweet_sentiment"}, {"host", "graft", "donor-trained"}, 3 * 3 * 5),
    "table-12": ({BERT}, TUNED, FIVE, {"host", "graft"}, 3 * 5 * 5),
    "table-13": ({BERT}, LARGE, FIVE, {"host", "graft"}, 6 * 5 * 5),
    "table-14": ({BERT}, {LLAMA, "meta-llama/Llama-3.1-70B"}, FIVE, {"host", "graft"}, 4 * 5 * 5),
    "table-15": ({BERT}, ONE, FIVE, {"host", "graft", "donor-only"}, 4 * 5 * 5),
    "table-17": ({BERT}, ONE, {"sst2", "imdb"}, ZERO, 4 * 2 * 5),
    "table-17-tweets": ({BERT}, ONE, {"tweet_sentiment"}, ZERO, 4 * 5),
    "table-17-offensive": ({BERT}, ONE, {"tweet_offensive"}, ZERO, 4 * 5),
    "table-17-cola": ({BERT}, ONE, {"cola"}, ZERO, 4 * 5),
    "table-18": ({BERT}, ONE, FIVE, {"host", "lora", "graft"}, 3 * 5 * 5),
    "table-19": ({BERT}, ONE, FIVE, {"host", "graft"}, 2 * 5 * 2 * 5),
    "figure-2": ({BERT}, ONE, {"sst2"}, {"host", "graft"}, 10 * 5),
    "figure-2-families": ({BERT}, FAMILIES - {LLAMA, "Qwen/Qwen2-7B"}, {"sst2"}, {"host", "graft"}, 37 * 5),
    "figure-2-qwen": ({BERT}, {"Qwen/Qwen2-7B"}, {"sst2"}, {"host", "graft"}, 9 * 5),
    "figure-3": ({"google-t5/t5-base"}, ONE, {"multi30k"}, {"host", "graft"}, 10 * 5),
}
MEASURED = {"table-16": 1, "table-20": 15}
TASKS = {
    "table-1-squad": "question-answering",
    **dict.fromkeys(("table-2", "table-2-summaries", "figure-3"), "seq2seq"),
}


def test_every_table_and_figure_has_a_preset():
    assert set(preset_names()) == {"demo", *PAPER, *MEASURED}
    assert preset_names()[:3] == ("demo", "table-1", "table-1-squad")
    wanted = {*(f"table-{number}" for number in range(1, 21)), "figure-2", "figure-3"}
    assert set(preset_names()) >= wanted


@pytest.mark.parametrize("name", PAPER)
def test_full_scale_matches_the_paper(name):
    """Each preset plans the right models, data and number of trainings, without a network."""
    hosts, donors, data, kinds, cells = PAPER[name]
    plan = preset_plan(name)
    assert plan.seeds == (2023, 2024, 2025, 2026, 2027)
    assert {arm.host for arm in plan.arms} == hosts
    assert {arm.donor.source for arm in plan.arms if arm.donor} == donors
    assert {source for entry in plan.data for source in entry.train} == data
    assert {arm.kind for arm in plan.arms} == kinds
    assert len({cell.id for cell in plan.cells()}) == len(plan.cells()) == cells
    assert plan.task == TASKS.get(name, "text-classification")
    assert data <= set(DATASETS)
    assert all(DATASETS[source].trained_as == plan.task for source in data)
    # Nothing of training is another than the paper's, apart from what a task needs.
    assert set(plan.finetune) <= {"extra_metrics", "source_prefix"}
    if not name.startswith("figure"):
        # Without graft, the donor's last layer is what Table 15 compares its first with.
        layers = {arm.donor.layers for arm in plan.arms if arm.donor}
        assert layers == {"table-14": {(-1,), (-2, -1)}, "table-15": {(0,), (-1,)}}.get(name, {(-1,)})


def test_details_of_single_presets():
    assert preset_plan("table-3").tests["tweet"] == ("tweet", "imdb", "cr")
    assert preset_plan("table-19").fractions == (1.0, 0.1)
    assert {arm.donor.layers[0] for arm in preset_plan("figure-2").arms if arm.donor} == LAYERS
    assert max(arm.donor.layers[0] for arm in preset_plan("figure-2-qwen").arms if arm.donor) == 27
    poolings = [arm.graft.get("pooling", "cls") for arm in preset_plan("table-10").arms]
    assert poolings == ["cls", "mean", "mean_with_padding"]
    lora = next(arm for arm in preset_plan("table-18").arms if arm.lora)
    assert lora.lora == {"r": 8, "lora_alpha": 16, "lora_dropout": 0.1}
    texts = {len(DATASETS["tweet_sentiment"].label_names) * 66_667, 2 * 100_000}
    for name in ("table-17", "table-17-tweets", "table-17-offensive", "table-17-cola"):
        written = [arm.synthetic for arm in preset_plan(name).arms if arm.synthetic]
        assert [entry["model"] for entry in written] == ["openai-community/gpt2-xl", LLAMA]
        labels = len(DATASETS[preset_plan(name).data[0].train[0]].label_names)
        assert {entry["per_label"] * labels for entry in written} <= texts
    prefixes = {arm.host: arm.finetune.get("source_prefix") for arm in preset_plan("table-2").arms}
    assert prefixes == {"google-t5/t5-base": "translate English to German: ", "facebook/bart-base": None}
    with pytest.raises(ConfigError, match="Did you mean table-1"):
        preset("tabel-1")


@pytest.mark.parametrize("name", MEASURED)
def test_presets_without_training_name_their_commands(name):
    commands = profile_commands(preset(name))
    assert len(commands) == len(set(commands)) == MEASURED[name]
    assert f"surgeon profile {BERT} --donor {LLAMA}" in commands
    with pytest.raises(ConfigError, match="surgeon profile"):
        preset_plan(name, "small")
    if name == "table-20":
        assert f"surgeon profile google-t5/t5-base --donor {LLAMA} --task seq2seq" in commands


@pytest.mark.parametrize("name", PAPER)
def test_small_scale_needs_no_network(name):
    plan = preset_plan(name, "small")
    assert 2 <= len(plan.arms) <= 5
    assert len(plan.cells()) <= 18
    sources = [arm.host for arm in plan.arms] + [arm.donor.source for arm in plan.arms if arm.donor]
    assert all(source.startswith("packaged:") for source in sources)
    assert all(source.startswith("sentences-") for entry in plan.data for source in entry.train)


def test_the_docs_list_every_preset():
    """docs/paper.md has a row for each preset of the paper and no other rows."""
    text = (Path(__file__).parents[2] / "docs" / "paper.md").read_text(encoding="utf-8")
    rows = re.findall(
        r"^\| (?:Table|Figure) \d+[^|]*\| `surgeon (?:compare --preset|profile)[^|]*\|", text, re.MULTILINE
    )
    named = [name for row in rows for name in re.findall(r"`surgeon compare --preset ([a-z0-9-]+)`", row)]
    assert {*named, "demo"} == set(preset_names())
    assert len(named) == len(set(named))


RUN = ["table-5", "table-10", "table-11", "table-15", "table-18", "table-19"]


@pytest.fixture(scope="module")
def parts(tmp_path_factory):
    return tiny_parts(tmp_path_factory.mktemp("parts"))


@pytest.fixture
def in_this_process(monkeypatch):
    monkeypatch.setattr(compare, "run_local", run_in_this_process)


def check(plan, folder, examples):
    result = run_study(plan, folder)
    assert result.done == len(plan.cells())
    assert len(result.summary.tables) == len(plan.fractions)
    for table in result.summary.tables:
        assert [row.arm for row in table.rows] == [arm.name for arm in plan.arms]
        assert table.examples == examples
        assert table.comparisons


@pytest.mark.slow
@pytest.mark.parametrize("name", RUN)
def test_small_scale_runs_with_tiny_models(name, parts, tmp_path, in_this_process):
    """Runs the arms and shares of the preset, with models that train in a second."""
    if name == "table-18":
        pytest.importorskip("peft")
    content = preset(name, "small")
    for arm in content["arms"]:
        if isinstance(arm, dict) and "donor" in arm:
            arm["donor"] = parts["donor"] | {"layer": arm["donor"]["layer"]}
    steps = {"max_steps": 2, "batch_size": 4, "max_eval_samples": 8}
    plan = tiny_plan({**content, **parts, "data": parts["data"][:1], "seeds": [2023], "finetune": steps})
    check(plan, tmp_path, 12)


@pytest.mark.slow
@pytest.mark.real_weights
def test_small_scale_runs_with_the_packaged_weights(tmp_path, in_this_process):
    """Runs two steps of the preset with most arms. The test above runs all presets, which have the same models."""
    content = preset("table-5", "small")
    content |= {"seeds": [2023], "finetune": {"max_steps": 2, "batch_size": 4, "max_eval_samples": 8, "max_length": 16}}
    check(StudyPlan.from_dict(content), tmp_path, 200)
