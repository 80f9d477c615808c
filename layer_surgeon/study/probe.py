"""What can be told of a layer without training: a closed-form linear probe on what it makes of the host's vectors."""

from collections.abc import Sequence
from typing import Any, Literal

import numpy as np
import numpy.typing as npt
import torch
from sklearn.linear_model import RidgeClassifierCV
from sklearn.model_selection import StratifiedKFold, cross_val_score
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler

from layer_surgeon.finetune.models import choose_device, load_tokenizer, quiet
from layer_surgeon.study.arms import Arm
from layer_surgeon.study.layout import StudyFolder
from layer_surgeon.study.models import build_model
from layer_surgeon.study.prepare import host_source

Place = Literal["donor", "head"]
_BATCH = 64
_FOLDS = 5


def probe_arm(
    arm: Arm,
    texts: Sequence[Any],
    labels: Sequence[str],
    folder: StudyFolder,
    *,
    seed: int,
    max_length: int = 100,
    place: Place = "donor",
) -> float:
    """How well the classes can be told by a linear map from what comes out of the donor layer, untrained.

    The host is as it is stored, the projections as a graft begins with them: drawn by the seed, so that all layers
    of a model get the same ones. On what leaves the layer, a ridge classifier is fitted in closed form.

    Args:
        arm: A graft.
        texts: Texts, or pairs as tuples.
        labels: Their classes.
        folder: The study's folder.
        seed: Of the projection, and of the five folds.
        max_length: Longest input in tokens.
        place: Where the features are taken: what leaves the donor layer, or what comes to the head. The latter is for
            sites, where layers of the host lie between the two.

    Returns:
        Accuracy, cross-validated.
    """
    features = _features(arm, texts, folder, seed, max_length, place)
    probe = make_pipeline(StandardScaler(), RidgeClassifierCV(alphas=np.logspace(0, 5, 11)))
    folds = StratifiedKFold(_FOLDS, shuffle=True, random_state=seed)
    return float(cross_val_score(probe, features, np.asarray(labels), cv=folds).mean())


def _features(
    arm: Arm, texts: Sequence[Any], folder: StudyFolder, seed: int, max_length: int, place: Place
) -> npt.NDArray[np.float64]:
    """[texts, width]: what comes to the output projection, mean over the positions; or the vector before the head."""
    model = build_model(arm, "text-classification", seed, folder)
    device = choose_device("auto")
    model = model.to(device).eval()
    with quiet():
        tokenizer = load_tokenizer(host_source(arm.host), model)
    found: list[npt.NDArray[np.float64]] = []

    def keep(_: Any, inputs: tuple[torch.Tensor, ...]) -> None:
        vectors = inputs[0] if inputs[0].dim() == 2 else inputs[0].mean(dim=1)
        found.append(vectors.double().cpu().numpy())

    handle = (model.proj_out if place == "donor" else model.head).register_forward_pre_hook(keep)
    try:
        with torch.inference_mode():
            for start in range(0, len(texts), _BATCH):
                batch = list(texts[start : start + _BATCH])
                encoded = tokenizer(batch, truncation=True, max_length=max_length, padding=True, return_tensors="pt")
                model(**{name: tensor.to(device) for name, tensor in encoded.items()})
    finally:
        handle.remove()
    return np.concatenate(found)
