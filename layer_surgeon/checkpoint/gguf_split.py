"""The header of a model in one GGUF file or in several: parts are read together and checked against each other.

llama-gguf-split names the parts `model-00001-of-00003.gguf` and numbers them in their metadata from 0 (`split.no` of
`split.count`). All other metadata are in the first part, which may hold no tensor; each tensor lies whole in one part.
"""

from collections import Counter
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace

from layer_surgeon.checkpoint.gguf_header import MAX_HEADER_BYTES, GgufHeader, read_gguf_header
from layer_surgeon.checkpoint.sources.base import Source
from layer_surgeon.checkpoint.sources.shards import parts_of
from layer_surgeon.errors import CheckpointError, SourceNotFoundError

_NUMBER, _COUNT, _NUM_TENSORS = "split.no", "split.count", "split.tensors.count"
# Without vocabulary a header takes 60 to 100 bytes per tensor. Eight may be read at once.
_MAX_LATER_HEADER_BYTES = 8 << 20


def read_model_header(source: Source, files: Sequence[str]) -> GgufHeader:
    """Read and check the header of a model; of a split one, those of all parts, joined into one.

    Args:
        source: Where the files lie.
        files: The model's file, any part of a split model, or all of its parts in any order.

    Raises:
        CheckpointError: A file is damaged, the parts don't belong together, or they don't say what they hold.
        SourceNotFoundError: A part is missing.
        SourceError: A file can't be read.
    """
    parts = parts_of(files[0]) if len(files) == 1 else tuple(files)
    if len(parts) == 1:
        header = read_gguf_header(source, parts[0])
        if (count := _split_number(header, _COUNT)) not in (None, 1):
            raise CheckpointError(
                f"{parts[0]} is one of the {count} parts of a split model, and its name does not say what the others "
                f"are called. Name them as llama.cpp does (model-00001-of-{count:05}.gguf, ...), or open a list with "
                "all of them."
            )
    else:
        _check_listed(source, files[0], parts)
        header = _join(_read_parts(source, parts))
    _check_architecture(header)
    return header


def _check_listed(source: Source, named: str, parts: Sequence[str]) -> None:
    """Say which parts are missing before a header is read."""
    listed = source.list_files()
    missing = [part for part in parts if part not in listed]
    if missing:
        raise SourceNotFoundError(
            f"{named} is one of the {len(parts)} parts of a split model, and {source.name} lacks "
            f"{', '.join(missing[:3])}{f' and {len(missing) - 3} more' if len(missing) > 3 else ''}. Put all parts "
            "into one folder; they can't be read alone."
        )


def _read_parts(source: Source, parts: Sequence[str]) -> list[GgufHeader]:
    """The header of each part; the first may be long, for it has the vocabulary."""
    # In a list the first part may stand anywhere, so that only names tell which one may be long.
    first = parts[0] if parts_of(parts[0]) == tuple(parts) else None

    def read(part: str) -> GgufHeader:
        limit = MAX_HEADER_BYTES if first in (part, None) else _MAX_LATER_HEADER_BYTES
        try:
            return read_gguf_header(source, part, max_bytes=limit)
        except SourceNotFoundError as error:
            raise SourceNotFoundError(f"One of the {len(parts)} parts of a split model is missing. {error}") from error

    workers = 1 if first is None else min(source.connections, len(parts))
    with ThreadPoolExecutor(workers, thread_name_prefix="header") as pool:
        return list(pool.map(read, parts))


def _join(headers: list[GgufHeader]) -> GgufHeader:
    """One header of several, whose tensors know their files."""
    numbers: dict[int, GgufHeader] = {}
    for header in headers:
        count, number = _split_number(header, _COUNT), _split_number(header, _NUMBER)
        if count != len(headers):
            said = "is no part of a split model" if count is None else f"says that the model has {count} parts"
            raise CheckpointError(
                f"{header.file} {said}, but there are {len(headers)}. The parts are not of one model, or some are "
                "missing: get all of them from one place."
            )
        if number is None or not 0 <= number < count:
            raise CheckpointError(f"{header.file} says that it is part {number!r}, counted from 0, of {count}.")
        if number in numbers:
            raise CheckpointError(
                f"{numbers[number].file} and {header.file} both say that they are part {number}, counted from 0. "
                "One of them has the wrong name or is a copy: get the parts again."
            )
        numbers[number] = header
    ordered = [numbers[number] for number in range(len(headers))]
    first = ordered[0]
    tensors = tuple(entry for header in ordered for entry in header.tensors)
    _check_tensors(ordered, len(tensors), Counter(entry.name for entry in tensors))
    metadata = {key: entry for key, entry in first.metadata.items() if key not in (_NUMBER, _COUNT, _NUM_TENSORS)}
    return replace(first, metadata=metadata, tensors=tensors)


def _check_tensors(headers: list[GgufHeader], found: int, names: Counter[str]) -> None:
    for header in headers:
        stated = _split_number(header, _NUM_TENSORS)
        if stated is not None and stated != found:
            raise CheckpointError(
                f"{header.file} says that the model has {stated:,} tensors, but its {len(headers)} parts hold "
                f"{found:,}. They are not of one model, or damaged: get all of them from one place."
            )
    name, count = names.most_common(1)[0] if names else ("", 0)
    if count > 1:
        holders = [header.file for header in headers if any(entry.name == name for entry in header.tensors)]
        raise CheckpointError(
            f"The tensor {name!r} is in several parts: {', '.join(holders[:3])}. They are not of one model: get all of "
            "them from one place."
        )


def _split_number(header: GgufHeader, key: str) -> int | None:
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
            f"{header.file} does not say which architecture it holds (the key 'general.architecture' is missing or no "
            "text). Convert the model again with a current llama.cpp."
        )
