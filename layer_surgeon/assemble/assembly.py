"""`assemble_model`: write a model made of layers of one or several checkpoints, or raise an error and leave nothing."""

import hashlib
import os
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from functools import cache
from itertools import chain, count
from pathlib import Path
from typing import Any

from layer_surgeon._folders import check_replaceable, expand_home
from layer_surgeon._format import format_runs
from layer_surgeon._io import write_bytes, write_json, write_text
from layer_surgeon._model_types import ASSEMBLY_FILE
from layer_surgeon._version import __version__
from layer_surgeon._yaml import dump_yaml
from layer_surgeon.assemble.assembled_model import (
    REPLACEABLE_FILES,
    STAGED_FILES,
    AssembledModel,
    is_assembled_model,
)
from layer_surgeon.assemble.assembly_plan import AssemblyPlan, Recipe, as_recipe, plan_assembly
from layer_surgeon.assemble.several_sources import SeveralSources, joint_name, own_name
from layer_surgeon.assemble.shards import ShardPlan, stores_no_head
from layer_surgeon.checkpoint.companions import GENERATION_FILE, read_companions
from layer_surgeon.checkpoint.licence import read_licence, read_licence_files
from layer_surgeon.checkpoint.safetensors import INDEX_FILE
from layer_surgeon.checkpoint.sources import CHUNK_BYTES
from layer_surgeon.checkpoint.sources.papers import README_FILE
from layer_surgeon.errors import ArtifactError
from layer_surgeon.extract.artifact import CONFIG_FILE
from layer_surgeon.extract.copy import copy_tensors, fill_range
from layer_surgeon.extract.journal import plan_identity
from layer_surgeon.extract.staging import JOURNAL_FILE, Staging
from layer_surgeon.extract.tokenizer_files import read_gguf_tokenizer
from layer_surgeon.hub.assembly_card import AssemblyCard, CardSource
from layer_surgeon.progress import NullProgress, Progress
from layer_surgeon.workspace import MAX_LAYERS_CHARACTERS, Workspace, short_name


@dataclass(frozen=True, kw_only=True)
class _Papers:
    """The licence of each source, the licence files, and the small files of the base."""

    licences: tuple[Mapping[str, str], ...]
    licence_files: Mapping[str, bytes]
    companions: Mapping[str, bytes]


def assemble_model(
    recipe: Recipe,
    output: str | os.PathLike[str] | None = None,
    *,
    max_shard_size: int | str = "5GB",
    token: str | bool | None = None,
    progress: Progress | None = None,
    workspace: Workspace | None = None,
    force: bool = False,
    **settings: Any,
) -> AssembledModel:
    """Write a model made of layers of one or several checkpoints, reading only their bytes.

    The folder is an ordinary transformers model. It is written next to its final path and moved there when it is
    complete. After a network failure, an interruption or a kill, the same call continues with the missing bytes.

    Args:
        recipe: A recipe, the YAML file of one (also of mergekit, with the merge method `passthrough`), or a source with
            settings.
        output: The folder. None is a folder in the workspace.
        max_shard_size: Largest size of a file of weights, in bytes or as text such as `5GB`.
        token: Access token for Hub repos. None uses the one from `hf auth login`.
        progress: Reports the bytes as they arrive.
        workspace: Used if `output` is None.
        force: Replace another assembled model in the output folder.
        settings: For a source: `layers`, `keep` or `drop`, and the other settings of `AssemblyRecipe.of`, such as
            `replace` and `dtype`.

    Raises:
        ConfigError: The recipe or a setting is invalid, or selects no layer.
        LayerNotFoundError: There is no such layer.
        AssemblyError: Layers of different sources don't fit together.
        UnsupportedArchitectureError: No config can describe the new model, or a source can't be used.
        CheckpointError: A checkpoint is damaged.
        SourceError: A source can't be read.
        ArtifactError: The output folder is in use or holds something else, or the disk is full.
    """
    recipe = as_recipe(recipe, settings)
    if output is not None:
        _check_output(Path(expand_home(output)), force)
    plan = plan_assembly(recipe, max_shard_size=max_shard_size, token=token)
    return write_model(plan, output, progress=progress, workspace=workspace, force=force)


def write_model(
    plan: AssemblyPlan,
    output: str | os.PathLike[str] | None = None,
    *,
    progress: Progress | None = None,
    workspace: Workspace | None = None,
    force: bool = False,
) -> AssembledModel:
    """Write a planned model, as `assemble_model` does.

    Args:
        plan: The plan.
        output: The folder. None is a folder in the workspace.
        progress: Reports the bytes as they arrive.
        workspace: Used if `output` is None.
        force: Replace another assembled model in the output folder.

    Raises:
        CheckpointError: A checkpoint is damaged.
        SourceError: A source can't be read.
        ArtifactError: The output folder is in use or holds something else, or the disk is full.
    """
    progress = progress or NullProgress()
    for note in plan.notes:
        progress.notice(note)
    folder = (
        (workspace or Workspace()).folder("model", _model_name(plan)) if output is None else Path(expand_home(output))
    )
    _check_output(folder, force)
    papers = _read_papers(plan, progress)
    if all(name == GENERATION_FILE or "chat_template" in name for name in papers.companions):
        progress.notice(
            f"{plan.sources[0].name} has no tokenizer files, so the new model has none. Copy those of the original "
            "model into its folder."
        )
    return _assemble(plan, papers, folder, force, progress)


def _check_output(folder: Path, force: bool) -> None:
    check_replaceable(
        folder, REPLACEABLE_FILES, is_ours=is_assembled_model, force=force, kind="assembled model", error=ArtifactError
    )


def _assemble(plan: AssemblyPlan, papers: _Papers, folder: Path, force: bool, progress: Progress) -> AssembledModel:
    staging = Staging(folder, plan.num_out_bytes, STAGED_FILES)
    try:
        with staging:
            digests = _write_weights(plan, staging.path, progress)
            write_json(staging.path / CONFIG_FILE, plan.config)
            if len(plan.shards) > 1:
                write_json(staging.path / INDEX_FILE, _index(plan))
            card = _card(plan, papers).render().encode()
            for name, content in {**papers.companions, **papers.licence_files, README_FILE: card}.items():
                write_bytes(staging.path / name, content)
            write_text(staging.path / ASSEMBLY_FILE, dump_yaml(_record(plan, papers, digests), width=10_000))
            # Check again: somebody may have put files there in the meantime.
            _check_output(folder, force)
            staging.put_in_place()
    finally:
        if staging.kept:
            progress.notice(f"What was read is kept in {staging.path}; the same command goes on from there.")
    return AssembledModel.open(folder)


def _write_weights(plan: AssemblyPlan, folder: Path, progress: Progress) -> dict[str, str]:
    """Write all files of weights. Returns the sha256 of every tensor, in the order of the files."""
    source = SeveralSources([source.checkpoint.source for source in plan.sources])
    versions = _versions(plan)
    unversioned = {file for file, version in versions.items() if version is None}
    names = [source.name for source in plan.sources]
    sources_and_layers = names, versions, [asdict(layer) for layer in plan.layers]
    digests: dict[str, str] = {}
    # An earlier run with other shards may have been killed.
    for path in folder.glob("*.safetensors"):
        if path.name not in {shard.file for shard in plan.shards}:
            path.unlink()
    progress.begin(f"{len(plan.layers)} layers", plan.num_bytes_read, "bytes")
    for number, shard in enumerate(plan.shards, 1):
        journal = folder / f"{JOURNAL_FILE}-{number:05}", plan_identity((shard.file, *sources_and_layers), shard)
        path = folder / shard.file
        copied = copy_tensors(source, shard, path, progress, journal=journal, whole_file=False, unversioned=unversioned)
        digests |= copied.tensors
    progress.end()
    offsets = {tensor.name: (shard, tensor.offset) for shard in plan.shards for tensor in shard.written}
    for shard in plan.shards:
        _fill(shard, folder, offsets, digests)
    return {tensor.name: digests[tensor.name] for shard in plan.shards for tensor in shard.written}


def _fill(
    shard: ShardPlan, folder: Path, offsets: Mapping[str, tuple[ShardPlan, int]], digests: dict[str, str]
) -> None:
    """Write the tensors that are zeros, or copies of tensors that are already written."""
    for filled in shard.filled:
        tensor, origin = filled.tensor, None
        if filled.copy_of is None:
            digests[tensor.name] = _digest_of_zeros(tensor.num_bytes)
        else:
            digests[tensor.name] = digests[filled.copy_of]
            origin_shard, offset = offsets[filled.copy_of]
            origin = folder / origin_shard.file, offset
        fill_range(folder / shard.file, tensor.offset, tensor.num_bytes, origin)


@cache
def _digest_of_zeros(length: int) -> str:
    digest = hashlib.sha256()
    zeros = bytes(min(CHUNK_BYTES, length))
    while length:
        digest.update(zeros[:length])
        length -= min(len(zeros), length)
    return digest.hexdigest()


def _versions(plan: AssemblyPlan) -> dict[str, str | None]:
    """Return the version of every file that tensors come from, by its name among those of all sources.

    These are also the files with scales that the plan has read.
    """
    files = {file for shard in plan.shards for file in shard.files}
    for source in plan.sources:
        used = {layer.layer for layer in plan.layers if layer.source == source.name}
        files |= {joint_name(source.number, info.file) for index in used for info in source.layer_tensors(index)}
    versions = {}
    for joint in sorted(files):
        number, file = own_name(joint)
        versions[joint] = plan.sources[number].checkpoint.source.version(file)
    return versions


def _index(plan: AssemblyPlan) -> dict[str, Any]:
    tensors = {tensor.name: shard.file for shard in plan.shards for tensor in shard.written}
    total = sum(tensor.num_bytes for shard in plan.shards for tensor in shard.written)
    return {
        "metadata": {"total_parameters": plan.num_parameters, "total_size": total},
        "weight_map": dict(sorted(tensors.items())),
    }


def _read_papers(plan: AssemblyPlan, progress: Progress) -> _Papers:
    base, *others = plan.sources
    licence_files = dict(read_licence_files(base.checkpoint))
    for other in others:
        for name, content in read_licence_files(other.checkpoint).items():
            # Names with a suffix are still those of licence files.
            stem, dot, ending = name.partition(".")
            suffixed = f"{stem}-{short_name(other.name)}"
            names = chain((name, f"{suffixed}{dot}{ending}"), (f"{suffixed}-{n}{dot}{ending}" for n in count(2)))
            licence_files[next(free for free in names if licence_files.get(free, content) == content)] = content
    return _Papers(
        licences=tuple(read_licence(source.checkpoint) for source in plan.sources),
        licence_files=licence_files,
        companions=read_companions(base.checkpoint) | read_gguf_tokenizer(base.checkpoint, progress),
    )


def _record(plan: AssemblyPlan, papers: _Papers, digests: Mapping[str, str]) -> dict[str, Any]:
    """Return the content of assembly.yaml."""
    sources = [
        {
            "name": source.name,
            "kind": source.checkpoint.source.kind,
            "commit": source.checkpoint.commit,
            "format": source.checkpoint.format,
            "num_layers": source.checkpoint.num_layers,
            "license": licence.get("license"),
        }
        for source, licence in zip(plan.sources, papers.licences, strict=True)
    ]
    layers = []
    for layer in plan.layers:
        record: dict[str, Any] = {"source": layer.source, "layer": layer.layer}
        layers.append(record | ({"silent": True} if layer.silent else {}) | _scale(layer.scale))
    return {
        "tool_version": __version__,
        "sources": sources,
        "embeddings": plan.sources[0].name,
        "head": plan.head.name,
        "layers": layers,
        "dtype": plan.dtype,
        "changed": plan.changed,
        "num_parameters": plan.num_parameters,
        "num_bytes_read": plan.num_bytes_read,
        "num_source_bytes": plan.num_source_bytes,
        "sha256": dict(digests),
    }


def _scale(scale: float) -> dict[str, float]:
    return {} if scale == 1 else {"scale": scale}


def _card(plan: AssemblyPlan, papers: _Papers) -> AssemblyCard:
    sources = []
    for source, licence in zip(plan.sources, papers.licences, strict=True):
        layers = [layer.layer for layer in plan.layers if layer.source == source.name]
        parts = [f"layers {format_runs(layers)}"] if layers else []
        parts += ["embeddings"] if source is plan.sources[0] else []
        is_split = plan.head is not plan.sources[0]
        parts += ["norm" if is_split and stores_no_head(source) else "norm and head"] if source is plan.head else []
        sources.append(
            CardSource(
                name=source.name,
                repo_id=source.checkpoint.repo_id,
                commit=source.checkpoint.commit,
                num_layers=source.checkpoint.num_layers,
                parts=tuple(parts),
                licence=licence,
            )
        )
    return AssemblyCard(
        sources=tuple(sources),
        layers=tuple((layer.source, layer.layer, layer.silent, layer.scale) for layer in plan.layers),
        family=str(plan.config["model_type"]),
        num_parameters=plan.num_parameters,
        dtype=plan.dtype,
        licence_files=tuple(papers.licence_files),
        changed=plan.changed,
    )


def _model_name(plan: AssemblyPlan) -> str:
    """Return the folder name in the workspace: `gemma-3-270m-L0-8`, or with the number of layers if that is long."""
    names = "+".join(dict.fromkeys(short_name(source.name) for source in plan.sources))
    layers = format_runs([layer.layer for layer in plan.layers], between="+")
    is_plain = len(plan.sources) == 1 and not any(layer.silent or layer.scale != 1 for layer in plan.layers)
    if is_plain and len(layers) <= MAX_LAYERS_CHARACTERS:
        return f"{names}-L{layers}"
    digest = hashlib.sha256(repr([asdict(layer) for layer in plan.layers]).encode()).hexdigest()[:8]
    return f"{names}-{len(plan.layers)}-layers-{digest}"
