"""Model cards from facts: texts of strangers stay plain text, and optional facts can be missing."""

import subprocess
import sys
from dataclasses import replace

import pytest
import yaml

from layer_surgeon.hub.assembly_card import AssemblyCard, CardSource
from layer_surgeon.hub.graft_card import GraftCard
from layer_surgeon.hub.layer_card import LayerCard
from layer_surgeon.hub.origin import GraftedLayer, Origin, SourceModel
from layer_surgeon.hub.run_card import DataOrigin, DataSplit, Epoch, Measured, RunCard, Stream
from layer_surgeon.tasks import get_task
from tests.hub.test_security_cards import HOSTILE, tags

TASK = get_task("text-classification")


def layer_card(text):
    return LayerCard(
        model=text,
        base_model=None,
        commit=text,
        licence={"license": text},
        licence_files=[text],
        layer_indices=[30, 31],
        num_layers=32,
        family=text,
        num_tensors=9,
        num_parameters=1_000_000,
        dtype=text,
        files=[text],
        format=text,
    )


def origin(text):
    layer = GraftedLayer(model=text, indices=(3,), commit=text, random=False, trained=False)
    models = (SourceModel(part="host", name=text, licence=text), SourceModel(part="donor", name=text, licence=text))
    return Origin(models=models, layer=layer, is_graft=True, has_head=True)


def graft_card(text):
    return GraftCard(
        origin=origin(text),
        task=TASK,
        parts={"host": (10, 10), "donor": (2000, 0)},
        settings={"site": text, "train_donor": False},
        labels=[text, "good"],
    )


def run_card(text):
    source = DataOrigin(name=text, text=text, url="https://huggingface.co/datasets/a/b", url_note=text)
    split = DataSplit(origin=source, examples=1200, cut=3, per_class={text: 700, "good": 500})
    measured = Measured(examples=1200, scores={"accuracy": 0.5}, per_class={text: (0.1, 0.2, 0.3, 700)})
    return RunCard(
        name=text,
        origin=origin(text),
        task=TASK,
        pipeline_tag="text-classification",
        data=text,
        columns={"text": text, "text_pair": None},
        splits={"train": split, "validation": split},
        stream=None,
        labels=[text, "good"],
        measured={"validation": measured},
        epochs=[Epoch(epoch=1, training_loss=0.7, scores={"accuracy": 0.5})],
        best_epoch=1,
        select_by="accuracy",
        loss_curve="loss_curve.png",
        confusion_matrix=None,
        num_parameters=2010,
        num_trained_parameters=10,
        seconds=1.4,
        device=text,
        settings={"label_column": text},
    )


def assembly_card(text):
    licences = ({"license": text, "license_name": text}, {})
    sources = [
        CardSource(name=text, repo_id=None, commit=text, num_layers=4, parts=[text, "layers 0-1"], licence=licence)
        for licence in licences
    ]
    return AssemblyCard(
        sources=sources,
        layers=[(text, 0, False, 1.0), (text, 1, True, 1.0), (text, 2, False, 0.5)],
        family=text,
        num_parameters=1000,
        dtype="bfloat16",
        licence_files=[text],
        changed=True,
    )


@pytest.mark.parametrize("card", [layer_card, graft_card, run_card, assembly_card])
def test_hostile_texts_dont_change_the_markup(card):
    assert tags(card(HOSTILE).render()) == tags(card("name").render())
    assert len(tags(card("name").render())) > 20


@pytest.mark.parametrize("card", [layer_card, graft_card, run_card, assembly_card])
def test_text_is_not_a_template(card):
    assert "49" not in card("{{ 7 * 7 }}{% set x = 1 %}").render()


def test_a_layer_without_licence_and_commit():
    card = replace(layer_card("owner/model"), licence={}, licence_files=[], commit=None, layer_indices=[31])
    text = card.render()
    assert yaml.safe_load(text.split("---\n")[1]) == {
        "library_name": "layer_surgeon",
        "tags": ["layer-surgeon", "donor-layer"],
    }
    assert (
        "\n# Layer 31 of owner/model\n\nThe decoder layer 31 (counted from 0, of 32) of `owner/model`, taken out"
        in text
    )
    assert text.endswith("stays under the model's licence.\nThe donor has no licence file.\n")


@pytest.mark.parametrize(("rows", "shown"), [(None, "not counted"), (5_000_000, "5,000,000")])
def test_streamed_data(rows, shown):
    text = replace(run_card("name"), stream=Stream(rows=rows, steps=1000)).render()
    assert f"| train | [name](https://huggingface.co/datasets/a/b)name | {shown} | 3 | name 700, good 500 |" in text
    assert "| validation | [name](https://huggingface.co/datasets/a/b)name | 1,200 | 3 |" in text
    assert "for 1,000 steps. The numbers of cut texts and of classes cover only the 1,200 examples" in text


def test_weights_of_a_random_frozen_donor_have_no_terms():
    host = replace(origin("name"), layer=replace(origin("name").layer, random=True))
    assert "under the donor model's licence" not in replace(run_card("name"), origin=host).render()
    assert "in `donor/` (unchanged), under the donor model's licence" in run_card("name").render()


def test_the_card_of_a_layer_needs_no_client_of_the_hub():
    script = (
        "import sys, layer_surgeon.hub.layer_card; print({'torch', 'huggingface_hub', 'jinja2'} & set(sys.modules))"
    )
    assert subprocess.run([sys.executable, "-c", script], capture_output=True, text=True).stdout.strip() == "set()"
