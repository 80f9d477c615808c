"""Metrics that need a model of their own: BERTScore and BARTScore. Left out, with a notice, where it can't be had."""

from collections.abc import Sequence
from typing import Any

import torch
from torch.nn.functional import cross_entropy
from transformers import AutoModelForSeq2SeqLM

from layer_surgeon._loading import check_weights, load_config, load_model, load_tokenizer, without_asking
from layer_surgeon.finetune.config import FinetuneConfig
from layer_surgeon.graft.translate import first_line
from layer_surgeon.progress import Progress

# The model of the paper's BARTScore (Yuan et al. 2021), and what bert-score takes for English by itself.
BART_SCORE_MODEL = "facebook/bart-large-cnn"
BERT_SCORE_MODEL = "roberta-large"
_TEXTS_PER_BATCH = 8


def extra_scores(
    written: Sequence[str], references: Sequence[str], config: FinetuneConfig, device: torch.device, progress: Progress
) -> dict[str, float]:
    """The asked scores, by name, that can be had here.

    Args:
        written: What the model wrote.
        references: What it should have, one for each.
        config: Says which are asked for (`extra_metrics`).
        device: Where to compute them.
        progress: Told which can't be had, and why.
    """
    found: dict[str, float] = {}
    for name, model in config.wanted_extra_metrics.items():
        try:
            found[name] = _SCORERS[name](written, references, device, *([] if model is None else [model]))
        except (ImportError, OSError, ValueError) as error:
            progress.notice(f"{name} is left out: its model can't be had here ({first_line(error)}).")
    return found


def bert_score(
    written: Sequence[str], references: Sequence[str], device: torch.device, model_name: str = BERT_SCORE_MODEL
) -> float:
    """Mean F1 of BERTScore (Zhang et al. 2020), without rescaling; 0 where nothing, or nothing but space, was written.

    Args:
        written: What the model wrote.
        references: What it should have.
        device: Where to compute it.
        model_name: A repo id or a folder. Of a model that bert-score knows by that name its layer is taken, else the
            last one.

    Raises:
        ImportError: The package bert-score is not installed.
        OSError: The model can't be loaded.
        ValueError: Its tokenizer names no greatest length.
    """
    import bert_score as package  # of the extra [scores]

    # With transformers 5 the package fails at a text without words.
    pairs = [(text, other) for text, other in zip(written, references, strict=True) if text.strip() and other.strip()]
    if not pairs:
        return 0.0
    layers = package.utils.model2layers.get(model_name) or load_config(model_name).num_hidden_layers
    check_weights(model_name)
    try:
        with without_asking():
            _, _, f1 = package.score(
                *(list(texts) for texts in zip(*pairs, strict=True)),
                model_type=model_name,
                num_layers=layers,
                device=str(device),
                verbose=False,
            )
    except OverflowError as error:
        # It hands on what transformers has for "no limit", which is no number for the tokenizer.
        raise ValueError("model_max_length is missing in its tokenizer_config.json") from error
    return float(f1.sum()) / len(written)


def bart_score(
    written: Sequence[str], references: Sequence[str], device: torch.device, model_name: str = BART_SCORE_MODEL
) -> float:
    """Mean over texts of BARTScore from the reference to the written text: the log-probability of its mean token.

    Raises:
        OSError: The model can't be loaded.
    """
    tokenizer: Any = load_tokenizer(model_name)
    model: Any = load_model(AutoModelForSeq2SeqLM, model_name, dtype=torch.float32).to(device).eval()
    scores: list[float] = []
    with torch.inference_mode():
        for start in range(0, len(written), _TEXTS_PER_BATCH):
            part = slice(start, start + _TEXTS_PER_BATCH)
            settings: dict[str, Any] = {"padding": True, "truncation": True, "return_tensors": "pt"}
            source = tokenizer(list(references[part]), **settings).to(device)
            target = tokenizer(list(written[part]), **settings).to(device)
            labels = target["input_ids"].masked_fill(target["attention_mask"] == 0, -100)
            inputs = {name: source[name] for name in ("input_ids", "attention_mask")}
            logits = model(**inputs, labels=labels).logits.float()
            losses = cross_entropy(logits.transpose(1, 2), labels, ignore_index=-100, reduction="none")
            scores += (-losses.sum(-1) / (labels != -100).sum(-1)).tolist()
    return sum(scores) / len(scores)


_SCORERS = {"bert_score": bert_score, "bart_score": bart_score}
