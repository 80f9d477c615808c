"""What users of transformers do with a model besides the usual: packed texts, half precision, prompts of peft, ..."""

import pytest
import torch
from peft import PromptTuningConfig, get_peft_model
from transformers import (
    AutoModelForCausalLM,
    AutoModelForSeq2SeqLM,
    AutoTokenizer,
    DataCollatorWithPadding,
    LongformerConfig,
    LongformerForSequenceClassification,
)

from layer_surgeon.errors import GraftError
from layer_surgeon.graft import GraftConfig, GraftedModel, export_model, graft_layer, save_graft
from layer_surgeon.graft.pooling import pool
from layer_surgeon.graft.reading import DonorNorm
from layer_surgeon.workspace import Workspace
from tests.graft.conftest import host_model, host_table, make_inputs
from tests.support.tiny_models import tiny_model
from tests.support.tiny_stacks import save_stack

READS_TEXT = {"donor_reads": "text", "donor_tokens": "host"}


@torch.no_grad()
def test_packed_texts_are_kept_apart(artifact):
    """As `DataCollatorWithFlattening` packs them: one row, no mask, and positions that begin again."""
    ids = make_inputs(2, 5)["input_ids"]
    first, second = ids[:1], ids[1:, :4]
    positions = torch.tensor([[0, 1, 2, 3, 4, 0, 1, 2, 3]])
    packed = {"input_ids": torch.cat([first, second], dim=1), "position_ids": positions}
    model = graft_layer(host_model("llama", auto=AutoModelForCausalLM), artifact, "causal-lm").eval()
    torch.testing.assert_close(model(**packed).logits[:, 5:], model(input_ids=second).logits)
    for site in (0, "encoder_output"):
        model = graft_layer(host_model("llama"), artifact, "token-classification", attention="causal", site=site).eval()
        torch.testing.assert_close(model(**packed).logits[:, 5:], model(input_ids=second).logits)


def test_the_encoder_takes_its_mask_by_position(artifact):
    encoder = graft_layer(host_model("t5", auto=AutoModelForSeq2SeqLM), artifact, "seq2seq").eval().get_encoder()
    ids, mask = make_inputs().values()
    mask[1, 4:] = 0
    with torch.no_grad():
        by_name = encoder(input_ids=ids, attention_mask=mask).last_hidden_state
        assert torch.equal(encoder(ids, mask).last_hidden_state[mask.bool()], by_name[mask.bool()])


def test_buffers_that_are_not_stored_are_made_again(artifact, tmp_path):
    model = graft_layer(tiny_model("falcon_h1", seed=1, vocab_size=40), artifact, "causal-lm").eval()
    model.save_pretrained(tmp_path)
    loaded = GraftedModel.from_pretrained(tmp_path).eval()
    with torch.no_grad():
        assert torch.equal(loaded(**make_inputs()).logits, model(**make_inputs()).logits)


@pytest.mark.filterwarnings("ignore:.*is deprecated and will be removed in v6:FutureWarning")
def test_a_prompt_of_peft_can_not_generate(artifact):
    model = graft_layer(host_model("llama", auto=AutoModelForCausalLM), artifact, "causal-lm").eval()
    settings = {"max_new_tokens": 2, "do_sample": False, "pad_token_id": 0}
    expected = model.generate(**make_inputs(), **settings)
    config = PromptTuningConfig(
        task_type="CAUSAL_LM", num_virtual_tokens=4, num_layers=2, num_attention_heads=4, token_dim=24
    )
    with pytest.raises(GraftError, match=r"A trained prompt of peft .* can't generate text with a graft. Use LoRA"):
        get_peft_model(model, config).generate(**make_inputs(), **settings)
    assert torch.equal(model.generate(**make_inputs(), **settings), expected)


def test_the_mean_of_large_states_in_half_precision():
    states, mask = torch.full((1, 512, 3), 200.0), torch.ones(1, 512)
    for dtype in (torch.float16, torch.bfloat16, torch.float32):
        vectors = pool(states.to(dtype), mask, "mean")
        assert (vectors.dtype, vectors.tolist()) == (dtype, [[200.0] * 3])


def test_the_norm_of_a_donors_states_keeps_its_precision(stack, tmp_path):
    assert DonorNorm(32).bfloat16()(torch.ones(4, 32, dtype=torch.bfloat16)).dtype == torch.float32
    graft_layer(host_model("bert"), stack, **READS_TEXT).save_pretrained(tmp_path)
    model = GraftedModel.from_pretrained(tmp_path, dtype="bfloat16")
    assert {parameter.dtype for parameter in model.donor_norm.state_dict().values()} == {torch.float32}
    assert model.proj_out.weight.dtype == torch.bfloat16
    assert model(**make_inputs()).logits.isfinite().all()


@torch.no_grad()
def test_longformer_reads_all_of_a_text_for_its_first_token(artifact):
    config = LongformerConfig(
        vocab_size=40,
        hidden_size=24,
        num_hidden_layers=1,
        num_attention_heads=4,
        intermediate_size=36,
        attention_window=4,
        max_position_embeddings=64,
        pad_token_id=0,
    )
    model = graft_layer(LongformerForSequenceClassification(config), artifact).eval()
    ids = make_inputs(1, 32)["input_ids"]
    other = ids.clone()
    other[0, 25] = (ids[0, 25] - 3) % 36 + 4
    mask = torch.ones_like(ids)
    assert not torch.equal(model(ids, mask).logits, model(other, mask).logits)
    alone = torch.zeros_like(ids)
    without = {"global_attention_mask": alone}
    assert torch.equal(model(ids, mask, **without).logits, model(other, mask, **without).logits)


@pytest.mark.parametrize("host_type", ["bert", "llama"])
def test_use_cache_is_taken_as_by_other_classifiers(host_type, artifact):
    model = graft_layer(host_model(host_type), artifact).eval()
    inputs = make_inputs()
    assert torch.equal(model(**inputs, use_cache=True).logits, model(**inputs).logits)


def test_tokens_that_the_donor_does_not_know(llm, tmp_path):
    small = host_table(save_stack(llm, 2, tmp_path / "stack"), num_tokens=36)
    model = graft_layer(host_model("bert"), small, **READS_TEXT).eval()
    with pytest.raises(GraftError, match="The donor has vectors for 36 tokens of the host, so it can't read 42 tokens"):
        model.resize_token_embeddings(42)
    model.save_pretrained(tmp_path / "graft")
    assert export_model(tmp_path / "graft", tmp_path / "graft.pt2", format="torch").path.is_file()


def test_a_host_that_names_itself_as_its_stack(artifact):
    with pytest.raises(GraftError, match=r"The host \(llama4_text\) can't run with site"):
        graft_layer(tiny_model("llama4_text", vocab_size=40), artifact, "causal-lm")


def test_states_of_the_donor_are_not_kept_without_gradients(stack):
    model = graft_layer(host_model("bert"), stack, "token-classification", site=0, **READS_TEXT).eval()
    model(**make_inputs())
    assert model._site_hooks._last.states is not None
    with torch.no_grad():
        model(**make_inputs())
    assert model._site_hooks._last.states is None


def test_rows_that_are_padded_already(own_stack, host_folder, tmp_path):
    """As after `Dataset.map(tokenize)`, in front of Trainer's usual collator."""
    config = GraftConfig(donor_reads="text", donor_tokens="own")
    workspace = Workspace(tmp_path / "w")
    save_graft(host_folder("bert"), own_stack, config=config, output=tmp_path / "graft", workspace=workspace)
    tokenizer = AutoTokenizer.from_pretrained(tmp_path / "graft")
    padded = tokenizer(["good", "bad film"], padding="max_length", max_length=12)
    rows = [{name: padded[name][row] for name in padded} for row in range(2)]
    batch = DataCollatorWithPadding(tokenizer, pad_to_multiple_of=8)(rows)
    for name in ("attention_mask", "donor_attention_mask"):
        assert batch[name].tolist() == [[*row, 0, 0, 0, 0] for row in padded[name]]
    single = tokenizer.pad(rows[0], padding="max_length", max_length=14)
    assert single["donor_attention_mask"] == [*rows[0]["donor_attention_mask"], 0, 0]
