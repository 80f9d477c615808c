"""Measure generation with and without the donor layer's cache.

    python -m benchmarks.generation                    40 new tokens after 4, with a layer of Llama-3.1-8B's shape
    python -m benchmarks.generation --donor small --prompt 100 --new 100

The host has the shape of SmolLM2-135M. The weights are random; neither time nor positions depend on their values. Both
ways generate the same tokens, which is checked. The time is processor time on one thread, so that other programs on the
machine matter less: the median of the runs, which alternate between the two ways.
"""

import argparse
import statistics
import time
from pathlib import Path
from typing import Any

import torch
from transformers import AutoModelForCausalLM, LlamaConfig, set_seed

from benchmarks.machine import heading, machine, save, say, table, versions
from layer_surgeon.donor import DonorLayer, SurgeonDonorConfig
from layer_surgeon.graft import graft_layer
from tests.support.checkpoints import LLAMA_8B

HOST = LlamaConfig(
    vocab_size=49152,
    hidden_size=576,
    intermediate_size=1536,
    num_hidden_layers=30,
    num_attention_heads=9,
    num_key_value_heads=3,
    tie_word_embeddings=True,
    pad_token_id=0,
)
SMALL = {**LLAMA_8B, "hidden_size": 2048, "intermediate_size": 8192, "head_dim": 64}
DONORS = {"llama-8b": LLAMA_8B, "small": SMALL}
WITH, WITHOUT = "with cache", "without cache"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--donor", choices=DONORS, default="llama-8b")
    parser.add_argument("--prompt", type=int, default=4, help="tokens of the prompt")
    parser.add_argument("--new", type=int, default=40, help="tokens to generate")
    parser.add_argument("--runs", type=int, default=3)
    parser.add_argument("--json", type=Path, help="write every single run to this file")
    options = parser.parse_args()
    facts = machine()
    torch.set_num_threads(1)
    model, passes = build(DONORS[options.donor])
    prompt = torch.randint(3, HOST.vocab_size, (1, options.prompt), generator=torch.Generator().manual_seed(0))
    results: dict[str, dict[str, Any]] = {name: {"seconds": [], "positions": 0} for name in (WITH, WITHOUT)}
    texts = []
    for _ in range(options.runs):
        for name, result in results.items():
            passes.clear()
            start = time.process_time()
            texts.append(generate(model, prompt, options.new, use_cache=name == WITH))
            result["seconds"].append(time.process_time() - start)
            result["positions"] = sum(passes)
    if not all(torch.equal(text, texts[0]) for text in texts):
        raise SystemExit("The two ways generate different tokens.")
    medians = {name: statistics.median(result["seconds"]) for name, result in results.items()}
    say(heading(facts, versions("torch", "transformers")))
    rows = [[name, str(result["positions"]), f"{medians[name]:.2f} s"] for name, result in results.items()]
    say(table(["", "positions of the donor layer", "processor time"], rows))
    say(f"without / with: {medians[WITHOUT] / medians[WITH]:.1f}")
    save(options.json, {"machine": facts, "options": vars(options), "results": results})


def build(donor_config: dict[str, Any]) -> tuple[Any, list[int]]:
    """Make a graft with random weights, and a list that receives the positions of each pass of its donor layer."""
    set_seed(0)
    host = AutoModelForCausalLM.from_config(HOST).eval()
    donor = DonorLayer.from_config(SurgeonDonorConfig(donor_config=donor_config, layer_indices=[31]))
    model = graft_layer(host, donor, "causal-lm")
    passes: list[int] = []
    model.donor.register_forward_pre_hook(lambda _, args: passes.append(args[0].shape[1]))
    return model.eval(), passes


def generate(model: Any, prompt: torch.Tensor, new_tokens: int, *, use_cache: bool) -> torch.Tensor:
    """Generate greedily; no token ends the text."""
    settings = {"max_new_tokens": new_tokens, "min_new_tokens": new_tokens, "do_sample": False}
    mask = torch.ones_like(prompt)
    return model.generate(prompt, attention_mask=mask, use_cache=use_cache, **settings)


if __name__ == "__main__":
    main()
