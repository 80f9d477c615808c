"""The order of the examples, and the number of steps that they make."""

import math
from collections.abc import Iterator

import torch
from torch.utils.data import Sampler
from transformers.trainer_pt_utils import get_length_grouped_indices

from layer_surgeon.finetune.config import FinetuneConfig
from layer_surgeon.finetune.tokenization import NumberedDataset, TokenizedDataset


class EpochSampler(Sampler[int]):
    """Samples examples in an order that depends only on the seed and the epoch.

    The samplers of transformers differ in two ways. They use the global random state, which is lost when a run resumes
    inside an epoch. And their order by length sorts every fifty batches from long to short, so the last steps before a
    validation see only short texts. This sampler shuffles the batches.
    """

    def __init__(self, dataset: TokenizedDataset, batch_size: int, seed: int, *, by_length: bool) -> None:
        self._lengths, self._batch_size, self._seed, self._by_length = dataset.lengths, batch_size, seed, by_length
        self._epoch = 0

    def set_epoch(self, epoch: int) -> None:
        """Set the epoch; accelerate's data loader calls this when an epoch begins."""
        self._epoch = epoch

    def __len__(self) -> int:
        return len(self._lengths)

    def __iter__(self) -> Iterator[int]:
        # Without the factor, epoch 1 of seed 7 would have the order of epoch 0 of seed 8.
        generator = torch.Generator().manual_seed(self._seed * 10_007 + self._epoch)
        if self._by_length:
            return iter(self._grouped(generator))
        return iter(torch.randperm(len(self), generator=generator).tolist())

    def _grouped(self, generator: torch.Generator) -> list[int]:
        size = self._batch_size
        indices = get_length_grouped_indices(self._lengths, size, generator=generator)
        batches = [indices[start : start + size] for start in range(0, len(indices), size)]
        # The first batch has the longest text, so a run that lacks memory fails at once. The last one may be smaller.
        inner = torch.randperm(max(0, len(batches) - 2), generator=generator).tolist()
        batch_order = [0, *(number + 1 for number in inner), len(batches) - 1][: len(batches)]
        return [index for number in batch_order for index in batches[number]]


class SortedSampler(Sampler[int]):
    """Samples the longest examples first: batches need little padding, and a lack of memory shows at once."""

    def __init__(self, dataset: NumberedDataset) -> None:
        self._order = sorted(range(len(dataset)), key=lambda index: -dataset.lengths[index])

    def __len__(self) -> int:
        return len(self._order)

    def __iter__(self) -> Iterator[int]:
        return iter(self._order)


def examples_per_step(config: FinetuneConfig, num_processes: int = 1) -> int:
    """Number of examples per optimizer step, over all forward passes and processes."""
    return config.batch_size * config.gradient_accumulation_steps * num_processes


def count_steps(config: FinetuneConfig, num_examples: int, num_processes: int = 1) -> tuple[int, int]:
    """Number of optimizer steps in an epoch and in the whole run."""
    per_epoch = math.ceil(num_examples / examples_per_step(config, num_processes))
    return per_epoch, config.max_steps or math.ceil(config.num_epochs * per_epoch)
