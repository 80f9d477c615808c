"""`surgeon measure`: what it shows, writes, returns and suggests."""

from types import SimpleNamespace

import pytest
from transformers import LlavaConfig, LlavaForConditionalGeneration

from layer_surgeon.run import run_layers
from layer_surgeon_cli.measure import _drop_command
from tests.support.command_line import surgeon_here
from tests.support.numbered_texts import as_text, random_tokens, save_numbered_tokenizer
from tests.support.tiny_models import save_quietly, tiny_llama

SETTINGS = ("--texts", "texts.txt", "--dtype", "float32", "--device", "cpu", "--quiet")


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    root = tmp_path_factory.mktemp("models")
    save_quietly(tiny_llama(), root / "my model")
    save_numbered_tokenizer(root / "my model")
    (root / "texts.txt").write_text("\n".join(as_text(tokens) for tokens in random_tokens([4, 7, 9, 3, 6])) + "\n")
    return root


@pytest.fixture(scope="module")
def document(folder):
    return surgeon_here("measure", "my model", *SETTINGS, "--suggest-drop", "2", "--json", cwd=folder).document()


def test_json(document):
    assert [layer["layer"] for layer in document["layers"]] == [0, 1, 2, 3]
    assert (document["num_texts"], document["num_tokens"], document["blocks"]) == (5, 29, [])
    assert all(layer["block_influence"] > 0 for layer in document["layers"])
    ranked = sorted(document["layers"], key=lambda layer: layer["block_influence"])
    assert document["suggested_drop"] == sorted(layer["layer"] for layer in ranked[:2])


def test_table_and_the_command_that_drops_layers(folder, document):
    result = surgeon_here("measure", "my model", *SETTINGS, "--suggest-drop", "2", cwd=folder)
    assert result.code == 0
    assert "block influence" in result.out
    assert f"{document['layers'][2]['rms_in']:.4g}" in result.out
    assert document["command"].startswith("surgeon assemble 'my model' --drop ")
    assert document["command"] in result.out


def test_an_impossible_suggestion_is_refused_first_and_the_revision_is_in_the_command(folder):
    refused = surgeon_here("measure", "my model", *SETTINGS, "--suggest-drop", "4", cwd=folder)
    assert (refused.code, refused.out) == (2, "")
    assert "4 of 4 layers can't be dropped. Choose 1 to 3." in refused.err
    measures = SimpleNamespace(source="org/m", commit="abc")
    assert _drop_command(measures, (3,)) == "surgeon assemble org/m --revision abc --drop 3"
    measures.source = "org/m/part"
    assert _drop_command(measures, (3,)) == "surgeon assemble hf://org/m/part --revision abc --drop 3"


def test_the_command_for_a_language_model_next_to_a_vision_tower(folder):
    vision = {"model_type": "clip_vision_model", "hidden_size": 16, "intermediate_size": 16, "num_hidden_layers": 1}
    vision |= {"num_attention_heads": 2, "image_size": 8, "patch_size": 4, "projection_dim": 16}
    text = tiny_llama().config.to_dict()
    config = LlavaConfig(vision_config=vision, text_config=text, tie_word_embeddings=False)
    save_quietly(LlavaForConditionalGeneration(config), folder / "vlm")
    save_numbered_tokenizer(folder / "vlm")
    arguments = ("measure", "vlm", *SETTINGS, "--suggest-drop", "1", "--no-linear", "--json")
    command = surgeon_here(*arguments, cwd=folder).document()["command"]
    assert command.endswith(" --text-only")
    assert surgeon_here(*command.split()[1:], "--dry-run", cwd=folder).code == 0


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("my model",), "Name a file with --texts, or the folder of a run"),
        (("my model", *SETTINGS, "--suggest-drop", "0"), "--suggest-drop is 0; it must be 1 or more"),
        (("states", "--revision", "main"), "so texts, a revision and settings of a run can't be given"),
    ],
)
def test_usage(folder, arguments, message):
    run_layers(folder / "my model", folder / "texts.txt", pool="none", device="cpu", output=folder / "states")
    result = surgeon_here("measure", *arguments, cwd=folder)
    assert (result.code, message in result.err) == (2, True)


def test_blocks(folder):
    settings = (*SETTINGS, "--suggest-drop", "2", "--drop-by", "block", "--no-linear")
    document = surgeon_here("measure", "my model", *settings, "--json", cwd=folder).document()
    assert [(block["layer"], block["num_layers"]) for block in document["blocks"]] == [(0, 2), (1, 2), (2, 2)]
    best = min(document["blocks"], key=lambda block: block["angular_distance"])["layer"]
    assert document["suggested_drop"] == [best, best + 1]
    assert document["command"].endswith(f"--drop {best}:{best + 2}")
    assert document["layers"][0]["linear_r2"] is None
    out = surgeon_here("measure", "my model", *settings, cwd=folder).out
    assert "Blocks of 2 layers" in out
    assert "linear" not in out


@pytest.mark.parametrize(("suffix", "start"), [("html", b"<!doctype html>"), ("svg", b"<svg")])
def test_heat_map(folder, tmp_path, suffix, start):
    path = tmp_path / f"picture.{suffix}"
    assert surgeon_here("measure", "my model", *SETTINGS, "--output", path, cwd=folder).code == 0
    assert path.read_bytes().startswith(start)
    assert b"block influence" in path.read_bytes()


def test_the_states_of_an_earlier_run(folder, document, tmp_path):
    run_layers(
        folder / "my model",
        folder / "texts.txt",
        pool="none",
        output=tmp_path / "states",
        dtype="float32",
        device="cpu",
    )
    again = surgeon_here("measure", tmp_path / "states", "--json", "--quiet", cwd=folder).document()
    assert again["layers"][3]["block_influence"] == pytest.approx(document["layers"][3]["block_influence"], rel=1e-5)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("--texts", "texts.txt", "--output", "p.gif"), "must end in .html, .svg or .png"),
        (("--texts", "texts.txt", "--block", "9"), "A block has 9 layers; it must have 2 to 4"),
        (("--texts", "texts.txt", "--suggest-drop", "4"), "4 of 4 layers can't be dropped"),
        (("--texts", "texts.txt", "--batch-tokens", "0"), "batch_tokens is 0"),
        (
            ("--texts", "texts.txt", "--block", "3", "--suggest-drop", "2", "--drop-by", "block"),
            "--suggest-drop 2 --drop-by block needs --block 2, not 3",
        ),
    ],
)
def test_usage_errors(folder, arguments, message):
    result = surgeon_here("measure", "my model", *arguments, cwd=folder)
    assert result.code == 2
    assert message in " ".join(result.err.split())
