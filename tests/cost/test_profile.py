"""Costs of a graft: the paper's tables 20 and 16, counts on shapes compared with real runs.

`tests/test_security.py` measures time and memory in processes of their own.
"""

import json
import re
from pathlib import Path

import pytest
import torch
from torch import nn
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode
from transformers import AutoModel, BertConfig

from layer_surgeon.cost import Workload, profile_graft
from layer_surgeon.cost.flops import Macs
from layer_surgeon.cost.measure import example_inputs, new_model
from layer_surgeon.cost.shapes import graft_config, shape_of, without_donor
from layer_surgeon.errors import ConfigError, GraftError, LayerNotFoundError
from layer_surgeon.graft.build import graft_layer
from layer_surgeon.graft.config import GraftConfig
from tests.graft.conftest import host_config, host_model
from tests.support.paper_models import DONORS, paper_host
from tests.support.tiny_models import tiny_config

# Older versions of transformers script functions of DeBERTa when it is imported, of which torch warns.
pytestmark = pytest.mark.filterwarnings("ignore:.torch.jit.script. is deprecated:DeprecationWarning")

SMALL = Workload(batch=2, length=6)
PAGE = Path(__file__).parents[2] / "docs" / "profile.md"

# Table 20 of the paper, in millions: host, donor layer, each projection. With ours where the paper's is wrong.
TABLE_20 = [
    ("BERT-base", "Llama-3.1-8B", 109.482, 218.112, 3.146, 3.146),
    ("RoBERTa-base", "Llama-3.1-8B", 124.646, 218.112, 3.146, 3.146),
    ("ELECTRA-base", "Llama-3.1-8B", 108.892, 218.112, 3.146, 3.146),
    ("DeBERTa-base", "Llama-3.1-8B", 138.602, 218.112, 3.146, 3.146),
    ("DeBERTa-V3-base", "Llama-3.1-8B", 183.832, 218.112, 3.146, 3.146),
    ("BERT-base", "Mistral-7B-v0.1", 109.482, 218.112, 3.146, 3.146),
    ("BERT-base", "Mistral-7B-v0.3", 109.482, 218.112, 3.146, 3.146),
    ("BERT-base", "Qwen2-0.5B", 109.482, 14.912, 0.688, 0.688),
    ("BERT-base", "Qwen2-1.5B", 109.482, 46.798, 1.180, 1.180),
    ("BERT-base", "Qwen2-7B", 109.482, 233.058, 3.146, 2.753),
    ("BERT-base", "Gemma-2-9B", 109.482, 198.195, 3.146, 2.753),
    ("BERT-base", "Falcon-7B", 109.482, 207.070, 3.146, 3.490),
    ("BERT-base", "Llama-3.1-70B", 109.482, 855.654, 6.291, 6.291),
    ("T5-base", "Llama-3.1-8B", 222.904, 218.112, 3.146, 3.146),
    ("BART-base", "Llama-3.1-8B", 139.420, 218.112, 3.146, 3.146),
]
# The paper counts two poolers that no graft goes through: a linear layer of 768 x 768 with bias.
POOLER = 0.591
WITH_POOLER = ("BERT-base", "RoBERTa-base")


def millions(count):
    return round(count / 1e6, 3)


@pytest.mark.parametrize(
    ("host", "donor", "host_size", "layer", "papers", "projection"), TABLE_20, ids=[f"{r[0]}+{r[1]}" for r in TABLE_20]
)
def test_table_20(host, donor, host_size, layer, papers, projection):
    generates = host in ("T5-base", "BART-base")
    settings = GraftConfig(task="seq2seq" if generates else "text-classification")
    model = shape_of(graft_config(paper_host(host), DONORS[donor], config=settings))
    counts = {name: total for name, (total, _) in model.parameter_counts().items()}
    with torch.device("meta"):
        published = sum(p.numel() for p in AutoModel.from_config(paper_host(host)).parameters())
    assert millions(published) == host_size
    assert millions(published - counts["host"]) == (POOLER if host in WITH_POOLER else 0)
    assert millions(counts["donor"]) == layer
    assert millions(counts["proj_in"]) == millions(counts["proj_out"]) == projection
    if papers != projection:
        # The projections' size is a product, and the paper's number is that of a donor 4096 wide.
        assert millions(768 * 4096) == papers
        assert model.donor.hidden_size != 4096
    if not generates:
        assert millions(counts["head"]) == 0.592


def test_the_page_shows_every_row_of_table_20():
    rows = [
        tuple(cell.strip() for cell in line.strip("| \n").split("|"))
        for line in PAGE.read_text(encoding="utf-8").splitlines()
        if re.match(r"\| [A-Za-z0-9-]+-base \|", line)
    ]
    expected = [
        (
            host,
            donor,
            f"{size:.3f}",
            f"{layer:.3f}",
            f"{ours:.3f}" if ours == papers else f"**{ours:.3f}** (paper: {papers:.3f})",
        )
        for host, donor, size, layer, papers, ours in TABLE_20
    ]
    assert rows == expected


@pytest.fixture(scope="module")
def table_16():
    return profile_graft(paper_host("BERT-base"), DONORS["Llama-3.1-8B"])


def test_table_16(table_16):
    """Batch 32, 100 tokens. The paper: 272.12 G and 279.3 G, counted with fvcore."""
    alone, grafted = table_16.alone.macs, table_16.grafted.macs
    per_token, texts, tokens = 12 * (4 * 768 * 768 + 2 * 768 * 3072), 32, 32 * 100
    assert alone.linear == tokens * per_token + texts * (768 * 768 + 768 * 2)
    assert round(alone.linear / 1e9, 1) == 271.8
    assert alone.attention == 12 * 2 * texts * 100 * 100 * 768
    assert alone.rest == 25 * tokens * 768 * 5
    # Linear layers and layer norms are what the paper counts, and to its last digit.
    assert round((alone.linear + alone.rest) / 1e9, 2) == 272.12
    full = alone.linear + alone.rest + table_16.full.linear + table_16.full.rest
    assert round(full / 1e9, 1) == 279.3
    # Of which query and key, 4096 x (4096 + 1024), are not computed for one position per text.
    assert alone.linear + table_16.full.linear - grafted.linear == texts * 4096 * (4096 + 1024)
    assert round((grafted.linear + grafted.rest) / 1e9, 1) == 278.6


def test_one_position_of_each_text_goes_through_the_graft(table_16):
    layer = 2 * 4096 * 4096 + 2 * 4096 * 1024 + 3 * 4096 * 14336
    each = layer + 2 * 768 * 4096
    assert round(each / 1e6, 1) == 224.4
    assert table_16.positions == 1
    assert table_16.full.linear == 32 * each
    assert round(table_16.full.linear / 1e9, 2) == 7.18
    assert table_16.per_token.linear == 3200 * each
    assert table_16.full.attention == 32 * 2 * 4096
    assert table_16.per_token.attention == 32 * 2 * 100 * 100 * 4096


def test_fewer_macs_are_done_than_the_formulas_say(table_16):
    assert table_16.full.linear - table_16.added.linear == 32 * 4096 * (4096 + 1024)
    assert table_16.full.attention == table_16.added.attention


def test_backward_computes_nothing_for_frozen_weights(table_16):
    """A trained layer costs three times its forward pass. A frozen layer costs twice, for the gradient of its input."""
    parts = {part.name: part.macs.linear + part.macs.attention for part in table_16.grafted.parts}
    donor = table_16.grafted.part("donor").macs
    added = table_16.grafted.training_macs - table_16.alone.training_macs
    # Of attention's two products, the scores are a constant here, and of the sums only the values get a gradient.
    assert (
        added == 2 * donor.linear + 3 * (parts["proj_in"] + parts["proj_out"]) + 3 * donor.attention // 2 + donor.rest
    )


def test_backward_of_every_token_computes_nothing_for_frozen_weights():
    config = GraftConfig(task="token-classification")
    host = BertConfig(num_hidden_layers=1)
    result = profile_graft(host, DONORS["Qwen2-0.5B"], config=config, workload=SMALL)
    projections = 2 * SMALL.batch * SMALL.length * 768 * 896
    donor = result.grafted.part("donor").macs
    added = result.grafted.training_macs - result.alone.training_macs
    # Attention is no product with weights: both of its factors get a gradient.
    assert added == 2 * donor.linear + 3 * (projections + donor.attention) + donor.rest


@pytest.mark.parametrize("family", ["gpt_neox", "phi3", "gpt2", "falcon", "qwen3_5_text", "minicpm3"])
def test_what_is_left_out_for_one_key_is_known_without_weights(family):
    """For donors that compute query, key and value separately, together, by head or from a low rank."""
    donor = tiny_config(family).to_dict()
    host = host_config("bert", num_hidden_layers=1)
    config = graft_config(host, donor)
    model = new_model(config, SMALL, torch.device("cpu"))
    inputs = example_inputs(model, SMALL, labels=False)
    flops = {}
    for shortcut in (True, False):
        model.donor.one_key_shortcut = shortcut
        with FlopCounterMode(display=False) as counter, sdpa_kernel(SDPBackend.MATH), torch.no_grad():
            model(**inputs)
        flops[shortcut] = counter.get_total_flops() // 2
    result = profile_graft(host, donor, workload=SMALL)
    macs = result.grafted.macs
    assert macs.linear + macs.attention + macs.rest - 5 * norm_elements(model) == flops[True]
    assert flops[True] < flops[False]


def test_bytes_follow_the_number_formats():
    config = GraftConfig(donor_dtype="bfloat16")
    workload = Workload(batch=1, length=2, dtype="float16")
    host = BertConfig(num_hidden_layers=1)
    result = profile_graft(host, DONORS["Llama-3.1-8B"], config=config, workload=workload)
    assert result.grafted.part("donor").num_bytes == 218_112_000 * 2
    assert (
        result.grafted.part("host").num_bytes
        == result.alone.part("host").num_bytes
        == (108_891_648 - 11 * 7_087_872) * 2
    )
    assert result.grafted.trained == result.grafted.parameters - 218_112_000


ENCODERS = ["bert", "roberta", "distilbert", "electra", "mpnet", "albert", "deberta", "deberta-v2", "modernbert"]
CASES = [(family, "text-classification") for family in [*ENCODERS, "llama", "gpt2", "qwen2"]]
CASES += [("bert", task) for task in ("token-classification", "question-answering", "feature-extraction")]
CASES += [("t5", "seq2seq"), ("bart", "seq2seq"), ("llama", "causal-lm"), ("gpt2", "causal-lm")]


SETTINGS = [(*case, {}) for case in CASES]
SETTINGS += [(*case, {"donor_reads": "text"}) for case in [("bert", "text-classification"), ("llama", "causal-lm")]]
SETTINGS += [("bert", "feature-extraction", {"donor_reads": "text", "donor_tokens": "own"})]


@pytest.mark.parametrize(("family", "task", "settings"), SETTINGS)
def test_counts_on_shapes_are_those_of_a_real_run(family, task, settings):
    donor, settings = tiny_config("llama").to_dict(), GraftConfig(task=task, **settings)
    # One layer says as much as two, except in ModernBERT, whose layers differ.
    layers = {} if family == "modernbert" else {"num_hidden_layers": 1}
    host = host_config(family, **layers)
    config = graft_config(host, donor, config=settings)
    model = new_model(config, SMALL, torch.device("cpu"))
    counter = FlopCounterMode(display=False)
    with counter, sdpa_kernel(SDPBackend.MATH), torch.no_grad():
        model(**example_inputs(model, SMALL, labels=False))
    result = profile_graft(host, donor, config=settings, workload=SMALL)
    macs = result.grafted.macs
    convolutions = macs.rest - 5 * norm_elements(model)
    assert macs.linear + macs.attention + convolutions == counter.get_total_flops() // 2
    head = 0 if settings.donor_reads == "host" or model.head is None else SMALL.batch * config.hidden_size**2
    assert result.alone.macs.total == macs.total - result.added.total - head
    is_pooled = task == "text-classification" and settings.donor_reads == "host"
    assert result.positions == (1 if is_pooled else SMALL.length)
    assert min(macs.linear, macs.attention, result.added.attention) > 0
    assert result.grafted.parameters == sum(parameter.numel() for parameter in model.parameters())


@torch.no_grad()
def norm_elements(model):
    seen = []
    for module in model.modules():
        if isinstance(module, nn.LayerNorm):
            module.register_forward_hook(lambda _, __, output: seen.append(output.numel()))
    model(**example_inputs(model, SMALL, labels=False))
    return sum(seen)


def test_products_of_a_host_are_told_apart():
    """Counted by hand for a host whose sizes are all different."""
    config = host_config("bert")
    width, inner, tokens = config.hidden_size, config.intermediate_size, SMALL.batch * SMALL.length
    host = profile_graft(config, workload=SMALL).alone.part("host").macs
    layers = config.num_hidden_layers
    assert host == Macs(
        linear=layers * tokens * (4 * width * width + 2 * width * inner),
        attention=layers * 2 * SMALL.batch * SMALL.length**2 * width,
        rest=(2 * layers + 1) * tokens * width * 5,
    )


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_products_of_experts_are_counted(dtype):
    """Counted by hand: two of four experts for each token, and the layer's router and attention."""
    donor = tiny_config("mixtral", num_local_experts=4, num_experts_per_tok=2)
    width, inner, host = donor.hidden_size, donor.intermediate_size, host_config("bert")
    head_dim = donor.head_dim or width // donor.num_attention_heads
    heads = 2 * donor.num_attention_heads + 2 * donor.num_key_value_heads
    per_token = 2 * 3 * width * inner + 4 * width + heads * head_dim * width + 2 * width * host.hidden_size
    settings = GraftConfig(site=0, donor_dtype=dtype)
    result = profile_graft(host, donor, config=settings, workload=SMALL)
    assert result.added.linear == result.full.linear == SMALL.batch * SMALL.length * per_token
    assert result.grafted.training_macs > result.grafted.macs.total


def test_a_host_without_donor():
    result = profile_graft(host_config("bert"), workload=SMALL)
    assert (result.grafted, result.donor, result.added, result.full) == (None, None, None, None)
    assert [part.name for part in result.alone.parts] == ["host", "head"]


def test_a_stored_graft_has_its_own_donor_and_settings(artifact, tmp_path):
    graft_layer(host_model("bert"), artifact, residual="gated", num_labels=3).save_pretrained(tmp_path / "graft")
    (tmp_path / "graft" / "model.safetensors").unlink()
    result = profile_graft(tmp_path / "graft", workload=SMALL)
    assert [part.name for part in result.grafted.parts] == ["host", "proj_in", "donor", "proj_out", "gate", "head"]
    assert result.grafted.part("head").parameters == 24 * 24 + 24 + 24 * 3 + 3
    assert result.donor.startswith("layer 3 of")
    with pytest.raises(ConfigError, match="has its own donor layer and settings"):
        profile_graft(tmp_path / "graft", artifact)
    with pytest.raises(ConfigError, match="has its own donor layer and settings"):
        profile_graft(tmp_path / "graft", artifact, layer=1)
    for target in (tmp_path / "graft", host_config("bert")):
        with pytest.raises(ConfigError, match="You passed layer 1, but no language model to take it from"):
            profile_graft(target, layer=1)


def test_configs_are_all_that_is_read(artifact, tmp_path):
    """The config.json of a host and a language model are enough; a layer artifact gives the same as its model."""
    host_config("bert").save_pretrained(tmp_path / "host")
    (tmp_path / "llm").mkdir()
    donor = json.loads((artifact / "config.json").read_text())["donor_config"]
    (tmp_path / "llm" / "config.json").write_text(json.dumps(donor))
    of_model = profile_graft(tmp_path / "host", tmp_path / "llm", workload=SMALL)
    of_layer = profile_graft(tmp_path / "host", artifact, workload=SMALL)
    assert of_model.grafted == of_layer.grafted
    assert of_model.donor == f"layer 3 of {tmp_path / 'llm'}"
    assert profile_graft(tmp_path / "host", tmp_path / "llm", layer=1, workload=SMALL).donor.startswith("layer 1 of")
    assert (of_model.grafted.measured, of_model.alone.measured) == (None, None)


def test_what_cannot_be_profiled_says_why(artifact, tmp_path):
    donor = tiny_config("llama").to_dict()
    with pytest.raises(LayerNotFoundError, match="layer is 4, but the donor has 4 layers"):
        profile_graft(host_config("bert"), donor, layer=4)
    with pytest.raises(GraftError, match="is a donor layer. Name a host"):
        profile_graft(artifact)
    with pytest.raises(GraftError, match="doesn't support seq2seq"):
        profile_graft(host_config("bert"), donor, config=GraftConfig(task="seq2seq"))
    for wrong in ({"batch": 0}, {"length": True}, {"dtype": "int3"}, {"repeats": -1}):
        with pytest.raises(ConfigError, match="must be"):
            Workload(**wrong)
    with pytest.raises(ConfigError, match="device is 'nonsense', but this machine has only: .*cpu"):
        Workload(device="nonsense")
    (tmp_path / "config.json").write_text('{"model_type": "nonsense"}')
    with pytest.raises(GraftError, match="transformers doesn't know the config.json"):
        profile_graft(tmp_path)


def test_the_host_alone_has_its_layers_at_every_site():
    config = graft_config(host_config("bert"), tiny_config("llama").to_dict(), config=GraftConfig(site="embeddings"))
    alone = shape_of(without_donor(config)).parameter_counts()
    assert alone["host"] == shape_of(graft_config(host_config("bert"))).parameter_counts()["host"]


def test_the_control_arm_differs_by_the_graft_alone():
    config = graft_config(host_config("bert"), tiny_config("llama").to_dict())
    alone, grafted = (shape_of(c).parameter_counts() for c in (without_donor(config), config))
    assert alone == {name: grafted[name] for name in ("host", "head")}
    assert config.donor is not None
