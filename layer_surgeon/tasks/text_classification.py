"""Classification of single texts and of text pairs (such as natural language inference)."""

from layer_surgeon.tasks.roles import ColumnRoles
from layer_surgeon.tasks.scores import ACCURACY, LOSS, MACRO_F1
from layer_surgeon.tasks.task import Task

TEXT_CLASSIFICATION = Task(
    name="text-classification",
    model_class="layer_surgeon.graft.classification:GraftedModelForSequenceClassification",
    finetune_class="layer_surgeon.finetune.tasks.text_classification:TextClassification",
    auto="AutoModelForSequenceClassification",
    plain_models="MODEL_FOR_SEQUENCE_CLASSIFICATION_MAPPING_NAMES",
    pipeline_tag="text-classification",
    peft_type="SEQ_CLS",
    pools=True,
    labels=True,
    head=True,
    outputs={"logits": False},
    targets={"labels": False},
    scores=(ACCURACY, MACRO_F1, LOSS),
    columns=ColumnRoles(
        text=("text", "sentence", "review", "content", "document", "comment", "tweet", "message", "body", "question"),
        label=("label", "labels", "labelid", "class", "target", "category", "sentiment", "intent", "y"),
        pairs=(
            ("premise", "hypothesis"),
            ("sentence1", "sentence2"),
            ("sentencea", "sentenceb"),
            ("question1", "question2"),
            ("text1", "text2"),
            ("question", "sentence"),
            ("text", "textpair"),
        ),
        only_text=True,
    ),
    one_label_per_text=True,
    shown={"class": "label", "probability": "score", "text": "whole_text"},
)
