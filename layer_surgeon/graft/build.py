"""Make grafts: `graft_layer` in memory, `save_graft` in a folder."""

import os
import warnings
from collections.abc import Mapping
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from transformers import PreTrainedTokenizerBase

from layer_surgeon._folders import expand_home, new_folder
from layer_surgeon._limits import MAX_SEED
from layer_surgeon.donor import DonorLayer, DonorStack
from layer_surgeon.donor.quiet import quiet_transformers
from layer_surgeon.errors import ConfigError, WorkspaceError
from layer_surgeon.extract import LayerArtifact
from layer_surgeon.graft.assemble import Host, assemble
from layer_surgeon.graft.config import GraftConfig
from layer_surgeon.graft.donor_loading import DonorInput, reading_settings
from layer_surgeon.graft.files import check_graft_place
from layer_surgeon.graft.graft_tokenizer import GraftTokenizer
from layer_surgeon.graft.matching import is_loud, measure_loudness
from layer_surgeon.graft.model_config import SurgeonGraftConfig
from layer_surgeon.graft.modeling import GraftedModel
from layer_surgeon.graft.part_tokenizers import load_donor_tokenizer, load_part_tokenizer
from layer_surgeon.graft.sentence_files import write_sentence_files
from layer_surgeon.progress import NullProgress, Progress
from layer_surgeon.tasks import get_task
from layer_surgeon.workspace import Workspace, graft_name, layer_name, short_name, stack_name

_SEED = 2023


@dataclass(frozen=True, kw_only=True)
class GraftResult:
    """A stored graft.

    Attributes:
        path: Its folder.
        host: Where the host came from.
        donor: Folder name of the layer, such as `Llama-3.1-8B-L31`; None for a host alone.
        settings: The settings; defaults that depend on the host are filled in.
        parameters: Number of parameters of each part: (all, trained).
        loudness: RMS of the graft's output divided by the RMS of the host's vectors, before training. None for a host
            alone, or if it can't be measured.
        loudness_unmatched: The same with the paper's initialisation, if `projection_init="auto"` found that too large
            and scaled the projections; else None.
    """

    path: Path
    host: str
    donor: str | None
    settings: GraftConfig
    parameters: dict[str, tuple[int, int]]
    loudness: float | None = None
    loudness_unmatched: float | None = None

    @property
    def is_loud(self) -> bool:
        """Whether the graft replaces the host's vectors and has a loudness of more than 10."""
        return is_loud(self.settings, self.loudness)

    @property
    def notice(self) -> str | None:
        """What the user should know: that `projection_init="auto"` scaled the projections; else None."""
        return None if self.loudness_unmatched is None else _matched_notice(self.loudness_unmatched)

    @property
    def num_parameters(self) -> int:
        """Number of parameters."""
        return sum(count for count, _ in self.parameters.values())

    @property
    def num_trained_parameters(self) -> int:
        """Number of trained parameters."""
        return sum(trained for _, trained in self.parameters.values())


def graft_layer(
    host: Host,
    donor: DonorInput,
    task: str | None = None,
    *,
    config: GraftConfig | None = None,
    **settings: Any,
) -> GraftedModel:
    """Graft a donor layer onto a small model.

    Projections, head and a random donor get new weights from torch's random state. For reproducible weights, call
    `transformers.set_seed` first.

    Args:
        host: The small model: a folder, a Hub repo id, `packaged:NAME`, or a loaded transformers model. The graft
            shares the parameters of a loaded model; its head and pooler are left out.
        donor: The layer: a layer artifact (folder, repo id or `LayerArtifact`) or a loaded `DonorLayer`; or a stack,
            which reads the text itself: a stack artifact or a loaded `DonorStack`. None makes the control arm: the
            host alone, with the same pooling and head.
        task: What the model does; default: the task of `config`, and text-classification without one.
        config: Settings; default: the paper's. For a stack, the default is donor_reads="text", and the donor_tokens
            that it was extracted for.
        settings: Fields of `GraftConfig`, which override `config`, as `task` does.

    Returns:
        A model in eval mode, as after `from_pretrained`. If `projection_init="auto"` scaled its projections, a
        `UserWarning` says so.

    Raises:
        ConfigError: A setting has an invalid value.
        GraftError: Host, donor and settings don't fit together.
        ArtifactError: The donor is not a layer artifact, or it is damaged.
        SourceError: A folder or repo can't be read.
    """
    if config is None:
        settings = {**reading_settings(donor, settings), **settings}
    if task is not None:
        settings["task"] = task
    graft_settings = GraftConfig.from_settings(config, settings)
    model, loudness = assemble(host, donor, graft_settings, revision=None, token=None)
    if loudness is not None:
        warnings.warn(_matched_notice(loudness), UserWarning, stacklevel=2)
    return model


def save_graft(
    host: str | os.PathLike[str],
    donor: DonorInput,
    *,
    config: GraftConfig | None = None,
    output: str | os.PathLike[str] | None = None,
    seed: int = _SEED,
    revision: str | None = None,
    token: str | bool | None = None,
    force: bool = False,
    workspace: Workspace | None = None,
    progress: Progress | None = None,
) -> GraftResult:
    """Make a graft and store it with the host's tokenizer. The folder appears only when it is complete.

    Args:
        host: The small model: a folder, a Hub repo id or `packaged:NAME`.
        donor: As in `graft_layer`.
        config: Settings; default: as in `graft_layer`.
        output: The folder; default: in the workspace, named after host, layer, and the settings that are not defaults.
        seed: Seed of the new weights, from 0 to 4294967295. torch's random state on the CPU doesn't change.
        revision: Branch, tag or commit of the host's repo.
        token: Hub token.
        force: Replace an existing graft in the folder. Without it, the same graft may be there already, and stays.
        workspace: Contains the default folder, and records the graft as the latest.
        progress: Receives progress reports.

    Raises:
        ArtifactError: The output folder holds something else, or the donor is not a layer artifact.
        WorkspaceError: The output can't be written.
        ConfigError, GraftError, SourceError: As in `graft_layer`.
    """
    if not 0 <= seed <= MAX_SEED:
        raise ConfigError(f"seed is {seed}; it must be a whole number from 0 to {MAX_SEED}.")
    workspace, progress = workspace or Workspace(), progress or NullProgress()
    config = config or GraftConfig(**reading_settings(donor, {}, token=token))
    name = _default_name(host, donor) + _settings_suffix(config, seed)
    target = Path(expand_home(output)) if output is not None else workspace.folder("graft", name)
    check_graft_place(target, force=True)  # A graft may be there. Only at the end is it known whether it is the same.
    progress.begin("Grafting", 3, "steps")
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model, loudness_unmatched = assemble(host, donor, config, revision=revision, token=token)
    progress.advance(1)
    tokenizer = load_part_tokenizer("host", os.fspath(host), revision=model.config.host["commit"], token=token)
    _set_padding_token(tokenizer, model.config)
    if model.config.settings.donor_tokens == "own":
        donor_tokenizer = load_donor_tokenizer(model.donor_source)
        _fit_texts(donor_tokenizer, model)
        tokenizer = GraftTokenizer.from_tokenizers(tokenizer, donor_tokenizer)
    else:
        _fit_texts(tokenizer, model)
    progress.advance(1)
    _write(model, tokenizer, target, host=expand_home(host), token=token, force=force)
    progress.advance(1)
    progress.end()
    workspace.set_latest("graft", target, progress)
    reference = model.config.donor
    loudness = None if reference is None else measure_loudness(model)
    return GraftResult(
        path=target,
        host=os.fspath(host),
        donor=None if reference is None else _donor_name(reference),
        settings=model.config.settings,
        parameters=model.parameter_counts(),
        loudness=loudness,
        loudness_unmatched=loudness_unmatched,
    )


def _matched_notice(loudness: float) -> str:
    return (
        f"With the paper's initialisation, the output of this graft would be {loudness:,.0f} times as large as the "
        "host's vectors (RMS). Such grafts were worse than the host alone, so the projections were scaled "
        '(projection_init is now matched): see "When the donor is loud" in docs/graft.md. For the paper\'s '
        "initialisation, set projection_init to default (surgeon graft: --recipe paper)."
    )


def _default_name(host: str | os.PathLike[str], donor: DonorInput) -> str:
    name = os.fspath(host)
    if donor is None:
        return f"{short_name(name)}-alone"
    if isinstance(donor, DonorLayer | DonorStack):
        source = donor.config.source or {}
        described = {"name": source.get("name"), "layer_indices": donor.config.layer_indices}
        return graft_name(name, _donor_name(described | {"config": {"embeddings": donor.config.embeddings}}))
    return graft_name(name, os.fspath(donor.path if isinstance(donor, LayerArtifact) else donor))


def _donor_name(reference: Mapping[str, Any]) -> str:
    """Return the folder name of a donor, described as in a graft's config."""
    name, indices = reference["name"] or "layer", reference["layer_indices"]
    if (embeddings := reference["config"].get("embeddings")) is None:
        return layer_name(name, indices)
    return stack_name(name, len(indices), (embeddings.get("vocabulary") or {}).get("name"))


def _settings_suffix(config: GraftConfig, seed: int) -> str:
    """Name the settings that are not defaults, so that grafts of one host and layer can be next to each other."""
    words = []
    for setting in fields(config):
        value = getattr(config, setting.name)
        if value == setting.default:
            continue
        if setting.name == "id2label":
            words.append(f"{len(value)}-labels")
        elif isinstance(value, bool):
            words.append(setting.name.replace("_", "-"))
        elif isinstance(value, str) and value != "default":
            words.append(value)
        else:
            words.append(f"{setting.name.replace('_', '-')}-{value}")
    if seed != _SEED:
        words.append(f"seed-{seed}")
    return "".join(f"-{word}" for word in words)


def _fit_texts(tokenizer: Any, model: GraftedModel) -> None:
    """Let a tokenizer cut texts to the positions of a donor that reads them."""
    if isinstance(model.donor, DonorStack):
        positions = getattr(model.donor.config.family_config(), "max_position_embeddings", None)
        if positions is not None:
            tokenizer.model_max_length = min(tokenizer.model_max_length, positions)


def _set_padding_token(tokenizer: PreTrainedTokenizerBase, config: SurgeonGraftConfig) -> None:
    """Make tokenizers without a padding token (GPT-2, Llama) pad with their end-of-text token.

    That is safe, because the attention mask marks the padding.
    """
    if tokenizer.pad_token is None:
        tokenizer.pad_token = tokenizer.eos_token
    if config.pad_token_id is None:
        config.pad_token_id = tokenizer.pad_token_id


def _write(
    model: GraftedModel,
    tokenizer: PreTrainedTokenizerBase,
    target: Path,
    *,
    host: str,
    token: str | bool | None,
    force: bool,
) -> None:
    try:
        with new_folder(target, replace=force) as folder, quiet_transformers():
            model.save_pretrained(folder)
            tokenizer.save_pretrained(folder)
            task = get_task(model.config.task)
            if task.pools and not task.head:  # the graft's output is one vector per text
                write_sentence_files(folder, model.config, host, token)
            # Check again: making a graft takes long, and someone may have put files there.
            check_graft_place(target, force=True)
    except (OSError, SafetensorError) as error:
        if isinstance(error, FileExistsError):
            check_graft_place(target, force=False)  # This error says what is there.
        raise WorkspaceError(
            f"{target} can't be written: {getattr(error, 'strerror', None) or error}. Make room, or choose another "
            "folder with --output."
        ) from error
