"""Host, donor and settings put together in memory."""

import os
from typing import Any, TypeAlias, cast

import torch
from torch import nn
from transformers import PreTrainedModel

from layer_surgeon._text import without_secrets
from layer_surgeon.errors import ConfigError, GraftError, UnsupportedArchitectureError
from layer_surgeon.graft.auto import GraftedModel
from layer_surgeon.graft.config import GraftConfig
from layer_surgeon.graft.configuration import SurgeonGraftConfig, graft_fields
from layer_surgeon.graft.donors import DonorInput, open_donor
from layer_surgeon.graft.hosts import OpenedHost, host_kind, host_width, open_host
from layer_surgeon.graft.matching import match_projections
from layer_surgeon.graft.sites import resolve_site
from layer_surgeon.graft.tasks import TASKS

Host: TypeAlias = "str | os.PathLike[str] | PreTrainedModel"


def assemble(
    host: Host, donor: DonorInput, settings: GraftConfig, *, revision: str | None, token: str | bool | None
) -> GraftedModel:
    """Open host and donor, and put them together; see `graft_layer`."""
    if donor is None and settings.projection_init != "default":
        raise ConfigError(
            f"projection_init is {settings.projection_init!r}, but without a donor there is nothing to match. Leave "
            "projection_init out, or name a donor."
        )
    opened_host = open_host(host, settings.task, revision=revision, token=token)
    settings = _resolve(settings, opened_host)
    host_width(opened_host.config)
    opened = None if donor is None else open_donor(donor, settings, token=token)
    labels: dict[str, Any] = {}
    if settings.labels:
        labels = {
            "id2label": dict(enumerate(settings.labels)),
            "label2id": {label: index for index, label in enumerate(settings.labels)},
        }
    config = SurgeonGraftConfig(
        host_config=opened_host.config,
        host={"name": _shown(opened_host.name), "commit": opened_host.commit, "license": opened_host.license},
        donor=None if opened is None else opened.reference,
        graft=graft_fields(settings),
        **labels,
    )
    model = opened_host.model
    grafted = GraftedModel._class_for(settings.task)(config, host=model, donor_follows=True).to(model.dtype)
    if opened is not None:
        grafted.attach_donor(opened.layer, folder=opened.folder)
    grafted = grafted.to(model.device).eval()
    if opened is not None and model.device.type != "meta":
        _try(grafted)
        # On the meta device there are no weights to scale: those that come later are stored ones.
        if settings.projection_init == "matched":
            match_projections(grafted)
    return grafted  # type: ignore[no-any-return]  # transformers is untyped here


def _shown(name: str | None) -> str | None:
    """A host's name as it may be stored: whoever gets the graft gets no password with it."""
    return None if name is None else without_secrets(name)


def _resolve(settings: GraftConfig, host: OpenedHost) -> GraftConfig:
    """The settings with what was left open chosen by the task and the kind of the host."""
    kind = host_kind(host.config)
    pooling: str | None = settings.pooling
    if pooling is None and TASKS[settings.task].pools:
        by_kind = {"encoder": "cls", "decoder": "last", "encoder-decoder": "mean"}
        pooling = "mean" if settings.task == "feature-extraction" else by_kind[kind]
    if pooling == "cls" and kind == "decoder":
        raise GraftError(
            f"pooling is 'cls', but the host ({host.config.model_type}) is a decoder: its first token has seen nothing "
            "of the text. Choose last or mean."
        )
    return GraftConfig.from_settings(
        settings,
        {
            "pooling": pooling or "none",
            "attention": settings.attention or ("causal" if kind == "decoder" else "bidirectional"),
            "site": resolve_site(settings.site, host.model, kind),
        },
    )


@torch.no_grad()
def _try(model: GraftedModel) -> None:
    """Run two tokens through, and see that they come by the graft: once, and as wide as expected.

    Where a family's own code goes another way than its structure says, this is found here and not in training.
    """
    seen: list[torch.Size] = []
    handle = cast(nn.Linear, model.proj_in).register_forward_hook(lambda _, args, __: seen.append(args[0].shape))
    ids = torch.zeros(1, 2, dtype=torch.long, device=model.device)
    decoder = {"decoder_input_ids": ids} if model.config.is_encoder_decoder else {}
    settings, kind = model.config.settings, model.config.host_config.model_type
    try:
        model(input_ids=ids, attention_mask=torch.ones_like(ids), **decoder)
    except UnsupportedArchitectureError as error:
        other = "causal" if settings.attention == "bidirectional" else "bidirectional"
        raise GraftError(f"The donor layer can't serve this graft: {error} Or choose attention {other!r}.") from error
    except UnboundLocalError as error:
        # What some families return is made by their layers.
        raise GraftError(
            f"The host ({kind}) can't run with site {settings.site!r}: {error}. Choose another site or another host."
        ) from error
    finally:
        handle.remove()
    if len(seen) != 1:
        raise GraftError(
            f"The host ({kind}) passes by the graft with {settings.task} and site {settings.site!r}: it went through "
            f"{len(seen)} times, where once was expected. Choose another site or another host."
        )
