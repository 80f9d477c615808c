"""`extract_layer`: write a layer artifact from a checkpoint, or raise an error and leave nothing."""

import os
import threading
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from layer_surgeon._folders import check_replaceable, expand_home
from layer_surgeon._format import list_names
from layer_surgeon._io import copy_file, write_bytes, write_json
from layer_surgeon._model_types import LAYER
from layer_surgeon._version import __version__
from layer_surgeon.checkpoint import Checkpoint, open_checkpoint
from layer_surgeon.checkpoint.licence import read_licence, read_licence_files
from layer_surgeon.checkpoint.safetensors import SINGLE_FILE
from layer_surgeon.checkpoint.sources.base import STOPPED, stoppable_pool
from layer_surgeon.checkpoint.sources.papers import README_FILE
from layer_surgeon.errors import ArtifactError
from layer_surgeon.extract.artifact import (
    CONFIG_FILE,
    REPLACEABLE_FILES,
    LayerArtifact,
    is_artifact,
    read_config,
    recorded_tensors,
)
from layer_surgeon.extract.copy import Ranges, copy_tensors
from layer_surgeon.extract.embeddings import Embeddings, find_table
from layer_surgeon.extract.extraction_plan import ExtractionPlan, plan_extraction
from layer_surgeon.extract.follow import Digests
from layer_surgeon.extract.journal import plan_identity
from layer_surgeon.extract.plan import CopyPlan
from layer_surgeon.extract.selection import LayerSelection
from layer_surgeon.extract.staging import JOURNAL_FILE, ROWS_FILE, ROWS_JOURNAL_FILE, Staging
from layer_surgeon.extract.tokenizer_files import read_tokenizer_files, read_vocabulary, with_class
from layer_surgeon.extract.vocabulary import TABLE_FILE, TableSource
from layer_surgeon.hub.layer_card import LayerCard
from layer_surgeon.progress import NullProgress, Progress
from layer_surgeon.workspace import Workspace, layer_name, stack_name

if TYPE_CHECKING:
    from layer_surgeon._vocabulary import VocabularyMap


def extract_layer(
    source: str | os.PathLike[str] | Sequence[str | os.PathLike[str]] | Checkpoint,
    layer: LayerSelection = -1,
    output: str | os.PathLike[str] | None = None,
    *,
    revision: str | None = None,
    token: str | bool | None = None,
    dtype: str | None = None,
    progress: Progress | None = None,
    workspace: Workspace | None = None,
    force: bool = False,
    embeddings: bool = False,
    vocabulary: str | None = None,
) -> LayerArtifact:
    """Take one or more decoder layers out of a checkpoint, reading only their bytes.

    The artifact is written next to its folder and moved there when it is complete. If the folder already contains the
    same layers of the same commit in the same dtype, they are reused. After a network failure, an interruption or a
    kill, the same call continues with the missing bytes.

    Args:
        source: A folder, a safetensors, PyTorch or GGUF file, a Hub repo id, a URL, `packaged:NAME`, a list of the
            parts of a GGUF model, or an open checkpoint.
        layer: A layer's index (negative counts from the end), a slice such as `"30:32"`, or several of them, in the
            order in which they are to be computed.
        output: The artifact's folder. None is a folder in the workspace, which becomes the latest layer.
        revision: Branch, tag or commit of a Hub repo; None is its main branch.
        token: Access token for a Hub repo. None uses the one from `hf auth login`.
        dtype: `float32`, `bfloat16` or `float16`; None keeps the donor's bytes (a GGUF's are dequantised to float32).
        progress: Reports the bytes as they arrive.
        workspace: Used if `output` is None.
        force: Replace another artifact in the output folder.
        embeddings: Also take what acts before layer 0, and the tokenizer: a stack artifact, which reads text. The
            layers must then be the first ones: 0, 1, 2, ...
        vocabulary: Instead of the donor's table of tokens, store one row for each token of this host: a folder, a repo
            id, or `packaged:NAME`. Only the rows that it needs are read. The tokenizer is then the host's.

    Raises:
        SourceError: The source can't be read.
        CheckpointError: The checkpoint is damaged or has an unknown format.
        LayerNotFoundError: There is no such layer.
        UnsupportedArchitectureError: The model has no decoder layers that can be taken out.
        ConfigError: An argument can't be used.
        ArtifactError: The output folder holds something else, or the disk is full.
    """
    progress = progress or NullProgress()
    workspace = workspace or Workspace()
    checkpoint = source if isinstance(source, Checkpoint) else open_checkpoint(source, revision=revision, token=token)
    plan = plan_stack(checkpoint, layer, dtype=dtype, embeddings=embeddings, vocabulary=vocabulary, token=token)
    for note in checkpoint.table.notes:
        progress.notice(note)
    if output is None:
        folder = workspace.folder("layer", _name(checkpoint, plan))
    else:
        folder = Path(expand_home(output))
    artifact = _check_place(folder, checkpoint, plan, progress, force=force)
    if artifact is None:
        artifact = _extract(checkpoint, plan, folder, force, progress)
    else:
        progress.notice(f"{folder} already holds this layer; nothing was read.")
    if output is None:
        workspace.set_latest("layer", folder, progress)
    return artifact


def plan_stack(
    checkpoint: Checkpoint,
    layer: LayerSelection,
    *,
    dtype: str | None,
    embeddings: bool,
    vocabulary: str | None,
    token: str | bool | None,
) -> ExtractionPlan:
    """Plan an extraction as `plan_extraction`, with the vocabulary of a host by the host's name.

    Raises:
        LayerSurgeonError: As for `extract_layer`.
    """
    # Refuse what doesn't fit before tokenizers are loaded, which takes seconds.
    plan = plan_extraction(checkpoint, layer, dtype=dtype, embeddings=embeddings)
    if vocabulary is None:
        return plan
    find_table(plan.embeddings, checkpoint.model_type)
    mapped = read_vocabulary(vocabulary, checkpoint, token)
    return plan_extraction(checkpoint, layer, dtype=dtype, embeddings=embeddings, vocabulary=mapped)


def _name(checkpoint: Checkpoint, plan: ExtractionPlan) -> str:
    if plan.embeddings is None:
        return layer_name(checkpoint.source.name, plan.layer_indices)
    host = None if plan.vocabulary is None else plan.vocabulary.name
    return stack_name(checkpoint.source.name, len(plan.layer_indices), host)


def _check_place(
    folder: Path, checkpoint: Checkpoint, plan: ExtractionPlan, progress: Progress, *, force: bool
) -> LayerArtifact | None:
    """Refuse a folder that is in use, or return the artifact that it contains, before any weight is read.

    Without a commit, only the bytes show whether an artifact is the same. It is then compared after they are read.
    """
    if not force and is_artifact(folder) and not folder.is_symlink():
        if _identity(read_config(folder)) != _identity(_describe(checkpoint, plan, None, {})):
            raise _another_layer(folder)
        if checkpoint.commit is not None:
            try:
                return LayerArtifact.open(folder)
            except ArtifactError:
                progress.notice(f"{folder} is not complete, perhaps after a power cut. It is extracted again.")
    _check_replaceable(folder)
    return None


def _check_replaceable(folder: Path) -> None:
    check_replaceable(
        folder, REPLACEABLE_FILES, is_ours=is_artifact, force=True, kind="layer artifact", error=ArtifactError
    )


def _identity(config: dict[str, Any]) -> object:
    source = config.get("source")
    if not isinstance(source, dict):
        return None
    recorded = recorded_tensors(config)
    tensors = {name: (entry.get("dtype"), entry.get("shape")) for name, entry in recorded.items()}
    parts = [config.get(key) for key in ("layer_indices", "embeddings")]
    # The same folder can be spelled in several ways. The bytes show whether it is the same model.
    name = None if source.get("kind") in ("folder", "file") else source.get("name")
    return [*parts, name, *map(source.get, ("commit", "files", "changed")), tensors]


def _another_layer(folder: Path) -> ArtifactError:
    return ArtifactError(
        f"{folder} already holds another layer, or another version or dtype of this one. "
        "Replace it with --force, or name another folder with --output."
    )


def _extract(
    checkpoint: Checkpoint, plan: ExtractionPlan, folder: Path, force: bool, progress: Progress
) -> LayerArtifact:
    staging = Staging(folder, plan.num_out_bytes + (0 if plan.rows is None else plan.rows.num_out_bytes))
    try:
        with staging:
            stopped = STOPPED.get() or threading.Event()
            with stoppable_pool(1, "texts", stopped) as pool:
                # While the weights arrive, the texts cost no time. Earlier, they would delay the headers.
                writing_texts = pool.submit(_write_texts, checkpoint, plan, staging.path, progress)
                try:
                    digests = _write_weights(checkpoint, plan, staging.path, progress)
                    licence = writing_texts.result()
                except BaseException:
                    stopped.set()
                    raise
            progress.end()
            config = _describe(checkpoint, plan, digests, licence)
            write_json(staging.path / CONFIG_FILE, config)
            # Check again: somebody may have put files there during the extraction.
            _check_replaceable(folder)
            if is_artifact(folder) and not force:
                if read_config(folder).get("sha256") != digests.file:
                    raise _another_layer(folder)
                _keep_users_files(folder, staging.path)
            # Even if the weights are the same, the donor's config or tokenizer may have changed.
            staging.put_in_place()
            return LayerArtifact.open(folder)
    finally:
        if staging.kept:
            progress.notice(f"What was read is kept in {staging.path}; the same command goes on from there.")


def _keep_users_files(folder: Path, made: Path) -> None:
    """Keep the model card of a folder that holds the same layer already: the user may have written in it.

    Raises:
        ArtifactError: It also holds a file that this extraction doesn't make.
    """
    if others := sorted({path.name for path in folder.iterdir()} - {path.name for path in made.iterdir()}):
        raise ArtifactError(
            f"{folder} already holds this layer, but also {list_names(others)}, which this extraction doesn't make. "
            "Move that elsewhere, replace the folder with --force, or name another one with --output."
        )
    if (folder / README_FILE).is_file():
        copy_file(folder / README_FILE, made / README_FILE)


def _write_weights(checkpoint: Checkpoint, plan: ExtractionPlan, folder: Path, progress: Progress) -> Digests:
    """Write the file of weights; before that, the rows that a table for another vocabulary is made of."""
    versions = _versions(checkpoint, plan)
    where = (checkpoint.source.name, versions, None if plan.vocabulary is None else plan.vocabulary.record())
    # A source that doesn't show whether it changed must be read in one run.
    can_resume = None not in versions.values()

    def journal(name: str, part: CopyPlan) -> tuple[Path, str] | None:
        return (folder / name, plan_identity(where, part)) if can_resume else None

    progress.begin(f"layer {', '.join(map(str, plan.layer_indices))}", plan.num_bytes_read, "bytes")
    source: Ranges = checkpoint.source
    if plan.rows is not None and plan.vocabulary is not None:
        rows_journal = journal(ROWS_JOURNAL_FILE, plan.rows)
        copy_tensors(source, plan.rows, folder / ROWS_FILE, progress, journal=rows_journal, whole_file=False)
        code = next(tensor.codec.dtype for tensor in plan.planned if tensor.source.file == TABLE_FILE)
        source = TableSource(source, folder / ROWS_FILE, plan.rows, plan.vocabulary, code)
    return copy_tensors(source, plan, folder / SINGLE_FILE, progress, journal=journal(JOURNAL_FILE, plan))


def _versions(checkpoint: Checkpoint, plan: ExtractionPlan) -> dict[str, str | None]:
    """Return the version of each file that the layers come from, including those with scales that the plan has read."""
    files = {info.file for index in plan.layer_indices for info in checkpoint.layer_tensors(index)}
    return {file: checkpoint.source.version(file) for file in sorted(files.union(plan.files))}


def _write_texts(checkpoint: Checkpoint, plan: ExtractionPlan, folder: Path, progress: Progress) -> dict[str, str]:
    """Write model card, licence files and, for a stack, the tokenizer. Return the licence that the donor states."""
    with stoppable_pool(2, "licence") as pool:
        reading_files = pool.submit(read_licence_files, checkpoint)
        reading_tokenizer = pool.submit(_read_tokenizer, checkpoint, plan, progress)
        licence = read_licence(checkpoint)
        licence_files = reading_files.result()
        tokenizer_files = reading_tokenizer.result()
    card = LayerCard(
        model=checkpoint.source.name,
        base_model=checkpoint.repo_id,
        commit=checkpoint.source.commit,
        licence=licence,
        licence_files=tuple(licence_files),
        layer_indices=plan.layer_indices,
        num_layers=checkpoint.num_layers,
        family=checkpoint.model_type,
        num_tensors=len(plan.tensors),
        num_parameters=sum(tensor.source.num_elements for tensor in plan.planned),
        dtype=plan.dtype,
        files=plan.files,
        format=checkpoint.format,
        has_embeddings=plan.embeddings is not None,
        vocabulary=None if plan.vocabulary is None else plan.vocabulary.name,
    )
    for name, content in {**tokenizer_files, **licence_files, README_FILE: card.render().encode()}.items():
        write_bytes(folder / name, content)
    return licence


def _read_tokenizer(checkpoint: Checkpoint, plan: ExtractionPlan, progress: Progress) -> Mapping[str, bytes]:
    """The files of the tokenizer whose ids the artifact reads."""
    if plan.vocabulary is not None:
        return plan.vocabulary.files
    return {} if plan.embeddings is None else with_class(read_tokenizer_files(checkpoint, progress), checkpoint)


def _describe(
    checkpoint: Checkpoint, plan: ExtractionPlan, digests: Digests | None, licence: dict[str, str]
) -> dict[str, Any]:
    """Return the content of the artifact's config.json."""
    source = checkpoint.source
    tensors = {}
    for tensor in plan.planned:
        entry = {"name": tensor.source.name, "dtype": tensor.codec.dtype, "shape": list(tensor.source.shape)}
        if tensor.source.dtype != tensor.codec.dtype:
            entry["source_dtype"] = tensor.source.dtype
        tensors[tensor.name] = entry | ({} if digests is None else {"sha256": digests.tensors[tensor.name]})
    return {
        "model_type": LAYER,
        "architectures": ["DonorLayer" if plan.embeddings is None else "DonorStack"],
        # The LLM's own config, verbatim, except that dequantised weights are no longer called quantised.
        "donor_config": checkpoint.plain_config,
        "layer_indices": list(plan.layer_indices),
        **({} if plan.embeddings is None else {"embeddings": _describe_embeddings(plan.embeddings, plan.vocabulary)}),
        "dtype": plan.dtype,
        "sha256": None if digests is None else digests.file,
        "source": {
            "name": source.name,
            "kind": source.kind,
            "commit": source.commit,
            "format": checkpoint.format,
            **({"quantization": checkpoint.quantization} if checkpoint.quantization else {}),
            "files": list(plan.files),
            "layer_prefix": checkpoint.layer_prefix(plan.layer_indices[0]),
            "base_model": checkpoint.repo_id,
            "license": licence.get("license"),
            "tool_version": __version__,
            "tensors": tensors,
        },
    }


def _describe_embeddings(embeddings: Embeddings, vocabulary: "VocabularyMap | None") -> dict[str, Any]:
    record = None if vocabulary is None else vocabulary.record()
    return {"token_table": embeddings.token_table, "vocabulary": record}
