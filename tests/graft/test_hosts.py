"""Hosts: their kind follows from the config, and only the part that a graft needs is kept."""

import pytest
import torch
from transformers import (
    AutoModelForCausalLM,
    AutoModelForMaskedLM,
    AutoModelForSequenceClassification,
    BertConfig,
    BertModel,
    T5Config,
    ViTConfig,
    ViTModel,
)
from transformers.models.bert.modeling_bert import BertPooler

from layer_surgeon.errors import GraftError
from layer_surgeon.graft import GraftedModelForSequenceClassification, SurgeonGraftConfig, graft_layer
from layer_surgeon.graft.hosts import host_kind
from tests.graft.conftest import DECODERS, ENCODERS, host_config, host_model, make_inputs


@pytest.mark.parametrize("model_type", [*ENCODERS, "camembert"])
def test_encoders(model_type):
    assert host_kind(host_config(model_type)) == "encoder"


@pytest.mark.parametrize("model_type", [*DECODERS, "bloom", "smollm3", "gemma2", "falcon"])
def test_decoders(model_type):
    assert host_kind(host_config(model_type)) == "decoder"


def test_config_flags_decide_the_kind():
    assert host_kind(host_config("bert", is_decoder=True)) == "decoder"
    assert host_kind(host_config("llama", is_causal=False)) == "encoder"
    assert host_kind(host_config("gemma3_text", use_bidirectional_attention=True)) == "encoder"
    assert host_kind(T5Config()) == "encoder-decoder"


@pytest.mark.parametrize(
    ("auto", "model_type"),
    [
        (AutoModelForMaskedLM, "bert"),
        (AutoModelForSequenceClassification, "roberta"),
        (AutoModelForCausalLM, "gpt2"),
    ],
)
@torch.no_grad()
def test_a_loaded_model_with_a_head(auto, model_type, artifact):
    headed = auto.from_config(host_config(model_type)).eval()
    model = graft_layer(headed, artifact)
    assert type(model.host) is type(headed.base_model)
    assert model.host.get_input_embeddings() is headed.base_model.get_input_embeddings()
    assert model(**make_inputs()).logits.shape == (3, 2)


def test_pooler_is_left_out_and_the_callers_model_is_unchanged(artifact):
    bert = BertModel(host_config("bert"))
    model = graft_layer(bert, artifact)
    assert model.host.pooler is None
    assert bert.pooler is not None
    assert model.host.embeddings is bert.embeddings
    assert graft_layer(bert, artifact).host.pooler is None


def test_host_weights_are_not_reinitialised(artifact):
    host = host_model("bert")
    host.embeddings.extra = torch.nn.Linear(3, 3)
    torch.nn.init.constant_(host.embeddings.extra.weight, 7.0)
    before = {name: value.clone() for name, value in host.state_dict().items() if not name.startswith("pooler")}
    after = graft_layer(host, artifact).host.state_dict()
    assert before.keys() == after.keys()
    assert all(torch.equal(value, after[name]) for name, value in before.items())


def test_a_loaded_model_in_bfloat16(artifact):
    model = graft_layer(host_model("bert").to(torch.bfloat16), artifact)
    assert model.proj_in.weight.dtype == model.head.out.weight.dtype == torch.bfloat16
    assert model.donor.dtype == torch.float32
    assert model(**make_inputs()).logits.dtype == torch.bfloat16


def test_models_that_cant_be_hosts(artifact):
    small = {"hidden_size": 8, "num_hidden_layers": 1, "num_attention_heads": 1, "intermediate_size": 8}
    with pytest.raises(GraftError, match="is a vit model, which doesn't read text"):
        graft_layer(ViTModel(ViTConfig(**small)), artifact)
    with pytest.raises(GraftError, match="The host is a Linear; it must be a folder, a repo id or a loaded"):
        graft_layer(torch.nn.Linear(2, 2), artifact)


def test_a_graft_cant_be_a_host(artifact, tmp_path):
    graft = graft_layer(host_model("bert"), artifact, "feature-extraction")
    graft.save_pretrained(tmp_path / "graft")
    for host in (graft, tmp_path / "graft"):
        with pytest.raises(GraftError, match="is a graft, but a graft can't be the host of another one. Graft the lay"):
            graft_layer(host, artifact)
    with pytest.raises(GraftError, match="The host of this graft is a graft too, which is not supported"):
        SurgeonGraftConfig(host_config=graft.config.to_dict(), graft=graft.config.graft)


@pytest.mark.parametrize(
    ("model_type", "task", "message"),
    [
        ("bert", "seq2seq", "is of kind encoder, but seq2seq needs a host of kind encoder-decoder.*such as t5-base"),
        ("llama", "seq2seq", "is of kind decoder.* or another task: text-classification.*causal-lm"),
        ("bert", "causal-lm", "needs a host of kind decoder with a language head, such as HuggingFaceTB"),
        ("t5", "causal-lm", "is of kind encoder-decoder, but .*or another task: .*seq2seq"),
    ],
)
def test_tasks_that_a_host_doesnt_support(model_type, task, message, artifact):
    with pytest.raises(GraftError, match=message):
        graft_layer(host_model(model_type), artifact, task)


def test_missing_language_head_is_refused(artifact):
    with pytest.raises(GraftError, match="is a LlamaModel, which lacks the language head.*Load it with AutoModelForCa"):
        graft_layer(host_model("llama"), artifact, "causal-lm")
    with pytest.raises(
        GraftError, match="is a T5Model, which lacks .*seq2seq needs. Load it with AutoModelForSeq2SeqLM"
    ):
        graft_layer(host_model("t5"), artifact, "seq2seq")


@pytest.mark.parametrize(
    ("donor", "projection", "layer"),
    [
        (
            {"model_type": "llama", "hidden_size": 4096, "intermediate_size": 14336, "num_attention_heads": 32},
            3.146,
            218.112,
        ),
        (
            {"model_type": "qwen2", "hidden_size": 896, "intermediate_size": 4864, "num_attention_heads": 14},
            0.688,
            14.912,
        ),
    ],
    ids=["Llama-3.1-8B", "Qwen2-0.5B"],
)
def test_parameter_counts_are_the_papers(donor, projection, layer):
    """Table 20 of the paper, in millions, for BERT-base. The paper includes BERT's pooler, although it is not used."""
    key_value_heads = {"llama": 8, "qwen2": 2}[donor["model_type"]]
    donor_config = {**donor, "num_hidden_layers": 2, "num_key_value_heads": key_value_heads, "vocab_size": 8}
    config = SurgeonGraftConfig(
        host_config=BertConfig(),
        donor={
            "hidden_size": donor["hidden_size"],
            "layer_indices": [1],
            "config": {"donor_config": donor_config, "layer_indices": [1]},
        },
        graft={"pooling": "cls", "attention": "bidirectional"},
    )
    with torch.device("meta"):
        model = GraftedModelForSequenceClassification(config)
        pooler = BertPooler(BertConfig())
    counts = {name: total for name, (total, _) in model.parameter_counts().items()}
    counts["host"] += sum(p.numel() for p in pooler.parameters())
    millions = {name: round(count / 1e6, 3) for name, count in counts.items()}
    assert millions == {"host": 109.482, "proj_in": projection, "donor": layer, "proj_out": projection, "head": 0.592}


def test_cls_pooling_is_refused_for_decoders(artifact):
    with pytest.raises(GraftError, match="pooling is 'cls', but the host .llama. is a decoder.*Choose last or mean"):
        graft_layer(host_model("llama"), artifact, pooling="cls")
