"""The tasks that can be fine-tuned, one module each."""

from layer_surgeon.finetune.config import TaskName
from layer_surgeon.finetune.tasks.base import FinetuneTask, Outputs, TaskContext
from layer_surgeon.finetune.tasks.text_classification import TextClassification

__all__ = ["FINETUNE_TASKS", "FinetuneTask", "Outputs", "TaskContext"]

FINETUNE_TASKS: dict[TaskName, FinetuneTask] = {task.name: task for task in (TextClassification(),)}
