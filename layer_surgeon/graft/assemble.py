"""Combine host, donor and settings in memory."""

import os
from typing import Any, TypeAlias, cast

import torch
from torch import nn
from transformers import PreTrainedModel

from layer_surgeon._text import without_secrets
from layer_surgeon.donor import DonorStack
from layer_surgeon.errors import ConfigError, GraftError, UnsupportedArchitectureError
from layer_surgeon.graft.config import ENCODER_OUTPUT, GraftConfig
from layer_surgeon.graft.donor_loading import DonorInput, open_donor
from layer_surgeon.graft.hosts import OpenedHost, host_kind, host_width, open_host
from layer_surgeon.graft.matching import match_if_loud, match_projections, standardise_states
from layer_surgeon.graft.model_config import SurgeonGraftConfig, graft_fields
from layer_surgeon.graft.modeling import GraftedModel
from layer_surgeon.graft.part_tokenizers import check_vocabulary, first_special_token
from layer_surgeon.graft.sites import resolve_site
from layer_surgeon.tasks import get_task

Host: TypeAlias = "str | os.PathLike[str] | PreTrainedModel"


def assemble(
    host: Host, donor: DonorInput, settings: GraftConfig, *, revision: str | None, token: str | bool | None
) -> tuple[GraftedModel, float | None]:
    """Open host and donor, and combine them; see `graft_layer`.

    Returns:
        The model; and, if `projection_init="auto"` matched its projections, its loudness before that, else None.
    """
    if donor is None and (name := settings.first_donor_setting) is not None:
        raise ConfigError(
            f"{name} is {getattr(settings, name)!r}, which needs a donor. Leave {name} out, or name a donor."
        )
    opened_host = open_host(host, settings.task, revision=revision, token=token)
    settings = _resolve(settings, opened_host)
    host_width(opened_host.config)
    opened_donor = None if donor is None else open_donor(donor, settings, token=token)
    if opened_donor is not None and isinstance(opened_donor.layer, DonorStack) and settings.donor_tokens == "host":
        is_named = isinstance(host, str | os.PathLike)
        check_vocabulary(opened_donor.layer, opened_host, is_named=is_named, token=token)
    labels: dict[str, Any] = {}
    if settings.labels:
        labels = {
            "id2label": dict(enumerate(settings.labels)),
            "label2id": {label: index for index, label in enumerate(settings.labels)},
        }
    config = SurgeonGraftConfig(
        host_config=opened_host.config,
        host={"name": _shown(opened_host.name), "commit": opened_host.commit, "license": opened_host.license},
        donor=None if opened_donor is None else opened_donor.reference,
        graft=graft_fields(settings),
        untrained=True,
        **labels,
    )
    model, loudness = opened_host.model, None
    grafted = GraftedModel._class_for(settings.task)(config, host=model, with_donor=False).to(model.dtype)
    grafted.host_source = None if opened_host.name is None else (opened_host.name, opened_host.commit)
    if opened_donor is not None:
        grafted.attach_donor(opened_donor.layer, folder=opened_donor.folder)
        grafted.donor_source = opened_donor.source
    grafted = grafted.to(model.device).eval()
    if opened_donor is not None and model.device.type != "meta":
        _check_graft_runs(grafted)
        # On the meta device there are no weights to scale; stored weights, already scaled, are loaded later.
        if settings.reads_text:
            standardise_states(grafted, first_special_token(grafted.donor_source))
        elif settings.projection_init == "matched":
            match_projections(grafted)
        elif settings.projection_init == "auto":
            loudness = match_if_loud(grafted)
    return grafted, loudness


def _shown(name: str | None) -> str | None:
    """Remove passwords from a host's name, because the name is stored in the graft."""
    return None if name is None else without_secrets(name)


def _resolve(settings: GraftConfig, host: OpenedHost) -> GraftConfig:
    """Fill in the settings that depend on the task and the kind of the host."""
    kind = host_kind(host.config)
    pooling: str | None = settings.pooling
    task = get_task(settings.task)
    if pooling is None and task.pools:
        by_kind = {"encoder": "cls", "decoder": "last", "encoder-decoder": "mean"}
        pooling = task.default_pooling or by_kind[kind]
    if pooling == "cls" and kind == "decoder":
        raise GraftError(
            f"pooling is 'cls', but the host ({host.config.model_type}) is a decoder, whose first token sees nothing "
            "of the text. Choose last or mean."
        )
    is_causal = kind == "decoder" or settings.reads_text
    return GraftConfig.from_settings(
        settings,
        {
            "pooling": pooling or "none",
            "attention": settings.attention or ("causal" if is_causal else "bidirectional"),
            "site": resolve_site(settings.site, host.model, kind),
            **_resolve_reading(settings),
        },
    )


def _resolve_reading(settings: GraftConfig) -> dict[str, str]:
    """Fill in the settings of a donor that reads text."""
    if not settings.reads_text:
        return {}
    can_concatenate = get_task(settings.task).head and settings.site == ENCODER_OUTPUT
    resolved: dict[str, str] = {"join": settings.join or ("concat" if can_concatenate else "gated")}
    if settings.joins_vectors:
        resolved["donor_pooling"] = settings.donor_pooling or "mean"
    return resolved


@torch.no_grad()
def _check_graft_runs(model: GraftedModel) -> None:
    """Run two tokens, and check that they go through the graft exactly once, with the expected width.

    A model family's code may not follow its module structure. This finds out now, and not only in training.
    """
    input_shapes: list[torch.Size] = []
    proj_out = cast(nn.Linear, model.proj_out)
    handle = proj_out.register_forward_hook(lambda _, args, __: input_shapes.append(args[0].shape))
    ids = torch.zeros(1, 2, dtype=torch.long, device=model.device)
    inputs = {"decoder_input_ids": ids} if model.config.is_encoder_decoder else {}
    settings, kind = model.config.settings, model.config.host_config.model_type
    if settings.donor_tokens == "own":
        inputs["donor_input_ids"] = ids
    try:
        model(input_ids=ids, attention_mask=torch.ones_like(ids), **inputs)
    except UnsupportedArchitectureError as error:
        other = "causal" if settings.attention == "bidirectional" else "bidirectional"
        advice = "" if settings.reads_text else f" Or choose attention {other!r}."
        raise GraftError(f"The donor layer doesn't fit this graft: {error}{advice}") from error
    except (UnboundLocalError, AttributeError) as error:
        # Some families set their return value in the loop over the layers, and there are none. And Llama 4 names itself
        # as the model below its language head.
        raise GraftError(
            f"The host ({kind}) can't run with site {settings.site!r}: {error}. Choose another site or another host."
        ) from error
    finally:
        handle.remove()
    if len(input_shapes) != 1:
        raise GraftError(
            f"The host ({kind}) ran the graft {len(input_shapes)} times in one pass with {settings.task} and site "
            f"{settings.site!r}; expected once. Choose another site or another host."
        )
