"""The rows of `benchmarks.run`, at a tiny size: both ways give the same states, and each byte is read once."""

import pytest

from benchmarks.rows.states import by_layers, by_whole_model
from benchmarks.run import make_llama, report
from layer_surgeon import open_checkpoint
from tests.support.checkpoints import LLAMA_8B
from tests.support.numbered_texts import as_text, random_tokens

TINY = LLAMA_8B | {
    "hidden_size": 64,
    "intermediate_size": 128,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "vocab_size": 100,
    "eos_token_id": 2,
    "bos_token_id": 1,
}


def test_rows_agree(tmp_path, capsys):
    make_llama(tmp_path / "model", TINY, 3)
    texts = [as_text(tokens) for tokens in random_tokens((4, 9, 6))]
    whole = by_whole_model(str(tmp_path / "model"), texts, "bfloat16")
    layers = by_layers(str(tmp_path / "model"), texts, "bfloat16")
    for expected, sums in zip(whole["sums"], layers["sums"], strict=True):
        assert sums == pytest.approx(expected, rel=1e-2)
    checkpoint = open_checkpoint(tmp_path / "model")
    weights = sum(tensor.num_bytes for layer in range(3) for tensor in checkpoint.layer_tensors(layer))
    assert weights < layers["num_bytes_read"] <= weights + 100 * 64 * 2
    usage = {"seconds": 1.0, "resident_bytes": 10, "anonymous_bytes": 5}
    report([{"way": "whole", **whole, **usage}, {"way": "layers", **layers, **usage}])
    assert "one layer at a time: largest relative difference from the first row" in capsys.readouterr().err
