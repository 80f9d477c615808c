"""The graft's model classes, and the transformers Auto classes that load them."""

from typing import Any

from layer_surgeon.graft.causal import GraftedModelForCausalLM
from layer_surgeon.graft.classification import GraftedModelForSequenceClassification
from layer_surgeon.graft.features import GraftedModelForFeatureExtraction
from layer_surgeon.graft.model_config import SurgeonGraftConfig
from layer_surgeon.graft.modeling import GraftedModel
from layer_surgeon.graft.question_answering import GraftedModelForQuestionAnswering
from layer_surgeon.graft.seq2seq import GraftedModelForSeq2SeqLM
from layer_surgeon.graft.tasks import TASKS
from layer_surgeon.graft.tokens import GraftedModelForTokenClassification

__all__ = [
    "AUTO_CLASSES",
    "GraftedModel",
    "GraftedModelForCausalLM",
    "GraftedModelForFeatureExtraction",
    "GraftedModelForQuestionAnswering",
    "GraftedModelForSeq2SeqLM",
    "GraftedModelForSequenceClassification",
    "GraftedModelForTokenClassification",
    "SurgeonGraftConfig",
]

# AutoModel loads all tasks: GraftedModel.from_pretrained chooses the class by the config's task.
AUTO_CLASSES: tuple[type[SurgeonGraftConfig], dict[str, Any]] = (
    SurgeonGraftConfig,
    {traits.auto: GraftedModel._task_classes[task] for task, traits in TASKS.items()} | {"AutoModel": GraftedModel},
)
