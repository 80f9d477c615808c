"""What `benchmarks.loudness` measures before training: how loudly host and donor speak, and what the donor hears."""

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

from benchmarks.loudness_watch import Taps, describe, rms, rounded, scale_of
from layer_surgeon.finetune import FinetuneConfig
from layer_surgeon.finetune.models import load_tokenizer, quiet
from layer_surgeon.study.arms import Arm
from layer_surgeon.study.data import PreparedData
from layer_surgeon.study.hosts import host_source
from layer_surgeon.study.layout import StudyFolder

_TEXTS = 32
# As in the matching of projections: a layer that begins with a norm needs two.
_TURNS = 8


def measure_start(
    arms: Sequence[Arm], folder: StudyFolder, data: str, build: Callable[..., Any], *, seed: int
) -> dict[str, dict[str, Any]]:
    """The numbers of each arm, as `benchmarks.loudness` describes them; `build` makes its model."""
    prepared = PreparedData.open(folder.data(data))
    rows = prepared.rows("validation")[:_TEXTS]
    labels = torch.tensor([prepared.labels.index(row["label"]) for row in rows])
    found = {}
    for arm in arms:
        with quiet():
            model = build(arm, "text-classification", seed, folder).eval()
            tokenizer = load_tokenizer(host_source(arm.host, folder), model)
        batch = tokenizer(
            [row["text"] for row in rows], padding=True, truncation=True, max_length=100, return_tensors="pt"
        )
        numbers = measure_model(model, dict(batch) | {"labels": labels})
        found[arm.name] = {name: rounded(value) for name, value in numbers.items()}
    return found


@torch.no_grad()
def measure_model(model: Any, batch: dict[str, Tensor]) -> dict[str, float]:
    """The numbers of one model and batch, labels among it."""
    taps = Taps(model)
    with taps.listening() as seen:
        loss = float(model(**batch).loss)
    has_donor = model.donor is not None
    found = {"loss": loss} | describe(seen, donor=has_donor)
    if "out" not in seen:
        return found
    hidden = seen["host"]
    if has_donor:
        found["gain"] = found["rms_added"] / found["rms_inside"]
        found["own_scale"] = own_scale(model, seen["inside"])
    given = float(seen["given"].abs().sum(dim=-1).mean()) * scale_of(model)
    found["adam_step_out"] = FinetuneConfig().learning_rate * given
    noise = torch.randn(hidden.shape, generator=torch.Generator().manual_seed(0))
    noise *= hidden.norm(dim=-1, keepdim=True) / noise.norm(dim=-1, keepdim=True)
    for name, changed in (("louder", hidden * 1.01), ("nudged", hidden + 0.01 * noise)):
        out = model.graft(changed.unsqueeze(1)).squeeze(1)
        found[name] = rms(out - seen["out"]) / found["rms_out"]
    return found


def own_scale(model: Any, inside: Tensor) -> float:
    """The RMS of a z as large as what the layer adds to it: z is scaled until it is."""
    scale = rms(inside)
    for _ in range(_TURNS):
        scaled = inside * (scale / rms(inside))
        scale = rms(model.donor(scaled.unsqueeze(1), causal=True).squeeze(1) - scaled)
    return scale
