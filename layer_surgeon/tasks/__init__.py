"""KNOW: one file per task, with everything that the other packages need to know about it. Imports no torch.

task                   `Task`: the record of a task; `TASKS`, `register_task`
roles, scores          parts of a record: the columns of the data, and the scores of a model
text_classification, token_classification, question_answering, feature_extraction, seq2seq, causal_lm
                       one record each

What a task does is in the two classes that its record names: a subclass of `GraftedModel` (in graft) and one of
`FinetuneTask` (in finetune/tasks).
"""

from layer_surgeon.tasks.causal_lm import CAUSAL_LM
from layer_surgeon.tasks.feature_extraction import FEATURE_EXTRACTION
from layer_surgeon.tasks.question_answering import QUESTION_ANSWERING
from layer_surgeon.tasks.roles import ColumnRoles
from layer_surgeon.tasks.scores import Score
from layer_surgeon.tasks.seq2seq import SEQ2SEQ
from layer_surgeon.tasks.task import (
    TASKS,
    HostKind,
    Task,
    all_scores,
    finetuned_tasks,
    get_task,
    register_task,
    score_title,
    selection_names,
    task_names,
)
from layer_surgeon.tasks.text_classification import TEXT_CLASSIFICATION
from layer_surgeon.tasks.token_classification import TOKEN_CLASSIFICATION

__all__ = [
    "DEFAULT_TASK",
    "TASKS",
    "ColumnRoles",
    "HostKind",
    "Score",
    "Task",
    "all_scores",
    "finetuned_tasks",
    "get_task",
    "register_task",
    "score_title",
    "selection_names",
    "task_names",
]

# The paper's.
DEFAULT_TASK = TEXT_CLASSIFICATION.name

for _task in (TEXT_CLASSIFICATION, TOKEN_CLASSIFICATION, QUESTION_ANSWERING, FEATURE_EXTRACTION, SEQ2SEQ, CAUSAL_LM):
    register_task(_task)
