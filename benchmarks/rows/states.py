"""One row of `benchmarks.run`: mean-pooled states of texts at each depth, in one of four ways.

python -m benchmarks.rows.states WAY MODEL TEXTS RESULT

Writes processor times after the imports, in seconds, and one number per text and depth to compare with other rows.
"""

import json
import sys
import time
from pathlib import Path
from typing import Any

import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from layer_surgeon import run_layers
from layer_surgeon.run.batches import make_batches

BATCH_TOKENS = 4096


def by_layers(model: str, texts: list[str], dtype: str | None) -> dict[str, Any]:
    start = time.process_time()
    states = run_layers(model, texts, batch_tokens=BATCH_TOKENS, dtype=dtype)
    seconds = time.process_time() - start
    depths = range(states.info["num_layers"])
    return {
        "load": 0.0,
        "compute": seconds,
        "num_bytes_read": states.info["num_bytes_read"],
        "sums": [states[depth].abs().sum(-1).tolist() for depth in depths],
    }


def by_whole_model(model: str, texts: list[str], dtype: str | None, **settings: Any) -> dict[str, Any]:
    start = time.process_time()
    whole = AutoModelForCausalLM.from_pretrained(model, dtype=dtype or "auto", **settings).eval().base_model
    return compute(whole, AutoTokenizer.from_pretrained(model), texts, start)


def compute(whole: Any, tokenizer: Any, texts: list[str], start: float) -> dict[str, Any]:
    loaded = time.process_time()
    ids = tokenizer(texts)["input_ids"]
    sums: list[list[float]] = [[0.0] * len(texts) for _ in range(whole.config.num_hidden_layers)]
    for batch in make_batches([len(tokens) for tokens in ids], BATCH_TOKENS):
        rows = [ids[text] + [0] * (batch.width - len(ids[text])) for text in batch.texts]
        with torch.no_grad():
            output = whole(torch.tensor(rows), attention_mask=batch.mask, output_hidden_states=True, use_cache=False)
        for depth, states in enumerate(output.hidden_states[:-1]):
            for text, length, row in zip(batch.texts, batch.lengths, states, strict=True):
                sums[depth][text] = row[:length].float().mean(0).abs().sum().item()
    return {"load": loaded - start, "compute": time.process_time() - loaded, "sums": sums}


def by_airllm(model: str, texts: list[str]) -> dict[str, Any]:
    from airllm import AutoModel  # in an environment of its own

    start = time.process_time()
    # The first time, this writes a copy of the checkpoint with a file per layer.
    whole = AutoModel.from_pretrained(model, device="cpu", layer_shards_saving_path=f"{model}-airllm").model.base_model
    return compute(whole, AutoTokenizer.from_pretrained(model), texts, start)


def main() -> None:
    way, model, texts_file, result, *dtypes = sys.argv[1:]
    texts = Path(texts_file).read_text().splitlines()
    dtype = dtypes[0] if dtypes else None
    if way == "layers":
        values = by_layers(model, texts, dtype)
    elif way == "airllm":
        values = by_airllm(model, texts)
    elif way == "whole":
        values = by_whole_model(model, texts, dtype)
    else:
        offload = {"device_map": "auto", "max_memory": {"cpu": "1GB"}, "offload_folder": f"{result}.offload"}
        values = by_whole_model(model, texts, dtype, **offload)
    Path(result).write_text(json.dumps(values))


if __name__ == "__main__":
    main()
