"""Log-likelihoods of tokens: final norm and language head, with the head in slices of the vocabulary."""

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from layer_surgeon.donor.checkpoint_names import checkpoint_names
from layer_surgeon.donor.exit import DonorExit, ExitPlan, not_finite
from layer_surgeon.extract.other_tensors import plan_tensors
from layer_surgeon.progress import Progress
from layer_surgeon.run.batches import Batch
from layer_surgeon.run.fetching import ByteCounter, read_plan
from layer_surgeon.run.inputs import RunInputs, read_rows

# 8192 rows of width 8192 in bfloat16 have 134 MB. The logits of 1024 tokens for a slice have 34 MB in float32.
SLICE_ROWS = 8192
_CHUNK_TOKENS = 1024


@dataclass(frozen=True, kw_only=True)
class _Chunk:
    """Neighbouring tokens of a batch.

    Attributes:
        states: Their states after the last layer, [tokens, donor_hidden].
        start: Their position among all tokens, in the order of the batches.
        targets: The token that follows each; -1 after the last of a text.
    """

    states: Tensor
    start: int
    targets: Tensor


def score_tokens(inputs: RunInputs, plan: ExitPlan, folder: Path, counter: ByteCounter, progress: Progress) -> Tensor:
    """Compute the log-likelihood of each token given those before it.

    Args:
        inputs: The inputs of the run.
        plan: What acts after the last layer.
        folder: The folder with the states after the last layer.
        counter: Counts the bytes that are read.
        progress: Reports the rows of the head.

    Returns:
        [all tokens] in the order of the texts, float32; NaN for the first token of each text.

    Raises:
        SourceError: The checkpoint can't be read.
        UnsupportedArchitectureError: The family's logits can't be computed in slices.
        CheckpointError: The logits of a token are infinite or NaN.
    """
    names = checkpoint_names(plan.outline, plan.shapes, inputs.checkpoint)
    total = torch.full((inputs.num_tokens,), -torch.inf, dtype=torch.float64)
    of_target = torch.full((inputs.num_tokens,), torch.nan, dtype=torch.float64)
    progress.begin("language head", plan.vocab_size, "rows")
    with torch.no_grad():
        head: DonorExit | None = None
        for start in range(0, plan.vocab_size, SLICE_ROWS):
            rows = torch.arange(start, min(start + SLICE_ROWS, plan.vocab_size))
            weights = _read_slice(inputs, names, plan, rows, counter)
            if head is None:
                head = _make_exit(inputs, names, plan, weights, counter)
                head.check_slices(weights, next(_chunks(inputs, folder)).states[:8])
            else:
                head.set_slice(weights)
            for chunk in _chunks(inputs, folder):
                tokens = slice(chunk.start, chunk.start + len(chunk.states))
                logits = head(chunk.states)
                total[tokens] = torch.logaddexp(total[tokens], logits.logsumexp(-1).cpu().double())
                hits = (chunk.targets >= start) & (chunk.targets < start + len(rows))
                columns = (chunk.targets[hits] - start).to(logits.device)
                picked = logits[hits.to(logits.device)].gather(1, columns[:, None])[:, 0]
                of_target[tokens][hits] = picked.cpu().double()
            progress.advance(len(rows))
    progress.end()
    following = of_target - total
    # The last token of each text predicts nothing.
    if total.isposinf().any() or following.isnan().sum() != sum(map(bool, inputs.tokens.ids)):
        raise not_finite("The logits", inputs.dtype)
    return _to_text_order(inputs, following)


def _read_slice(
    inputs: RunInputs, names: dict[str, str], plan: ExitPlan, rows: Tensor, counter: ByteCounter
) -> dict[str, Tensor]:
    dtype = inputs.config.dtype
    return {name: read_rows(inputs.checkpoint, names[name], rows, dtype, counter) for name in plan.sliced}


def _make_exit(
    inputs: RunInputs, names: dict[str, str], plan: ExitPlan, weights: dict[str, Tensor], counter: ByteCounter
) -> DonorExit:
    whole = {name: stored for name, stored in names.items() if name not in plan.sliced}
    tensors = read_plan(inputs.checkpoint, plan_tensors(inputs.checkpoint, whole, dtype=inputs.config.dtype), counter)
    return DonorExit.from_tensors(plan, {**tensors, **weights}, dtype=inputs.dtype).to(inputs.device)


def _chunks(inputs: RunInputs, folder: Path) -> Iterator[_Chunk]:
    files, last_depth = inputs.depth_files(folder), inputs.checkpoint.num_layers
    for batch in inputs.tokens.batches:
        states, targets = files.read(last_depth, batch), _targets(inputs, batch)
        for start in range(0, len(states), _CHUNK_TOKENS):
            part = slice(start, start + _CHUNK_TOKENS)
            yield _Chunk(states=states[part].to(inputs.device), start=batch.start + start, targets=targets[part])


def _targets(inputs: RunInputs, batch: Batch) -> Tensor:
    return torch.tensor([token for text in batch.texts for token in (*inputs.tokens.ids[text][1:], -1)])


def _to_text_order(inputs: RunInputs, following: Tensor) -> Tensor:
    """Put values of following tokens, in the order of the batches, to these tokens, in the order of the texts."""
    offsets = torch.tensor([0, *map(len, inputs.tokens.ids)]).cumsum(0).tolist()
    values = torch.full((inputs.num_tokens,), torch.nan)
    for batch in inputs.tokens.batches:
        position = batch.start
        for text, length in zip(batch.texts, batch.lengths, strict=True):
            values[offsets[text] + 1 : offsets[text] + length] = following[position : position + length - 1].float()
            position += length
    return values
