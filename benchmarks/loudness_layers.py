"""How loudly each layer of a sweep speaks, before training: what its accuracy is to be compared with.

    python -m benchmarks.loudness_layers --work WORK        docs/results/layers.json, of WORK/e-gemma and WORK/e-qwen

WORK holds the folders of these studies (`surgeon compare`), with their layers and their data. Each graft is built as
the study builds it, once for each of its seeds, and reads 32 texts of the validation part in float32, without dropout.

The JSON (numbers to four significant digits; what they are called: `benchmarks.loudness`):

    machine, versions, command
    sweeps           study -> arm -> name -> a number for each seed: rms_host, rms_inside, rms_added, gain, rms_out
"""

import argparse
from pathlib import Path
from typing import Any

import torch

from benchmarks.loudness_start import measure_start
from benchmarks.loudness_watch import as_text
from benchmarks.machine import ROOT, machine, say, versions
from layer_surgeon._io import write_text
from layer_surgeon.study.layout import StudyFolder
from layer_surgeon.study.models import build_model
from layer_surgeon.study.plan import StudyPlan

RESULTS = ROOT / "docs" / "results" / "layers.json"
SWEEPS = ("e-gemma", "e-qwen")
NAMES = ("rms_host", "rms_inside", "rms_added", "gain", "rms_out")


def measure_sweep(folder: StudyFolder) -> dict[str, dict[str, list[float]]]:
    """The numbers of each layer: arm -> name -> one for each seed.

    Args:
        folder: Of a study that was begun, so that its layers are extracted and its data prepared.
    """
    plan = StudyPlan.read(folder.plan)
    arms = [arm for arm in plan.arms if arm.kind == "graft"]
    found: dict[str, dict[str, list[float]]] = {arm.name: {name: [] for name in NAMES} for arm in arms}
    for seed in plan.seeds:
        measured = measure_start(arms, folder, plan.data[0].name, build_model, seed=seed)
        for arm, numbers in measured.items():
            for name in NAMES:
                found[arm][name].append(numbers[name])
    return found


def main() -> None:
    """Measure the sweeps that are there."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--work", type=Path, required=True)
    parser.add_argument("--output", type=Path, default=RESULTS)
    given = parser.parse_args()
    torch.set_num_threads(1)
    sweeps: dict[str, Any] = {}
    for name in SWEEPS:
        folder = StudyFolder(root=given.work / name)
        if folder.plan.is_file():
            say(name)
            sweeps[name] = measure_sweep(folder)
    if not sweeps:
        parser.error(f"{given.work} holds none of the studies {', '.join(SWEEPS)}. Run `surgeon compare` there first.")
    document = {
        "format": 1,
        "machine": machine(),
        "versions": versions("layer-surgeon", "torch", "transformers"),
        "command": "python -m benchmarks.loudness_layers --work WORK",
        "sweeps": sweeps,
    }
    write_text(given.output, as_text(document))


if __name__ == "__main__":
    main()
