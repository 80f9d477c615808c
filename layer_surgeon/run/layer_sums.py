"""The sums from which the measures of layers and blocks of layers are computed, added up batch by batch."""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from layer_surgeon._devices import as_float64
from layer_surgeon.run.moments import LinearFit, Moments, fit_linear

# Every fifth text is held out from the linear maps.
HELD_OUT_EVERY = 5
# Tokens that are converted to float64 at a time: 33 MB for a width of 4,096.
_CHUNK_TOKENS = 1024


@dataclass(frozen=True, kw_only=True)
class LayerMeasure:
    """Measures of a layer, or of a block of layers. RMS is the root mean square of all numbers of all tokens.

    Attributes:
        layer: The first layer.
        num_layers: The number of layers: 1 for a layer.
        block_influence: 1 - the mean cosine over tokens between what goes in and what comes out (ShortGPT,
            https://arxiv.org/abs/2403.03853, equation 1).
        angular_distance: The mean over texts of arccos(cosine) / pi of the last token, between what goes in and what
            comes out (Gromov et al., https://arxiv.org/abs/2403.17887, equation 6).
        rms_in: RMS of what goes in.
        rms_added: RMS of what comes out minus what goes in.
        loudness: RMS of what comes out divided by RMS of what goes in. None if only zeros go in.
        massive_share: The share of the largest dimension in the energy (sum of squares) of what comes out.
        massive_dimension: That dimension.
        linear_r2: R² of a linear map from what goes in to what comes out, on held-out texts, as a mean over the
            dimensions. None if it wasn't measured, or there are fewer than five texts.
        linear_r2_added: The same for what is added. Also None if nothing is added.
    """

    layer: int
    num_layers: int
    block_influence: float
    angular_distance: float
    rms_in: float
    rms_added: float
    loudness: float | None
    massive_share: float
    massive_dimension: int
    linear_r2: float | None
    linear_r2_added: float | None


class BlockSums:
    """Adds up the sums of one block of layers.

    Args:
        layer: The first layer of the block.
        num_layers: The number of layers.
        linear: Whether to fit linear maps.
    """

    def __init__(self, layer: int, num_layers: int, *, linear: bool) -> None:
        self._layer, self._num_layers, self._linear = layer, num_layers, linear
        self._num_texts = self._num_tokens = 0
        self._cosines = self._angles = 0.0
        self._squares_in = self._squares_added = 0.0
        self._energy: Tensor | None = None
        self._train: Moments | None = None
        self._test: Moments | None = None

    def add(self, texts: Sequence[int], lengths: Sequence[int], before: Tensor, after: Tensor) -> None:
        """Add the tokens of several texts.

        Args:
            texts: The indices of the texts.
            lengths: Their numbers of tokens.
            before: What goes in, [tokens, width], text after text.
            after: What comes out, [tokens, width].
        """
        starts = [0]
        for length in lengths:
            starts.append(starts[-1] + length)
        # Whole texts, because a text is either fitted or held out.
        first = 0
        for index in range(1, len(starts)):
            if starts[index] - starts[first] >= _CHUNK_TOKENS or index == len(starts) - 1:
                tokens = slice(starts[first], starts[index])
                self._add(
                    texts[first:index],
                    torch.tensor(lengths[first:index]),
                    as_float64(before[tokens]),
                    as_float64(after[tokens]),
                )
                first = index

    def _add(self, texts: Sequence[int], lengths: Tensor, before: Tensor, after: Tensor) -> None:
        squares_before, squares_after = before.square(), after.square()
        norms = (squares_before.sum(dim=1) * squares_after.sum(dim=1)).sqrt()
        cosines = (before * after).sum(dim=1) / norms.clamp_min(torch.finfo(torch.float64).tiny)
        last = (lengths.cumsum(0) - 1).to(cosines.device)
        self._num_texts += len(texts)
        self._num_tokens += len(before)
        self._cosines += float(cosines.sum())
        self._angles += float(cosines[last].clamp(-1, 1).arccos().sum()) / math.pi
        self._squares_in += float(squares_before.sum())
        self._squares_added += float((after - before).square().sum())
        energy = squares_after.sum(dim=0)
        self._energy = energy if self._energy is None else self._energy + energy
        if self._linear:
            self._add_moments(texts, lengths, before, after)

    def _add_moments(self, texts: Sequence[int], lengths: Tensor, before: Tensor, after: Tensor) -> None:
        if self._train is None or self._test is None:
            self._train, self._test = (Moments(before.shape[1], before.device) for _ in range(2))
        text_is_held_out = torch.tensor([text % HELD_OUT_EVERY == HELD_OUT_EVERY - 1 for text in texts])
        is_held_out = text_is_held_out.repeat_interleave(lengths).to(before.device)
        self._train.add(before[~is_held_out], after[~is_held_out])
        self._test.add(before[is_held_out], after[is_held_out])

    def measure(self) -> LayerMeasure:
        """Compute the measures. At least one token must have been added."""
        if self._energy is None:
            raise ValueError("There are no tokens to measure. Add some first.")
        width = len(self._energy)
        squares_out = float(self._energy.sum())
        fit: LinearFit | None = None
        if self._train is not None and self._test is not None:
            fit = fit_linear(self._train, self._test)
        return LayerMeasure(
            layer=self._layer,
            num_layers=self._num_layers,
            block_influence=1 - self._cosines / self._num_tokens,
            angular_distance=self._angles / self._num_texts,
            rms_in=math.sqrt(self._squares_in / self._num_tokens / width),
            rms_added=math.sqrt(self._squares_added / self._num_tokens / width),
            loudness=math.sqrt(squares_out / self._squares_in) if self._squares_in else None,
            massive_share=float(self._energy.max()) / squares_out if squares_out else 0.0,
            massive_dimension=int(self._energy.argmax()),
            linear_r2=None if fit is None else fit.output,
            linear_r2_added=None if fit is None else fit.added,
        )
