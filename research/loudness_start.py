"""Measure models before training: how large the vectors of host and donor are, and what changes them.

    python -m research.loudness_start --work WORK        research/measured/layers.json, of WORK/e-gemma and WORK/e-qwen

WORK holds the folders of these studies (`surgeon compare`), with their layers and their data. Each graft is built as
the study builds it, once for each seed, and reads 32 texts of the validation part in float32, without dropout.

The JSON (numbers to four significant digits; their names: research/loudness.md):

    machine, versions, command
    sweeps           study -> arm -> name -> a number for each seed: rms_host, rms_inside, rms_added, gain, rms_out
"""

import argparse
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from benchmarks.machine import machine, say, versions
from layer_surgeon._io import write_text
from layer_surgeon.finetune import FinetuneConfig
from layer_surgeon.finetune.models import load_tokenizer, quiet
from layer_surgeon.study.arms import Arm
from layer_surgeon.study.data import PreparedData
from layer_surgeon.study.layout import StudyFolder
from layer_surgeon.study.models import build_model
from layer_surgeon.study.plan import StudyPlan
from research.evidence import MEASURED
from research.loudness_watch import Taps, as_text, describe, rms, rounded, scale_of

SWEEPS = ("e-gemma", "e-qwen")
NAMES = ("rms_host", "rms_inside", "rms_added", "gain", "rms_out")
_TEXTS = 32
# As in the matching of projections: a layer that begins with a norm needs two.
_TURNS = 8


def measure_start(
    arms: Sequence[Arm], folder: StudyFolder, data: str, build: Callable[..., Any], *, seed: int
) -> dict[str, dict[str, Any]]:
    """The numbers of each arm (research/loudness.md); `build` makes its model."""
    prepared = PreparedData.open(folder.data(data))
    rows = prepared.rows("validation")[:_TEXTS]
    labels = torch.tensor([prepared.labels.index(row["label"]) for row in rows])
    by_arm = {}
    for arm in arms:
        with quiet():
            model = build(arm, "text-classification", seed, folder).eval()
            tokenizer = load_tokenizer(arm.host, model)
        batch = tokenizer(
            [row["text"] for row in rows], padding=True, truncation=True, max_length=100, return_tensors="pt"
        )
        numbers = measure_model(model, dict(batch) | {"labels": labels})
        by_arm[arm.name] = {name: rounded(value) for name, value in numbers.items()}
    return by_arm


@torch.no_grad()
def measure_model(model: Any, batch: dict[str, Tensor]) -> dict[str, float]:
    """The numbers of one model and one batch with labels."""
    taps = Taps(model)
    with taps.listening() as seen:
        loss = float(model(**batch).loss)
    has_donor = model.donor is not None
    numbers = {"loss": loss} | describe(seen, donor=has_donor)
    if "out" not in seen:
        return numbers
    hidden = seen["host"]
    if has_donor:
        numbers["gain"] = numbers["rms_added"] / numbers["rms_inside"]
        numbers["own_scale"] = own_scale(model, seen["inside"])
    proj_out_input = float(seen["proj_out_input"].abs().sum(dim=-1).mean()) * scale_of(model)
    numbers["adam_step_out"] = FinetuneConfig().learning_rate * proj_out_input
    noise = torch.randn(hidden.shape, generator=torch.Generator().manual_seed(0))
    noise *= hidden.norm(dim=-1, keepdim=True) / noise.norm(dim=-1, keepdim=True)
    for name, changed in (("louder", hidden * 1.01), ("nudged", hidden + 0.01 * noise)):
        out = model.graft(changed.unsqueeze(1)).squeeze(1)
        numbers[name] = rms(out - seen["out"]) / numbers["rms_out"]
    return numbers


def own_scale(model: Any, inside: Tensor) -> float:
    """The RMS of a z as large as what the layer adds to it: z is scaled until it is."""
    scale = rms(inside)
    for _ in range(_TURNS):
        scaled = inside * (scale / rms(inside))
        scale = rms(model.donor(scaled.unsqueeze(1), causal=True).squeeze(1) - scaled)
    return scale


def measure_sweep(folder: StudyFolder) -> dict[str, dict[str, list[float]]]:
    """The numbers of each layer: arm -> name -> one number for each seed.

    Args:
        folder: Of a study that has its layers extracted and its data prepared.
    """
    plan = StudyPlan.read(folder.plan)
    arms = [arm for arm in plan.arms if arm.kind == "graft"]
    by_seed = [measure_start(arms, folder, plan.data[0].name, build_model, seed=seed) for seed in plan.seeds]
    return {arm.name: {name: [numbers[arm.name][name] for numbers in by_seed] for name in NAMES} for arm in arms}


def main() -> None:
    """Measure the sweeps that are there."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--work", type=Path, required=True)
    parser.add_argument("--output", type=Path, default=MEASURED / "layers.json")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    sweeps: dict[str, Any] = {}
    for name in SWEEPS:
        folder = StudyFolder(root=arguments.work / name)
        if folder.plan.is_file():
            say(name)
            sweeps[name] = measure_sweep(folder)
    if not sweeps:
        parser.error(
            f"{arguments.work} holds none of the studies {', '.join(SWEEPS)}. Run `surgeon compare` there first."
        )
    document = {
        "format": 1,
        "machine": machine(),
        "versions": versions("layer-surgeon", "torch", "transformers"),
        "command": "python -m research.loudness_start --work WORK",
        "sweeps": sweeps,
    }
    write_text(arguments.output, as_text(document))


if __name__ == "__main__":
    main()
