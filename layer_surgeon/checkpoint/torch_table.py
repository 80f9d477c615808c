"""Read the tensors of PyTorch checkpoints (`pytorch_model.bin`, single or sharded) by range, without torch.

A file is a zip archive written by `torch.save` (1.6 or newer). `<root>/data.pkl` describes the tensors,
`<root>/data/<key>` holds the uncompressed bytes of a storage, and `<root>/byteorder` states the byte order. The pickle
is parsed, never run.
"""

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any
from zlib import crc32

from layer_surgeon.checkpoint.sources.base import Source, stoppable_pool
from layer_surgeon.checkpoint.torch_pickle import MAX_PICKLE_BYTES, read_state_dict
from layer_surgeon.checkpoint.torch_records import PickledTensor
from layer_surgeon.checkpoint.torch_zip import ZipEntry, data_offset, local_header_bytes, read_entries
from layer_surgeon.checkpoint.types import PermutedTensorInfo, TensorInfo, TensorShape
from layer_surgeon.errors import CheckpointError

# Between data.pkl and byteorder, torch writes two entries of a few bytes, aligned to 64 or (as an option) 4096 bytes.
# One request reads them all.
_SMALL_BYTES = 16_384


@dataclass(frozen=True, kw_only=True)
class _Archive:
    """One file: its tensors, and the entries with their storages.

    Attributes:
        tensors: The tensors, by name.
        entries: The entries of the zip file that hold storages, by storage key.
        offsets: The absolute position of the bytes of each entry that was looked up so far, by storage key.
    """

    tensors: Mapping[str, PickledTensor]
    entries: Mapping[str, ZipEntry]
    offsets: dict[str, int] = field(default_factory=dict)


class TorchZipTable:
    """The tensors of a PyTorch checkpoint, single or sharded.

    Args:
        source: The source to read from.
        config: The model's config.json, verbatim.
        shard_of: The file of every tensor by name, from the index. None if there is only `single_file`.
        single_file: The only file of a checkpoint without an index.

    Raises:
        CheckpointError: The single file is damaged, is not a state dict, or tries to run something.
        SourceError: The single file can't be read.
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
                raise ValueError("Neither shard_of nor single_file was given. Pass one of them.")
            self._open(single_file)
            shard_of = dict.fromkeys(self._archives[single_file].tensors, single_file)
        self._shard_of = shard_of

    def files(self) -> Mapping[str, str]:
        """Return the file of every tensor, by tensor name."""
        return self._shard_of

    def describe(self, names: Iterable[str]) -> list[TensorShape]:
        """Describe the named tensors. Reads only the directories and pickles of the files that contain them.

        Raises:
            CheckpointError: A file is damaged, tries to run something, or lacks a tensor that the index lists.
            SourceError: A file can't be read.
        """
        requested = list(names)
        self._open_all(requested)
        tensors = [(name, self._tensor(name)) for name in requested]
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
        """Locate the named tensors. Reads the directories, pickles and entry headers of the files that contain them.

        Raises:
            CheckpointError: A file is damaged, tries to run something, lacks a tensor that the index lists, or
                contains one whose elements have gaps between them.
            SourceError: A file can't be read.
        """
        requested = list(names)
        self._open_all(requested)
        unlocated = dict.fromkeys(
            (shard, key)
            for name in requested
            for shard in [self._shard_of[name]]
            for key in [self._tensor(name).storage.key]
            if key not in self._archives[shard].offsets
        )
        self._for_each(self._locate_storage, list(unlocated))
        return [self._info(name) for name in requested]

    def _open_all(self, names: list[str]) -> None:
        shards = dict.fromkeys(self._shard_of[name] for name in names)
        self._for_each(self._open, [(shard,) for shard in shards if shard not in self._archives])

    def _for_each(self, action: Callable[..., None], arguments: list[tuple[str, ...]]) -> None:
        """Call `action` for several files or entries, in parallel up to the connections of the source."""
        workers = min(len(arguments), self._source.connections)
        if workers <= 1:
            for call_arguments in arguments:
                action(*call_arguments)
            return
        with stoppable_pool(workers, "header") as pool:
            list(pool.map(lambda call_arguments: action(*call_arguments), arguments))

    def _tensor(self, name: str) -> PickledTensor:
        shard = self._shard_of[name]
        tensor = self._archives[shard].tensors.get(name)
        if tensor is None:
            raise CheckpointError(
                f"According to the index, {shard} contains the tensor {name!r}, but its pickle does not describe it. "
                "The index and the shards come from different checkpoints: get the checkpoint again."
            )
        return tensor

    def _open(self, file: str) -> None:
        self._archives[file] = _read_archive(self._source, file)

    def _locate_storage(self, file: str, key: str) -> None:
        """Read the header of one storage's entry to find the position of its bytes."""
        archive = self._archives[file]
        entry = archive.entries.get(key)
        if entry is None:
            raise CheckpointError(
                f"{file} describes a tensor with the storage data/{key[:100]}, but has no such entry. "
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
                f"In {file} the tensor {name!r} is not contiguous (shape {list(tensor.shape)}, stride "
                f"{list(tensor.stride)}): it is a sliced or expanded view. Load the file once with torch.load and save "
                "it with transformers' save_pretrained, which writes safetensors files."
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
    """Read the directory and the pickle of one file."""
    entries = read_entries(source, file)
    root_folders = [name.partition("/")[0] for name in entries if name.endswith("/data.pkl") and name.count("/") == 1]
    if len(root_folders) != 1:
        raise CheckpointError(
            f"{file} is a zip file, but not a PyTorch checkpoint: it has {len(root_folders)} entries called "
            "*/data.pkl, and exactly one is expected. Check what the file is."
        )
    root = root_folders[0]
    if f"{root}/constants.pkl" in entries:
        raise CheckpointError(
            f"{file} is a TorchScript program, not a checkpoint of weights. Save the model's state dict instead."
        )
    pickle, byteorder = entries[f"{root}/data.pkl"], entries.get(f"{root}/byteorder")
    if pickle.num_bytes > MAX_PICKLE_BYTES:
        raise CheckpointError(
            f"The pickle in {file} has {pickle.num_bytes:,} bytes, but at most {MAX_PICKLE_BYTES:,} are supported. "
            "Save a model with that many tensors in shards or as safetensors."
        )
    raw, byte_order = _read_description(source, file, pickle, byteorder)
    if byte_order != b"little":
        raise CheckpointError(
            f"{file} was written with the byte order {byte_order[:20]!r}, but only little-endian files are supported. "
            "Load it with torch.load and save it again on a little-endian machine."
        )
    if pickle.crc not in (0, crc32(raw)):
        raise CheckpointError(f"{file} is damaged: the checksum of its data.pkl is wrong. Get the file again.")
    prefix = f"{root}/data/"
    storages = {name.removeprefix(prefix): entry for name, entry in entries.items() if name.startswith(prefix)}
    return _Archive(tensors=read_state_dict(raw, file), entries=storages)


def _read_description(source: Source, file: str, pickle: ZipEntry, byteorder: ZipEntry | None) -> tuple[bytes, bytes]:
    """Read the pickle and the byte order. Files of torch before 2.0 don't state it, and are little-endian."""
    if byteorder is None:
        return _content(_read_entry(source, file, pickle), pickle, file), b"little"
    if byteorder.num_bytes > _SMALL_BYTES:
        raise CheckpointError(
            f"The byteorder entry of {file} has {byteorder.num_bytes:,} bytes, but a few are expected. Get the file "
            "again."
        )
    start, end = pickle.header, byteorder.limit
    if 0 < end - pickle.limit <= _SMALL_BYTES and end - start <= MAX_PICKLE_BYTES + _SMALL_BYTES:
        raw = source.read_range(file, start, end - start)
        return _content(raw, pickle, file), _content(raw[byteorder.header - start :], byteorder, file)
    byteorder_entry = _read_entry(source, file, byteorder)
    return _content(_read_entry(source, file, pickle), pickle, file), _content(byteorder_entry, byteorder, file)


def _read_entry(source: Source, file: str, entry: ZipEntry) -> bytes:
    """Read an entry with its header, and up to _SMALL_BYTES of the padding after it."""
    length = min(entry.limit - entry.header, local_header_bytes(entry) + entry.num_bytes + _SMALL_BYTES)
    return source.read_range(file, entry.header, length)


def _content(raw: bytes, entry: ZipEntry, file: str) -> bytes:
    content_start = data_offset(raw, entry, file) - entry.header
    content = raw[content_start : content_start + entry.num_bytes]
    if len(content) != entry.num_bytes:
        raise CheckpointError(
            f"{file} has {content_start:,} bytes of padding before {entry.name[:100]!r}, which torch never writes. "
            "Get the file again."
        )
    return content
