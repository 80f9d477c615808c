"""Rates a layer without training: a closed-form linear probe on the layer's output for the host's vectors."""

import statistics
from collections.abc import Callable, MutableMapping, Sequence
from typing import Any, Literal

import numpy as np
import numpy.typing as npt
import torch
from sklearn.linear_model import RidgeClassifierCV
from sklearn.model_selection import StratifiedKFold, cross_val_predict, cross_val_score
from sklearn.pipeline import Pipeline, make_pipeline
from sklearn.preprocessing import StandardScaler
from torch import Tensor, nn

from layer_surgeon._devices import choose_device
from layer_surgeon.finetune.models import load_tokenizer, quiet
from layer_surgeon.graft.matching import match_projections
from layer_surgeon.study.arms import Arm
from layer_surgeon.study.layout import StudyFolder
from layer_surgeon.study.models import build_model
from layer_surgeon.tasks import DEFAULT_TASK

Place = Literal["donor", "head"]
_BATCH = 64
FOLDS = 5


def probe_arm(
    arm: Arm,
    texts: Sequence[Any],
    labels: Sequence[str],
    folder: StudyFolder,
    *,
    task: str = DEFAULT_TASK,
    seeds: Sequence[int],
    max_length: int = 100,
    place: Place = "donor",
    known: MutableMapping[tuple[str, str], Tensor] | None = None,
) -> float:
    """Return how well a linear classifier can separate the classes by the output of an untrained graft.

    The host has its stored weights. The projections are initialised as for a new graft: the seed draws them, and they
    are the same for all layers of a model. A ridge classifier is fitted in closed form to the output of the layer. One
    random pair of projections says little about a layer, so the result is a mean over several.

    Args:
        arm: A graft.
        texts: Texts, or pairs as tuples.
        labels: The classes of the texts.
        folder: The study's folder.
        task: A task with one label per text.
        seeds: Seeds of the projections and of the five folds.
        max_length: Longest input in tokens.
        place: Where the features are taken. donor: the output of the layer, for grafts after the whole host. head: the
            input of the head, for other sites, because host layers follow the donor layer there.
        known: (host, pooling) -> vectors of the texts, for place donor; missing ones are added. All layers of a model
            then share one forward pass of the host.

    Returns:
        The cross-validated accuracy, as a mean over the seeds.
    """
    model = build_model(arm, task, seeds[0], folder)
    model = model.to(choose_device("auto")).eval()
    key = (arm.host, model.pooling)
    known = {} if known is None else known
    if place == "donor" and key not in known:
        known[key] = _capture(model.proj_in, lambda: _run_model(model, arm.host, texts, max_length))
    scores = []
    for seed in seeds:
        if seed != seeds[0]:
            torch.manual_seed(seed)
            model.proj_in.reset_parameters()
            model.proj_out.reset_parameters()
            if model.config.settings.projection_init == "matched":
                match_projections(model)
        if place == "donor":
            features = _capture(model.proj_out, lambda: _run_graft(model, known[key]))
        else:
            features = _capture(model.head, lambda: _run_model(model, arm.host, texts, max_length))
        scores.append(_accuracy(features.double().numpy(), np.asarray(labels), seed))
    return statistics.fmean(scores)


def predict_held_out(
    features: npt.NDArray[np.float64], labels: npt.NDArray[np.str_], seed: int
) -> npt.NDArray[np.str_]:
    """Predict the class of each text with a ridge classifier that was fitted to the other folds.

    Args:
        features: [texts, width].
        labels: [texts]; each class has at least `FOLDS` texts.
        seed: Seed of the folds.

    Returns:
        The predicted classes, [texts].
    """
    classes: npt.NDArray[np.str_] = cross_val_predict(_make_probe(), features, labels, cv=_make_folds(seed))
    return classes


def _accuracy(features: npt.NDArray[np.float64], labels: npt.NDArray[np.str_], seed: int) -> float:
    return float(cross_val_score(_make_probe(), features, labels, cv=_make_folds(seed)).mean())


def _make_probe() -> Pipeline:
    return make_pipeline(StandardScaler(), RidgeClassifierCV(alphas=np.logspace(0, 5, 11)))


def _make_folds(seed: int) -> StratifiedKFold:
    return StratifiedKFold(FOLDS, shuffle=True, random_state=seed)


def _capture(module: nn.Module, run: Callable[[], None]) -> Tensor:
    """Return the inputs of a module while the model runs, as [texts, width]: one vector per text."""
    captured: list[Tensor] = []
    handle = module.register_forward_pre_hook(lambda _, inputs: captured.append(inputs[0].flatten(1).cpu()))
    try:
        with torch.inference_mode():
            run()
    finally:
        handle.remove()
    return torch.cat(captured)


def _run_model(model: Any, source: str, texts: Sequence[Any], max_length: int) -> None:
    """Run the whole model on texts, in batches."""
    with quiet():
        tokenizer = load_tokenizer(source, model)
    for start in range(0, len(texts), _BATCH):
        batch = list(texts[start : start + _BATCH])
        encoded = tokenizer(batch, truncation=True, max_length=max_length, padding=True, return_tensors="pt")
        model(**{name: tensor.to(model.proj_in.weight.device) for name, tensor in encoded.items()})


def _run_graft(model: Any, vectors: Tensor) -> None:
    """Run only the graft on the host's vectors, [texts, host_hidden]."""
    for batch in torch.split(vectors, _BATCH):
        model.graft(batch.to(model.proj_in.weight.device).unsqueeze(1))
