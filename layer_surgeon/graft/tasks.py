"""What each task needs from a graft. Imports no torch."""

from dataclasses import dataclass
from typing import Literal

HostKind = Literal["encoder", "decoder", "encoder-decoder"]
Task = Literal[
    "text-classification", "token-classification", "question-answering", "feature-extraction", "seq2seq", "causal-lm"
]


@dataclass(frozen=True, kw_only=True)
class TaskTraits:
    """Traits of a task.

    Attributes:
        hosts: The supported kinds of hosts.
        pools: Whether the states of a text's tokens are pooled to one vector.
        labels: Whether the task has labels that the user names.
        head: Whether the graft has its own head; otherwise it keeps the host's, or there is none.
        generates: Whether the task generates text, with the whole host and its language head.
        auto: The transformers Auto class that loads such a model.
        pipeline_tag: The Hub's name for the task.
    """

    hosts: tuple[HostKind, ...] = ("encoder", "decoder", "encoder-decoder")
    pools: bool = False
    labels: bool = False
    head: bool = False
    generates: bool = False
    auto: str
    pipeline_tag: str


TASKS: dict[str, TaskTraits] = {
    "text-classification": TaskTraits(
        pools=True,
        labels=True,
        head=True,
        auto="AutoModelForSequenceClassification",
        pipeline_tag="text-classification",
    ),
    "token-classification": TaskTraits(
        labels=True, head=True, auto="AutoModelForTokenClassification", pipeline_tag="token-classification"
    ),
    "question-answering": TaskTraits(
        head=True, auto="AutoModelForQuestionAnswering", pipeline_tag="question-answering"
    ),
    "feature-extraction": TaskTraits(pools=True, auto="AutoModel", pipeline_tag="feature-extraction"),
    "seq2seq": TaskTraits(
        hosts=("encoder-decoder",),
        generates=True,
        auto="AutoModelForSeq2SeqLM",
        pipeline_tag="text2text-generation",
    ),
    "causal-lm": TaskTraits(
        hosts=("decoder",), generates=True, auto="AutoModelForCausalLM", pipeline_tag="text-generation"
    ),
}
