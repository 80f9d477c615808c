"""PyTorch checkpoints: the tensors of `pytorch_model.bin`, single or sharded, read by range. No torch, nothing is run.

A file is a zip archive that `torch.save` (1.6 or newer) wrote: `<root>/data.pkl` describes the tensors,
`<root>/data/<key>` holds the bytes of a storage, uncompressed, and `<root>/byteorder` says which end comes first.
"""

from collections.abc import Callable, Iterable, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import Any
from zlib import crc32

from layer_surgeon.checkpoint.sources.base import Source
from layer_surgeon.checkpoint.torch_pickle import MAX_PICKLE_BYTES, read_state_dict
from layer_surgeon.checkpoint.torch_records import PermutedTensorInfo, PickledTensor
from layer_surgeon.checkpoint.torch_zip import ZipEntry, data_offset, local_header_bytes, read_entries
from layer_surgeon.checkpoint.types import TensorInfo, TensorShape
from layer_surgeon.errors import CheckpointError

INDEX_FILE = "pytorch_model.bin.index.json"
SINGLE_FILE = "pytorch_model.bin"
# What a file is named that can be opened by its own name.
SUFFIXES = (".bin", ".pt", ".pth")
# Between data.pkl and byteorder torch puts two entries of a few bytes, each at a multiple of 64 or, where it is told
# to, 4096 bytes: one request reads them all.
_SMALL_BYTES = 16_384


@dataclass(frozen=True, kw_only=True)
class _Archive:
    """One file: its tensors, and the entries that hold their storages.

    Attributes:
        tensors: The tensors, by name.
        entries: The entries of the zip file that hold storages, by the storage's key.
        offsets: Where those entries' bytes begin, as far as that was asked for.
    """

    tensors: Mapping[str, PickledTensor]
    entries: Mapping[str, ZipEntry]
    offsets: dict[str, int] = field(default_factory=dict)


class TorchZipTable:
    """The tensors of a PyTorch checkpoint, single or sharded.

    Args:
        source: Where it lies.
        config: The model's config.json, verbatim.
        shard_of: The file of every tensor, by name: from the index. None: all are in `single_file`.
        single_file: The only file of a checkpoint without an index.

    Raises:
        CheckpointError: A single file is damaged, no state dict, or wants to run something.
        SourceError: A single file can't be read.
    """

    format = "torch"
    notes = ()
    license = None
    packing = None

    def __init__(
        self,
        source: Source,
        config: Mapping[str, Any],
        *,
        shard_of: Mapping[str, str] | None = None,
        single_file: str | None = None,
    ) -> None:
        self._source = source
        self.config = config
        self._archives: dict[str, _Archive] = {}
        if shard_of is None:
            if single_file is None:
                raise ValueError("Give either the index or the single file.")
            self._open(single_file)
            shard_of = dict.fromkeys(self._archives[single_file].tensors, single_file)
        self._shard_of = shard_of

    def files(self) -> Mapping[str, str]:
        """The file of every tensor, by tensor name."""
        return self._shard_of

    def describe(self, names: Iterable[str]) -> list[TensorShape]:
        """What the named tensors are; reads the directories and pickles of the files that hold them, no entries.

        Raises:
            CheckpointError: A file is damaged, wants to run something, or lacks a tensor that the index promises.
            SourceError: A file can't be read.
        """
        wanted = list(names)
        self._open_all(wanted)
        tensors = [(name, self._tensor(name)) for name in wanted]
        return [
            TensorShape(
                name=name,
                dtype=tensor.dtype,
                shape=tensor.shape,
                file=self._shard_of[name],
                num_bytes=tensor.num_bytes,
            )
            for name, tensor in tensors
        ]

    def tensors(self, names: Iterable[str]) -> list[TensorInfo]:
        """Where the named tensors lie; reads the directories and pickles of the files that hold them, and no others.

        Raises:
            CheckpointError: A file is damaged, wants to run something, lacks a tensor that the index promises, or
                holds one whose numbers do not lie side by side.
            SourceError: A file can't be read.
        """
        wanted = list(names)
        self._open_all(wanted)
        missing = dict.fromkeys(
            (shard, key)
            for name in wanted
            for shard in [self._shard_of[name]]
            for key in [self._tensor(name).storage.key]
            if key not in self._archives[shard].offsets
        )
        self._each(self._find, list(missing))
        return [self._info(name) for name in wanted]

    def _open_all(self, names: list[str]) -> None:
        shards = dict.fromkeys(self._shard_of[name] for name in names)
        self._each(self._open, [(shard,) for shard in shards if shard not in self._archives])

    def _each(self, action: Callable[..., None], arguments: list[tuple[str, ...]]) -> None:
        """Do the same to several files or entries, as many at once as the source has connections."""
        workers = min(len(arguments), self._source.connections)
        if workers <= 1:
            for each in arguments:
                action(*each)
            return
        with ThreadPoolExecutor(workers) as pool:
            list(pool.map(lambda each: action(*each), arguments))

    def _tensor(self, name: str) -> PickledTensor:
        shard = self._shard_of[name]
        tensor = self._archives[shard].tensors.get(name)
        if tensor is None:
            raise CheckpointError(
                f"The index says that {shard} holds the tensor {name!r}, but its pickle does not describe it. "
                "Index and shards are not from the same checkpoint: get it again."
            )
        return tensor

    def _open(self, file: str) -> None:
        self._archives[file] = _read_archive(self._source, file)

    def _find(self, file: str, key: str) -> None:
        """Read where the bytes of one storage begin."""
        archive = self._archives[file]
        entry = archive.entries.get(key)
        if entry is None:
            raise CheckpointError(
                f"{file} describes a tensor whose bytes should be in its entry data/{key[:100]}, which is missing. "
                "Get the file again."
            )
        raw = self._source.read_range(file, entry.header, local_header_bytes(entry))
        archive.offsets[key] = data_offset(raw, entry, file)

    def _info(self, name: str) -> TensorInfo:
        file, tensor = self._shard_of[name], self._tensor(name)
        archive, storage = self._archives[file], tensor.storage
        order = None if tensor.is_contiguous else tensor.order
        if order is None and not tensor.is_contiguous:
            raise CheckpointError(
                f"In {file} the numbers of the tensor {name!r} do not lie side by side (shape {list(tensor.shape)}, "
                f"stride {list(tensor.stride)}): it is a cut or expanded view. Load it once with torch.load and save "
                "it with save_pretrained of transformers, which writes safetensors files."
            )
        if storage.num_bytes > archive.entries[storage.key].num_bytes:
            raise CheckpointError(
                f"In {file} the entry data/{storage.key[:100]} has {archive.entries[storage.key].num_bytes:,} bytes, "
                f"but the tensor {name!r} needs a storage of {storage.num_bytes:,}. Get the file again."
            )
        info = TensorInfo(
            name=name,
            dtype=tensor.dtype,
            shape=tensor.shape,
            file=file,
            offset=archive.offsets[storage.key] + (tensor.first * tensor.item_bytes if tensor.num_bytes else 0),
            num_bytes=tensor.num_bytes,
        )
        return info if order is None else PermutedTensorInfo(**vars(info), order=order)


def _read_archive(source: Source, file: str) -> _Archive:
    """Read one file's directory and pickle."""
    entries = read_entries(source, file)
    roots = [name.partition("/")[0] for name in entries if name.endswith("/data.pkl") and name.count("/") == 1]
    if len(roots) != 1:
        raise CheckpointError(
            f"{file} is a zip file, but no PyTorch checkpoint: it has {len(roots)} entries called */data.pkl, and one "
            "is expected. Check what the file is."
        )
    root = roots[0]
    if f"{root}/constants.pkl" in entries:
        raise CheckpointError(
            f"{file} is a TorchScript program, not a checkpoint of weights. Save the state dict of its model instead."
        )
    pickle, byteorder = entries[f"{root}/data.pkl"], entries.get(f"{root}/byteorder")
    if pickle.num_bytes > MAX_PICKLE_BYTES:
        raise CheckpointError(
            f"{file} describes its tensors in {pickle.num_bytes:,} bytes; up to {MAX_PICKLE_BYTES:,} are read. "
            "A model of that many tensors has to be saved in shards, or as safetensors."
        )
    raw, order = _read_description(source, file, pickle, byteorder)
    if order != b"little":
        raise CheckpointError(
            f"{file} was written with the byte order {order[:20]!r}; only little-endian numbers are read. Load it with "
            "torch.load and save it again on a usual machine."
        )
    if pickle.crc not in (0, crc32(raw)):
        raise CheckpointError(f"{file} is damaged: the checksum of its data.pkl is wrong. Get the file again.")
    prefix = f"{root}/data/"
    storages = {name.removeprefix(prefix): entry for name, entry in entries.items() if name.startswith(prefix)}
    return _Archive(tensors=read_state_dict(raw, file), entries=storages)


def _read_description(source: Source, file: str, pickle: ZipEntry, byteorder: ZipEntry | None) -> tuple[bytes, bytes]:
    """The pickle, and the byte order: files of torch before 2.0 do not state it, and are little-endian."""
    if byteorder is None:
        return _content(_read_entry(source, file, pickle), pickle, file), b"little"
    if byteorder.num_bytes > _SMALL_BYTES:
        raise CheckpointError(f"{file} has {byteorder.num_bytes:,} bytes where its byte order should be. Get it again.")
    begin, end = pickle.header, byteorder.limit
    if 0 < end - pickle.limit <= _SMALL_BYTES and end - begin <= MAX_PICKLE_BYTES + _SMALL_BYTES:
        raw = source.read_range(file, begin, end - begin)
        return _content(raw, pickle, file), _content(raw[byteorder.header - begin :], byteorder, file)
    small = _read_entry(source, file, byteorder)
    return _content(_read_entry(source, file, pickle), pickle, file), _content(small, byteorder, file)


def _read_entry(source: Source, file: str, entry: ZipEntry) -> bytes:
    """An entry with its own header, and what fills the place up to the next one where that is little."""
    length = min(entry.limit - entry.header, local_header_bytes(entry) + entry.num_bytes + _SMALL_BYTES)
    return source.read_range(file, entry.header, length)


def _content(raw: bytes, entry: ZipEntry, file: str) -> bytes:
    begin = data_offset(raw, entry, file) - entry.header
    content = raw[begin : begin + entry.num_bytes]
    if len(content) != entry.num_bytes:
        raise CheckpointError(
            f"{file} has {begin:,} bytes of padding before {entry.name[:100]!r}, which torch never writes."
        )
    return content
