"""A donor that reads the text: joins, both kinds of tokens, states computed earlier, and what is refused.

tests/graft/test_suite.py runs every host and task with the host's tokens.
"""

import json
import shutil

import pytest
import torch
from safetensors import safe_open
from torch.nn import functional
from transformers import AutoTokenizer, DataCollatorWithPadding, Trainer, TrainingArguments, pipeline

from layer_surgeon._vocabulary import vocabulary_sha256
from layer_surgeon.donor import DonorLayer, DonorStack
from layer_surgeon.errors import ArtifactError, ConfigError, GraftError
from layer_surgeon.finetune import predict
from layer_surgeon.graft import GraftConfig, GraftedModel, GraftTokenizer, graft_layer, save_graft
from layer_surgeon.graft.matching import _sample_ids
from layer_surgeon.graft.reading import run_stack_alone
from layer_surgeon.workspace import Workspace
from tests.graft.conftest import host_model, host_table, make_inputs, word_tokenizer
from tests.support.command_line import surgeon_here
from tests.support.graft_reference import run_head, run_reader
from tests.support.graft_suite import LENGTHS, outputs, padded_inputs, plain_host, targets
from tests.support.tiny_stacks import save_stack

TEXTS = ["the film was good", "a plot", "not very bad and not very good"]


def new_graft(stack, task="text-classification", host_type="bert", **settings):
    """A graft whose gate and norm are as after some training."""
    torch.manual_seed(0)
    model = graft_layer(plain_host(host_type, task), stack, task, donor_reads="text", **settings)
    for parameter in (*model.donor_norm.parameters(), *([] if model.gate is None else [model.gate])):
        torch.nn.init.normal_(parameter, 1, 0.3)
    return model


def own_inputs():
    """Three texts in both kinds of tokens; the donor's have other lengths, and padding on the right."""
    ids = make_inputs(3, 12, seed=7)["input_ids"]
    mask = (torch.arange(12) < torch.tensor([[5], [12], [8]])).long()
    return padded_inputs() | {"donor_input_ids": ids, "donor_attention_mask": mask}


@pytest.fixture(scope="module")
def own_graft(own_stack, host_folder, tmp_path_factory):
    """The folder of a graft of BERT whose donor reads tokens of its own."""
    config = GraftConfig(donor_reads="text", donor_tokens="own", id2label={0: "bad", 1: "good"})
    root = tmp_path_factory.mktemp("own")
    save_graft(host_folder("bert"), own_stack, config=config, output=root / "graft", workspace=Workspace(root / "w"))
    return root / "graft"


@pytest.mark.parametrize("settings", [{}, {"donor_pooling": "last"}, {"site": 0, "pooling": "mean"}])
@torch.no_grad()
def test_texts_that_take_turns_are_read_as_each_alone(stack, settings):
    """Bit for bit, and each layer runs on all texts before the next one runs."""
    model = new_graft(stack, **settings)
    texts = [torch.arange(3, 3 + length) for length in (5, 1, 9)]
    order = []
    for position, layer in enumerate(model.donor.layers.layers):
        layer.register_forward_pre_hook(lambda _, args, position=position: order.append(position))
    together = run_stack_alone(model.donor, texts, model.config.settings)
    assert order == sorted(order)
    assert len(order) == len(texts) * len(model.donor.layers.layers) > len(texts)
    for ids, states in zip(texts, together, strict=True):
        alone = model.read_text(input_ids=ids[None], attention_mask=torch.ones_like(ids)[None])
        assert torch.equal(states, alone[0])


class TestJoins:
    """What the head gets, by the formulas."""

    @pytest.mark.parametrize("join", ["concat", "gated", "replace"])
    @torch.no_grad()
    def test_vectors(self, join, llm, stack):
        model, inputs = new_graft(stack, join=join), padded_inputs()
        host = model.host(**inputs).last_hidden_state[:, 0]
        read = run_reader(llm, model, inputs["input_ids"], inputs["attention_mask"], pooled=True)
        vectors = {"concat": torch.cat([host, read], dim=-1), "replace": read}.get(join)
        if vectors is None:
            vectors = host + model.gate * read
        torch.testing.assert_close(model(**inputs).logits, run_head(model.head, vectors), rtol=1e-6, atol=1e-6)

    @torch.no_grad()
    def test_the_gate_starts_at_zero(self, stack):
        model = graft_layer(host_model("bert"), stack, donor_reads="text", join="gated")
        inputs = padded_inputs()
        alone = model.head(model.host(**inputs).last_hidden_state[:, 0])
        assert torch.equal(model(**inputs).logits, alone)

    @pytest.mark.parametrize("side", ["right", "left"])
    @torch.no_grad()
    def test_the_last_token_instead_of_the_mean(self, side, stack):
        model = new_graft(stack, host_type="llama", donor_pooling="last")
        inputs = padded_inputs(side)
        states = model.read_text(**inputs)
        for row, length in enumerate(LENGTHS):
            real = inputs["input_ids"][[row], :length] if side == "right" else inputs["input_ids"][[row], 9 - length :]
            torch.testing.assert_close(states[row], model.donor(real)[0, -1], rtol=1e-5, atol=1e-5)

    @pytest.mark.parametrize("site", [0, "embeddings"])
    @torch.no_grad()
    def test_inside_of_the_host(self, site, llm, stack):
        """The states are added to the output of a module of the host, token by token."""
        model, inputs = new_graft(stack, site=site, pooling="mean"), padded_inputs()
        read = run_reader(llm, model, inputs["input_ids"], inputs["attention_mask"], pooled=False)
        host = host_model("bert")
        if site == "embeddings":
            hidden = host.embeddings(inputs["input_ids"]) + model.gate * read
        else:
            host.encoder.layer[0].register_forward_hook(lambda _, __, out: out + model.gate * read)
            hidden = host(**inputs).last_hidden_state
        pooled = torch.stack(
            [row[keep].mean(0) for row, keep in zip(hidden, inputs["attention_mask"].bool(), strict=True)]
        )
        torch.testing.assert_close(model(**inputs).logits, run_head(model.head, pooled), rtol=1e-5, atol=1e-6)

    @torch.no_grad()
    def test_nothing_at_padding_reaches_the_result(self, stack, monkeypatch):
        model, inputs = new_graft(stack, "token-classification"), padded_inputs()
        expected = model(**inputs).logits
        run = DonorStack.forward

        def with_nan(self, ids, attention_mask=None, **settings):
            states = run(self, ids, attention_mask=attention_mask, **settings)
            return states.masked_fill((attention_mask == 0).unsqueeze(-1), torch.nan)

        monkeypatch.setattr(DonorStack, "forward", with_nan)
        assert torch.equal(model(**inputs).logits, expected)
        assert model.read_text(**inputs).isfinite().all()


class TestOwnTokens:
    """donor_tokens="own"."""

    @torch.no_grad()
    def test_classification(self, llm, own_stack):
        model, inputs = new_graft(own_stack, donor_tokens="own"), own_inputs()
        host = model.host(**padded_inputs()).last_hidden_state[:, 0]
        read = run_reader(llm, model, inputs["donor_input_ids"], inputs["donor_attention_mask"], pooled=True)
        expected = run_head(model.head, torch.cat([host, read], dim=-1))
        torch.testing.assert_close(model(**inputs).logits, expected, rtol=1e-6, atol=1e-6)

    @pytest.mark.parametrize("site", ["encoder_output", 1])
    @torch.no_grad()
    def test_features(self, site, llm, own_stack):
        """Each token of the host gets the same vector, so the mean over them does too."""
        model, inputs = new_graft(own_stack, "feature-extraction", donor_tokens="own", site=site), own_inputs()
        hidden = host_model("bert")(**padded_inputs()).last_hidden_state
        read = run_reader(llm, model, inputs["donor_input_ids"], inputs["donor_attention_mask"], pooled=True)
        out = model(**inputs)
        expected = hidden + model.gate * read[:, None]
        torch.testing.assert_close(out.last_hidden_state, expected, rtol=1e-5, atol=1e-5)
        mask = inputs["attention_mask"].bool()
        pooled = torch.stack([row[keep].mean(0) for row, keep in zip(expected, mask, strict=True)])
        torch.testing.assert_close(out.pooler_output, pooled, rtol=1e-5, atol=1e-5)

    @torch.no_grad()
    def test_pipeline_from_a_plain_string(self, own_graft):
        run = pipeline("text-classification", model=str(own_graft))
        assert type(run.tokenizer) is GraftTokenizer
        model, donor = GraftedModel.from_pretrained(own_graft), AutoTokenizer.from_pretrained(own_graft / "donor")
        rows = []
        for text in TEXTS:
            tokens = word_tokenizer()(text, return_tensors="pt")
            ids = donor(text, return_tensors="pt")["input_ids"]
            assert ids[0, 0] == 1  # <s>
            assert ids.shape[1] == len(text) + 1
            rows.append(functional.softmax(model(**tokens, donor_input_ids=ids).logits, dim=-1)[0])
        for found in (run(TEXTS, top_k=None), run(TEXTS, top_k=None, batch_size=3)):
            for entries, row in zip(found, rows, strict=True):
                scores = {entry["label"]: entry["score"] for entry in entries}
                assert scores == pytest.approx({"bad": float(row[0]), "good": float(row[1])}, abs=1e-6)

    def test_tokenizer_gives_what_both_tokenizers_give(self, own_graft, own_stack):
        both, host = AutoTokenizer.from_pretrained(own_graft), word_tokenizer()
        donor = AutoTokenizer.from_pretrained(own_stack)
        donor.padding_side, donor.pad_token = "right", "</s>"
        pairs = (TEXTS, TEXTS[::-1])
        for inputs in ((TEXTS,), pairs, (TEXTS[0],), (TEXTS[0], TEXTS[1])):
            for settings in (
                {},
                {"truncation": True, "max_length": 7},
                {"padding": True, "return_tensors": "pt"},
                {"padding": "max_length", "max_length": 80},
                {"padding": True, "pad_to_multiple_of": 8, "add_special_tokens": False},
            ):
                found = both(*inputs, **settings)
                expected = {**host(*inputs, **settings)}
                expected |= {f"donor_{name}": value for name, value in donor(*inputs, **settings).items()}
                assert set(found) == set(expected)
                for name, value in expected.items():
                    assert type(found[name]) is type(value)
                    assert torch.equal(found[name], value) if torch.is_tensor(value) else found[name] == value, settings

    def test_the_donor_reads_words_as_a_text(self, own_graft, own_stack):
        both, words = AutoTokenizer.from_pretrained(own_graft), [text.split() for text in TEXTS]
        expected = AutoTokenizer.from_pretrained(own_stack)(TEXTS)["input_ids"]
        assert both(words, is_split_into_words=True)["donor_input_ids"] == expected
        assert both(words[0], is_split_into_words=True)["donor_input_ids"] == expected[0]
        pairs = both(words, words, is_split_into_words=True)["donor_input_ids"]
        assert pairs == both(TEXTS, TEXTS)["donor_input_ids"]

    def test_tokenizer_cuts_both_on_the_same_side(self, own_graft, own_stack):
        both = AutoTokenizer.from_pretrained(own_graft, truncation_side="left")
        donor = AutoTokenizer.from_pretrained(own_stack, truncation_side="left")
        cut = {"truncation": True, "max_length": 5}
        assert both(TEXTS, **cut)["donor_input_ids"] == donor(TEXTS, **cut)["input_ids"]
        assert (
            both(TEXTS[2], **cut)["input_ids"] == word_tokenizer(truncation_side="left")(TEXTS[2], **cut)["input_ids"]
        )

    def test_tokenizer_after_saving_and_loading(self, own_graft, tmp_path):
        both = AutoTokenizer.from_pretrained(own_graft)
        both(TEXTS, truncation=True, max_length=4)
        both.save_pretrained(tmp_path)
        shutil.copy(own_graft / "config.json", tmp_path)
        again = AutoTokenizer.from_pretrained(tmp_path)
        assert again(TEXTS).data == both(TEXTS).data
        assert (tmp_path / "donor_tokenizer.json").read_bytes() == (own_graft / "donor_tokenizer.json").read_bytes()
        (tmp_path / "donor_tokenizer.json").unlink()
        with pytest.raises(GraftError, match="lacks donor_tokenizer.json, its donor's tokenizer. Get the graft again"):
            AutoTokenizer.from_pretrained(tmp_path)
        with pytest.raises(ConfigError, match="return_overflowing_tokens is true, but the pieces .*Leave it out"):
            both("a", return_overflowing_tokens=True)

    def test_collator_and_trainer(self, own_graft, tmp_path):
        both = AutoTokenizer.from_pretrained(own_graft)
        features = [{**both(text), "labels": row % 2} for row, text in enumerate(TEXTS)]
        batch = DataCollatorWithPadding(both)(features)
        expected = both(TEXTS, padding=True, return_tensors="pt")
        assert all(torch.equal(batch[name], value) for name, value in expected.items())
        single = both.pad(both("a plot"), padding="max_length", max_length=12)
        assert [len(single[name]) for name in both.model_input_names] == [12] * 4
        model = GraftedModel.from_pretrained(own_graft)
        before = {name: value.clone() for name, value in model.state_dict().items()}
        arguments = TrainingArguments(
            output_dir=str(tmp_path), max_steps=2, report_to=[], disable_tqdm=True, use_cpu=True, save_strategy="no"
        )
        trainer = Trainer(model, arguments, train_dataset=features, data_collator=DataCollatorWithPadding(both))
        trainer.train()
        changed = {n.split(".")[0] for n, value in model.state_dict().items() if not torch.equal(value, before[n])}
        assert changed == {"host", "donor_norm", "proj_out", "head"}

    def test_commands(self, own_graft, own_stack, host_folder, tmp_path):
        rows = [f"{'good' if i % 2 else 'bad'} film {'the ' * (i % 5)},{'good' if i % 2 else 'bad'}" for i in range(24)]
        (tmp_path / "train.csv").write_text("\n".join(["text,label", *rows]))
        graft = ("graft", str(host_folder("bert")), "--donor-reads", "text", "--donor-tokens", "own")
        made = surgeon_here(*graft, "--donor", str(own_stack), "--json", cwd=tmp_path)
        assert made.code == 0, made.err
        assert made.document()["settings"]["join"] == "concat"
        assert set(made.document()["parameters"]) == {"host", "donor", "donor_norm", "proj_out", "head"}
        tuned = surgeon_here("finetune", "--dataset", "train.csv", "--max-steps", "2", "--output", "run", cwd=tmp_path)
        assert tuned.code == 0, tuned.err
        assert (tmp_path / "run/donor_tokenizer.json").is_file()
        for arguments in (("evaluate", "--dataset", "train.csv"), ("predict", "the film was good")):
            done = surgeon_here(*arguments, "--json", cwd=tmp_path)
            assert done.code == 0, done.err
        (prediction,) = done.document()
        expected = pipeline("text-classification", model=str(tmp_path / "run"))("the film was good")
        assert prediction["score"] == pytest.approx(expected[0]["score"], abs=1e-5)

    def test_inputs_that_are_missing_or_too_many(self, stack, own_stack):
        own, host = new_graft(own_stack, donor_tokens="own"), new_graft(stack)
        with pytest.raises(
            GraftError, match="reads tokens of its own, but there are no donor_input_ids. Pass all that"
        ):
            own(**padded_inputs())
        with pytest.raises(
            GraftError, match="You passed donor_input_ids, but .* reads the host's tokens. Leave donor_in"
        ):
            host(**own_inputs())
        with pytest.raises(
            GraftError, match=r"no input_ids \(inputs_embeds has no text\). Pass input_ids, or donor_sta"
        ):
            host(inputs_embeds=torch.zeros(1, 3, 24))
        with pytest.raises(GraftError, match=r"has the shape \[3, 9\]; it must be \[batch, seq\] = \[3, 12\]"):
            own(**own_inputs() | {"donor_attention_mask": padded_inputs()["attention_mask"]})

    def test_a_tokenizer_of_the_host_alone(self, own_graft, own_stack, host_folder):
        model = GraftedModel.from_pretrained(own_graft)
        with pytest.raises(ConfigError, match=r"a \w+ only gives the host's. Use a graft that surgeon graft has saved"):
            predict(model, ["a film"], tokenizer=word_tokenizer())
        donor = AutoTokenizer.from_pretrained(own_stack)
        both = GraftTokenizer.from_tokenizers(AutoTokenizer.from_pretrained(host_folder("bert")), donor)
        assert len(predict(model, ["a film"], tokenizer=both)) == 1

    def test_texts_are_cut_to_the_donors_positions(self, own_graft, own_stack):
        tokenizer = AutoTokenizer.from_pretrained(own_graft)
        positions = DonorStack.from_pretrained(own_stack).config.family_config().max_position_embeddings
        assert tokenizer.donor_max_length == positions
        tokenizer.model_max_length = 2 * positions  # of the host
        assert len(tokenizer("a film " * positions, truncation=True)["donor_input_ids"]) == positions

    def test_donors_without_a_tokenizer(self, llm, own_stack, host_folder, tmp_path):
        config = GraftConfig(donor_reads="text", donor_tokens="own")
        bare = save_stack(llm, 2, tmp_path / "bare")
        with pytest.raises(GraftError, match="The donor .*bare' has no tokenizer that transformers can load"):
            save_graft(host_folder("bert"), bare, config=config, workspace=Workspace(tmp_path / "w"))
        loaded = DonorStack.from_config(DonorStack.from_pretrained(own_stack).config)
        with pytest.raises(GraftError, match="is not from a folder, so its tokenizer is unknown. Pass the folder"):
            save_graft(host_folder("bert"), loaded, config=config, workspace=Workspace(tmp_path / "w"))

        class Slow:
            pass

        with pytest.raises(
            GraftError, match="tokenizer of the donor is a Slow, which has no tokenizer.json. Set donor"
        ):
            GraftTokenizer.from_tokenizers(word_tokenizer(), Slow())


class TestStatesComputedEarlier:
    """`donor_states` instead of running the donor."""

    @pytest.mark.parametrize(
        ("task", "host_type", "settings"),
        [
            ("text-classification", "bert", {}),
            ("text-classification", "bert", {"site": 0}),
            ("token-classification", "roberta", {}),
            ("question-answering", "bert", {}),
            ("feature-extraction", "bert", {}),
            ("seq2seq", "t5", {}),
            ("causal-lm", "llama", {}),
        ],
    )
    def test_gives_the_same_bits(self, task, host_type, settings, stack, monkeypatch):
        model, inputs = new_graft(stack, task, host_type, **settings), padded_inputs()
        with torch.no_grad():
            expected, states = outputs(model, task, inputs), model.read_text(**inputs)
        assert states.shape == ((3, 32) if task == "text-classification" and not settings else (3, 9, 32))
        model.train()
        learned = [gradients(model, task, inputs), None]
        model.eval()
        monkeypatch.setattr(DonorStack, "forward", lambda *_, **__: pytest.fail("The donor ran."))
        with torch.no_grad():
            assert torch.equal(outputs(model, task, inputs | {"donor_states": states}), expected)
        model.train()
        learned[1] = gradients(model, task, inputs | {"donor_states": states})
        assert learned[0].keys() == learned[1].keys()
        assert all(torch.equal(value, learned[1][name]) for name, value in learned[0].items())

    def test_are_for_one_pass(self, stack):
        model, inputs = new_graft(stack, "causal-lm", "llama"), padded_inputs()
        with torch.no_grad():
            expected = model(**inputs).logits
            model(**inputs, donor_states=torch.zeros(3, 9, 32))
            assert torch.equal(model(**inputs).logits, expected)

    @torch.no_grad()
    def test_are_not_kept_for_a_source_that_is_already_encoded(self, stack):
        model, inputs = new_graft(stack, "seq2seq", "t5"), padded_inputs()
        decoder_inputs = {"decoder_input_ids": inputs["input_ids"]}
        expected, encoded = model(**inputs, **decoder_inputs).logits, model.get_encoder()(**inputs)
        model(**inputs, **decoder_inputs, encoder_outputs=encoded, donor_states=torch.zeros(3, 9, 32))
        assert torch.equal(model.get_encoder()(**inputs).last_hidden_state, encoded.last_hidden_state)
        assert torch.equal(model(**inputs, **decoder_inputs).logits, expected)

    def test_own_tokens(self, own_stack):
        model, inputs = new_graft(own_stack, donor_tokens="own"), own_inputs()
        with torch.no_grad():
            states = model.read_text(**inputs)
            assert torch.equal(model(**padded_inputs(), donor_states=states).logits, model(**inputs).logits)

    def test_of_the_wrong_shape(self, stack, artifact):
        model, inputs = new_graft(stack), padded_inputs()
        with pytest.raises(GraftError, match=r"donor_states has the shape \[3, 9, 32\]; it must be \[3, 32\]. Compute"):
            model(**inputs, donor_states=torch.zeros(3, 9, 32))
        tokens = new_graft(stack, "token-classification")
        with pytest.raises(GraftError, match=r"donor_states has the shape \[3, 8, 32\]; it must be \[3, 9, 32\]"):
            tokens(**inputs, donor_states=torch.zeros(3, 8, 32))
        plain = graft_layer(host_model("bert"), artifact)
        with pytest.raises(
            GraftError, match="You passed donor_states, but the donor of this graft gets the host's vec"
        ):
            plain(**inputs, donor_states=torch.zeros(3, 32))
        assert plain.read_text(**inputs) is None


def gradients(model, task, inputs):
    torch.manual_seed(3)
    out = model(**inputs, **targets(task))
    loss = out.last_hidden_state.square().sum() if task == "feature-extraction" else out.loss
    model.zero_grad()
    loss.backward()
    return {name: value.grad.clone() for name, value in model.named_parameters() if value.grad is not None}


class TestScale:
    """The fixed mean and scale of `donor_norm`."""

    @pytest.mark.parametrize("task", ["text-classification", "token-classification"])
    @torch.no_grad()
    def test_features_of_the_sample_have_mean_0_and_deviation_1(self, task, stack):
        state = torch.random.get_rng_state()
        model = graft_layer(plain_host("bert"), stack, task, donor_reads="text", join="replace")
        states = model.donor_norm(model.read_text(_sample_ids(40))).flatten(0, -2)
        torch.testing.assert_close(states.mean(dim=0), torch.zeros(32), rtol=0, atol=1e-4)
        torch.testing.assert_close(states.std(dim=0), torch.ones(32), rtol=1e-4, atol=0)
        assert not torch.equal(model.donor_norm.scale, torch.ones(32))
        torch.random.set_rng_state(state)

    @torch.no_grad()
    def test_a_text_starts_with_the_token_that_the_tokenizer_puts_there(self, own_stack):
        model = graft_layer(plain_host("bert"), own_stack, donor_reads="text", donor_tokens="own")
        ids = _sample_ids(96)
        ids[:, 0] = 1
        states = model.donor_norm(model.read_text(None, donor_input_ids=ids))
        torch.testing.assert_close(states.std(dim=0), torch.ones(32), rtol=1e-4, atol=0)

    def test_states_that_are_all_the_same(self, stack):
        donor = DonorStack.from_pretrained(stack)
        with torch.no_grad():
            donor.entrance.model.embed_tokens.weight.zero_()
        with pytest.raises(GraftError, match="states of 32 random texts are not finite, or are all the same. Check"):
            graft_layer(host_model("bert"), donor, donor_reads="text")


class TestDonors:
    """Which donors fit, and how they are stored."""

    def test_a_stack_reads_text_as_it_was_extracted(self, stack, own_stack):
        for donor, tokens in ((stack, "host"), (own_stack, "own")):
            for given in (donor, DonorStack.from_pretrained(donor)):
                settings = graft_layer(host_model("bert"), given, join="gated").config.settings
                assert (settings.reads_text, settings.donor_tokens, settings.join) == (True, tokens, "gated")

    def test_kinds_that_dont_fit(self, artifact, stack, own_stack):
        host = host_model("bert")
        plain = (
            r"holds layers without embeddings, .*: surgeon extract MODEL --layer 0:9 --embeddings --vocabulary HOST$"
        )
        for donor in (artifact, DonorLayer.from_pretrained(artifact)):
            with pytest.raises(GraftError, match=plain):
                graft_layer(host, donor, donor_reads="text")
        for donor in (stack, DonorStack.from_pretrained(stack)):
            with pytest.raises(
                GraftError, match="is a stack, which reads text, but donor_reads is 'host'. Set donor_r"
            ):
                graft_layer(host, donor, donor_reads="host")
            with pytest.raises(GraftError, match="but donor_reads is 'host'"):
                graft_layer(host, donor, config=GraftConfig())
        with pytest.raises(
            GraftError, match=r"reads its model's own tokens, but .* 'host'. Set donor_tokens to own, or"
        ):
            graft_layer(host, own_stack, donor_tokens="host")
        with pytest.raises(ConfigError, match="is .own., but causal-lm needs .* with --vocabulary HOST, and"):
            graft_layer(host, own_stack, "causal-lm")
        with pytest.raises(
            GraftError, match=r"reads the tokens of a host, but .* Set donor_tokens to host.*embeddings$"
        ):
            graft_layer(host, stack, donor_reads="text", donor_tokens="own")
        with pytest.raises(ConfigError, match="donor_reads is 'text', which needs a donor. Leave donor_reads out"):
            graft_layer(host, None, donor_reads="text")

    def test_a_vocabulary_of_another_host(self, llm, stack, host_folder, tmp_path):
        sha256 = vocabulary_sha256(word_tokenizer(), "words")
        right = host_table(save_stack(llm, 2, tmp_path / "right"), 19, sha256)
        assert graft_layer(host_folder("bert"), right, donor_reads="text").donor.num_layers == 2
        message = f"reads the tokens of tiny-host .sha256 {'0' * 64}., but .*bert, has other tokens .sha256 {sha256}"
        with pytest.raises(GraftError, match=message + r".*: surgeon extract MODEL --layer 0:2 --embeddings --vocab"):
            graft_layer(host_folder("bert"), stack, donor_reads="text")
        with pytest.raises(GraftError, match="reads the 40 tokens of tiny-host, but the host, a bert .*, has 30. Extr"):
            graft_layer(host_model("bert", vocab_size=30), stack, donor_reads="text")

    @torch.no_grad()
    def test_storing(self, own_graft, own_stack, tmp_path, monkeypatch):
        assert (own_graft / "donor/model.safetensors").samefile(own_stack / "model.safetensors")
        with safe_open(own_graft / "model.safetensors", framework="pt") as file:
            assert not [name for name in file.keys() if name.startswith("donor.")]  # noqa: SIM118  # not a dict
        model = GraftedModel.from_pretrained(own_graft)
        model.save_pretrained(tmp_path / "bare", include_donor=False)
        assert not (tmp_path / "bare/donor").exists()
        monkeypatch.setenv("SURGEON_WORKSPACE", str(tmp_path / "w"))
        how = r"Extract it again \(surgeon extract tiny --layer 0:2 --embeddings\)"
        with pytest.raises(GraftError, match=f"embeddings and layers 0 to 1 of tiny, sha256 .*{how}"):
            GraftedModel.from_pretrained(tmp_path / "bare")
        again = GraftedModel.from_pretrained(tmp_path / "bare", donor=own_stack)
        assert torch.equal(again(**own_inputs()).logits, model(**own_inputs()).logits)
        card = (own_graft / "README.md").read_text()
        assert "with the embeddings and layers 0, 1 of tiny, which read the text too" in card
        assert "| donor_norm | LayerNorm over the donor's states |" in card
        assert "None" not in card

    @pytest.mark.parametrize("device_map", ["cpu", "auto", {"": "cpu"}], ids=str)
    @torch.no_grad()
    def test_device_maps(self, device_map, own_graft, monkeypatch):
        monkeypatch.setattr("torch.cuda.is_available", lambda: False)
        model = GraftedModel.from_pretrained(own_graft, device_map=device_map)
        expected = GraftedModel.from_pretrained(own_graft)(**own_inputs()).logits
        assert torch.equal(model(**own_inputs()).logits, expected)

    @torch.no_grad()
    def test_random_weights(self, stack, tmp_path):
        model = new_graft(stack, donor_init="random")
        model.save_pretrained(tmp_path)
        assert torch.equal(
            GraftedModel.from_pretrained(tmp_path)(**make_inputs()).logits, model(**make_inputs()).logits
        )
        assert not torch.equal(new_graft(stack)(**make_inputs()).logits, model(**make_inputs()).logits)

    def test_a_config_that_was_changed(self, stack, tmp_path):
        new_graft(stack).save_pretrained(tmp_path)
        config = json.loads((tmp_path / "config.json").read_text())
        for embeddings, error in ((["x"], GraftError), ({"vocabulary": 3}, GraftError), (None, ArtifactError)):
            config["donor"]["config"]["embeddings"] = embeddings
            (tmp_path / "config.json").write_text(json.dumps(config))
            with pytest.raises(error, match=r"has no valid config|has no embeddings, so it is not a stack artifact"):
                GraftedModel._from_config(GraftedModel.config_class.from_pretrained(tmp_path))
