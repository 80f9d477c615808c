"""Run a model over a whole set."""

from typing import Any

import numpy as np
import numpy.typing as npt
import torch

from layer_surgeon.finetune.donor_states import with_states
from layer_surgeon.finetune.tasks.base import FinetuneTask, Outputs, TaskContext, in_order
from layer_surgeon.finetune.tokenization import TokenizedDataset
from layer_surgeon.progress import NullProgress, Progress

_PADDING = -100


def run_model(
    task: FinetuneTask,
    dataset: TokenizedDataset,
    context: TaskContext,
    *,
    description: str = "Predicting",
    progress: Progress | None = None,
) -> Outputs:
    """Run the model over a set.

    Batches are ordered from long to short texts, so there is little padding, and a lack of memory shows at once.

    Args:
        task: Reduces each batch to the outputs to keep.
        dataset: The set to run the model on.
        context: The model on its device, the tokenizer and the settings. The model is left in evaluation mode.
        description: Title of the progress bar.
        progress: Receives every batch.

    Returns:
        The outputs of `task.step`, one row per feature, in the order of `dataset`.
    """
    progress = progress or NullProgress()
    model, collate = context.model, with_states(task.collator(context))
    device = next(model.parameters()).device
    order = sorted(range(len(dataset)), key=lambda index: -dataset.lengths[index])
    pieces: list[tuple[npt.NDArray[Any], ...]] = []
    model.eval()
    progress.begin(description, len(dataset), "examples")
    with torch.inference_mode():
        for start in range(0, len(order), context.config.evaluation_batch_size):
            rows = order[start : start + context.config.evaluation_batch_size]
            batch = collate([dataset[row] for row in rows])
            # The collator of seq2seq adds None if there are no targets.
            inputs = {name: tensor.to(device) for name, tensor in batch.items() if tensor is not None}
            outputs = task.step(model, inputs, context)
            pieces.append(tuple(output.cpu().numpy() for output in outputs))
            progress.advance(len(rows))
    progress.end()
    joined = tuple(_join([piece[part] for piece in pieces]) for part in range(len(pieces[0])))
    return in_order(joined, np.asarray(order))


def _join(arrays: list[npt.NDArray[Any]]) -> npt.NDArray[Any]:
    """Concatenate arrays along the first axis, and pad short rows."""
    if arrays[0].ndim < 2:
        return np.concatenate(arrays)
    width = max(array.shape[1] for array in arrays)
    filled = [
        np.pad(
            array,
            [(0, 0), (0, width - array.shape[1]), *[(0, 0)] * (array.ndim - 2)],
            constant_values=array.dtype.type(_PADDING),
        )
        for array in arrays
    ]
    return np.concatenate(filled)
