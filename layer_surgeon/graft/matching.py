"""How loudly a graft answers, and `projection_init="matched"`: a fixed scale by which that is as loudly as the host.

RMS is the root of the mean square of all numbers in a batch of vectors. With h, the host's vectors at the graft:

    RMS(proj_in(h)) = RMS(donor(proj_in(h)) - proj_in(h))        the layer adds as much as it is given
    RMS(proj_out(donor(proj_in(h)))) = RMS(h)                    the graft answers as loudly as the host did
"""

import math
from typing import Any, cast

import torch
from torch import Tensor, nn

from layer_surgeon.errors import GraftError
from layer_surgeon.graft.modeling import GraftedModel
from layer_surgeon.graft.projection import ScaledLinear

_SEED = 0
_SEQUENCES, _TOKENS = 32, 16
# A layer that begins with a norm needs two (the norm's epsilon, and the layers behind the first, see the scale), one
# that answers to the scale itself may never settle.
_STEPS, _SETTLED = 8, 1e-4


# From here on a graft is called loud. In docs/results.md, grafts that answered up to 5 times as loudly as the host came
# out near it, and those with over 20 times, worse.
LOUD = 10.0
# It is measured of every graft, and a power of ten is all that is asked for.
_FEW = 4


@torch.no_grad()
def measure_loudness(model: GraftedModel) -> float | None:
    """How many times as loudly as the host a graft answers: RMS(proj_out(donor(proj_in(h)))) / RMS(h).

    No data is needed: the host reads a few rows of `matching_batch`. torch's random state is neither used nor changed.

    Args:
        model: A graft with its donor attached, in eval mode.

    Returns:
        The ratio; None where the host's config names no vocabulary, or the ratio is no number above zero.
    """
    try:
        hidden, given = _read(model, _FEW)
        donor, proj_in, proj_out = (cast(nn.Module, part) for part in (model.donor, model.proj_in, model.proj_out))
        out = proj_out(donor(proj_in(hidden), **given))
        return _usable(out, "what comes out of proj_out") / _usable(hidden, "what the host gives")
    except GraftError:
        return None


@torch.no_grad()
def match_projections(model: GraftedModel) -> None:
    """Set the scale of each of the two projections, so that both equations above hold.

    No data is needed: the host reads `matching_batch`. torch's random state is neither used nor changed. Where a donor
    does not begin with a norm, what it adds depends on how loud its input is; after eight steps the last number is
    taken.

    Args:
        model: A graft with its donor attached and projections that have a scale, in eval mode.

    Raises:
        GraftError: The host's vectors, or what the layer makes of them, are zero or not finite.
    """
    hidden, given = _read(model)
    proj_in, proj_out = cast(ScaledLinear, model.proj_in), cast(ScaledLinear, model.proj_out)

    def answer(inside: Tensor) -> Tensor:
        return model.donor(inside, **given)  # type: ignore[no-any-return,misc]  # transformers is untyped here

    drawn = proj_in(hidden)
    loud = _usable(drawn, "what comes out of proj_in")
    factor = 1.0
    for _ in range(_STEPS):
        inside = drawn * factor
        before, factor = factor, _usable(answer(inside).float() - inside.float(), "what the donor layer adds") / loud
        if math.isclose(before, factor, rel_tol=_SETTLED):
            break
    proj_in.scale *= factor
    out = proj_out(answer(proj_in(hidden)))
    proj_out.scale *= _usable(hidden, "what the host gives") / _usable(out, "what comes out of proj_out")


def matching_batch(model: GraftedModel, rows: int = _SEQUENCES) -> dict[str, Tensor]:
    """What the host reads: always the same ids, 32 rows of 16, evenly from its vocabulary; a mask of ones.

    Args:
        model: The graft.
        rows: How many of the 32.

    Raises:
        GraftError: The host's config names no vocabulary.
    """
    vocabulary = getattr(model.config.get_text_config(), "vocab_size", None)
    if not vocabulary:
        raise GraftError(
            f"projection_init is 'matched', but the host ({model.config.host_config.model_type}) names no vocab_size, "
            "so that there is nothing it could read. Choose projection_init default, or another host."
        )
    generator = torch.Generator().manual_seed(_SEED)
    ids = torch.randint(vocabulary, (_SEQUENCES, _TOKENS), generator=generator)[:rows].to(model.device)
    batch = {"input_ids": ids, "attention_mask": torch.ones_like(ids)}
    if model.config.is_encoder_decoder:
        batch["decoder_input_ids"] = ids[:, :1]
    return batch


def _read(model: GraftedModel, rows: int = _SEQUENCES) -> tuple[Tensor, dict[str, Any]]:
    """The host's vectors where the graft takes them, [batch, seq, host_hidden], and how the donor is called there."""
    hidden: list[Tensor] = []
    given: list[dict[str, Any]] = []
    hooks = [
        cast(nn.Module, model.proj_in).register_forward_pre_hook(lambda _, args: hidden.append(args[0])),
        cast(nn.Module, model.donor).register_forward_pre_hook(
            lambda _, args, kwargs: given.append(kwargs), with_kwargs=True
        ),
    ]
    try:
        model(**matching_batch(model, rows))
    finally:
        for hook in hooks:
            hook.remove()
    return hidden[0], given[0]


def _usable(vectors: Tensor, what: str) -> float:
    """The RMS of vectors, which must be a number above zero."""
    value = float(vectors.double().square().mean().sqrt())
    if not math.isfinite(value) or value == 0:
        raise GraftError(
            f"projection_init is 'matched', but {what} has an RMS of {value:g}, where a finite one above 0 was "
            "expected. Choose projection_init default, or, where it is not finite, donor_dtype float32; and see that "
            "host and donor are whole."
        )
    return value
