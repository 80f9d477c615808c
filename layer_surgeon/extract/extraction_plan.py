"""Plan an extraction: which tensors, in which file, and how few reads."""

from collections.abc import Iterator
from dataclasses import dataclass, replace
from functools import cached_property
from typing import TYPE_CHECKING

from layer_surgeon.checkpoint import Checkpoint, TensorInfo
from layer_surgeon.errors import CheckpointError, ConfigError
from layer_surgeon.extract.codec import Codec
from layer_surgeon.extract.dtypes import CODE_OF_NAME, PLAIN_FLOATS
from layer_surgeon.extract.embeddings import PREFIX, Embeddings, check_first_layers, find_embeddings, find_table
from layer_surgeon.extract.other_tensors import plan_rows
from layer_surgeon.extract.plan import (
    CopyPlan,
    check_quantization,
    choose_codecs,
    cut_pieces,
    lay_out,
    main_dtype,
)
from layer_surgeon.extract.selection import LayerSelection, select_layers
from layer_surgeon.extract.vocabulary import TABLE_FILE, RowBytes, table_info

if TYPE_CHECKING:
    from layer_surgeon._vocabulary import VocabularyMap

# Between two rows of a table of tokens. At 80 ms per request over 16 connections, and 50 MB/s in total, reading the gap
# takes as long as another request.
MAX_TABLE_GAP_BYTES = 256 << 10

_Part = tuple[str, TensorInfo, Codec]


@dataclass(frozen=True, kw_only=True)
class ExtractionPlan(CopyPlan):
    """What an extraction will read and write.

    Attributes:
        layer_indices: The layers, counted from 0, in the order in which they will run.
        embeddings: What acts before layer 0; None if only layers are extracted.
        vocabulary: The vocabulary that the table of tokens is made for; None: the donor's own.
        rows: The reads of the donor's rows for that table, into a file of their own; None without a vocabulary.
    """

    layer_indices: tuple[int, ...]
    embeddings: Embeddings | None = None
    vocabulary: "VocabularyMap | None" = None
    rows: CopyPlan | None = None

    @cached_property
    def dtype(self) -> str:
        """The torch name of the dtype with the most bytes in the artifact."""
        return main_dtype(self.planned)

    @cached_property
    def tensors(self) -> tuple[TensorInfo, ...]:
        """The tensors in the checkpoint, in the order of the file. With a vocabulary, only the rows that are read."""
        tensors = []
        for planned in self.planned:
            if planned.source.file != TABLE_FILE:
                tensors.append(planned.source)
            elif self.rows is not None:
                first, num_rows = self.rows.tensors[0], sum(info.shape[0] for info in self.rows.tensors)
                shape = (num_rows, *first.shape[1:])
                rows = replace(first, name=planned.source.name, shape=shape, num_bytes=self.rows.num_bytes)
                tensors.append(rows)
        return tuple(tensors)

    @property
    def num_bytes_read(self) -> int:
        """Bytes that the requests ask for: the weights, and the gaps between them."""
        return super().num_bytes_read + (0 if self.rows is None else self.rows.num_bytes_read)

    @property
    def num_requests(self) -> int:
        """Number of reads of weights. Planning itself already read the headers of the checkpoint's files."""
        return super().num_requests + (0 if self.rows is None else self.rows.num_requests)


def plan_extraction(
    checkpoint: Checkpoint,
    layer: LayerSelection = -1,
    *,
    dtype: str | None = None,
    embeddings: bool = False,
    vocabulary: "VocabularyMap | None" = None,
) -> ExtractionPlan:
    """Plan the extraction of one or more layers. Reads the headers of the files that contain them, but no weights.

    Args:
        checkpoint: An open checkpoint.
        layer: The index of a layer (negative numbers count from the end), a slice such as `"30:32"`, or several of
            these, in the order in which the layers will run.
        dtype: `float32`, `bfloat16` or `float16`. None keeps the donor's bytes; weights of a GGUF file become float32.
        embeddings: Also take what acts before layer 0. The layers must then be the first ones: 0, 1, 2, ...
        vocabulary: Make the table of tokens for this vocabulary.

    Raises:
        LayerNotFoundError: The model has no such layer.
        ConfigError: No layer is named, one is named twice, the dtype is unknown, or embeddings don't fit the layers.
        UnsupportedArchitectureError: The weights are quantised in an unsupported way, or FP8 without a `dtype`; or
            what acts before layer 0 is not known for the family.
        CheckpointError: A header is damaged.
        SourceError: A file can't be read.
    """
    if dtype is not None and dtype not in CODE_OF_NAME:
        raise ConfigError(f"dtype is {dtype!r}; it must be one of {', '.join(CODE_OF_NAME)}.")
    indices = select_layers(checkpoint, layer)
    if embeddings:
        check_first_layers(indices)
    check_quantization(checkpoint, indices, dtype)
    before = find_embeddings(checkpoint) if embeddings else None
    code = None if dtype is None else CODE_OF_NAME[dtype]
    parts: list[_Part] = []
    for position, index in enumerate(indices):
        prefix = checkpoint.layer_prefix(index)
        for info, codec in choose_codecs(checkpoint, checkpoint.layer_tensors(index), code):
            parts.append((f"layers.{position}.{info.name.removeprefix(prefix)}", info, codec))
    rows = None
    if vocabulary is not None:
        table, stored_table = find_table(before, checkpoint.model_type)
        rows, part = _plan_table(checkpoint, stored_table, vocabulary, dtype)
        parts.append((PREFIX + table, *part))
    if before is not None:
        parts += _before_layers(checkpoint, before, code, with_table=vocabulary is None)
    planned, header = lay_out(parts)
    connections = checkpoint.source.connections
    from_files = tuple(tensor for tensor in planned if tensor.source.file != TABLE_FILE)
    computed = cut_pieces(tuple(tensor for tensor in planned if tensor.source.file == TABLE_FILE), connections)
    return ExtractionPlan(
        layer_indices=indices,
        planned=planned,
        pieces=(*cut_pieces(from_files, connections), *(replace(piece, is_computed=True) for piece in computed)),
        header=header,
        embeddings=before,
        vocabulary=vocabulary,
        rows=rows,
    )


def _before_layers(
    checkpoint: Checkpoint, embeddings: Embeddings, code: str | None, *, with_table: bool
) -> Iterator[_Part]:
    """What acts before layer 0, with or without the table of tokens."""
    names = {stored: name for name, stored in embeddings.names.items() if with_table or name != embeddings.token_table}
    for info, codec in choose_codecs(checkpoint, checkpoint.table.tensors(names), code):
        yield PREFIX + names[info.name], info, codec


def _plan_table(
    checkpoint: Checkpoint, name: str, vocabulary: "VocabularyMap", dtype: str | None
) -> tuple[CopyPlan, tuple[TensorInfo, Codec]]:
    """Plan the reads of the donor's rows, and the table that is made of them."""
    (info,) = checkpoint.table.tensors([name])
    if len(info.shape) != 2 or not info.num_elements:
        raise CheckpointError(
            f"The table of tokens {name} has the shape {list(info.shape)}, but must be a matrix with a row per token. "
            "Get the checkpoint again."
        )
    is_plain = checkpoint.format != "gguf" and info.dtype in PLAIN_FLOATS
    # Plain numbers are converted after the mean is taken, so that they are rounded once.
    rows = plan_rows(
        checkpoint, name, vocabulary.donor_rows, dtype=None if is_plain else dtype, max_gap=MAX_TABLE_GAP_BYTES
    )
    code = rows.planned[0].codec.dtype if dtype is None else CODE_OF_NAME[dtype]
    if code == "F64":  # means are computed in float32
        code = "F32"
    width = info.shape[1]
    return rows, (table_info(name, vocabulary, width, code), RowBytes(code, width))
