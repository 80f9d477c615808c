"""`run_layers`: hidden states of texts at several depths of a model that need not fit into memory."""

import json
import os
import weakref
from collections.abc import Callable
from functools import partial
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import torch
from torch import Tensor

from layer_surgeon._folders import expand_home
from layer_surgeon._io import write_text
from layer_surgeon.errors import DataError
from layer_surgeon.progress import NullProgress, Progress
from layer_surgeon.run.batches import Batch
from layer_surgeon.run.fetching import ByteCounter
from layer_surgeon.run.identity import run_identity, run_versions
from layer_surgeon.run.inputs import RunInputs, SourceLike, prepare_run, walk_inputs
from layer_surgeon.run.run_folder import RunFolder
from layer_surgeon.run.scoring import score_tokens
from layer_surgeon.run.settings import RunConfig
from layer_surgeon.run.shares import ShareSource, join_shares, run_shares
from layer_surgeon.run.state_files import STATES_FILE, KeptStates
from layer_surgeon.run.states import TEXTS_FILE, HiddenStates, describe_run, dtype_name
from layer_surgeon.run.text_list import TextsLike
from layer_surgeon.workspace import Workspace


def run_layers(
    source: SourceLike,
    texts: TextsLike,
    *,
    config: RunConfig | None = None,
    output: str | os.PathLike[str] | None = None,
    revision: str | None = None,
    token: str | bool | None = None,
    progress: Progress | None = None,
    workspace: Workspace | None = None,
    force: bool = False,
    **settings: Any,
) -> HiddenStates:
    """Compute hidden states of texts, one layer of the model at a time.

    All texts go through layer 0, then all through layer 1. Memory holds one layer and one batch, and each byte of the
    weights is read once. After an interruption or a kill, the same call with an output folder goes on from the last
    complete layer. With `workers`, several processes take a share of the texts each; the states are the same.

    Args:
        source: A folder, a safetensors, PyTorch or GGUF file, a Hub repo id, a URL, `packaged:NAME`, a list of the
            parts of a GGUF model, or an open checkpoint.
        texts: A list of texts, a file (.csv, .tsv, .jsonl, .json, .parquet; .txt with a text per line), or the id of a
            data set on the Hub.
        config: The settings. None: the defaults.
        output: The folder for the states. None: a temporary folder that is deleted with the result.
        revision: Branch, tag or commit of a Hub repo. None is its main branch.
        token: Access token for a Hub repo. None uses the one from `hf auth login`.
        progress: Reports the tokens that went through a layer.
        workspace: Where layers are kept with `keep_layers`.
        force: Replace other hidden states in the output folder and, with `keep_layers`, other layers in the workspace.
        settings: Fields of `RunConfig` that override `config`, such as `layers="0,6,12"` or `pool="none"`.

    Raises:
        SourceError: The source or its tokenizer can't be read.
        CheckpointError: The checkpoint is damaged or has an unknown format.
        LayerNotFoundError: The model has fewer layers than `layers` names.
        UnsupportedArchitectureError: The model's layers can't be run by themselves.
        ConfigError: A setting can't be used.
        DataError: The texts can't be used.
        ArtifactError: The output folder holds something else, or the disk is full.
        LayerSurgeonError: One of several processes was killed.
    """
    config, progress = RunConfig.from_settings(config, settings), progress or NullProgress()
    inputs = prepare_run(source, texts, config, revision=revision, token=token, progress=progress)
    if config.score and all(len(ids) < 2 for ids in inputs.tokens.ids):
        raise DataError("No text has two tokens, so there is none to predict from another. Leave score out.")
    return run_prepared(
        inputs, source, output, revision=revision, token=token, progress=progress, workspace=workspace, force=force
    )


def run_prepared(
    inputs: RunInputs,
    source: SourceLike,
    output: str | os.PathLike[str] | None,
    *,
    revision: str | None,
    token: str | bool | None = None,
    progress: Progress,
    workspace: Workspace | None,
    force: bool,
) -> HiddenStates:
    """Run prepared texts, such as those of a share; the other arguments are those of `run_layers`.

    Raises:
        LayerSurgeonError: As `run_layers`.
    """
    config = inputs.config
    keep_in = (workspace or Workspace()) if config.keep_layers else None
    # Also needed with one process, if it goes on with a run that several processes began.
    make_source = partial(
        ShareSource.make, source, inputs.checkpoint, revision=revision, token=token, workspace=keep_in, force=force
    )
    if output is not None:
        return _run(inputs, Path(expand_home(output)), make_source, keep_in, progress, force=force)
    temporary = TemporaryDirectory(prefix="layer-surgeon-")
    try:
        states = _run(inputs, Path(temporary.name) / "states", make_source, keep_in, progress, force=force)
    except BaseException:
        temporary.cleanup()
        raise
    weakref.finalize(states, temporary.cleanup)
    return states


def _run(
    inputs: RunInputs,
    output: Path,
    make_source: Callable[[], ShareSource],
    workspace: Workspace | None,
    progress: Progress,
    *,
    force: bool,
) -> HiddenStates:
    folder = RunFolder(output, run_identity(inputs), force=force, num_shares=_count_shares(inputs, progress))
    existing = folder.find_existing()
    if existing is not None:
        progress.notice(f"{output} already holds these states; nothing was computed.")
        return existing
    try:
        with folder:
            _compute(inputs, folder, make_source, workspace, progress, force=force)
    finally:
        if folder.kept:
            progress.notice(f"Complete layers are kept in {folder.path}; the same command goes on from there.")
    return HiddenStates.open(output)


def _count_shares(inputs: RunInputs, progress: Progress) -> int:
    """In how many shares the texts are run; 0 in this process."""
    workers, num_batches = inputs.config.workers, len(inputs.tokens.batches)
    if workers > num_batches:
        progress.notice(
            f"The texts are {num_batches:,} batches, too few for {workers:,} processes. Set a smaller batch_tokens."
        )
    count = min(workers, num_batches)
    return 0 if count == 1 and inputs.config.executor == "local" else count


def _compute(
    inputs: RunInputs,
    folder: RunFolder,
    make_source: Callable[[], ShareSource],
    workspace: Workspace | None,
    progress: Progress,
    *,
    force: bool,
) -> None:
    config = inputs.config
    depths = config.depths(inputs.checkpoint.num_layers)
    files = inputs.depth_files(folder.path)
    kept = KeptStates(folder.path / STATES_FILE, _kept_shapes(inputs, depths))
    try:
        # The input and output of a layer, and the one before until it is deleted. Shares also keep states.
        folder.check_space((2 if folder.num_shares else 1) * kept.num_bytes + 3 * files.num_bytes)
        offsets = torch.tensor([0, *map(len, inputs.tokens.ids)]).cumsum(0)
        kept.add("offsets", 0, offsets)
        kept.add("token_ids", 0, torch.tensor([token for ids in inputs.tokens.ids for token in ids]))
        if folder.num_shares:
            shares = run_shares(inputs, make_source(), folder.path, folder.num_shares, progress)
            scores, num_bytes = join_shares(inputs, shares, folder.path, kept, offsets)
        else:
            scores, num_bytes = _walk(inputs, folder.path, kept, offsets, workspace, progress, force=force)
        if scores is not None:
            kept.add("log_likelihoods", 0, scores)
        kept.flush()
    finally:
        kept.close()
    _write_texts(inputs, scores, folder.path)
    folder.finish(_describe(inputs, depths, num_bytes))


def _walk(
    inputs: RunInputs,
    folder: Path,
    kept: KeptStates,
    offsets: Tensor,
    workspace: Workspace | None,
    progress: Progress,
    *,
    force: bool,
) -> tuple[Tensor | None, int]:
    """Compute all states in this process. Return the log-likelihoods, if there are any, and the bytes of weights."""
    depths = inputs.config.depths(inputs.checkpoint.num_layers)
    last_depth = depths[-1] if inputs.exit is None else inputs.checkpoint.num_layers
    if done := inputs.depth_files(folder).depths():
        progress.notice(f"Resuming: the states after {done[-1]} of {last_depth} layers are left from a run.")

    def keep(depth: int, batch: Batch, states: Tensor) -> None:
        if depth in depths:
            _keep(kept, f"layer.{depth}", batch, states, inputs.config.pool, offsets)

    counter = ByteCounter()
    walk_inputs(
        inputs,
        folder,
        last_depth=last_depth,
        counter=counter,
        progress=progress,
        workspace=workspace,
        force=force,
        keep=keep,
        finish_depth=lambda _: kept.flush(),
    )
    scores = None if inputs.exit is None else score_tokens(inputs, inputs.exit, folder, counter, progress)
    return scores, counter.num_bytes


def _kept_shapes(inputs: RunInputs, depths: tuple[int, ...]) -> dict[str, tuple[torch.dtype, tuple[int, ...]]]:
    pool, num_texts = inputs.config.pool, len(inputs.tokens.ids)
    rows = inputs.num_tokens if pool == "none" else num_texts
    dtype = torch.float32 if pool == "mean" else inputs.dtype
    shapes: dict[str, tuple[torch.dtype, tuple[int, ...]]] = {
        f"layer.{depth}": (dtype, (rows, inputs.width)) for depth in depths
    }
    shapes["offsets"] = (torch.int64, (num_texts + 1,))
    shapes["token_ids"] = (torch.int64, (inputs.num_tokens,))
    if inputs.exit is not None:
        shapes["log_likelihoods"] = (torch.float32, (inputs.num_tokens,))
    return shapes


def _keep(kept: KeptStates, name: str, batch: Batch, states: Tensor, pool: str, offsets: Tensor) -> None:
    parts = torch.split(states, list(batch.lengths))
    for text, part in zip(batch.texts, parts, strict=True):
        if pool == "none":
            kept.add(name, int(offsets[text]), part)
        else:
            kept.add(name, text, part[-1] if pool == "last" else part.float().mean(0))


def _write_texts(inputs: RunInputs, scores: Tensor | None, folder: Path) -> None:
    rows: list[dict[str, Any]] = [
        {"text": text, "num_tokens": len(ids)} for text, ids in zip(inputs.texts.texts, inputs.tokens.ids, strict=True)
    ]
    if scores is not None:
        for row, part in zip(rows, torch.split(scores, [row["num_tokens"] for row in rows]), strict=True):
            row["log_likelihood"] = float(part[1:].double().sum())
    write_text(folder / TEXTS_FILE, "".join(f"{json.dumps(row, ensure_ascii=False)}\n" for row in rows))


def _describe(inputs: RunInputs, depths: tuple[int, ...], num_bytes: int) -> dict[str, Any]:
    checkpoint, config = inputs.checkpoint, inputs.config
    return describe_run(
        source={
            "name": checkpoint.source.name,
            "kind": checkpoint.source.kind,
            "commit": checkpoint.commit,
            "format": checkpoint.format,
            "model_type": checkpoint.model_type,
        },
        tokenizer=inputs.tokenizer,
        num_layers=checkpoint.num_layers,
        layers=list(depths),
        width=inputs.width,
        pool=config.pool,
        dtype=dtype_name(inputs.dtype),
        score=config.score,
        texts=inputs.texts.location,
        num_texts=len(inputs.tokens.ids),
        num_tokens=inputs.num_tokens,
        num_truncated=inputs.num_truncated,
        num_bytes_read=num_bytes,
        versions=run_versions(),
    )
