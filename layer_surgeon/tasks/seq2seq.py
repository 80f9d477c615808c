"""Translation and summarisation: generate a text from a text."""

from layer_surgeon.tasks.roles import ColumnRoles
from layer_surgeon.tasks.scores import (
    BART_SCORE,
    BERT_SCORE,
    BLEU,
    LOSS,
    METEOR,
    ROUGE_1,
    ROUGE_2,
    ROUGE_L,
    ROUGE_L_SUM,
)
from layer_surgeon.tasks.task import Task

SEQ2SEQ = Task(
    name="seq2seq",
    model_class="layer_surgeon.graft.seq2seq:GraftedModelForSeq2SeqLM",
    finetune_class="layer_surgeon.finetune.tasks.seq2seq:Seq2Seq",
    auto="AutoModelForSeq2SeqLM",
    plain_models="MODEL_FOR_SEQ_TO_SEQ_CAUSAL_LM_MAPPING_NAMES",
    pipeline_tag="text2text-generation",
    has_pipeline=False,
    peft_type="SEQ_2_SEQ_LM",
    hosts=("encoder-decoder",),
    generates=True,
    targets={"labels": True},
    scores=(BLEU, ROUGE_1, ROUGE_2, ROUGE_L, ROUGE_L_SUM, METEOR, LOSS, BERT_SCORE, BART_SCORE),
    columns=ColumnRoles(
        titles=("source", "text_pair", "target"),
        text=("source", "src", "input", "article", "document", "dialogue", "text", "en"),
        label=("target", "tgt", "output", "highlights", "summary", "translation", "de"),
        pairs=(
            ("source", "target"),
            ("src", "tgt"),
            ("input", "output"),
            ("article", "highlights"),
            ("document", "summary"),
            ("dialogue", "summary"),
            ("text", "summary"),
            ("en", "de"),
        ),
        learns_pair=True,
    ),
    data_kinds={"translation": "translation", "summarisation": "summarization"},
    shown={"written": "written", "text": "text"},
)
