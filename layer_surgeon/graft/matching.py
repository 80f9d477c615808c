"""The loudness of a graft, and `projection_init`: auto and matched scale the projections to a loudness of 1.

RMS is the root mean square of all numbers in a batch of vectors. The *loudness* of a graft is the RMS of its output
divided by the RMS of its input h, the host's vectors. Matched projections satisfy two equations:

    RMS(proj_in(h)) = RMS(donor(proj_in(h)) - proj_in(h))        the donor layer adds as much as its input has
    RMS(proj_out(donor(proj_in(h)))) = RMS(h)                    the loudness is 1

A donor that reads text has no proj_in. `standardise_states` sets the scale of each feature of its states instead.
"""

import math
from typing import Any, cast

import torch
from torch import Tensor, nn

from layer_surgeon._devices import as_float64
from layer_surgeon.donor import DonorStack
from layer_surgeon.errors import GraftError
from layer_surgeon.graft.config import GraftConfig
from layer_surgeon.graft.modeling import GraftedModel
from layer_surgeon.graft.projection import ScaledLinear
from layer_surgeon.graft.reading import DonorNorm, vocabulary_size

_SEED = 0
_SEQUENCES, _TOKENS = 32, 16
# The scale of proj_in is found in steps. A layer that starts with a norm needs two, because the norm's epsilon and
# the layers after the first depend a little on the scale. A layer without such a norm may never converge.
_MAX_STEPS, _RELATIVE_TOLERANCE = 8, 1e-4

# Grafts above this loudness are called loud. In research/results.md, grafts with a loudness of up to 5 scored close to
# their host, and those with a loudness of over 20 scored worse.
LOUD = 10.0
# Of the median feature's standard deviation.
_LEAST_DEVIATION = 0.01
# Loudness is measured for every graft, and only its order of magnitude matters, so a few rows are enough.
_LOUDNESS_ROWS = 4


@torch.no_grad()
def measure_loudness(model: GraftedModel) -> float | None:
    """Measure the loudness of a graft: RMS(proj_out(donor(proj_in(h)))) / RMS(h).

    This needs no data: the host reads a few rows of `matching_batch`. torch's random state is neither used nor changed.

    Args:
        model: A graft with its donor attached, in eval mode.

    Returns:
        The loudness; None if the donor reads text, if the host's config has no vocab_size, or if an RMS is zero or not
        finite.
    """
    if model.proj_in is None:
        return None
    try:
        hidden, donor_arguments = _capture_graft_input(model, _LOUDNESS_ROWS)
        donor, proj_in, proj_out = (cast(nn.Module, part) for part in (model.donor, model.proj_in, model.proj_out))
        out = proj_out(donor(proj_in(hidden), **donor_arguments))
        if model.proj_out_norm is not None:
            out = model.proj_out_norm(out)
        return _checked_rms(out, "the output of proj_out") / _checked_rms(hidden, "the output of the host")
    except GraftError:
        return None


def is_loud(settings: GraftConfig, loudness: float | None) -> bool:
    """Whether a graft replaces the host's vectors and has a loudness of more than `LOUD`."""
    return settings.residual == "none" and loudness is not None and loudness > LOUD


def match_if_loud(model: GraftedModel) -> float | None:
    """Do what `projection_init="auto"` means: match the projections of a loud graft, and leave others unchanged.

    All weights stay as they are; a loud graft gets projections with a scale, and its config says `matched`.

    Args:
        model: A graft with its donor attached and projections without a scale, in eval mode.

    Returns:
        The loudness before, if the projections were matched; else None.

    Raises:
        GraftError: As in `match_projections`.
    """
    settings = model.config.settings
    if settings.residual != "none" or settings.proj_out_norm:
        return None
    loudness = measure_loudness(model)
    if not is_loud(settings, loudness):
        return None
    for name in ("proj_in", "proj_out"):
        setattr(model, name, ScaledLinear.from_linear(getattr(model, name)))
    model.config.graft = {**model.config.graft, "projection_init": "matched"}
    match_projections(model)
    return loudness


@torch.no_grad()
def match_projections(model: GraftedModel) -> None:
    """Set the scales of both projections so that the two equations above hold.

    This needs no data: the host reads `matching_batch`. torch's random state is neither used nor changed. If a donor
    doesn't start with a norm, the RMS of what it adds depends on the RMS of its input; then the scale after eight steps
    is used.

    Args:
        model: A graft with its donor attached and projections that have a scale, in eval mode.

    Raises:
        GraftError: The RMS of the host's vectors, or of what the layer computes from them, is zero or not finite.
    """
    hidden, donor_arguments = _capture_graft_input(model)
    proj_in, proj_out = cast(ScaledLinear, model.proj_in), cast(ScaledLinear, model.proj_out)

    def run_donor(donor_input: Tensor) -> Tensor:
        return model.donor(donor_input, **donor_arguments)  # type: ignore[no-any-return,misc]  # transformers is untyped here

    unscaled = proj_in(hidden)
    unscaled_rms = _checked_rms(unscaled, "the output of proj_in")
    factor = 1.0
    for _ in range(_MAX_STEPS):
        donor_input = unscaled * factor
        added = run_donor(donor_input).float() - donor_input.float()
        previous_factor, factor = factor, _checked_rms(added, "what the donor layer adds") / unscaled_rms
        if math.isclose(previous_factor, factor, rel_tol=_RELATIVE_TOLERANCE):
            break
    proj_in.scale *= factor
    out = proj_out(run_donor(proj_in(hidden)))
    proj_out.scale *= _checked_rms(hidden, "the output of the host") / _checked_rms(out, "the output of proj_out")


@torch.no_grad()
def standardise_states(model: GraftedModel, first_token: int | None = None) -> None:
    """Set the fixed mean and scale of `donor_norm`, so that each feature of the donor's states has mean 0 and std 1.

    This needs no data: the donor reads a fixed sample of 32 rows of 16 ids, uniform over its vocabulary. torch's random
    state is neither used nor changed. Features that hardly vary in the sample are scaled by at most 100 times as much
    as the median feature.

    Args:
        model: A graft whose donor reads text, with the donor attached, in eval mode.
        first_token: The token in front of each text, if there is one. Its state can be larger than all others: without
            it, the head in the docstring of `DonorNorm` gets 75 % instead of 83 % (with the host's tokens).

    Raises:
        GraftError: The states are not finite, or hardly any feature varies.
    """
    norm = cast(DonorNorm, model.donor_norm)
    ids = _sample_ids(vocabulary_size(cast(DonorStack, model.donor))).to(model.device)
    if first_token is not None:
        ids[:, 0] = first_token
    name = "donor_input_ids" if model.config.settings.donor_tokens == "own" else "input_ids"
    states = model.read_text(**{"input_ids": None, name: ids})
    unscaled = norm.unscaled(cast(Tensor, states)).flatten(0, -2)  # [rows or tokens, donor_hidden]
    mean, deviation = unscaled.mean(dim=0), unscaled.std(dim=0)
    median = deviation.median()
    if not torch.isfinite(deviation).all() or median == 0:
        raise GraftError(
            "The donor's states of 32 random texts are not finite, or are all the same. Check that the donor is "
            "complete, or choose donor_dtype float32."
        )
    norm.mean.copy_(mean)
    norm.scale.copy_(1 / deviation.clamp(min=_LEAST_DEVIATION * median))


def matching_batch(model: GraftedModel, rows: int = _SEQUENCES) -> dict[str, Tensor]:
    """Create the host's input: a fixed sample of 32 rows of 16 ids, uniform over its vocabulary, with a mask of ones.

    Args:
        model: The graft.
        rows: Number of rows to return, of the 32.

    Raises:
        GraftError: The host's config has no vocab_size.
    """
    vocabulary = getattr(model.config.get_text_config(), "vocab_size", None)
    if not vocabulary:
        raise GraftError(
            f"projection_init is 'matched', which needs the host's vocab_size, but its config "
            f"({model.config.host_config.model_type}) has no vocab_size. Choose projection_init default or another "
            "host."
        )
    ids = _sample_ids(vocabulary)[:rows].to(model.device)
    batch = {"input_ids": ids, "attention_mask": torch.ones_like(ids)}
    if model.config.is_encoder_decoder:
        batch["decoder_input_ids"] = ids[:, :1]
    return batch


def _sample_ids(vocabulary: int) -> Tensor:
    """Return the fixed sample of ids, [32, 16], uniform over a vocabulary of the given size."""
    generator = torch.Generator().manual_seed(_SEED)
    return torch.randint(vocabulary, (_SEQUENCES, _TOKENS), generator=generator)


def _capture_graft_input(model: GraftedModel, rows: int = _SEQUENCES) -> tuple[Tensor, dict[str, Any]]:
    """Run the model, and return the graft's input, [batch, seq, host_hidden], and the donor's keyword arguments."""
    hidden: list[Tensor] = []
    donor_arguments: list[dict[str, Any]] = []
    hooks = [
        cast(nn.Module, model.proj_in).register_forward_pre_hook(lambda _, args: hidden.append(args[0])),
        cast(nn.Module, model.donor).register_forward_pre_hook(
            lambda _, args, kwargs: donor_arguments.append(kwargs), with_kwargs=True
        ),
    ]
    try:
        model(**matching_batch(model, rows))
    finally:
        for hook in hooks:
            hook.remove()
    return hidden[0], donor_arguments[0]


def _checked_rms(vectors: Tensor, name: str) -> float:
    """Return the RMS of vectors, which must be positive and finite."""
    rms = float(as_float64(vectors).square().mean().sqrt())
    if not math.isfinite(rms) or rms == 0:
        raise GraftError(
            f"projection_init is 'matched', but {name} has an RMS of {rms:g}; it must be positive and finite. Choose "
            "projection_init default, or donor_dtype float32 if it is not finite, and check that host and donor are "
            "complete."
        )
    return rms
