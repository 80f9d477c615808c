"""Perplexity after dropping layers: the choice of `surgeon measure` against random layers and the last ones.

    python -m research.dropping [MODEL]     measure; continues where it stopped

The model is one that comes in packages: Gemma-3-270M (the extra [demo]) or Qwen2.5-Coder-1.5B. Layers are measured on
the 1,000 sentences of Yelp that layer_surgeon has, and perplexity on the first 40 of IMDb. Layers are dropped in
memory, from the model in transformers.
What was expected, what came out, and the names of the numbers: research/dropping.md.
"""

import argparse
import copy
import csv
import random
import tempfile
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import torch
from transformers import AutoModelForCausalLM, AutoTokenizer, PreTrainedModel

from benchmarks.machine import ROOT, machine, say, versions
from benchmarks.packaged_gguf import write_packaged_gguf
from layer_surgeon import measure_layers
from layer_surgeon._io import read_json, write_json
from layer_surgeon.run import run_layers
from research.evidence import MEASURED

RESULTS = MEASURED / "dropping.json"
MODELS = ("gemma-3-270m", "qwen2.5-coder-1.5b-instruct")
SENTENCES = ROOT / "layer_surgeon" / "data" / "sentences"
COUNTS = (2, 4, 6)
NUM_DRAWS, NUM_TEXTS, BATCH = 10, 40, 4
SEED = 0


def read_sentences(name: str) -> list[str]:
    """The sentences of one of the package's files."""
    with (SENTENCES / f"{name}.csv").open(encoding="utf-8", newline="") as file:
        return [row["text"] for row in csv.DictReader(file)]


def without_layers(model: PreTrainedModel, dropped: Sequence[int]) -> PreTrainedModel:
    """The same model without some of its layers. The weights are shared."""
    shallow = copy.copy(model)
    shallow._modules = dict(model._modules)
    shallow.config = copy.deepcopy(model.config)
    decoder = shallow._modules["model"] = copy.copy(model.model)
    decoder._modules = dict(model.model._modules)
    kept = [index for index in range(model.config.num_hidden_layers) if index not in dropped]
    decoder._modules["layers"] = torch.nn.ModuleList(model.model.layers[index] for index in kept)
    decoder.config = shallow.config
    shallow.config.num_hidden_layers = len(kept)
    shallow.config.layer_types = [model.config.layer_types[index] for index in kept]
    return shallow


@torch.no_grad()
def perplexity(model: PreTrainedModel, rows: Sequence[Sequence[int]]) -> float:
    """The exponential of the mean negative log-likelihood of all tokens but the first of each text."""
    total, count = 0.0, 0
    order = sorted(rows, key=len)
    for start in range(0, len(order), BATCH):
        batch = order[start : start + BATCH]
        width = max(map(len, batch))
        ids = torch.tensor([[*row, *[0] * (width - len(row))] for row in batch])
        mask = torch.tensor([[1] * len(row) + [0] * (width - len(row)) for row in batch])
        logits = model(input_ids=ids, attention_mask=mask, use_cache=False).logits[:, :-1]
        losses = torch.nn.functional.cross_entropy(logits.flatten(0, 1), ids[:, 1:].flatten(), reduction="none")
        is_token = mask[:, 1:].flatten().bool()
        total += float(losses[is_token].double().sum())
        count += int(is_token.sum())
    return float(torch.tensor(total / count, dtype=torch.float64).exp())


def choices(measures: dict[str, Any], num_layers: int) -> Iterator[tuple[str, int, tuple[int, ...]]]:
    """Each arm's name, how many layers it drops, and which."""
    yield "none", 0, ()
    for count in COUNTS:
        yield "influence", count, tuple(measures["influence"][str(count)])
        yield "block", count, tuple(measures["block"][str(count)])
        yield "last", count, tuple(range(num_layers - count, num_layers))
        generator = random.Random(f"{SEED} {count}")
        for draw in range(NUM_DRAWS):
            yield f"random-{draw}", count, tuple(sorted(generator.sample(range(num_layers), count)))


def measure_choices(model: str) -> dict[str, Any]:
    """What `surgeon measure --suggest-drop` chooses, for each number of layers and both rules."""
    chosen: dict[str, Any] = {"influence": {}, "block": {}}
    with tempfile.TemporaryDirectory() as folder:
        states = run_layers(f"packaged:{model}", read_sentences("yelp"), pool="none", output=Path(folder, "states"))
        for count in COUNTS:
            measures = measure_layers(states, block=count, linear=False)
            chosen["influence"][str(count)] = list(measures.suggest_drop(count))
            chosen["block"][str(count)] = list(measures.suggest_drop(count, "block"))
    chosen["block_influence"] = [measure.block_influence for measure in measures.layers]
    return chosen


def main() -> None:
    """Read the command line, and measure what is missing in the results."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model", metavar="MODEL", nargs="?", choices=MODELS, default=MODELS[0])
    parser.add_argument("--output", type=Path, default=RESULTS)
    arguments = parser.parse_args()
    output: Path = arguments.output
    results: dict[str, Any] = read_json(output) if output.is_file() else {"format": 1, "models": {}}
    document = results["models"].setdefault(arguments.model, {"perplexity": []})
    document |= {"machine": machine(), "versions": versions("layer-surgeon", "torch", "transformers")}
    if "choices" not in document:
        document["choices"] = measure_choices(arguments.model)
        write_json(output, results)
    with tempfile.TemporaryDirectory() as folder:
        path = write_packaged_gguf(f"packaged:{arguments.model}", Path(folder))
        tokenizer = AutoTokenizer.from_pretrained(path.parent, gguf_file=path.name)
        model = AutoModelForCausalLM.from_pretrained(path.parent, gguf_file=path.name, dtype=torch.float32).eval()
    rows = [tokenizer(text)["input_ids"] for text in read_sentences("imdb")[:NUM_TEXTS]]
    document["num_tokens"] = sum(map(len, rows))
    done = {(entry["arm"], entry["count"]) for entry in document["perplexity"]}
    known = {tuple(entry["dropped"]): entry["perplexity"] for entry in document["perplexity"]}
    # The arms with one choice come first.
    arms = sorted(choices(document["choices"], model.config.num_hidden_layers), key=lambda arm: "random" in arm[0])
    for arm, count, dropped in arms:
        if (arm, count) in done:
            continue
        value = known[dropped] if dropped in known else perplexity(without_layers(model, dropped), rows)
        known[dropped] = value
        document["perplexity"].append({"arm": arm, "count": count, "dropped": list(dropped), "perplexity": value})
        write_json(output, results)
        say(f"{arm}, {count} layers dropped {list(dropped)}: {value:.1f}")


if __name__ == "__main__":
    main()
