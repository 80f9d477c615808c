"""The graft's model classes, and under which of transformers' Auto classes they are found."""

from typing import Any

from layer_surgeon.graft.classification import GraftedModelForSequenceClassification
from layer_surgeon.graft.configuration import SurgeonGraftConfig
from layer_surgeon.graft.modeling import GraftedModel

__all__ = ["AUTO_CLASSES", "GraftedModel", "GraftedModelForSequenceClassification", "SurgeonGraftConfig"]

AUTO_CLASSES: tuple[type[SurgeonGraftConfig], dict[str, Any]] = (
    SurgeonGraftConfig,
    {
        "AutoModel": GraftedModel,
        "AutoModelForSequenceClassification": GraftedModelForSequenceClassification,
    },
)
