"""Token classification: one label per word (named entities, parts of speech, ...)."""

from layer_surgeon.tasks.roles import ColumnRoles
from layer_surgeon.tasks.scores import ACCURACY, ENTITY_F1, LOSS, PRECISION, RECALL
from layer_surgeon.tasks.task import Task

TOKEN_CLASSIFICATION = Task(
    name="token-classification",
    model_class="layer_surgeon.graft.tokens:GraftedModelForTokenClassification",
    finetune_class="layer_surgeon.finetune.tasks.token_classification:TokenClassification",
    auto="AutoModelForTokenClassification",
    plain_models="MODEL_FOR_TOKEN_CLASSIFICATION_MAPPING_NAMES",
    pipeline_tag="token-classification",
    peft_type="TOKEN_CLS",
    labels=True,
    head=True,
    outputs={"logits": True},
    targets={"labels": True},
    scores=(ENTITY_F1, PRECISION, RECALL, ACCURACY, LOSS),
    columns=ColumnRoles(
        titles=("words", "text_pair", "tags"),
        text=("tokens", "words", "token", "word", "text", "sentence"),
        label=("nertags", "tags", "ner", "labels", "postags", "pos", "chunktags", "label"),
    ),
    shown={"text with labels": "labelled_text"},
)
