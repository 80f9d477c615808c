"""The graft's model classes, and under which of transformers' Auto classes they are found."""

from typing import Any

from layer_surgeon.graft.causal import GraftedModelForCausalLM
from layer_surgeon.graft.classification import GraftedModelForSequenceClassification
from layer_surgeon.graft.configuration import SurgeonGraftConfig
from layer_surgeon.graft.features import GraftedModelForFeatureExtraction
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

# AutoModel is every task's: loading dispatches on the task that the config names.
AUTO_CLASSES: tuple[type[SurgeonGraftConfig], dict[str, Any]] = (
    SurgeonGraftConfig,
    {traits.auto: GraftedModel._task_classes[task] for task, traits in TASKS.items()} | {"AutoModel": GraftedModel},
)
