"""Planted truths: what is built to help is said to help, by a whole study that trains and tests.

Two words are next to each other in every text, and the label is which of the two comes first. The host knows no
positions and is frozen: to it, and to whatever is trained on each of its tokens alone, both orders are the same text.
The donor's layer looks at the token before each one, and mixes the two.
"""

import json
import random

import pytest
import torch
from transformers import BertModel, Qwen2Config, Qwen2ForCausalLM

from layer_surgeon.study import compare
from layer_surgeon.study.compare import run_study
from layer_surgeon.study.plan import StudyPlan
from tests.support.classification import bert_config, tokenizer_of
from tests.support.studies import run_in_this_process
from tests.support.tiny_models import save_quietly

FILLERS = ["the", "film", "was", "very", "a", "plot", "story", "with"]
WIDTH, HEADS = 32, 4


def ordered_rows(count, seed):
    rng = random.Random(seed)
    rows = []
    for index in range(count):
        pair = ["cat", "dog"] if index % 2 else ["dog", "cat"]
        place = rng.randint(0, 1)
        words = rng.choices(FILLERS, k=1)
        rows.append({"text": " ".join([*words[:place], *pair, *words[place:]]), "label": pair[0]})
    return rows


def blind_host(folder):
    """BERT without positions: another order of the tokens only reorders the output."""
    torch.manual_seed(0)
    model = BertModel(bert_config())
    torch.nn.init.zeros_(model.embeddings.position_embeddings.weight)
    save_quietly(model, folder)
    tokenizer_of(["cat", "dog", *FILLERS]).save_pretrained(folder)
    return str(folder)


def donor_that_looks_back(folder):
    """A Qwen2 whose queries and keys only depend on the position: each token attends to the previous one."""
    torch.manual_seed(1)
    model = Qwen2ForCausalLM(
        Qwen2Config(
            vocab_size=40,
            hidden_size=WIDTH,
            intermediate_size=64,
            num_hidden_layers=1,
            num_attention_heads=HEADS,
            num_key_value_heads=HEADS,
            rope_parameters={"rope_type": "default", "rope_theta": 10.0},
        )
    )
    layer, size = model.model.layers[0], WIDTH // HEADS
    angles = 10.0 ** -(torch.arange(0, size, 2) / size)
    with torch.no_grad():
        for projection, angle in ((layer.self_attn.q_proj, 0 * angles), (layer.self_attn.k_proj, angles)):
            projection.weight.zero_()
            projection.bias.copy_(3 * torch.cat([angle.cos(), angle.sin()]).repeat(HEADS))
        for linear in (layer.self_attn.v_proj, layer.self_attn.o_proj):
            torch.nn.init.orthogonal_(linear.weight)
        # What comes from the token before is then as large as what fresh projections make of the token itself.
        layer.self_attn.o_proj.weight.mul_(0.08)
        for linear in (layer.mlp.gate_proj, layer.mlp.up_proj, layer.mlp.down_proj):
            linear.weight.normal_(0, 2 / linear.in_features**0.5)
    save_quietly(model, folder)
    return str(folder)


@pytest.fixture
def content(tmp_path):
    for name, count, seed in (("train", 480, 0), ("validation", 40, 1), ("test", 120, 2)):
        rows = ordered_rows(count, seed)
        (tmp_path / f"{name}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return {
        "name": "planted",
        "host": blind_host(tmp_path / "host"),
        "donor": {"source": donor_that_looks_back(tmp_path / "donor"), "layer": 0},
        "arms": ["host", "graft", "random", "wide-head"],
        "data": [
            {"name": "order", **{part: str(tmp_path / f"{part}.jsonl") for part in ("train", "validation", "test")}}
        ],
        "graft": {"pooling": "mean", "site": -1, "dropout": 0.0},
        "finetune": {"train_host": "frozen", "num_epochs": 4, "batch_size": 16, "learning_rate": 1e-2},
        "seeds": [1, 2, 3],
    }


@pytest.mark.slow
def test_a_study_finds_that_a_planted_layer_helps(content, tmp_path, monkeypatch):
    monkeypatch.setattr(compare, "run_local", run_in_this_process)
    result = run_study(StudyPlan.from_dict(content), tmp_path / "study")
    rows = {row.arm: row.mean for row in result.summary.tables[0].rows}
    assert rows["graft"] > 0.9
    assert max(rows[name] for name in ("host", "random", "wide-head")) < 0.65
    assert result.summary.verdict.startswith("graft is better than host by ")
    assert result.summary.verdict.endswith(" It is also better than random and wide-head.")
    words = {(c.arm, c.against): c.words for c in result.summary.tables[0].comparisons}
    assert "is not significant" in words["random", "host"]
    assert "is not significant" in words["wide-head", "host"]
