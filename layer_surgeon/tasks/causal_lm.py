"""Language modelling: predict the next token of a text."""

from layer_surgeon.tasks.roles import ColumnRoles
from layer_surgeon.tasks.scores import LOSS, PERPLEXITY
from layer_surgeon.tasks.task import Task

CAUSAL_LM = Task(
    name="causal-lm",
    model_class="layer_surgeon.graft.causal:GraftedModelForCausalLM",
    finetune_class="layer_surgeon.finetune.tasks.causal_lm:CausalLM",
    auto="AutoModelForCausalLM",
    # No plain_models: most decoders on the Hub are stored as causal language models, and are just as often fine-tuned
    # for classification.
    pipeline_tag="text-generation",
    peft_type="CAUSAL_LM",
    hosts=("decoder",),
    generates=True,
    causal=True,
    targets={"labels": True},
    scores=(PERPLEXITY, LOSS),
    columns=ColumnRoles(
        text=("text", "content", "document", "sentence", "review", "story", "article", "body"), only_text=True
    ),
    unit="blocks",
    example=("Once upon a time",),
    shown={"written": "written", "text": "text"},
)
