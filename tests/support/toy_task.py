"""A task as another package would define it: the stars of a review, from one to five, where three is close to four."""

from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from layer_surgeon.finetune.metrics import ClassificationMetrics
from layer_surgeon.finetune.tasks.text_classification import TextClassification
from layer_surgeon.graft import GraftedModelForSequenceClassification
from layer_surgeon.tasks import ColumnRoles, Score, Task

STAR_RATING = Task(
    name="star-rating",
    model_class="tests.support.toy_task:GraftedModelForStarRating",
    finetune_class="tests.support.toy_task:StarRating",
    auto="AutoModelForMultipleChoice",
    pipeline_tag="text-classification",
    has_pipeline=False,
    peft_type="SEQ_CLS",
    pools=True,
    default_pooling="mean",
    labels=True,
    head=True,
    outputs={"logits": False},
    targets={"labels": False},
    scores=(
        Score(name="stars_off", title="stars off", selects=True, lower_is_better=True),
        Score(name="loss", title="loss", selects=True, lower_is_better=True),
    ),
    columns=ColumnRoles(titles=("review", "text_pair", "stars"), text=("review",), label=("stars",)),
    unit="reviews",
    one_label_per_text=True,
    example=("It was good.",),
    shown={"stars": "label", "probability": "score", "review": "text"},
)


def squared_distance(logits: Tensor, labels: Tensor) -> Tensor:
    """How far the expected number of stars is from the right one, squared: the mean over [batch, stars]."""
    stars = torch.arange(logits.shape[-1], device=logits.device)
    expected = (logits.float().softmax(-1) * stars).sum(-1)
    return (expected - labels).square().mean()


class GraftedModelForStarRating(GraftedModelForSequenceClassification):
    """Learns the distance, not only whether the number of stars is right."""

    def forward(
        self,
        input_ids: Tensor | None = None,
        attention_mask: Tensor | None = None,
        token_type_ids: Tensor | None = None,
        labels: Tensor | None = None,
        **kwargs: Any,
    ) -> Any:
        out = super().forward(input_ids, attention_mask, token_type_ids, **kwargs)
        out.loss = None if labels is None else squared_distance(out.logits, labels)
        return out


@dataclass(frozen=True, kw_only=True)
class StarMetrics(ClassificationMetrics):
    """The metrics of classification, and the mean distance in stars."""

    stars_off: float

    @property
    def scores(self) -> dict[str, float]:
        return {"stars_off": self.stars_off, "loss": self.loss}


class StarRating(TextClassification):
    """Classification with a loss and a score that know the order of the classes."""

    def loss_function(self, config: Any) -> Any:
        return lambda outputs, labels, num_items_in_batch=None: squared_distance(outputs["logits"], labels)

    def measure(self, outputs: Any, dataset: Any, examples: Any, context: Any) -> StarMetrics:
        metrics = super().measure(outputs, dataset, examples, context)
        distances = np.abs(outputs[0].argmax(axis=-1) - np.asarray(examples.labels))
        return StarMetrics(**vars(metrics), stars_off=float(distances.mean()))
