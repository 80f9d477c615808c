"""Hosts x tasks: what is grafted, what goes in, what comes out, and what should, by the formulas alone."""

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from transformers import AutoModel, AutoModelForCausalLM, AutoModelForSeq2SeqLM
from transformers.modeling_outputs import BaseModelOutput

from tests.graft.conftest import DECODERS, ENCODER_DECODERS, ENCODERS, host_model, make_inputs
from tests.support.graft_reference import run_graft, run_head, run_reader

KINDS = (
    dict.fromkeys(ENCODERS, "encoder")
    | dict.fromkeys(ENCODER_DECODERS, "encoder-decoder")
    | dict.fromkeys(DECODERS, "decoder")
)
TASKS = (
    "text-classification",
    "token-classification",
    "question-answering",
    "feature-extraction",
    "seq2seq",
    "causal-lm",
)
# Tasks that not every host can do, and the kind that can.
ONLY = {"seq2seq": "encoder-decoder", "causal-lm": "decoder"}
READS = ("host", "text")
SERVED = [(host, task) for host in KINDS for task in TASKS if ONLY.get(task, KINDS[host]) == KINDS[host]]
REFUSED = [(host, task) for host in KINDS for task in TASKS if (host, task) not in SERVED]

LENGTHS = (9, 4, 6)


@dataclass(frozen=True)
class Case:
    """A host, its graft for a task, what the donor reads, and the whole model that the donor is from."""

    host_type: str
    task: str
    reads: str
    host: Any
    model: Any
    llm: Any

    @property
    def causal(self) -> bool:
        """Whether the host reads from left to right."""
        return KINDS[self.host_type] == "decoder"

    @property
    def per_token(self) -> bool:
        """Whether something comes out for each token of the source."""
        return self.task not in ("text-classification", "seq2seq")


def plain_host(host_type: str, task: str = "text-classification") -> Any:
    """A random host, with its language head where the task needs it."""
    auto = {"seq2seq": AutoModelForSeq2SeqLM, "causal-lm": AutoModelForCausalLM}.get(task, AutoModel)
    return host_model(host_type, auto=auto)


def padded_inputs(side: str = "right") -> dict[str, Tensor]:
    """Three texts of 9, 4 and 6 tokens."""
    inputs = make_inputs()
    for row, length in enumerate(LENGTHS):
        padding = slice(length, None) if side == "right" else slice(0, 9 - length)
        inputs["attention_mask"][row, padding] = 0
        inputs["input_ids"][row, padding] = 0
    return inputs


def alone(inputs: dict[str, Tensor], row: int, side: str) -> dict[str, Tensor]:
    """One of the texts without padding."""
    place = slice(0, LENGTHS[row]) if side == "right" else slice(9 - LENGTHS[row], 9)
    return {name: value[[row], place] for name, value in inputs.items()}


def targets(task: str) -> dict[str, Tensor]:
    """What the model learns for `padded_inputs`."""
    if task == "text-classification":
        return {"labels": torch.tensor([0, 1, 1])}
    if task == "question-answering":
        return {"start_positions": torch.tensor([1, 2, 3]), "end_positions": torch.tensor([1, 3, 3])}
    if task == "token-classification":
        return {"labels": torch.ones(3, 9, dtype=torch.long)}
    if task == "feature-extraction":
        return {}
    inputs = padded_inputs()
    labels = inputs["input_ids"] if task == "causal-lm" else make_inputs(length=5, seed=2)["input_ids"]
    return {"labels": labels.masked_fill(labels == 0, -100)}


def outputs(model: Any, task: str, inputs: dict[str, Tensor]) -> Tensor:
    """What a task gives: [batch, labels], or [batch, seq, number] for each token of the source or the target."""
    if task == "seq2seq":
        rows = len(inputs["input_ids"])
        decoder_ids = make_inputs(length=5, seed=2)["input_ids"][:rows]
        return model(**inputs, decoder_input_ids=decoder_ids).logits
    out = model(**inputs)
    if task == "question-answering":
        return torch.stack([out.start_logits, out.end_logits], dim=-1)
    if task == "feature-extraction":
        return out.last_hidden_state
    return out.logits


def by_formula(case: Case, inputs: dict[str, Tensor]) -> Tensor:
    """y = Head(L_out(L_LLM(L_in(h)))), and for text p(y) = Dec(L_out(L_LLM(L_in(Enc(x)))), y_<t); paper, section 3.

    If the donor reads the text, L_out(Norm(d)) is next to h, or h + gate x L_out(Norm(d)) for tasks without our head,
    where d are the states of the same tokens after the donor's first layers; for text classification their mean.
    """
    host, model, mask = case.host, case.model, inputs["attention_mask"]
    two_stacks = host.config.is_encoder_decoder
    hidden = (host.get_encoder() if two_stacks else host.base_model)(**inputs).last_hidden_state
    pooled = _pooled(hidden, mask, KINDS[case.host_type]) if case.task == "text-classification" else None
    if case.reads == "text":
        states = hidden if pooled is None else pooled
        read = run_reader(case.llm, model, inputs["input_ids"], mask, pooled=pooled is not None)
        states = states + model.gate * read if model.head is None else torch.cat([states, read], dim=-1)
    elif pooled is not None:
        states = run_graft(case.llm, model, pooled[:, None], torch.ones(len(mask), 1), causal=False)[:, 0]
    else:
        states = run_graft(case.llm, model, hidden, mask, causal=case.causal)
    if case.task == "feature-extraction":
        return states
    if case.task == "causal-lm":
        return host.get_output_embeddings()(states)
    if case.task == "seq2seq":
        decoder_ids = make_inputs(length=5, seed=2)["input_ids"][: len(mask)]
        encoded = BaseModelOutput(last_hidden_state=states)
        return host(encoder_outputs=encoded, attention_mask=mask, decoder_input_ids=decoder_ids, use_cache=False).logits
    return run_head(model.head, states)


def _pooled(hidden: Tensor, mask: Tensor, kind: str) -> Tensor:
    rows = [states[keep] for states, keep in zip(hidden, mask.bool(), strict=True)]
    choose = {"encoder": lambda row: row[0], "decoder": lambda row: row[-1], "encoder-decoder": lambda row: row.mean(0)}
    return torch.stack([choose[kind](row) for row in rows])
