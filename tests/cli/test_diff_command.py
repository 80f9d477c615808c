"""`surgeon diff`: what it shows, writes and returns."""

import json

import numpy as np
import pytest

from tests.support.command_line import surgeon, surgeon_here
from tests.support.numbered_weights import random_weights, write_weights

UP = "model.layers.1.mlp.up_proj.weight"


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A model `a`, the fine-tuned `b`, `c` with another vocabulary, and `d` with a number that isn't finite."""
    root = tmp_path_factory.mktemp("models")
    weights = random_weights()
    write_weights(root / "a", weights, "BF16")
    write_weights(root / "b", weights | {UP: weights[UP] * np.float32(1.5)}, "BF16")
    write_weights(root / "c", weights | {"lm_head.weight": np.ones((43, 16), dtype="f4")}, "BF16")
    write_weights(root / "d", weights | {UP: weights[UP] * np.float32("nan")}, "BF16")
    return root


def test_table_and_sentence(folder):
    result = surgeon_here("diff", "a", "b", "--quiet", cwd=folder)
    assert result.code == 0
    assert "1 of 3 layers differ (layer 1); the rest is equal." in result.out
    assert "1 different, 8 equal   mlp.up_proj.weight (0.5)" in result.out
    assert result.err == ""


def test_equal_models(folder):
    result = surgeon_here("diff", "a", "a", cwd=folder)
    assert result.code == 0
    assert "All tensors are equal." in result.out


def test_tensors_are_listed_on_request(folder):
    result = surgeon_here("diff", "a", "c", "--tensors", cwd=folder)
    assert "lm_head.weight   different shape" in result.out
    assert "40x16 -> 43x16" in result.out
    assert "All layers are equal; the rest differs." in result.out


def test_a_tensor_of_zeros_is_finite(folder, tmp_path):
    write_weights(tmp_path / "zero", random_weights() | {UP: np.zeros_like(random_weights()[UP])}, "BF16")
    for a, b, change in ((tmp_path / "zero", "a", "inf"), ("a", tmp_path / "zero", "1")):
        picture = tmp_path / "picture.svg"
        result = surgeon_here("diff", a, b, "--tensors", "--output", picture, cwd=folder)
        assert "not finite" not in result.out
        assert f"mlp.up_proj.weight ({change})" in result.out
        assert ("∞" in picture.read_text()) == (change == "inf")


def test_long_names_have_their_own_rows(tmp_path):
    names = [f"model.{'vision_' * 9}.{part}" for part in ("weight", "bias")]
    for folder, number in (("a", 1), ("b", 2)):
        tensors = {name: np.full(3, number, dtype="f4") for name in names}
        write_weights(tmp_path / folder, random_weights(num_hidden_layers=1) | tensors, num_hidden_layers=1)
    surgeon_here("diff", "a", "b", "--output", "p.svg", cwd=tmp_path)
    picture = (tmp_path / "p.svg").read_text()
    assert picture.count("…") >= 2
    assert all(f"{part}</text>" in picture for part in ("weight", "bias"))


def test_a_number_that_is_not_finite(folder):
    result = surgeon_here("diff", "a", "d", cwd=folder)
    assert "not finite" in result.out
    document = surgeon_here("diff", "a", "d", "--json", cwd=folder).document()
    assert document["layers"][1]["relative_l2"] is None


def test_json(folder):
    result = surgeon_here("diff", "a", "b", "--json", "--quiet", cwd=folder)
    assert result.code == 0
    document = result.document()
    assert [layer["layer"] for layer in document["layers"]] == [0, 1, 2]
    assert [layer["equal"] for layer in document["layers"]] == [True, False, True]
    layer = document["layers"][1]
    assert 0 < layer["relative_l2"] < 0.5
    assert 0.9 < layer["cosine"] < 1
    assert layer["max_abs"] > 0.5
    assert document["rest"]["equal"]
    assert document["bytes_read"] == sum(4 * numbers.size for numbers in random_weights().values())
    assert document["equal"] is False


@pytest.mark.parametrize(("suffix", "start"), [("html", b"<!doctype html>"), ("svg", b"<svg"), ("png", b"\x89PNG")])
def test_heat_map(folder, tmp_path, suffix, start):
    path = tmp_path / f"picture.{suffix}"
    document = surgeon_here("diff", "a", "b", "--output", path, "--json", cwd=folder).document()
    assert document["picture"] == str(path)
    content = path.read_bytes()
    assert content.startswith(start)
    if suffix != "png":
        assert b"mlp.up_proj.weight" in content
        assert b"<script" not in content


def test_names_from_a_checkpoint_are_not_markup(tmp_path):
    weights = random_weights(num_hidden_layers=1)
    weights["model.<script>alert(1)</script>\x1b[31m"] = np.ones(3, dtype="f4")
    write_weights(tmp_path / "a", weights, num_hidden_layers=1)
    weights["model.<script>alert(1)</script>\x1b[31m"] = np.zeros(3, dtype="f4")
    write_weights(tmp_path / "b", weights, num_hidden_layers=1)
    result = surgeon_here("diff", "a", "b", "--tensors", "--output", "p.html", cwd=tmp_path)
    assert "\x1b" not in result.out
    page = (tmp_path / "p.html").read_text()
    assert "<script" not in page
    assert "&lt;script&gt;" in page


def test_unknown_kinds_of_pictures_are_refused_before_anything_is_read(folder):
    result = surgeon_here("diff", "a", "nowhere", "--output", "picture.gif", cwd=folder)
    assert result.code == 2
    assert "must end in .html, .svg or .png" in result.err


def test_a_picture_that_cannot_be_written_is_refused_before_anything_is_read(folder, tmp_path):
    (tmp_path / "file").touch()
    result = surgeon_here("diff", "a", "nowhere", "--output", tmp_path / "file" / "picture.svg", cwd=folder)
    assert result.code == 1
    assert "picture.svg can't be written" in result.err


def test_an_empty_name_is_not_the_current_folder(folder):
    result = surgeon_here("diff", "", "", cwd=folder / "a")
    assert result.code == 1
    assert "The name of the checkpoint is empty." in result.err


def test_a_missing_checkpoint(folder):
    result = surgeon_here("diff", "a", "./nowhere", cwd=folder)
    assert result.code == 1
    assert "There is no folder or file" in result.err


def test_it_needs_no_torch(folder):
    result = surgeon("diff", "a", "b", "--json", "--quiet", cwd=folder, env={"PYTHONPROFILEIMPORTTIME": "1"})
    assert json.loads(result.out)["layers"][1]["equal"] is False
    modules = {line.rpartition("|")[2].strip() for line in result.err.splitlines()}
    assert "layer_surgeon.run.difference" in modules
    assert not {"torch", "transformers", "huggingface_hub"} & modules
