"""What an extraction will read and write, known to the byte before the first byte of a weight is read."""

import json
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property

from layer_surgeon.checkpoint import ByteRange, Checkpoint, TensorInfo
from layer_surgeon.checkpoint.licence import read_base_model
from layer_surgeon.checkpoint.quantization import is_fp8
from layer_surgeon.checkpoint.safetensors import DTYPE_BITS, LENGTH_BYTES
from layer_surgeon.checkpoint.torch_records import PermutedTensorInfo
from layer_surgeon.errors import CheckpointError, ConfigError, UnsupportedArchitectureError
from layer_surgeon.extract.codec import Codec
from layer_surgeon.extract.dtypes import CODE_OF_NAME, NAME_OF_CODE, Dropped, plain_codec
from layer_surgeon.extract.fp8 import FP8_CODES, fp8_codec, pair_scales
from layer_surgeon.extract.permute import Permuted
from layer_surgeon.extract.selection import LayerSelection, select_layers

# A gap between two tensors that is read and dropped, so that they are one request over a network. torch.save leaves 128
# bytes between the storages of a .bin file; the headers of a request and its answer, with a signed address, are longer.
MAX_GAP_BYTES = 1 << 10
# Over a link of 80 ms per request and 50 MB/s per connection, pieces below 8 MiB lose more to requests than they gain.
MIN_PIECE_BYTES = 8 << 20
# Above it, another request costs less than 15 % of a piece's time there, and more can be hashed while bytes arrive.
MAX_PIECE_BYTES = 32 << 20


@dataclass(frozen=True, kw_only=True)
class PlannedTensor:
    """One tensor on its way.

    Attributes:
        name: Its name in the artifact: `layers.<k>.<name inside the layer>`.
        source: Where its bytes lie.
        codec: What becomes of them.
        offset: Absolute position of its first byte in the artifact's file.
        num_bytes: How many bytes it takes there.
    """

    name: str
    source: TensorInfo
    codec: Codec
    offset: int
    num_bytes: int


@dataclass(frozen=True, kw_only=True)
class Segment:
    """A whole number of one tensor's blocks, as part of one read; or the gap before it, of which nothing is written.

    Attributes:
        length: Bytes of the source.
        offset: Absolute position in the artifact's file.
        out_length: Bytes there; 0 for a gap.
        codec: What turns one into the other.
        first_block: Which of the tensor's blocks is the first.
    """

    length: int
    first_block: int
    offset: int
    out_length: int
    codec: Codec


@dataclass(frozen=True, kw_only=True)
class Piece:
    """One read: a range of one file, and the segments that it consists of."""

    range: ByteRange
    segments: tuple[Segment, ...]


@dataclass(frozen=True, kw_only=True)
class ExtractionPlan:
    """What will be read and written.

    Attributes:
        layer_indices: The layers, counted from 0, in the order in which they will be computed.
        planned: The tensors, in the order in which the artifact holds them.
        pieces: The reads. They have no byte that is not wanted but for gaps of up to 1 KiB between two tensors, over a
            network and where that spares a request.
        header: The artifact file's first bytes.
    """

    layer_indices: tuple[int, ...]
    planned: tuple[PlannedTensor, ...]
    pieces: tuple[Piece, ...]
    header: bytes

    @cached_property
    def tensors(self) -> tuple[TensorInfo, ...]:
        """Where the tensors lie, in the order in which the artifact will hold them."""
        return tuple(tensor.source for tensor in self.planned)

    @cached_property
    def num_bytes(self) -> int:
        """Bytes of weights that will be read."""
        return sum(info.num_bytes for info in self.tensors)

    @cached_property
    def num_bytes_read(self) -> int:
        """Bytes that the requests ask for: the weights, and the gaps between them that are read and dropped."""
        return sum(piece.range.length for piece in self.pieces)

    @cached_property
    def num_out_bytes(self) -> int:
        """Bytes of the artifact's file of weights, header included."""
        return len(self.header) + sum(tensor.num_bytes for tensor in self.planned)

    @property
    def num_requests(self) -> int:
        """Reads of weights; the headers that hold their places are read before a plan can be made."""
        return len(self.pieces)

    @cached_property
    def files(self) -> tuple[str, ...]:
        """The files that will be read, in the order of their names."""
        return tuple(sorted({info.file for info in self.tensors}))

    @cached_property
    def dtype(self) -> str:
        """The torch name of the dtype that most of the artifact's bytes have."""
        sizes: dict[str, int] = {}
        for tensor in self.planned:
            sizes[tensor.codec.dtype] = sizes.get(tensor.codec.dtype, 0) + tensor.num_bytes
        return NAME_OF_CODE.get(max(sizes, key=lambda code: sizes[code]), "unknown")


def plan_extraction(checkpoint: Checkpoint, layer: LayerSelection = -1, *, dtype: str | None = None) -> ExtractionPlan:
    """Plan which bytes make up one or more layers.

    Args:
        checkpoint: An open checkpoint; the headers of the files that hold the layers are read.
        layer: A layer's index (negative counts from the end), a slice such as `"30:32"`, or several of them, in the
            order in which they are to be computed.
        dtype: `float32`, `bfloat16` or `float16`; None keeps the donor's bytes (a GGUF's are dequantised to float32).

    Raises:
        LayerNotFoundError: There is no such layer.
        ConfigError: No layer is named, one is named twice, or the dtype is unknown.
        UnsupportedArchitectureError: The weights are quantised in a way that can't be cut.
        CheckpointError: A header is damaged.
        SourceError: A file can't be read.
    """
    if dtype is not None and dtype not in CODE_OF_NAME:
        raise ConfigError(f"dtype is {dtype!r}; it must be one of {', '.join(CODE_OF_NAME)}.")
    indices = select_layers(checkpoint, layer)
    _check_quantization(checkpoint, indices, dtype)
    code = None if dtype is None else CODE_OF_NAME[dtype]
    parts = []
    for position, index in enumerate(indices):
        prefix = checkpoint.layer_prefix(index)
        for info, codec in _codecs(checkpoint, checkpoint.layer_tensors(index), code):
            parts.append((f"layers.{position}.{info.name.removeprefix(prefix)}", info, codec))
    planned, header = _lay_out(parts)
    pieces = _cut(planned, checkpoint.source.connections)
    return ExtractionPlan(layer_indices=indices, planned=planned, pieces=pieces, header=header)


def _check_quantization(checkpoint: Checkpoint, indices: Sequence[int], dtype: str | None) -> None:
    method = checkpoint.quantization
    if method is not None and not is_fp8(checkpoint.config):
        base = read_base_model(checkpoint)
        named = f": surgeon extract {base}" if base else ", whose weights are bfloat16 or float16"
        raise UnsupportedArchitectureError(
            f"{checkpoint.source.name} is quantised ({method}): its bytes are no plain numbers. "
            f"Extract from the model that it was made from{named}."
        )
    if dtype is not None or checkpoint.format == "gguf":
        return
    if method is not None or any(_has_fp8(checkpoint.layer_tensors(index)) for index in indices):
        raise UnsupportedArchitectureError(
            f"{checkpoint.source.name} is quantised ({method or 'FP8'}): its weights are 8-bit floats with "
            "scales beside them. Say --dtype bfloat16 (dtype='bfloat16') to have them multiplied out."
        )


def _has_fp8(infos: Iterable[TensorInfo]) -> bool:
    """Whether weights are 8-bit floats, whatever the config says: modelopt says it in a file of its own."""
    return any(info.dtype in FP8_CODES for info in infos)


def _lay_out(parts: list[tuple[str, TensorInfo, Codec]]) -> tuple[tuple[PlannedTensor, ...], bytes]:
    """Give every tensor its place in the artifact's file."""
    # As the safetensors library does, wide elements come first, so that every tensor starts at a multiple of its
    # element's size; else in the source's order, so that one read is one write.
    parts.sort(key=lambda part: (-DTYPE_BITS[part[2].dtype], part[1].file, part[1].offset))
    entries: dict[str, object] = {"__metadata__": {"format": "pt"}}
    position = 0
    sizes = []
    for name, info, codec in parts:
        blocks, rest = divmod(info.num_bytes, codec.block_bytes)
        if rest:
            raise CheckpointError(f"The tensor {info.name!r} is no whole number of {info.dtype} blocks. Get it again.")
        sizes.append(blocks * codec.out_block_bytes)
        offsets = [position, position + sizes[-1]]
        entries[name] = {"dtype": codec.dtype, "shape": list(info.shape), "data_offsets": offsets}
        position = offsets[1]
    text = json.dumps(entries, separators=(",", ":"), ensure_ascii=False).encode()
    text += b" " * (-len(text) % 8)
    header = len(text).to_bytes(LENGTH_BYTES, "little") + text
    planned = []
    offset = len(header)
    for (name, info, codec), size in zip(parts, sizes, strict=True):
        planned.append(PlannedTensor(name=name, source=info, codec=codec, offset=offset, num_bytes=size))
        offset += size
    return tuple(planned), header


def _codecs(checkpoint: Checkpoint, infos: list[TensorInfo], code: str | None) -> Iterator[tuple[TensorInfo, Codec]]:
    """The tensors that will be written, each with what becomes of its bytes."""
    if checkpoint.format == "gguf":
        # Dequantising takes gguf and numpy, which a copy of plain bytes need not load.
        from layer_surgeon.extract.gguf_codec import gguf_codec

        for info in infos:
            yield info, gguf_codec(checkpoint.config, info, code)
    elif code is not None and _has_fp8(infos):
        for info, scale in pair_scales(infos):
            if scale is None:
                yield info, _number_codec(info, code)
            elif isinstance(info, PermutedTensorInfo) or isinstance(scale, PermutedTensorInfo):
                raise CheckpointError(f"{info.name} has scales and is stored transposed, which no FP8 release is.")
            else:
                yield info, fp8_codec(checkpoint.source, checkpoint.config, info, scale, code)
    else:
        for info in infos:
            yield info, _number_codec(info, code)


def _number_codec(info: TensorInfo, code: str | None) -> Codec:
    codec = plain_codec(info.dtype, code)
    return Permuted(info, codec) if isinstance(info, PermutedTensorInfo) else codec


def _cut(planned: tuple[PlannedTensor, ...], connections: int) -> tuple[Piece, ...]:
    """Join tensors that lie side by side into one read, and split long reads over the connections."""
    # From a local disk a second read costs nothing.
    gap = 0 if connections == 1 else MAX_GAP_BYTES
    runs: list[list[PlannedTensor]] = []
    wanted = [tensor for tensor in planned if tensor.source.num_bytes]
    for tensor in sorted(wanted, key=lambda tensor: (tensor.source.file, tensor.source.offset)):
        last = runs[-1][-1].source if runs else None
        if last is not None and last.file == tensor.source.file and last.end <= tensor.source.offset <= last.end + gap:
            runs[-1].append(tensor)
        else:
            runs.append([tensor])
    total = sum(tensor.source.num_bytes for tensor in planned)
    limit = total if connections == 1 else _piece_bytes(total, connections)
    return tuple(piece for run in runs for piece in _split(run, limit))


def _piece_bytes(total: int, connections: int) -> int:
    """About how long a piece is: every connection reads several of the same length, one after the other."""
    # Hashing goes through the file in order. With one piece for each connection all of them end together, and hashing
    # 436 MB takes 0.25 s more; with two, half of it is hashed meanwhile, for one more request of 80 ms.
    rounds = max(2, -(-total // (connections * MAX_PIECE_BYTES)))
    return max(MIN_PIECE_BYTES, -(-total // (connections * rounds)))


def _split(run: list[PlannedTensor], limit: int) -> list[Piece]:
    """Cut a run of neighbouring tensors into pieces of about `limit` source bytes, between two blocks."""
    begin = run[0].source.offset
    length = run[-1].source.end - begin
    number = max(1, round(length / limit))
    pieces: list[Piece] = []
    segments: list[Segment] = []
    start = position = begin
    for tensor in run:
        if segments and position < tensor.source.offset:
            segments.append(_gap(tensor, tensor.source.offset - position))
        elif not segments:
            start = tensor.source.offset
        position = tensor.source.offset
        done, block = 0, tensor.codec.block_bytes
        while done < tensor.source.num_bytes:
            # Up to the next of the evenly spaced cuts, or the first end of a block behind it.
            cut = begin - (-length * (len(pieces) + 1) // number)
            take = min(tensor.source.num_bytes - done, max(1, -(-(cut - position) // block)) * block)
            segments.append(_segment(tensor, done, take))
            done, position = done + take, position + take
            if position >= cut:
                pieces.append(_piece(tensor.source.file, start, segments))
                start, segments = position, []
    return pieces


def _gap(tensor: PlannedTensor, length: int) -> Segment:
    return Segment(length=length, first_block=0, offset=tensor.offset, out_length=0, codec=Dropped())


def _segment(tensor: PlannedTensor, done: int, take: int) -> Segment:
    codec = tensor.codec
    return Segment(
        length=take,
        first_block=done // codec.block_bytes,
        offset=tensor.offset + done // codec.block_bytes * codec.out_block_bytes,
        out_length=take // codec.block_bytes * codec.out_block_bytes,
        codec=codec,
    )


def _piece(file: str, start: int, segments: list[Segment]) -> Piece:
    length = sum(segment.length for segment in segments)
    return Piece(range=ByteRange(file=file, start=start, length=length), segments=tuple(segments))
