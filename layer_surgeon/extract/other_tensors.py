"""Plan to read tensors that belong to no layer, and single rows of them."""

from collections.abc import Mapping, Sequence
from dataclasses import replace

from layer_surgeon._format import find_runs
from layer_surgeon.checkpoint import Checkpoint
from layer_surgeon.errors import CheckpointError
from layer_surgeon.extract.codec import Shifted
from layer_surgeon.extract.dtypes import CODE_OF_NAME
from layer_surgeon.extract.plan import CopyPlan, choose_codecs, cut_pieces, lay_out

# For rows of a table. At 50 MB/s per connection, 1 MiB takes a quarter of the 80 ms of a request.
MAX_ROW_GAP_BYTES = 1 << 20
# Reading 64 KiB from a local disk takes less time than opening the file again.
MAX_LOCAL_ROW_GAP_BYTES = 64 << 10


def plan_tensors(checkpoint: Checkpoint, names: Mapping[str, str], *, dtype: str | None = None) -> CopyPlan:
    """Plan to read tensors that belong to no layer, such as the final norm.

    Args:
        checkpoint: An open checkpoint.
        names: Names in the checkpoint, by the names that the tensors get.
        dtype: As in `plan_extraction`.

    Raises:
        CheckpointError: A header is damaged, or a tensor is missing.
        SourceError: A file can't be read.
    """
    infos = checkpoint.table.tensors(dict.fromkeys(names.values()))
    code = None if dtype is None else CODE_OF_NAME[dtype]
    parts_of = {info.name: (info, codec) for info, codec in choose_codecs(checkpoint, infos, code)}
    parts = [(name, *parts_of[source_name]) for name, source_name in names.items()]
    planned, header = lay_out(parts)
    pieces = cut_pieces(planned, checkpoint.source.connections)
    return CopyPlan(planned=planned, pieces=pieces, header=header)


def plan_rows(
    checkpoint: Checkpoint, name: str, rows: Sequence[int], *, dtype: str | None = None, max_gap: int | None = None
) -> CopyPlan:
    """Plan to read some rows of a matrix, such as those of a few tokens.

    The plan has one tensor per stretch of rows, in their order. If the matrix is stored in a form without rows, such as
    transposed, the plan has the whole matrix. Gaps between two stretches are read and dropped, to save requests: of up
    to `max_gap` bytes over a network, and 64 KiB from a local disk.

    Args:
        checkpoint: An open checkpoint.
        name: The name of the matrix in the checkpoint.
        rows: The rows, sorted, each once.
        dtype: As in `plan_extraction`.
        max_gap: See above. None: `MAX_ROW_GAP_BYTES`.

    Raises:
        CheckpointError: As for `plan_tensors`, or the matrix has fewer rows.
        SourceError: A file can't be read.
    """
    (whole,) = plan_tensors(checkpoint, {name: name}, dtype=dtype).planned
    info, codec = whole.source, whole.codec
    num_rows = info.shape[0] if info.shape else 0
    if rows and not 0 <= rows[0] <= rows[-1] < num_rows:
        raise CheckpointError(
            f"{name} has {num_rows:,} rows, but row {max(rows[-1], -rows[0]):,} is needed: the tokenizer has tokens "
            "that the model doesn't have. Get the checkpoint and its tokenizer again."
        )
    row_bytes = info.num_bytes // max(1, num_rows)
    if row_bytes % codec.block_bytes:
        return plan_tensors(checkpoint, {name: name}, dtype=dtype)
    parts = []
    for start, last in find_runs(rows):
        stop = last + 1
        stretch = replace(
            info,
            shape=(stop - start, *info.shape[1:]),
            offset=info.offset + start * row_bytes,
            num_bytes=(stop - start) * row_bytes,
        )
        shifted = codec if start == 0 else Shifted(codec, start * row_bytes // codec.block_bytes)
        parts.append((f"{name}[{start}:{stop}]", stretch, shifted))
    planned, header = lay_out(parts)
    connections = checkpoint.source.connections
    network_gap = MAX_ROW_GAP_BYTES if max_gap is None else max_gap
    pieces = cut_pieces(planned, connections, MAX_LOCAL_ROW_GAP_BYTES if connections == 1 else network_gap)
    return CopyPlan(planned=planned, pieces=pieces, header=header)
