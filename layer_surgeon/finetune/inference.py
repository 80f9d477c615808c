"""Logits of a model over examples, in the examples' order."""

from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from transformers import DataCollatorWithPadding, PreTrainedTokenizerBase

from layer_surgeon.finetune.tokenization import TokenizedDataset
from layer_surgeon.progress import NullProgress, Progress


def compute_logits(
    model: Any,
    dataset: TokenizedDataset,
    tokenizer: PreTrainedTokenizerBase,
    *,
    batch_size: int,
    description: str = "Predicting",
    progress: Progress | None = None,
) -> npt.NDArray[np.float32]:
    """Run the model over a set, longest texts first so that little is padded and a lack of memory shows at once.

    Args:
        model: A sequence classification model, on its device; left in evaluation mode.
        dataset: What to run it on.
        tokenizer: Pads the batches.
        batch_size: Examples per forward pass.
        description: What the progress calls it.
        progress: Told about every batch.

    Returns:
        [examples, classes], in the order of `dataset`.
    """
    progress = progress or NullProgress()
    collate = DataCollatorWithPadding(tokenizer)
    device = next(model.parameters()).device
    order = sorted(range(len(dataset)), key=lambda index: -dataset.lengths[index])
    pieces: list[npt.NDArray[np.float32]] = []
    model.eval()
    progress.begin(description, len(dataset), "examples")
    with torch.inference_mode():
        for start in range(0, len(order), batch_size):
            rows = order[start : start + batch_size]
            batch = collate([{k: v for k, v in dataset[row].items() if k != "labels"} for row in rows])
            logits = model(**{name: tensor.to(device) for name, tensor in batch.items()}).logits
            pieces.append(logits.float().cpu().numpy())
            progress.advance(len(rows))
    progress.end()
    result = np.concatenate(pieces)
    result[order] = result.copy()
    return result
