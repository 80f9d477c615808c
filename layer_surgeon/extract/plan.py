"""Plan a copy: every byte range to read and write, before any weights are read."""

import json
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from math import sqrt

from layer_surgeon.checkpoint import ByteRange, Checkpoint, TensorInfo
from layer_surgeon.checkpoint.licence import read_base_model
from layer_surgeon.checkpoint.quantization import is_fp8
from layer_surgeon.checkpoint.safetensors import DTYPE_BITS, LENGTH_BYTES
from layer_surgeon.checkpoint.types import PermutedTensorInfo
from layer_surgeon.errors import CheckpointError, UnsupportedArchitectureError
from layer_surgeon.extract.codec import Codec
from layer_surgeon.extract.dtypes import NAME_OF_CODE, Dropped, plain_codec
from layer_surgeon.extract.fp8 import FP8_CODES, fp8_codec, pair_scales
from layer_surgeon.extract.permute import Permuted

# Over a network, two tensors with a gap up to this size between them are one request; the gap is read and dropped.
# torch.save leaves 128 bytes between the storages of a .bin file, less than the headers of a request and its response
# with a signed URL.
MAX_GAP_BYTES = 1 << 10
# At 80 ms per request and 50 MB/s per connection, smaller pieces cost more in requests than parallel reads gain.
MIN_PIECE_BYTES = 6 << 20
# Each connection reads a few pieces in turn, each a third as long as the one before. Hashing goes through the file in
# order, about twice as fast as 16 such connections, and needs whole pieces. So it keeps up with shrinking pieces, and
# only the last ones, at most 100 MB together, are left to hash after the last byte.
_SHRINK = 3


@dataclass(frozen=True, kw_only=True)
class PlannedTensor:
    """One tensor to copy.

    Attributes:
        name: Its name in the artifact: `layers.<k>.<name inside the layer>`.
        source: The tensor in the checkpoint, with the position of its bytes.
        codec: Converts its bytes.
        offset: Absolute position of its first byte in the artifact's file.
        num_bytes: Its size in the artifact's file.
    """

    name: str
    source: TensorInfo
    codec: Codec
    offset: int
    num_bytes: int


@dataclass(frozen=True, kw_only=True)
class Segment:
    """A part of one read: a whole number of blocks of one tensor, or the gap before a tensor, which is dropped.

    Attributes:
        length: Number of source bytes.
        offset: Absolute position in the artifact's file.
        out_length: Number of bytes in the artifact's file; 0 for a gap.
        codec: Converts the source bytes.
        first_block: Index in the tensor of the segment's first block.
    """

    length: int
    first_block: int
    offset: int
    out_length: int
    codec: Codec


@dataclass(frozen=True, kw_only=True)
class Piece:
    """One read: a byte range of one file, and the segments it consists of.

    Attributes:
        range: The bytes.
        segments: The parts of tensors in them.
        is_computed: The bytes are computed from others that were read, so they don't count as read.
    """

    range: ByteRange
    segments: tuple[Segment, ...]
    is_computed: bool = False


@dataclass(frozen=True, kw_only=True)
class CopyPlan:
    """What to read, and where to write it in one file of weights.

    Attributes:
        planned: The tensors to read, in the order of the file.
        pieces: The reads. They cover the wanted bytes, and short gaps between two of them if that saves a request: over
            a network up to 1 KiB between tensors, and more between the rows of a table (see `plan_rows`).
        header: The safetensors header, which is the start of the file.
    """

    planned: tuple[PlannedTensor, ...]
    pieces: tuple[Piece, ...]
    header: bytes

    @cached_property
    def tensors(self) -> tuple[TensorInfo, ...]:
        """The tensors in the checkpoint, in the order of the file."""
        return tuple(tensor.source for tensor in self.planned)

    @cached_property
    def num_bytes(self) -> int:
        """Bytes of weights to read, without gaps."""
        return sum(info.num_bytes for info in self.tensors)

    @property
    def num_bytes_read(self) -> int:
        """Bytes that the requests ask for: the weights, and the gaps between them."""
        return sum(piece.range.length for piece in self.pieces if not piece.is_computed)

    @property
    def num_out_bytes(self) -> int:
        """Size of the file of weights in bytes, including its header."""
        return len(self.header) + sum(tensor.num_bytes for tensor in self.planned)

    @property
    def num_requests(self) -> int:
        """Number of reads of weights. Planning itself already read the headers of the checkpoint's files."""
        return sum(not piece.is_computed for piece in self.pieces)

    @cached_property
    def files(self) -> tuple[str, ...]:
        """The files to read, sorted by name."""
        return tuple(sorted({info.file for info in self.tensors}))


def check_quantization(checkpoint: Checkpoint, indices: Sequence[int], dtype: str | None) -> None:
    """Refuse quantised weights that can't be taken out, or only with a dtype.

    Raises:
        UnsupportedArchitectureError: The weights are quantised in an unsupported way, or FP8 without a `dtype`.
    """
    method = checkpoint.quantization
    if method is not None and not is_fp8(checkpoint.config):
        base = read_base_model(checkpoint)
        advice = f": surgeon extract {base}" if base else ", whose weights are bfloat16 or float16"
        raise UnsupportedArchitectureError(
            f"{checkpoint.source.name} is quantised ({method}), and layers can't be extracted from this format. "
            f"Extract from the unquantised model instead{advice}."
        )
    if dtype is not None or checkpoint.format == "gguf":
        return
    if method is not None or any(has_fp8(checkpoint.layer_tensors(index)) for index in indices):
        raise UnsupportedArchitectureError(
            f"{checkpoint.source.name} is quantised ({method or 'FP8'}): its weights are 8-bit floats with separate "
            "scales. Choose a dtype to convert them to, such as --dtype bfloat16 (in Python: dtype='bfloat16')."
        )


def has_fp8(infos: Iterable[TensorInfo]) -> bool:
    """Whether any weights are 8-bit floats. The config doesn't always say so: modelopt uses a separate file."""
    return any(info.dtype in FP8_CODES for info in infos)


def main_dtype(planned: Iterable[PlannedTensor]) -> str:
    """Return the torch name of the dtype with the most bytes."""
    bytes_of_code: dict[str, int] = {}
    for tensor in planned:
        bytes_of_code[tensor.codec.dtype] = bytes_of_code.get(tensor.codec.dtype, 0) + tensor.num_bytes
    return NAME_OF_CODE.get(max(bytes_of_code, key=lambda code: bytes_of_code[code]), "unknown")


def lay_out(parts: Iterable[tuple[str, TensorInfo, Codec]]) -> tuple[tuple[PlannedTensor, ...], bytes]:
    """Assign each tensor its position in a file of weights, and make the file's header.

    Args:
        parts: The name of each tensor in the file, the tensor in the checkpoint, and the codec for its bytes.

    Raises:
        CheckpointError: A tensor is not a whole number of its codec's blocks.
    """
    # Put wide elements first, as the safetensors library does: each tensor then starts at a multiple of its element
    # size. Otherwise keep the order of the source, which makes one read one write.
    ordered = sorted(parts, key=lambda part: (-DTYPE_BITS[part[2].dtype], part[1].file, part[1].offset))
    header_fields: dict[str, object] = {"__metadata__": {"format": "pt"}}
    position = 0
    sizes = []
    for name, info, codec in ordered:
        sizes.append(converted_bytes(info, codec))
        offsets = [position, position + sizes[-1]]
        header_fields[name] = {"dtype": codec.dtype, "shape": list(info.shape), "data_offsets": offsets}
        position = offsets[1]
    text = json.dumps(header_fields, separators=(",", ":"), ensure_ascii=False).encode()
    text += b" " * (-len(text) % 8)
    header = len(text).to_bytes(LENGTH_BYTES, "little") + text
    planned = []
    offset = len(header)
    for (name, info, codec), size in zip(ordered, sizes, strict=True):
        planned.append(PlannedTensor(name=name, source=info, codec=codec, offset=offset, num_bytes=size))
        offset += size
    return tuple(planned), header


def converted_bytes(info: TensorInfo, codec: Codec) -> int:
    """Return the size of a tensor in bytes after its codec has converted it.

    Raises:
        CheckpointError: The tensor is not a whole number of the codec's blocks.
    """
    blocks, excess_bytes = divmod(info.num_bytes, codec.block_bytes)
    if excess_bytes:
        raise CheckpointError(
            f"The tensor {info.name!r} has {info.num_bytes:,} bytes, which is not a multiple of the "
            f"{codec.block_bytes:,} bytes of a block of {info.dtype}. Download the checkpoint again."
        )
    return blocks * codec.out_block_bytes


def choose_codecs(
    checkpoint: Checkpoint, infos: list[TensorInfo], code: str | None
) -> Iterator[tuple[TensorInfo, Codec]]:
    """Yield the tensors to write, each with its codec.

    Args:
        checkpoint: The checkpoint that the tensors are in.
        infos: The tensors, and the scales of those that are 8-bit floats.
        code: The safetensors code to convert to; None keeps the bytes.

    Raises:
        CheckpointError: A tensor can't be converted.
        SourceError: The scales of a tensor can't be read.
    """
    if checkpoint.format == "gguf":
        # gguf_codec imports gguf and numpy, which are not needed to copy plain bytes.
        from layer_surgeon.extract.gguf_codec import gguf_codec

        for info in infos:
            yield info, gguf_codec(info, code)
    elif code is not None and has_fp8(infos):
        for info, scale in pair_scales(infos):
            if scale is None:
                yield info, _number_codec(info, code)
            elif isinstance(info, PermutedTensorInfo) or isinstance(scale, PermutedTensorInfo):
                raise CheckpointError(
                    f"The FP8 weight {info.name!r} or its scale is stored transposed, which is not supported. "
                    "Extract from the unquantised model instead."
                )
            else:
                yield info, fp8_codec(checkpoint.source, checkpoint.config, info, scale, code)
    else:
        for info in infos:
            yield info, _number_codec(info, code)


def _number_codec(info: TensorInfo, code: str | None) -> Codec:
    codec = plain_codec(info.dtype, code)
    return Permuted(info, codec) if isinstance(info, PermutedTensorInfo) else codec


def cut_pieces(planned: tuple[PlannedTensor, ...], connections: int, max_gap: int | None = None) -> tuple[Piece, ...]:
    """Merge neighbouring tensors into one read, and split long reads across the connections."""
    if max_gap is None:
        # On a local disk, a second read costs nothing.
        max_gap = 0 if connections == 1 else MAX_GAP_BYTES
    runs: list[list[PlannedTensor]] = []
    wanted = [tensor for tensor in planned if tensor.source.num_bytes]
    for tensor in sorted(wanted, key=lambda tensor: (tensor.source.file, tensor.source.offset)):
        last = runs[-1][-1].source if runs else None
        in_last_file = last is not None and last.file == tensor.source.file
        if last is not None and in_last_file and last.end <= tensor.source.offset <= last.end + max_gap:
            runs[-1].append(tensor)
        else:
            runs.append([tensor])
    if connections == 1:
        return tuple(piece for run in runs for piece in _split(run, [run[-1].source.end]))
    lengths = [run[-1].source.end - run[0].source.offset for run in runs]
    ends = _piece_ends(sum(lengths), connections)
    pieces: list[Piece] = []
    start = 0
    for run, length in zip(runs, lengths, strict=True):
        cuts = _cuts(ends, start, start + length)
        pieces += _split(run, [run[0].source.offset + cut - start for cut in cuts])
        start += length
    return tuple(pieces)


def _piece_ends(total_bytes: int, connections: int) -> list[int]:
    """Return where the pieces would end if all bytes were one run."""
    # All pieces have at least MIN_PIECE_BYTES. So a small layer uses fewer connections.
    each = max(total_bytes / connections, MIN_PIECE_BYTES)
    lengths = [float(MIN_PIECE_BYTES)]
    while sum(lengths) * sqrt(_SHRINK) < each:
        lengths.insert(0, lengths[0] * _SHRINK)
    ends = [0.0]
    for length in lengths:
        for _ in range(max(1, min(connections, round(total_bytes / each)))):
            ends.append(ends[-1] + length)
    return [round(end * total_bytes / ends[-1]) for end in ends]


def _cuts(ends: Sequence[int], start: int, stop: int) -> list[int]:
    """Return where to cut the run from `start` to `stop`; the last cut is `stop`.

    The run gets the pieces from the end that is nearest to `start` to the one nearest to `stop`, stretched to fit.
    """
    first, last = (min(range(len(ends)), key=lambda index: abs(ends[index] - at)) for at in (start, stop))
    planned_length = ends[last] - ends[first]
    return [*(start + (end - ends[first]) * (stop - start) // planned_length for end in ends[first + 1 : last]), stop]


def _split(run: list[PlannedTensor], cuts: Sequence[int]) -> list[Piece]:
    """Split a run of neighbouring tensors at source positions, each moved forward to the end of a block.

    Args:
        run: The tensors.
        cuts: The positions in ascending order; the last one is the end of the run.
    """
    pieces: list[Piece] = []
    segments: list[Segment] = []
    start = position = run[0].source.offset
    remaining_cuts = iter(cuts)
    cut = next(remaining_cuts)
    for tensor in run:
        if segments and position < tensor.source.offset:
            segments.append(_gap(tensor, tensor.source.offset - position))
        elif not segments:
            start = tensor.source.offset
        position = tensor.source.offset
        done, block = 0, tensor.codec.block_bytes
        while done < tensor.source.num_bytes:
            segment_bytes = min(tensor.source.num_bytes - done, max(1, -(-(cut - position) // block)) * block)
            segments.append(_segment(tensor, done, segment_bytes))
            done, position = done + segment_bytes, position + segment_bytes
            if position >= cut:
                pieces.append(_piece(tensor.source.file, start, segments))
                start, segments = position, []
                cut = next((cut for cut in remaining_cuts if cut > position), position)
    return pieces


def _gap(tensor: PlannedTensor, length: int) -> Segment:
    return Segment(length=length, first_block=0, offset=tensor.offset, out_length=0, codec=Dropped())


def _segment(tensor: PlannedTensor, start: int, length: int) -> Segment:
    codec = tensor.codec
    return Segment(
        length=length,
        first_block=start // codec.block_bytes,
        offset=tensor.offset + start // codec.block_bytes * codec.out_block_bytes,
        out_length=length // codec.block_bytes * codec.out_block_bytes,
        codec=codec,
    )


def _piece(file: str, start: int, segments: list[Segment]) -> Piece:
    length = sum(segment.length for segment in segments)
    return Piece(range=ByteRange(file=file, start=start, length=length), segments=tuple(segments))
