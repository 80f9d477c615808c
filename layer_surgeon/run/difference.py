"""`diff_checkpoints`: compare two checkpoints layer by layer and tensor by tensor, reading as little as possible.

Tensors are equal without reading them if they are at the same position of files with the same sha256 on the Hub, or if
layer artifacts or assembled models recorded the same sha256 for them. All others are read side by side, each byte once,
in bounded memory.
"""

import math
import os
from collections.abc import Generator, Iterator, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import Literal

from layer_surgeon.checkpoint import TensorInfo
from layer_surgeon.checkpoint.safetensors import DTYPE_BITS
from layer_surgeon.errors import CheckpointError
from layer_surgeon.extract.codec import Codec
from layer_surgeon.extract.copy import Chunks
from layer_surgeon.progress import NullProgress, Progress
from layer_surgeon.run.number_sums import BLOCK_NUMBERS, COMPARABLE, Comparison, Sums
from layer_surgeon.run.sides import Side, SideSource, open_side

Status = Literal["equal", "different", "different shape", "only in A", "only in B"]

# Bytes of A in one unit of work. At 80 ms per request and 50 MB/s per connection, requests take a tenth of the time.
_PART_BYTES = 32 << 20
# Bytes that are converted at once. Dequantising 1 MiB of Q4_K takes 30 MB of memory.
_CONVERTED_BYTES = 1 << 18
# On a local disk, two threads already compare faster than an NVMe disk reads, and each takes 3 MB.
_MAX_LOCAL_THREADS = 2


@dataclass(frozen=True, kw_only=True)
class TensorDifference:
    """How one tensor differs.

    Attributes:
        name: Its name inside the layer, or inside the model for tensors outside of the layers.
        status: `equal` means the same bytes, or the same numbers if the dtypes differ.
        compared: How it was compared: `hash` (nothing was read) or `bytes`. None if it has no counterpart.
        relative_l2: |A - B| / |A|. None if the tensors can't be compared, or a number isn't finite.
        cosine: Cosine between the two tensors as vectors. None as for `relative_l2`, and if one of them is zero.
        max_abs: The largest absolute difference of two numbers. None as for `relative_l2`.
        dtypes: The dtypes in A and in B; None where the tensor is missing.
        shapes: The shapes in A and in B; None where the tensor is missing.
    """

    name: str
    status: Status
    compared: Literal["hash", "bytes"] | None
    relative_l2: float | None
    cosine: float | None
    max_abs: float | None
    dtypes: tuple[str | None, str | None]
    shapes: tuple[tuple[int, ...] | None, tuple[int, ...] | None]

    @property
    def was_compared(self) -> bool:
        """Whether both sides have this tensor with the same shape."""
        return self.compared is not None


@dataclass(frozen=True, kw_only=True)
class GroupDifference:
    """How a layer differs, or everything outside of the layers.

    Attributes:
        layer: Index of the layer; None for the tensors outside of the layers.
        equal: Whether all tensors are equal. False if a tensor is missing on one side.
        relative_l2: |A - B| / |A| over all tensors with the same name and shape; None if there are none.
        cosine: Their cosine; None if there are none.
        max_abs: Their largest absolute difference; None if there are none.
        tensors: The tensors.
    """

    layer: int | None
    equal: bool
    relative_l2: float | None
    cosine: float | None
    max_abs: float | None
    tensors: tuple[TensorDifference, ...]

    @property
    def was_compared(self) -> bool:
        """Whether any of its tensors was compared."""
        return any(tensor.was_compared for tensor in self.tensors)


@dataclass(frozen=True, kw_only=True)
class CheckpointDifference:
    """How two checkpoints differ.

    Attributes:
        a: Name of the first checkpoint.
        b: Name of the second checkpoint.
        num_layers: The number of layers of A and of B.
        layers: One entry per layer that at least one side has.
        rest: The tensors outside of the layers: embeddings, final norm, head. Empty if a side is a layer artifact.
        bytes_read: Bytes of weights that were read from both sides together. Headers and scales are not counted.
    """

    a: str
    b: str
    num_layers: tuple[int, int]
    layers: tuple[GroupDifference, ...]
    rest: GroupDifference
    bytes_read: int

    @property
    def equal(self) -> bool:
        """Whether all tensors are equal."""
        return all(group.equal for group in (*self.layers, self.rest))

    @property
    def groups(self) -> tuple[GroupDifference, ...]:
        """The layers, and then the rest."""
        return (*self.layers, self.rest)


def diff_checkpoints(
    a: SideSource,
    b: SideSource,
    *,
    revision_a: str | None = None,
    revision_b: str | None = None,
    token: str | bool | None = None,
    use_hashes: bool = True,
    progress: Progress | None = None,
) -> CheckpointDifference:
    """Compare two checkpoints, layer by layer and tensor by tensor.

    Args:
        a: A folder, a file, a Hub repo id, a URL, `packaged:NAME`, a list of the parts of a GGUF model, an open
            checkpoint, or the folder of a layer artifact. If it is a layer artifact, only its layers are compared.
        b: The same.
        revision_a: Branch, tag or commit of A, if it is a Hub repo. None is the main branch.
        revision_b: The same for B.
        token: Access token for the Hub. None uses the one from `hf auth login`.
        use_hashes: Don't read tensors that are equal according to the Hub, or to the record of a layer artifact or an
            assembled model.
        progress: Reports the bytes as they arrive.

    Raises:
        CheckpointError: The checkpoints have no tensor with the same name and shape, or one of them is damaged.
        UnsupportedArchitectureError: A checkpoint has no decoder layers, or packed weights.
        ArtifactError: A layer artifact is incomplete.
        SourceError: A source can't be read.
    """
    side_a = open_side(a, revision=revision_a, token=token)
    side_b = open_side(b, revision=revision_b, token=token)
    groups = _pair_up(side_a, side_b, use_hashes=use_hashes)
    if not any(pair.is_comparable for group in groups for pair in group.pairs):
        raise CheckpointError(
            f"{side_a.name} and {side_b.name} have no tensor with the same name and shape, so there is nothing to "
            "compare. Give two versions of the same model."
        )
    reader = _Reader(side_a, side_b, progress or NullProgress())
    reader.run([group for group in groups if not all(pair.known_equal for pair in group.pairs)])
    # The norm of a layer also covers its tensors that are known to be equal, so A's are read if others differ.
    reader.run([group for group in groups if group.lacks_norms], only_norms=True)
    differences = tuple(_describe(group) for group in groups)
    return CheckpointDifference(
        a=side_a.name,
        b=side_b.name,
        num_layers=(len(side_a.layers), len(side_b.layers)),
        layers=differences[:-1],
        rest=differences[-1],
        bytes_read=reader.bytes_read,
    )


@dataclass(kw_only=True)
class _Pair:
    """A tensor of A and the tensor of B with the same name, and what was found out about them."""

    name: str
    a: TensorInfo | None
    b: TensorInfo | None
    known_equal: bool
    sums: Sums = field(default_factory=Sums)

    @property
    def is_comparable(self) -> bool:
        return self.a is not None and self.b is not None and self.a.shape == self.b.shape

    @property
    def num_numbers(self) -> int:
        """The number of numbers to compare; 0 if they can't be compared."""
        return self.a.num_elements if self.a is not None and self.is_comparable else 0


@dataclass(kw_only=True)
class _Group:
    layer: int | None
    pairs: list[_Pair]

    @property
    def lacks_norms(self) -> bool:
        """Whether a tensor differs, and the norm of another one is not known because it wasn't read."""
        return any(pair.known_equal for pair in self.pairs) and not all(pair.sums.equal for pair in self.pairs)


def _pair_up(side_a: Side, side_b: Side, *, use_hashes: bool) -> list[_Group]:
    """Match the tensors of both sides by name: a group for each layer, and one for the rest, which is the last."""
    if side_a.is_whole and side_b.is_whole:
        side_a.read_headers()
        side_b.read_headers()
        layers: list[int | None] = [*range(max(len(side_a.layers), len(side_b.layers))), None]
    else:
        partial = [set(side.layers) for side in (side_a, side_b) if not side.is_whole]
        layers = [*sorted(set.union(*partial)), None]
    groups = []
    for layer in layers:
        if layer is None:
            infos_a, infos_b = _outside_layers(side_a, side_b)
        else:
            infos_a, infos_b = (side.tensors(layer) if layer in side.layers else {} for side in (side_a, side_b))
        pairs = []
        for name in dict.fromkeys([*infos_a, *infos_b]):
            a, b = infos_a.get(name), infos_b.get(name)
            known = use_hashes and a is not None and b is not None and _has_same_hash(side_a, a, side_b, b)
            pairs.append(_Pair(name=name, a=a, b=b, known_equal=known))
        groups.append(_Group(layer=layer, pairs=pairs))
    return groups


def _outside_layers(side_a: Side, side_b: Side) -> tuple[Mapping[str, TensorInfo], Mapping[str, TensorInfo]]:
    """The tensors outside of the layers; with an artifact, only those that it has: what acts before its layers."""
    partial = [side for side in (side_a, side_b) if not side.is_whole]
    names = {name for side in partial for name in side.tensors(None)}
    if partial and not names:
        return {}, {}
    infos_a, infos_b = side_a.tensors(None), side_b.tensors(None)
    if partial:
        infos_a = {name: info for name, info in infos_a.items() if name in names}
        infos_b = {name: info for name, info in infos_b.items() if name in names}
    return infos_a, infos_b


def _has_same_hash(side_a: Side, a: TensorInfo, side_b: Side, b: TensorInfo) -> bool:
    if (a.dtype, a.shape, a.num_bytes) != (b.dtype, b.shape, b.num_bytes):
        return False
    return not side_a.hashes(a).isdisjoint(side_b.hashes(b))


@dataclass(frozen=True, kw_only=True)
class _Part:
    """A part of a pair of tensors: `count` numbers from `start`. Whole blocks of both codecs."""

    pair: _Pair
    codecs: tuple[Codec, Codec | None]
    start: int
    count: int


class _Reader:
    """Reads parts of tensors on several threads, and adds up their sums."""

    def __init__(self, side_a: Side, side_b: Side, progress: Progress) -> None:
        self._sides = (side_a, side_b)
        self._progress = progress
        self.bytes_read = 0
        connections = max(side_a.source.connections, side_b.source.connections)
        self._num_threads = connections if connections > 1 else min(_MAX_LOCAL_THREADS, os.cpu_count() or 1)

    def run(self, groups: list[_Group], *, only_norms: bool = False) -> None:
        """Read the comparable tensors of these groups that are not known to be equal, or, of A, those that are."""
        parts = [part for group in groups for part in self._parts(group, only_norms=only_norms)]
        if not parts:
            return
        num_bytes = sum(self._num_bytes(part) for part in parts)
        self._progress.begin("comparing" if not only_norms else "norms of equal tensors", num_bytes, "bytes")
        with ThreadPoolExecutor(self._num_threads, thread_name_prefix="diff") as pool:
            futures: list[Future[Sums]] = [pool.submit(self._read, part) for part in parts]
            try:
                # In the order of the parts: the sums then don't depend on which thread was faster.
                for part, future in zip(parts, futures, strict=True):
                    part.pair.sums.add(future.result())
                    self.bytes_read += self._num_bytes(part)
                    self._progress.advance(self._num_bytes(part))
            except BaseException:
                for future in futures:
                    future.cancel()
                raise
        self._progress.end()

    def _parts(self, group: _Group, *, only_norms: bool) -> Iterator[_Part]:
        pairs = [pair for pair in group.pairs if pair.num_numbers and pair.known_equal == only_norms]
        if not pairs:
            return
        codecs_a = self._sides[0].codecs(group.layer)
        codecs_b: Mapping[str, Codec] = {} if only_norms else self._sides[1].codecs(group.layer)
        for pair in pairs:
            codecs = (codecs_a[pair.name], codecs_b.get(pair.name))
            for info, codec in zip((pair.a, pair.b), codecs, strict=True):
                if info is not None and codec is not None and codec.dtype not in COMPARABLE:
                    raise CheckpointError(
                        f"The tensor {info.name!r} has the dtype {codec.dtype}. Only tensors of "
                        f"{', '.join(COMPARABLE)} can be compared. Compare models with plain weights."
                    )
            unit = math.lcm(*(_block_numbers(codec) for codec in codecs if codec is not None))
            step = max(1, _PART_BYTES // (DTYPE_BITS[codecs[0].dtype] // 8) // unit) * unit
            for start in range(0, pair.num_numbers, step):
                yield _Part(pair=pair, codecs=codecs, start=start, count=min(step, pair.num_numbers - start))

    def _num_bytes(self, part: _Part) -> int:
        """Bytes to read for a part, of both sides together."""
        return sum(part.count // _block_numbers(codec) * codec.block_bytes for codec in part.codecs if codec)

    def _read(self, part: _Part) -> Sums:
        infos = (part.pair.a, part.pair.b)
        streams = [
            _NumberStream(side, info, codec, part.start, part.count)
            for side, info, codec in zip(self._sides, infos, part.codecs, strict=True)
            if info is not None and codec is not None
        ]
        comparison = Comparison(streams[0].dtype, streams[-1].dtype)
        try:
            done = 0
            while done < part.count:
                count = min(BLOCK_NUMBERS, *(stream.available() for stream in streams))
                blocks = [stream.take(count) for stream in streams]
                if len(blocks) == 1:
                    comparison.add_alone(blocks[0])
                else:
                    comparison.add(*blocks)
                done += count
        finally:
            for stream in streams:
                stream.close()
        return comparison.sums


def _block_numbers(codec: Codec) -> int:
    return codec.out_block_bytes * 8 // DTYPE_BITS[codec.dtype]


class _NumberStream:
    """The numbers of a part of a tensor, converted by its codec, in pieces of any length."""

    def __init__(self, side: Side, info: TensorInfo, codec: Codec, start: int, count: int) -> None:
        self.dtype = codec.dtype
        self._item_bytes = DTYPE_BITS[codec.dtype] // 8
        self._codec = codec
        self._next_block = start // _block_numbers(codec)
        self._remaining_bytes = count // _block_numbers(codec) * codec.block_bytes
        offset = info.offset + self._next_block * codec.block_bytes
        self._stream = side.source.stream_range(info.file, offset, self._remaining_bytes)
        self._blocks = Chunks(self._stream)
        self._converted = memoryview(b"")

    def available(self) -> int:
        """Return how many numbers can be taken without reading; reads if there are none."""
        if not self._converted:
            block = self._codec.block_bytes
            max_bytes = min(self._remaining_bytes, max(block, _CONVERTED_BYTES // block * block))
            blocks = self._blocks.take(max_bytes, block)
            self._remaining_bytes -= len(blocks)
            self._converted = memoryview(self._codec.convert(blocks, self._next_block)).cast("B")
            self._next_block += len(blocks) // self._codec.block_bytes
        return len(self._converted) // self._item_bytes

    def take(self, count: int) -> memoryview:
        """Return the next numbers. They are only valid until `available` is called again."""
        num_bytes = count * self._item_bytes
        taken, self._converted = self._converted[:num_bytes], self._converted[num_bytes:]
        return taken

    def close(self) -> None:
        """Close the connection or file. After an error, it would otherwise stay open until garbage collection."""
        if isinstance(self._stream, Generator):
            self._stream.close()


def _describe(group: _Group) -> GroupDifference:
    tensors = tuple(_describe_pair(pair) for pair in group.pairs)
    sums, is_comparable = Sums(), False
    for pair in group.pairs:
        if pair.is_comparable:
            sums.add(pair.sums)
            is_comparable = True
    return GroupDifference(
        layer=group.layer,
        equal=all(tensor.status == "equal" for tensor in tensors),
        relative_l2=sums.relative_l2 if is_comparable else None,
        cosine=sums.cosine if is_comparable else None,
        max_abs=sums.max_difference if is_comparable else None,
        tensors=tensors,
    )


def _describe_pair(pair: _Pair) -> TensorDifference:
    status: Status
    if pair.b is None:
        status = "only in A"
    elif pair.a is None:
        status = "only in B"
    elif not pair.is_comparable:
        status = "different shape"
    else:
        status = "equal" if pair.sums.equal else "different"
    sums = pair.sums if pair.is_comparable else None
    return TensorDifference(
        name=pair.name,
        status=status,
        compared=None if sums is None else "hash" if pair.known_equal else "bytes",
        relative_l2=None if sums is None else sums.relative_l2,
        cosine=None if sums is None else sums.cosine,
        max_abs=None if sums is None else sums.max_difference,
        dtypes=(None if pair.a is None else pair.a.dtype, None if pair.b is None else pair.b.dtype),
        shapes=(None if pair.a is None else pair.a.shape, None if pair.b is None else pair.b.shape),
    )
