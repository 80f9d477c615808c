"""Greedy and beam search, one step after the other and without cache, from a function that gives the next logits.

No token comes twice (transformers' no_repeat_ngram_size=1): tiny random models repeat themselves otherwise.
"""

from collections.abc import Callable

import torch
from torch import Tensor

NextLogits = Callable[[Tensor], Tensor]


def log_probabilities(next_logits: NextLogits, texts: list[list[int]]) -> Tensor:
    """[texts, vocabulary], minus infinity for the tokens that a text has."""
    ids = torch.tensor(texts)
    return next_logits(ids).double().log_softmax(dim=-1).scatter(1, ids, -torch.inf)


def decode_greedily(next_logits: NextLogits, start: list[int], *, eos: int, steps: int) -> list[int]:
    """The likeliest token at each step. `next_logits`: [1, length] ids -> [1, vocabulary]."""
    ids = list(start)
    for _ in range(steps):
        ids.append(int(log_probabilities(next_logits, [ids])[0].argmax()))
        if ids[-1] == eos:
            break
    return ids


def decode_with_beams(next_logits: NextLogits, start: list[int], *, eos: int, steps: int, beams: int) -> list[int]:
    """Beam search with transformers' defaults: length penalty 1, no early stopping.

    Of the 2 x beams likeliest continuations the best ones that don't end go on; one that ends, and is among the best
    `beams`, is kept with its log probability per token. It is over when no running beam can be better than all kept.
    """
    running, finished = [(0.0, list(start))], []
    for step in range(1, steps + 1):
        scores = torch.tensor([score for score, _ in running], dtype=torch.float64)
        totals = scores[:, None] + log_probabilities(next_logits, [ids for _, ids in running])  # [beams, vocabulary]
        best = totals.flatten().topk(2 * beams)
        going_on = []
        for rank, (score, place) in enumerate(zip(best.values.tolist(), best.indices.tolist(), strict=True)):
            beam, token = divmod(place, totals.shape[1])
            ids = [*running[beam][1], token]
            if token == eos or step == steps:
                if rank < beams:
                    finished.append((score / step, ids))
            elif len(going_on) < beams:
                going_on.append((score, ids))
        running = going_on
        finished = sorted(finished, key=lambda entry: -entry[0])[:beams]
        if len(finished) == beams and (not running or running[0][0] / step <= finished[-1][0]):
            break
    return finished[0][1]
