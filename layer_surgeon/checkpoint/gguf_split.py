"""Read the header of a GGUF model in one file or several parts. Parts are checked against each other.

llama-gguf-split names the parts `model-00001-of-00003.gguf`. In their metadata it numbers them from 0 (`split.no` of
`split.count`). All other metadata is in the first part, which may have no tensors. Each tensor is in exactly one part.
"""

from collections import Counter
from collections.abc import Sequence
from dataclasses import replace

from layer_surgeon._format import list_names
from layer_surgeon.checkpoint.gguf_header import MAX_HEADER_BYTES, GgufHeader, read_gguf_header
from layer_surgeon.checkpoint.sources.base import Source, stoppable_pool
from layer_surgeon.checkpoint.sources.shards import parts_of
from layer_surgeon.errors import CheckpointError, SourceNotFoundError

_NUMBER, _COUNT, _NUM_TENSORS = "split.no", "split.count", "split.tensors.count"
# Without a vocabulary, a header takes 60 to 100 bytes per tensor. Up to eight headers are read in parallel.
_MAX_LATER_HEADER_BYTES = 8 << 20


def read_model_header(source: Source, files: Sequence[str]) -> GgufHeader:
    """Read and check the header of a model. The headers of a split model's parts are joined into one.

    Args:
        source: The source to read from.
        files: The model's file, any part of a split model, or all of its parts in any order.

    Raises:
        CheckpointError: A file is damaged, the parts don't belong together, or the architecture is missing.
        SourceNotFoundError: A part is missing.
        SourceError: A file can't be read.
    """
    parts = parts_of(files[0]) if len(files) == 1 else tuple(files)
    if len(parts) == 1:
        header = read_gguf_header(source, parts[0])
        if (count := _split_metadata(header, _COUNT)) not in (None, 1):
            raise CheckpointError(
                f"{parts[0]} is one of the {count} parts of a split model, but the names of the other parts don't "
                f"follow from its name. Rename the parts like llama.cpp (model-00001-of-{count:05}.gguf, ...), or open "
                "a list of all parts."
            )
    else:
        _check_listed(source, files[0], parts)
        header = _join(_read_parts(source, parts))
    _check_architecture(header)
    return header


def _check_listed(source: Source, file: str, parts: Sequence[str]) -> None:
    """Report missing parts before any header is read."""
    listed = source.list_files()
    missing = [part for part in parts if part not in listed]
    if missing:
        raise SourceNotFoundError(
            f"{file} is one of the {len(parts)} parts of a split model, but {source.name} lacks "
            f"{list_names(missing)}. Put all parts into one folder: a single part can't be read alone."
        )


def _read_parts(source: Source, parts: Sequence[str]) -> list[GgufHeader]:
    """Read the header of each part. Only the first may be long, because it has the vocabulary."""
    # A list from the user may be in any order. Then the first part is only known if the names number the parts.
    first = parts[0] if parts_of(parts[0]) == tuple(parts) else None

    def read(part: str) -> GgufHeader:
        max_bytes = MAX_HEADER_BYTES if first in (part, None) else _MAX_LATER_HEADER_BYTES
        try:
            return read_gguf_header(source, part, max_bytes=max_bytes)
        except SourceNotFoundError as error:
            raise SourceNotFoundError(f"One of the {len(parts)} parts of a split model is missing. {error}") from error

    workers = 1 if first is None else min(source.connections, len(parts))
    with stoppable_pool(workers, "header") as pool:
        return list(pool.map(read, parts))


def _join(headers: list[GgufHeader]) -> GgufHeader:
    """Join the headers of all parts into one. Its tensors know their files."""
    header_of_part: dict[int, GgufHeader] = {}
    for header in headers:
        count, number = _split_metadata(header, _COUNT), _split_metadata(header, _NUMBER)
        if count != len(headers):
            claim = "is not part of a split model" if count is None else f"states that the model has {count} parts"
            raise CheckpointError(
                f"{header.file} {claim}, but there are {len(headers)}. The parts belong to different models, or some "
                "are missing: get all parts from the same source."
            )
        if number is None or not 0 <= number < count:
            raise CheckpointError(
                f"{header.file} states that it is part {number!r} of {count}, counted from 0, which is impossible. "
                "Get the parts again."
            )
        if number in header_of_part:
            raise CheckpointError(
                f"{header_of_part[number].file} and {header.file} both state that they are part {number}, counted from "
                "0. One of them has the wrong name or is a copy: get the parts again."
            )
        header_of_part[number] = header
    ordered = [header_of_part[number] for number in range(len(headers))]
    first = ordered[0]
    tensors = tuple(entry for header in ordered for entry in header.tensors)
    _check_tensors(ordered, len(tensors), Counter(entry.name for entry in tensors))
    metadata = {key: entry for key, entry in first.metadata.items() if key not in (_NUMBER, _COUNT, _NUM_TENSORS)}
    return replace(first, metadata=metadata, tensors=tensors)


def _check_tensors(headers: list[GgufHeader], num_tensors: int, names: Counter[str]) -> None:
    for header in headers:
        stated_num_tensors = _split_metadata(header, _NUM_TENSORS)
        if stated_num_tensors is not None and stated_num_tensors != num_tensors:
            raise CheckpointError(
                f"{header.file} states that the model has {stated_num_tensors:,} tensors, but its {len(headers)} parts "
                f"contain {num_tensors:,}. They belong to different models or are damaged: get all parts from the same "
                "source."
            )
    name, count = names.most_common(1)[0] if names else ("", 0)
    if count > 1:
        containing_files = [header.file for header in headers if any(tensor.name == name for tensor in header.tensors)]
        raise CheckpointError(
            f"The tensor {name!r} is in several parts: {', '.join(containing_files[:3])}. They belong to different "
            "models: get all parts from the same source."
        )


def _split_metadata(header: GgufHeader, key: str) -> int | None:
    entry = header.metadata.get(key)
    if entry is None:
        return None
    if type(entry.value) is not int or entry.count != 1:
        raise CheckpointError(f"{header.file} is damaged: its {key!r} is {entry.value!r}, not a number. Get it again.")
    return entry.value


def _check_architecture(header: GgufHeader) -> None:
    architecture = header.metadata.get("general.architecture")
    if architecture is None or not isinstance(architecture.value, str) or not architecture.value:
        raise CheckpointError(
            f"{header.file} does not state its architecture (the key 'general.architecture' is missing or not a "
            "string). Convert the model again with a current llama.cpp."
        )
