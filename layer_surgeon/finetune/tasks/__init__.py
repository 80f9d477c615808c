"""The tasks that can be fine-tuned, one module per task."""

from layer_surgeon.finetune.config import TaskName
from layer_surgeon.finetune.tasks.base import FinetuneTask, Outputs, TaskContext
from layer_surgeon.finetune.tasks.causal_lm import CausalLM
from layer_surgeon.finetune.tasks.question_answering import QuestionAnswering
from layer_surgeon.finetune.tasks.seq2seq import Seq2Seq
from layer_surgeon.finetune.tasks.text_classification import TextClassification
from layer_surgeon.finetune.tasks.token_classification import TokenClassification

__all__ = ["FINETUNE_TASKS", "FinetuneTask", "Outputs", "TaskContext"]

FINETUNE_TASKS: dict[TaskName, FinetuneTask] = {
    task.name: task
    for task in (TextClassification(), TokenClassification(), QuestionAnswering(), Seq2Seq(), CausalLM())
}
