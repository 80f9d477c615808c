"""Measure running a model one layer at a time, compared with the whole model in memory.

    python -m benchmarks.run                           Gemma-3-270M over 1,000 sentences, in float32
    python -m benchmarks.run --shape 1.5B              the same for Qwen2.5-Coder-1.5B (6 GB of memory)
    python -m benchmarks.run --shape 8B --folder DIR   Llama-3.1-8B's shape with random weights on the disk (16 GB)
    python -m benchmarks.run --shape 70B --layers 4    the first 4 layers of the 70B shape (11 GB)

Each row is a process of its own. The time is processor time after the imports, so other programs on the machine matter
less. For the large shapes, the whole model is offloaded to the disk by accelerate.
"""

import argparse
import csv
import json
import statistics
import sys
import tempfile
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from transformers import AutoModelForCausalLM

from benchmarks.machine import heading, machine, save, say, table, versions
from benchmarks.packaged_gguf import write_packaged_gguf
from benchmarks.process import measure
from layer_surgeon._checkpoint_tokenizer import load_checkpoint_tokenizer
from layer_surgeon._format import format_bytes
from layer_surgeon.checkpoint import open_checkpoint
from tests.support.checkpoints import LLAMA_8B, LLAMA_70B, llama_shapes, pad_header
from tests.support.numbered_texts import as_text, random_tokens, save_numbered_tokenizer

SENTENCES = Path(__file__).parent.parent / "layer_surgeon" / "data" / "sentences"
SHAPES = {"8B": LLAMA_8B, "70B": LLAMA_70B}
REAL = {"270M": "packaged:gemma-3-270m", "1.5B": "packaged:qwen2.5-coder-1.5b-instruct"}
WAYS = {**dict.fromkeys(REAL, ("whole", "layers")), "8B": ("offload", "layers"), "70B": ("layers",)}
NAMES = {
    "whole": "whole model in memory",
    "offload": "accelerate, offloaded to disk",
    "airllm": "airllm",
    "layers": "one layer at a time",
}
_BLOCK = 16 << 20


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--shape", choices=WAYS, default="270M")
    parser.add_argument("--texts", type=int, default=1000, help="number of texts (large shapes: at most 64)")
    parser.add_argument("--tokens", type=int, default=16, help="large shapes: tokens of the longest text")
    parser.add_argument("--layers", type=int, help="large shapes: number of layers (default: all)")
    parser.add_argument("--airllm", type=Path, metavar="PYTHON", help="Python of an environment that has airllm")
    parser.add_argument("--rows", nargs="+", choices=NAMES, help="only these rows")
    parser.add_argument("--runs", type=int, default=1)
    parser.add_argument("--folder", type=Path, help="folder of the checkpoint, which is kept (default: temporary)")
    parser.add_argument("--json", type=Path, help="write every single run to this file")
    options = parser.parse_args()
    facts = machine()
    with tempfile.TemporaryDirectory() as temporary:
        folder = options.folder or Path(temporary)
        model = folder / options.shape
        if not model.is_dir():
            if options.shape in REAL:
                make_real(model, REAL[options.shape])
            else:
                make_llama(model, SHAPES[options.shape], options.layers)
        texts = folder / f"texts-{options.shape}.txt"
        texts.write_text("\n".join(sentences(options.texts) if options.shape in REAL else numbered(options)))
        results = run_rows(options, model, texts, Path(temporary))
    say(heading(facts, versions("torch", "transformers", "accelerate")))
    report(results)
    save(options.json, {"machine": facts, "options": vars(options), "results": results})


def sentences(number: int) -> list[str]:
    """The first sentences that are shipped with the package."""
    rows = [row["text"] for name in sorted(SENTENCES.glob("*.csv")) for row in csv.DictReader(name.open())]
    return [" ".join(row.split()) for row in rows[:number]]


def numbered(options: argparse.Namespace) -> list[str]:
    lengths = [max(2, options.tokens - index % 8) for index in range(min(options.texts, 64))]
    return [as_text(tokens) for tokens in random_tokens(lengths)]


def make_real(folder: Path, name: str) -> None:
    """Write a GGUF model as a transformers folder, so that neither row dequantises."""
    source = open_checkpoint(name)
    with tempfile.TemporaryDirectory() as parts:
        whole = write_packaged_gguf(name, Path(parts))
        model = AutoModelForCausalLM.from_pretrained(parts, gguf_file=whole.name, dtype="float32")
    folder.mkdir(parents=True)
    # save_pretrained refuses a model that was read from GGUF. The head is the table of tokens.
    weights = {name: weight for name, weight in model.state_dict().items() if name != "lm_head.weight"}
    save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})
    config = model.config.to_dict()
    config.pop("quantization_config", None)
    (folder / "config.json").write_text(json.dumps(config, indent=2))
    load_checkpoint_tokenizer(source).save_pretrained(folder)


def make_llama(folder: Path, config: dict[str, Any], num_layers: int | None) -> None:
    """Write a Llama checkpoint with random bfloat16 weights: a file per layer, and one for the rest."""
    config = config | {"num_hidden_layers": num_layers or config["num_hidden_layers"]}
    folder.mkdir(parents=True)
    block = (torch.randn(_BLOCK // 2, generator=torch.Generator().manual_seed(0)) * 0.02).bfloat16()
    content = block.view(torch.uint8).numpy().tobytes()
    groups: dict[str, dict[str, tuple[int, ...]]] = {}
    for name, shape in llama_shapes(config).items():
        parts = name.split(".")
        groups.setdefault(parts[2] if parts[1] == "layers" else "rest", {})[name] = shape
    # airllm reads the number of a file from its name.
    shards = {
        f"model-{number:05}-of-{len(groups):05}.safetensors": shapes
        for number, shapes in enumerate(groups.values(), start=1)
    }
    for file, shapes in shards.items():
        entries, position = {}, 0
        for name, shape in shapes.items():
            end = position + 2 * torch.Size(shape).numel()
            entries[name] = {"dtype": "BF16", "shape": list(shape), "data_offsets": [position, end]}
            position = end
        with (folder / file).open("wb") as target:
            target.write(pad_header(entries))
            for number, shape in enumerate(shapes.values()):
                left, start = 2 * torch.Size(shape).numel(), 2 * (number * 7919 % 100_000)
                while left:
                    left -= target.write(content[start : start + left])
                    start = 0
    weight_map = {name: file for file, shapes in shards.items() for name in shapes}
    (folder / "model.safetensors.index.json").write_text(json.dumps({"metadata": {}, "weight_map": weight_map}))
    (folder / "config.json").write_text(json.dumps(config))
    save_numbered_tokenizer(folder)


def run_rows(options: argparse.Namespace, model: Path, texts: Path, folder: Path) -> list[dict[str, Any]]:
    dtype = "float32" if options.shape in REAL else "bfloat16"
    results = []
    for run in range(options.runs):
        for way in options.rows or WAYS[options.shape]:
            result = folder / f"{way}.json"
            python = options.airllm if way == "airllm" else sys.executable
            command = [python, "-m", "benchmarks.rows.states", way, str(model), str(texts), str(result), dtype]
            usage = measure(command)
            values = json.loads(result.read_text())
            results.append({"way": way, "run": run, **values, **vars(usage)})
    return results


def report(results: list[dict[str, Any]]) -> None:
    rows = []
    for way in dict.fromkeys(result["way"] for result in results):
        runs = [result for result in results if result["way"] == way]
        rows.append(
            [
                NAMES[way],
                f"{statistics.median(run['load'] for run in runs):.1f} s",
                f"{statistics.median(run['compute'] for run in runs):.1f} s",
                f"{statistics.median(run['seconds'] for run in runs):.1f} s",
                format_bytes(statistics.median(run["resident_bytes"] for run in runs)),
                format_bytes(statistics.median(run["anonymous_bytes"] or 0 for run in runs)),
                format_bytes(runs[0].get("num_bytes_read", 0)) if "num_bytes_read" in runs[0] else "",
            ]
        )
    header = ["", "loading", "computing", "wall", "resident", "anonymous", "weights read"]
    say(table(header, rows))
    reference = torch.tensor(results[0]["sums"])
    for result in results[1:]:
        difference = (torch.tensor(result["sums"]) - reference).abs().max() / reference.abs().max()
        say(f"{NAMES[result['way']]}: largest relative difference from the first row {difference:.1g}")


if __name__ == "__main__":
    main()
