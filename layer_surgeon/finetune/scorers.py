"""Metrics that need their own model: BERTScore and BARTScore. If the model is unavailable, the metric is skipped."""

from collections.abc import Sequence
from typing import Any

import torch
from torch.nn.functional import cross_entropy
from transformers import AutoModelForSeq2SeqLM

from layer_surgeon._loading import check_weights, load_config, load_model, load_tokenizer, without_asking
from layer_surgeon._text import first_line
from layer_surgeon.finetune.config import FinetuneConfig
from layer_surgeon.progress import Progress

# The model of the BARTScore paper (Yuan et al. 2021), and the default model of bert-score for English.
BART_SCORE_MODEL = "facebook/bart-large-cnn"
BERT_SCORE_MODEL = "roberta-large"
_TEXTS_PER_BATCH = 8


def extra_scores(
    written: Sequence[str], references: Sequence[str], config: FinetuneConfig, device: torch.device, progress: Progress
) -> dict[str, float]:
    """Compute the metrics that `config.extra_metrics` asks for, and skip those whose model is unavailable.

    Args:
        written: The generated texts.
        references: One reference per generated text.
        config: The settings.
        device: The device to compute the metrics on.
        progress: Receives a notice about each skipped metric.
    """
    scores: dict[str, float] = {}
    for name, model in config.wanted_extra_metrics.items():
        try:
            scores[name] = _SCORERS[name](written, references, device, *([] if model is None else [model]))
        except torch.OutOfMemoryError:
            raise
        except (ImportError, OSError, ValueError, KeyError, AttributeError, RuntimeError) as error:
            progress.notice(f"Skipped {name}: its model can't be loaded ({first_line(error)}).")
    return scores


def bert_score(
    written: Sequence[str], references: Sequence[str], device: torch.device, model_name: str = BERT_SCORE_MODEL
) -> float:
    """Compute the mean F1 of BERTScore (Zhang et al. 2020), without rescaling; a blank text scores 0.

    Args:
        written: The generated texts.
        references: One reference per generated text.
        device: The device to compute the metric on.
        model_name: A repo id or a folder. bert-score knows which layer to use for some models; for all others, the
            last layer is used.

    Raises:
        ImportError: The package bert-score is not installed.
        OSError: The model can't be loaded.
        ValueError: The tokenizer does not specify its maximum length.
    """
    import bert_score as package  # From the extra [scores].

    # With transformers 5, bert-score fails on texts without words.
    pairs = [
        (text, reference)
        for text, reference in zip(written, references, strict=True)
        if text.strip() and reference.strip()
    ]
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
        # bert-score passes on transformers' value for "no limit", which is too large for the tokenizer.
        raise ValueError("its tokenizer_config.json has no model_max_length") from error
    return float(f1.sum()) / len(written)


def bart_score(
    written: Sequence[str], references: Sequence[str], device: torch.device, model_name: str = BART_SCORE_MODEL
) -> float:
    """Compute the mean BARTScore from reference to generated text: the mean log-probability of the text's tokens.

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
