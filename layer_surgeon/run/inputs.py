"""Everything that a walk through a model needs, found out before the first weight is read."""

import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor
from transformers import PretrainedConfig

from layer_surgeon._checkpoint_tokenizer import load_checkpoint_tokenizer
from layer_surgeon._devices import choose_device
from layer_surgeon.assemble.text_only import has_tied_head, is_multimodal
from layer_surgeon.checkpoint import Checkpoint, open_checkpoint
from layer_surgeon.donor.checkpoint_names import checkpoint_names
from layer_surgeon.donor.entrance import DonorEntrance, EntrancePlan, plan_entrance
from layer_surgeon.donor.exit import ExitPlan, plan_exit
from layer_surgeon.donor.family import family_config
from layer_surgeon.extract import plan_extraction
from layer_surgeon.extract.memory import read_tensors
from layer_surgeon.extract.other_tensors import plan_rows, plan_tensors
from layer_surgeon.progress import Progress
from layer_surgeon.run.batches import Batch, make_batches, rope_limits
from layer_surgeon.run.fetching import ByteCounter, LayerFetcher, read_plan, torch_dtype
from layer_surgeon.run.settings import RunConfig
from layer_surgeon.run.state_files import DepthFiles, as_bytes
from layer_surgeon.run.text_list import TextList, TextsLike, read_texts
from layer_surgeon.run.tokenizing import tokenize_texts
from layer_surgeon.run.walk import LayerObserver, TokenBatches, Walk, needed_tokens, walk_layers
from layer_surgeon.workspace import Workspace

SourceLike = str | os.PathLike[str] | Sequence[str | os.PathLike[str]] | Checkpoint


@dataclass(frozen=True, kw_only=True)
class RunInputs:
    """A model, texts and settings that fit together.

    Attributes:
        checkpoint: The model's checkpoint.
        config: The settings.
        entrance: What acts before the first layer.
        exit: What acts after the last layer; None without scores.
        texts: The texts.
        tokens: Their tokens, in batches.
        num_truncated: Number of texts that were truncated.
        tokenizer: Class of the tokenizer.
        dtype: The element type of weights and states.
        device: The device to compute on.
    """

    checkpoint: Checkpoint
    config: RunConfig
    entrance: EntrancePlan
    exit: ExitPlan | None
    texts: TextList
    tokens: TokenBatches
    num_truncated: int
    tokenizer: str
    dtype: torch.dtype
    device: str

    @property
    def family(self) -> PretrainedConfig:
        """The model's config, of the family's own class."""
        return self.entrance.config

    @property
    def num_tokens(self) -> int:
        """Number of tokens of all texts."""
        return sum(map(len, self.tokens.ids))

    @property
    def width(self) -> int:
        """Width of the states."""
        return int(self.family.hidden_size)

    def depth_files(self, folder: Path) -> DepthFiles:
        """The files with the states of each depth in a folder."""
        return DepthFiles(folder=folder, num_tokens=self.num_tokens, width=self.width, dtype=self.dtype)


def prepare_run(
    source: SourceLike,
    texts: TextsLike,
    config: RunConfig,
    *,
    revision: str | None = None,
    token: str | bool | None = None,
    progress: Progress,
) -> RunInputs:
    """Open a checkpoint, read texts and split them into tokens. Reads no weights.

    Args:
        source: As in `run_layers`.
        texts: As in `run_layers`.
        config: The settings.
        revision: Branch, tag or commit of a Hub repo.
        token: Access token for a Hub repo.
        progress: Receives notices.

    Raises:
        LayerSurgeonError: As `run_layers`.
    """
    text_list = read_texts(texts, config.text_column, progress)
    device = str(choose_device(config.device))
    checkpoint = source if isinstance(source, Checkpoint) else open_checkpoint(source, revision=revision, token=token)
    config.depths(checkpoint.num_layers)
    family = family_config(checkpoint.plain_config)
    if is_multimodal(checkpoint.config):
        family.tie_word_embeddings = has_tied_head(checkpoint)
    entrance = plan_entrance(family)
    head = plan_exit(entrance.config) if config.score else None
    for plan in (entrance, head):
        if plan is not None:  # Refuse a checkpoint without these weights before the first layer.
            checkpoint_names(plan.outline, plan.shapes, checkpoint)
    dtype = torch_dtype(_weights_code(checkpoint, config))
    tokenizer = load_checkpoint_tokenizer(checkpoint)
    tokenized = tokenize_texts(tokenizer, text_list, entrance.config, config, progress)
    for note in checkpoint.table.notes:
        progress.notice(note)
    pad_id = getattr(entrance.config, "pad_token_id", None)
    return RunInputs(
        checkpoint=checkpoint,
        config=config,
        entrance=entrance,
        exit=head,
        texts=text_list,
        tokens=TokenBatches(
            ids=tokenized.ids,
            batches=make_batches(tokenized.lengths, config.batch_tokens, rope_limits(entrance.config)),
            pad_id=pad_id if isinstance(pad_id, int) and 0 <= pad_id < int(entrance.config.vocab_size) else 0,
        ),
        num_truncated=tokenized.num_truncated,
        tokenizer=type(tokenizer).__name__,
        dtype=dtype,
        device=device,
    )


def walk_inputs(
    inputs: RunInputs,
    folder: Path,
    *,
    last_depth: int,
    counter: ByteCounter,
    progress: Progress,
    workspace: Workspace | None = None,
    force: bool = False,
    keep: Callable[[int, Batch, Tensor], None] | None = None,
    finish_depth: Callable[[int], None] | None = None,
    observer: LayerObserver | None = None,
) -> None:
    """Take the texts through the layers.

    Args:
        inputs: From `prepare_run`.
        folder: Where the states of the depths are written.
        last_depth: See `Walk`.
        counter: Counts the bytes of weights that are read.
        progress: See `Walk`.
        workspace: Keep each layer as an artifact in this workspace.
        force: Replace other artifacts in that workspace.
        keep: See `Walk`.
        finish_depth: See `Walk`.
        observer: See `Walk`.

    Raises:
        SourceError: The checkpoint can't be read.
        UnsupportedArchitectureError: A layer can't be run by itself.
    """
    files = inputs.depth_files(folder)
    walk = Walk(
        texts=inputs.tokens,
        files=files,
        last_depth=last_depth,
        device=inputs.device,
        progress=progress,
        keep=keep,
        finish_depth=finish_depth,
        observer=observer,
    )
    done = max(files.depths(), default=None)
    fetcher = LayerFetcher(
        inputs.checkpoint,
        range(done or 0, last_depth),
        dtype=inputs.config.dtype,
        weights_dtype=inputs.dtype,
        folder=folder,
        workspace=workspace,
        force=force,
        counter=counter,
    )
    with fetcher:
        entrance = load_entrance(inputs, counter).to(inputs.device) if done is None else None
        walk_layers(walk, entrance, fetcher)


def load_entrance(inputs: RunInputs, counter: ByteCounter) -> DonorEntrance:
    """Load what acts before the first layer, with only the rows of the token table that the texts need.

    Raises:
        SourceError: The checkpoint can't be read.
        CheckpointError: The token table has no row for a token.
        UnsupportedArchitectureError: The family's entrance can't be run by itself.
    """
    checkpoint, plan, dtype = inputs.checkpoint, inputs.entrance, inputs.config.dtype
    names = checkpoint_names(plan.outline, plan.shapes, checkpoint)
    table = names.pop(plan.token_table) if plan.token_table is not None else None
    tensors = read_plan(checkpoint, plan_tensors(checkpoint, names, dtype=dtype), counter)
    token_ids = None
    if table is not None and plan.token_table is not None:
        token_ids = needed_tokens(inputs.tokens.ids, inputs.tokens.pad_id)
        tensors[plan.token_table] = read_rows(checkpoint, table, token_ids, dtype, counter)
    return DonorEntrance.from_tensors(plan, tensors, token_ids=token_ids, dtype=inputs.dtype)


def read_rows(checkpoint: Checkpoint, name: str, rows: Tensor, dtype: str | None, counter: ByteCounter) -> Tensor:
    """Read rows of a matrix, [rows, width].

    Args:
        checkpoint: The checkpoint.
        name: The name of the matrix in it.
        rows: The rows, sorted, each once.
        dtype: As in `plan_extraction`.
        counter: Counts the bytes that are read.

    Raises:
        SourceError: The checkpoint can't be read.
        CheckpointError: The matrix has fewer rows.
    """
    plan = plan_rows(checkpoint, name, rows.tolist(), dtype=dtype)
    lengths = [planned.source.shape[0] for planned in plan.planned]
    first = plan.planned[0]
    values = torch.empty(sum(lengths), *first.source.shape[1:], dtype=torch_dtype(first.codec.dtype))
    read_tensors(checkpoint.source, plan, [as_bytes(part) for part in torch.split(values, lengths)], counter)
    return values if len(values) == len(rows) else values[rows]


def _weights_code(checkpoint: Checkpoint, config: RunConfig) -> str:
    """The safetensors code of the type with the most bytes in the first layer, after conversion."""
    num_bytes: dict[str, int] = {}
    for planned in plan_extraction(checkpoint, 0, dtype=config.dtype).planned:
        num_bytes[planned.codec.dtype] = num_bytes.get(planned.codec.dtype, 0) + planned.num_bytes
    return max(num_bytes, key=lambda code: num_bytes[code])
