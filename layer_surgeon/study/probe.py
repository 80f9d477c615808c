"""What can be told of a layer without training: a closed-form linear probe on what it makes of the host's vectors."""

import statistics
from collections.abc import Callable, MutableMapping, Sequence
from typing import Any, Literal

import numpy as np
import numpy.typing as npt
import torch
from sklearn.linear_model import RidgeClassifierCV
from sklearn.model_selection import StratifiedKFold, cross_val_score
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler
from torch import Tensor, nn

from layer_surgeon.finetune.models import choose_device, load_tokenizer, quiet
from layer_surgeon.graft.matching import match_projections
from layer_surgeon.study.arms import Arm
from layer_surgeon.study.hosts import host_source
from layer_surgeon.study.layout import StudyFolder
from layer_surgeon.study.models import build_model

Place = Literal["donor", "head"]
_BATCH = 64
_FOLDS = 5


def probe_arm(
    arm: Arm,
    texts: Sequence[Any],
    labels: Sequence[str],
    folder: StudyFolder,
    *,
    seeds: Sequence[int],
    max_length: int = 100,
    place: Place = "donor",
    known: MutableMapping[tuple[str, str], Tensor] | None = None,
) -> float:
    """How well the classes can be told by a linear map from what comes out of the donor layer, untrained.

    The host is as it is stored, the projections as a graft begins with them: drawn by the seed, so that all layers
    of a model get the same ones. On what leaves the layer, a ridge classifier is fitted in closed form. What one draw
    of the projections lets through says little of a layer, so that there are several.

    Args:
        arm: A graft.
        texts: Texts, or pairs as tuples.
        labels: Their classes.
        folder: The study's folder.
        seeds: Of the projections, and of the five folds.
        max_length: Longest input in tokens.
        place: Where the features are taken. donor: what leaves the layer, for grafts behind all of the host. head: the
            vector that comes to the head, for other sites, where layers of the host lie between the two.
        known: Vectors of the texts by host and pooling, for place donor; what is missing is added. All layers of a
            model then share one pass of the host.

    Returns:
        Accuracy, cross-validated, mean over the seeds.
    """
    model = build_model(arm, "text-classification", seeds[0], folder)
    source, device = host_source(arm.host, folder), choose_device("auto")
    model = model.to(device).eval()
    key = (arm.host, model.pooling)
    known = {} if known is None else known
    if place == "donor" and key not in known:
        known[key] = _capture(model.proj_in, lambda: _read(model, source, texts, max_length))
    scores = []
    for seed in seeds:
        if seed != seeds[0]:
            torch.manual_seed(seed)
            model.proj_in.reset_parameters()
            model.proj_out.reset_parameters()
            if model.config.settings.projection_init == "matched":
                match_projections(model)
        if place == "donor":
            features = _capture(model.proj_out, lambda: _send(model, known[key]))
        else:
            features = _capture(model.head, lambda: _read(model, source, texts, max_length))
        scores.append(_accuracy(features.double().numpy(), np.asarray(labels), seed))
    return statistics.fmean(scores)


def _accuracy(features: npt.NDArray[np.float64], labels: npt.NDArray[np.str_], seed: int) -> float:
    probe = make_pipeline(StandardScaler(), RidgeClassifierCV(alphas=np.logspace(0, 5, 11)))
    folds = StratifiedKFold(_FOLDS, shuffle=True, random_state=seed)
    return float(cross_val_score(probe, features, labels, cv=folds).mean())


def _capture(module: nn.Module, run: Callable[[], None]) -> Tensor:
    """[texts, width]: what comes into a module while the model runs, one vector per text."""
    found: list[Tensor] = []
    handle = module.register_forward_pre_hook(lambda _, inputs: found.append(inputs[0].flatten(1).cpu()))
    try:
        with torch.inference_mode():
            run()
    finally:
        handle.remove()
    return torch.cat(found)


def _read(model: Any, source: str, texts: Sequence[Any], max_length: int) -> None:
    """Run the whole model on texts."""
    with quiet():
        tokenizer = load_tokenizer(source, model)
    for start in range(0, len(texts), _BATCH):
        batch = list(texts[start : start + _BATCH])
        encoded = tokenizer(batch, truncation=True, max_length=max_length, padding=True, return_tensors="pt")
        model(**{name: tensor.to(model.proj_in.weight.device) for name, tensor in encoded.items()})


def _send(model: Any, vectors: Tensor) -> None:
    """Run the graft alone on the host's vectors, [texts, host width]."""
    for batch in torch.split(vectors, _BATCH):
        model.graft(batch.to(model.proj_in.weight.device).unsqueeze(1))
