"""What the tasks that can be fine-tuned do, one module per task."""

import functools

from layer_surgeon.finetune.tasks.base import FinetuneTask, Outputs, TaskContext
from layer_surgeon.tasks import get_task

__all__ = ["FinetuneTask", "Outputs", "TaskContext", "finetune_task"]


@functools.cache
def finetune_task(name: str) -> FinetuneTask:
    """Return a task by its name; all runs share one instance.

    Raises:
        ConfigError: There is no such task, or it can't be fine-tuned.
    """
    record = get_task(name)
    task: FinetuneTask = record.load_finetune_class()(record)
    return task
