"""`surgeon profile`: its tables and its JSON document."""

import json

import pytest

from tests.support.command_line import surgeon_here

BERT = {
    "model_type": "bert",
    "vocab_size": 40,
    "hidden_size": 24,
    "intermediate_size": 36,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
}
LLAMA = {
    "model_type": "llama",
    "vocab_size": 40,
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
}


@pytest.fixture
def folder(tmp_path):
    """A folder with a host and a language model. Both have only a config.json."""
    for name, config in (("host", BERT), ("llm", LLAMA)):
        (tmp_path / name).mkdir()
        (tmp_path / name / "config.json").write_text(json.dumps(config))
    return tmp_path


def test_document(folder):
    result = surgeon_here(
        "profile", "host", "--donor", "llm", "--batch", 2, "--length", 5, "--donor-dtype", "bfloat16", "--json",
        cwd=folder,
    )  # fmt: skip
    assert result.code == 0, result.err
    document = result.document()
    assert (document["host"], document["donor"]) == ("host", "layer 2 of llm")
    assert document["workload"] == {"batch": 2, "length": 5, "dtype": "float32", "device": None, "repeats": 3}
    alone, grafted, graft = document["alone"], document["grafted"], document["graft"]
    layer = 2 * 32 * 32 + 2 * 32 * 16 + 3 * 32 * 48
    donor = grafted["parts"]["donor"]
    assert donor["parameters"] == layer + 2 * 32
    assert (donor["trained"], donor["num_bytes"]) == (0, 2 * donor["parameters"])
    assert grafted["parameters"] - alone["parameters"] == donor["parameters"] + 2 * 24 * 32
    assert graft["positions"] == 1
    assert graft["full_macs"]["linear"] == 2 * (layer + 2 * 24 * 32)
    assert graft["per_token_macs"]["linear"] == 5 * graft["full_macs"]["linear"]
    assert grafted["macs"]["total"] == alone["macs"]["total"] + graft["macs"]["total"]
    assert grafted["training_macs"] > alone["training_macs"] > alone["macs"]["total"]
    assert (alone["measured"], grafted["measured"]) == (None, None)


def test_table(folder):
    result = surgeon_here("profile", "host", "-d", "llm", "--layer", "0", "--pooling", "mean", cwd=folder)
    assert result.code == 0, result.err
    for text in ("layer 0 of llm", "32 x 100 tokens", "proj_in", "host alone", "every token", "ratio", "--measure"):
        assert text in result.out


def test_a_host_alone(folder):
    result = surgeon_here("profile", "host", cwd=folder)
    assert result.code == 0, result.err
    assert "none: the host alone" in result.out
    assert "ratio" not in result.out
    assert surgeon_here("profile", "host", "--json", cwd=folder).document()["graft"] is None


@pytest.mark.parametrize(
    ("arguments", "code", "message"),
    [
        (("profile",), 1, "holds no"),
        (("profile", "host", "-d", "llm", "--layer", "7"), 1, "the donor has 3 layers"),
        (("profile", "nowhere/at/all"), 1, "neither a local folder nor a repo"),
        (("profile", "host", "--batch", "0"), 2, "batch is 0"),
        (("profile", "host", "--dtype", "int3"), 2, "int3"),
        (("profile", "host", "-d", "llm", "--task", "seq2seq"), 1, "doesn't support seq2seq"),
    ],
)
def test_bad_input(arguments, code, message, folder):
    result = surgeon_here(*arguments, cwd=folder)
    assert result.code == code
    assert message in " ".join(result.err.split())
    assert "Traceback" not in result.err
