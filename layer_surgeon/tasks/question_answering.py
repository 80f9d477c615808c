"""Extractive question answering: the answer is a span of the text."""

from layer_surgeon.tasks.roles import ColumnRoles
from layer_surgeon.tasks.scores import EXACT_MATCH, F1, LOSS
from layer_surgeon.tasks.task import Task

QUESTION_ANSWERING = Task(
    name="question-answering",
    model_class="layer_surgeon.graft.question_answering:GraftedModelForQuestionAnswering",
    finetune_class="layer_surgeon.finetune.tasks.question_answering:QuestionAnswering",
    auto="AutoModelForQuestionAnswering",
    plain_models="MODEL_FOR_QUESTION_ANSWERING_MAPPING_NAMES",
    pipeline_tag="question-answering",
    has_pipeline=False,
    peft_type="QUESTION_ANS",
    head=True,
    outputs={"start_logits": True, "end_logits": True},
    targets={"start_positions": False, "end_positions": False},
    scores=(F1, EXACT_MATCH, LOSS),
    columns=ColumnRoles(
        titles=("question", "context", "answers"),
        text=("question", "query"),
        pair=("context", "passage", "paragraph", "document", "text"),
        label=("answers", "answer", "answertext"),
    ),
    unit="questions",
    example=("A question?", "A text with the answer."),
    shown={"answer": "answer", "question": "question"},
)
