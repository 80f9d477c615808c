"""docs/graft.md and docs/graft_settings.md: the examples run, the settings are complete, the drawing has all parts."""

import re
import runpy
from dataclasses import fields
from pathlib import Path
from xml.etree import ElementTree

import pytest
import torch
from transformers import AutoModelForSeq2SeqLM, AutoTokenizer

from layer_surgeon.graft import GraftConfig, GraftedModel, graft_layer
from tests.graft.conftest import host_model, word_tokenizer
from tests.support.tiny_models import save_quietly

ROOT = Path(__file__).parents[2]
PAGE = (ROOT / "docs/graft.md").read_text()
SETTINGS = (ROOT / "docs/graft_settings.md").read_text()


@pytest.fixture
def run_example(artifact, host_folder, tmp_path, monkeypatch):
    """Run the code under a heading in a new folder, and return its global names."""
    save_quietly(host_model("t5", auto=AutoModelForSeq2SeqLM), tmp_path / "t5")
    word_tokenizer().save_pretrained(tmp_path / "t5")
    places = {
        "meta-llama/Llama-3.1-8B": artifact.parent / "llm",
        "bert-base-uncased": host_folder("bert"),
        "t5-base": tmp_path / "t5",
        "sentence-transformers/all-MiniLM-L6-v2": host_folder("bert"),
    }
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("SURGEON_WORKSPACE", str(tmp_path / "surgery"))

    def run(heading):
        code = PAGE.partition(f"### {heading}\n\n```python\n")[2].partition("```")[0]
        for name, folder in places.items():
            code = code.replace(f'"{name}"', f'"{folder}"')
        (tmp_path / "example.py").write_text(code)
        return runpy.run_path(str(tmp_path / "example.py"))

    return run


@pytest.mark.slow
def test_the_classifier(run_example, capsys):
    names = run_example("A classifier")
    metrics, found = capsys.readouterr().out.strip().splitlines()[-2:]
    assert "accuracy" in metrics
    assert re.fullmatch(r"\[\{'label': '(good|bad)', 'score': 0\.\d+\}\]", found)
    assert names["classify"].model.donor is not None


@pytest.mark.slow
def test_the_translator(run_example, tmp_path):
    names = run_example("A translator")
    model = GraftedModel.from_pretrained("translator")
    tokenizer = AutoTokenizer.from_pretrained("translator")
    assert torch.equal(model.generate(**names["source"], num_beams=5, max_new_tokens=20), names["written"])
    before = graft_layer(tmp_path / "t5", tmp_path / "layer", "seq2seq")
    assert not torch.equal(model.get_input_embeddings().weight, before.get_input_embeddings().weight)
    assert all(torch.equal(p, q) for p, q in zip(model.donor.parameters(), before.donor.parameters(), strict=True))
    assert tokenizer.vocab_size > 10


@pytest.mark.slow
def test_the_sentence_embeddings(run_example, host_folder):
    pytest.importorskip("sentence_transformers")
    names = run_example("Sentence embeddings")
    tokens = AutoTokenizer.from_pretrained("embedder")("the film was good", return_tensors="pt")
    with torch.no_grad():
        states = host_model("bert")(**tokens).last_hidden_state
    torch.testing.assert_close(torch.tensor(names["vectors"][0]), states[0].mean(0))


def test_every_setting_is_in_the_table():
    lines = SETTINGS.partition("## Settings\n")[2].partition("\n## ")[0].splitlines()
    first = [line.split("|")[1] for line in lines if line.startswith("| `")]
    assert {name for cell in first for name in re.findall(r"`(\w+)`", cell)} == {
        field.name for field in fields(GraftConfig)
    }


def test_the_drawing_has_a_graft_for_each_kind_of_host():
    drawing = ElementTree.parse(ROOT / "docs/assets/graft-kinds.svg").getroot()
    texts = [element.text for element in drawing.iter() if element.tag.endswith("text")]
    for part in ("proj_in", "donor layer", "proj_out"):
        assert texts.count(part) == 3
    kinds = (
        "encoder: BERT, ModernBERT, ...",
        "encoder-decoder: T5, BART, ...",
        "decoder: SmolLM2, GPT-2, ...",
    )
    assert set(kinds) <= set(texts)
    assert "(assets/graft-kinds.svg)" in PAGE
