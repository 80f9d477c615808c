"""Tasks that use every token: token classification, question answering, feature extraction."""

import pytest
import torch
from torch.nn import functional
from transformers import (
    AutoModel,
    AutoModelForQuestionAnswering,
    AutoModelForTokenClassification,
    AutoTokenizer,
    Trainer,
    TrainingArguments,
    pipeline,
)

from layer_surgeon.errors import ConfigError, GraftError
from layer_surgeon.graft import (
    GraftedModel,
    GraftedModelForFeatureExtraction,
    GraftedModelForQuestionAnswering,
    GraftedModelForTokenClassification,
    graft_layer,
    save_graft,
)
from layer_surgeon.workspace import Workspace
from tests.graft.conftest import (
    host_model,
    make_inputs,
)
from tests.support.graft_reference import run_graft, tokens_of
from tests.support.graft_suite import LENGTHS, padded_inputs

# torch 2.11 says so where transformers compiles parts of DeBERTa.
pytestmark = pytest.mark.filterwarnings("ignore:`torch.jit.script` is deprecated:DeprecationWarning")

TOKEN, QUESTION, FEATURES = "token-classification", "question-answering", "feature-extraction"
CLASSES = {
    TOKEN: (GraftedModelForTokenClassification, AutoModelForTokenClassification),
    QUESTION: (GraftedModelForQuestionAnswering, AutoModelForQuestionAnswering),
    FEATURES: (GraftedModelForFeatureExtraction, AutoModel),
}


def outputs(model, inputs):
    """All outputs of a task for each token, [batch, seq, number]."""
    out = model(**inputs)
    if model.config.task == QUESTION:
        return torch.stack([out.start_logits, out.end_logits], dim=-1)
    return out.logits if model.config.task == TOKEN else out.last_hidden_state


def host_states(host, inputs):
    stack = host.get_encoder() if host.config.is_encoder_decoder else host
    return stack(**inputs).last_hidden_state


@pytest.mark.parametrize(("host_type", "attention"), [("bert", "causal"), ("llama", "bidirectional")])
@torch.no_grad()
def test_attention(host_type, attention, llm, artifact):
    host = host_model(host_type)
    model = graft_layer(host, artifact, FEATURES, attention=attention, residual="gated")
    model.gate.fill_(0.7)
    inputs = padded_inputs()
    mask = inputs["attention_mask"]
    expected = run_graft(llm, model, host_states(host, inputs), mask, causal=attention == "causal", gate=0.7)
    found = outputs(model, inputs)
    torch.testing.assert_close(tokens_of(found, mask), tokens_of(expected, mask), rtol=1e-6, atol=1e-6)


@torch.no_grad()
def test_answers_cant_be_padding(artifact):
    model = graft_layer(host_model("bert"), artifact, QUESTION)
    inputs = padded_inputs()
    out = model(**inputs)
    for logits in (out.start_logits, out.end_logits):
        probabilities = logits.softmax(dim=-1)
        assert (probabilities[inputs["attention_mask"] == 0] == 0).all()
        assert torch.isfinite(logits).all()


def test_loss_of_answers(artifact):
    model = graft_layer(host_model("bert"), artifact, QUESTION)
    inputs = padded_inputs()
    start, end = torch.tensor([1, 2, 20]), torch.tensor([3, 2, 20])
    out = model(**inputs, start_positions=start, end_positions=end)
    # The third answer is not in this piece of its text.
    expected = (
        functional.cross_entropy(out.start_logits[:2], start[:2])
        + functional.cross_entropy(out.end_logits[:2], end[:2])
    ) / 2
    torch.testing.assert_close(out.loss, expected)
    out.loss.backward()
    assert model.proj_in.weight.grad.abs().sum() > 0


def test_loss_of_tokens(artifact):
    model = graft_layer(host_model("bert"), artifact, TOKEN, num_labels=3)
    labels = torch.randint(0, 3, (3, 9), generator=torch.Generator().manual_seed(0))
    inputs = padded_inputs()
    labels[inputs["attention_mask"] == 0] = -100
    out = model(**inputs, labels=labels)
    kept = labels != -100
    torch.testing.assert_close(out.loss, functional.cross_entropy(out.logits[kept], labels[kept]))


@pytest.mark.parametrize("pooling", [None, "mean", "cls", "last", "mean_with_padding", "none"])
@torch.no_grad()
def test_vector_of_a_text(pooling, artifact):
    model = graft_layer(host_model("bert"), artifact, FEATURES, pooling=pooling)
    inputs = padded_inputs()
    out = model(**inputs)
    if pooling == "none":
        assert out.pooler_output is None
        return
    for row, length in enumerate(LENGTHS):
        states = out.last_hidden_state[row]
        expected = {
            "cls": states[0],
            "last": states[length - 1],
            "mean_with_padding": states.mean(0),
        }.get(pooling, states[:length].mean(0))
        torch.testing.assert_close(out.pooler_output[row], expected)


@torch.no_grad()
def test_decoder_without_mask(artifact):
    model = graft_layer(host_model("llama"), artifact, FEATURES)
    inputs = padded_inputs()
    torch.testing.assert_close(model(input_ids=inputs["input_ids"]).pooler_output, model(**inputs).pooler_output)


@torch.no_grad()
def test_control_arm(artifact):
    host = host_model("bert")
    inputs = padded_inputs()
    states = host(**inputs).last_hidden_state
    assert torch.equal(graft_layer(host, None, FEATURES)(**inputs).last_hidden_state, states)
    model = graft_layer(host, None, TOKEN)
    assert torch.equal(model(**inputs).logits, model.head(states))


def test_set_labels(artifact):
    model = graft_layer(host_model("bert"), artifact, TOKEN)
    model.set_labels(["O", "B-PER", "I-PER"])
    assert model(**make_inputs()).logits.shape == (3, 9, 3)
    for task in (QUESTION, FEATURES):
        with pytest.raises(ConfigError, match=f"You passed labels, but {task} has none"):
            graft_layer(host_model("bert"), artifact, task).set_labels(["a", "b"])


def test_masks_of_other_shapes_are_refused(artifact):
    ids = make_inputs()["input_ids"]
    for task in (TOKEN, QUESTION, FEATURES):
        with pytest.raises(GraftError, match=r"attention_mask has 4 dimensions; it must be \[batch, seq\]"):
            graft_layer(host_model("llama"), artifact, task)(input_ids=ids, attention_mask=torch.ones(3, 1, 9, 9))


def test_pipelines(host_folder, artifact, tmp_path):
    workspace = Workspace(tmp_path / "surgery")

    def stored(task, **settings):
        config = graft_layer(host_model("bert"), artifact, task, **settings).config.settings
        return save_graft(host_folder("bert"), artifact, config=config, output=tmp_path / task, workspace=workspace)

    folder = stored(TOKEN, id2label={"0": "O", "1": "B-PER"}).path
    found = pipeline(TOKEN, model=str(folder))("the film was good")
    assert {entry["word"] for entry in found} <= {"the", "film", "was", "good"}
    assert {entry["entity"] for entry in found} <= {"B-PER"}
    assert all(0 < entry["score"] <= 1 for entry in found)

    folder = stored(FEATURES).path
    rows = pipeline(FEATURES, model=str(folder))("the film was good")
    tokens = AutoTokenizer.from_pretrained(folder)("the film was good", return_tensors="pt")
    with torch.no_grad():
        expected = GraftedModel.from_pretrained(folder)(**tokens).last_hidden_state
    torch.testing.assert_close(torch.tensor(rows), expected)


@pytest.mark.parametrize("model_type", ["bert", "llama", "t5"])
def test_a_module_of_sentence_transformers(model_type, host_folder, artifact, tmp_path):
    library = pytest.importorskip("sentence_transformers")
    config = graft_layer(host_model(model_type), artifact, FEATURES).config.settings
    workspace = Workspace(tmp_path / "surgery")
    folder = save_graft(host_folder(model_type), artifact, config=config, workspace=workspace).path
    texts = ["the film was good", "a story"]
    tokens = AutoTokenizer.from_pretrained(folder)(texts, padding=True, return_tensors="pt")
    with torch.no_grad():
        expected = GraftedModel.from_pretrained(folder)(**tokens).pooler_output
    model = library.SentenceTransformer(str(folder), device="cpu")
    torch.testing.assert_close(torch.tensor(model.encode(texts)), expected)
    model.save(str(tmp_path / "saved"))
    again = library.SentenceTransformer(str(tmp_path / "saved"), device="cpu")
    torch.testing.assert_close(torch.tensor(again.encode(texts)), expected)


@pytest.mark.parametrize("task", [TOKEN, QUESTION])
def test_trainer(task, artifact, tmp_path):
    model = graft_layer(host_model("bert"), artifact, task)
    inputs = make_inputs(batch=4)
    targets = {TOKEN: {"labels": [0, 1] * 4 + [-100]}, QUESTION: {"start_positions": 1, "end_positions": 2}}[task]
    rows = [{"input_ids": ids.tolist(), "attention_mask": [1] * 9, **targets} for ids in inputs["input_ids"]]
    arguments = TrainingArguments(
        output_dir=str(tmp_path),
        max_steps=1,
        report_to=[],
        disable_tqdm=True,
        use_cpu=True,
        eval_strategy="steps",
        eval_steps=1,
        save_strategy="no",
        dataloader_pin_memory=False,
    )
    trainer = Trainer(model=model, args=arguments, train_dataset=rows, eval_dataset=rows)
    assert set(trainer.label_names) == set(targets)
    before = model.head.out.weight.clone()
    trainer.train()
    assert not torch.equal(model.head.out.weight, before)
    assert trainer.evaluate()["eval_loss"] > 0
