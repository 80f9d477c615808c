"""Which checkpoint lies at a place: from the names of its files to the table that reads them."""

from collections.abc import Mapping, Sequence
from typing import Any

from layer_surgeon.checkpoint import safetensors, torch_table
from layer_surgeon.checkpoint.sources import FileSource, Source
from layer_surgeon.checkpoint.sources.parts import PartsSource
from layer_surgeon.checkpoint.sources.shards import MAX_INDEX_BYTES, parts_of
from layer_surgeon.checkpoint.sources.together import read_files
from layer_surgeon.checkpoint.types import TensorTable
from layer_surgeon.errors import CheckpointError, SourceNotFoundError

CONFIG_FILE = "config.json"
# The longest config.json in use (a mixture of experts with its quantisation's list of modules) has 200 kB.
_MAX_CONFIG_BYTES = 16_000_000
# llama.cpp's names of GGUF files that are no language model: a vision tower, what quantising was calibrated with.
_GGUF_EXTRAS = ("mmproj", "imatrix")
_MAX_NAMED = 12


def open_table(source: Source) -> TensorTable:
    """Find the checkpoint at a place and read its config and index.

    One safetensors file or an index of several comes first, then the same of PyTorch files, then GGUF.

    Raises:
        CheckpointError: There is none, more than one, or a damaged one.
        SourceError: A file can't be read.
    """
    files = source.list_files()
    if isinstance(source, FileSource):
        candidates = [source.file]
    else:
        candidates = [file for file in files if "/" not in file]
    tensors = [file for file in candidates if file.endswith(".safetensors")]
    if safetensors.SINGLE_FILE in tensors or len(tensors) == 1:
        single = safetensors.SINGLE_FILE if safetensors.SINGLE_FILE in tensors else tensors[0]
        return safetensors.SafetensorsTable(source, _read_config(source, files), single_file=single)
    if safetensors.INDEX_FILE in candidates:
        raw, config = _read_index(source, files, safetensors.INDEX_FILE)
        shard_of = safetensors.parse_index(raw, safetensors.INDEX_FILE, files)
        return safetensors.SafetensorsTable(source, config, shard_of=shard_of)
    pickles = [file for file in candidates if file.endswith(torch_table.SUFFIXES)]
    if torch_table.SINGLE_FILE in pickles:
        return torch_table.TorchZipTable(source, _read_config(source, files), single_file=torch_table.SINGLE_FILE)
    if torch_table.INDEX_FILE in candidates:
        raw, config = _read_index(source, files, torch_table.INDEX_FILE)
        shard_of = safetensors.parse_index(raw, torch_table.INDEX_FILE, files, suffix=".bin")
        return torch_table.TorchZipTable(source, config, shard_of=shard_of)
    models = _gguf_models(source, candidates)
    if len(models) == 1 and not tensors:
        # Only a GGUF file needs the tables of gguf and transformers: 1 s that others need not pay.
        from layer_surgeon.checkpoint.gguf import GgufTable

        return GgufTable(source, *models[0])
    if len(pickles) == 1 and not tensors and not models:
        # Last, since training leaves pickles of other things beside the weights.
        return torch_table.TorchZipTable(source, _read_config(source, files), single_file=pickles[0])
    raise _nothing_to_open(source, tensors, models, candidates)


def _gguf_models(source: Source, candidates: Sequence[str]) -> list[tuple[str, ...]]:
    """The files that name each GGUF model: one, or all parts where they were listed."""
    if isinstance(source, PartsSource):
        return [source.files]
    # Of a split model any part stands for all, whether they are there or not.
    models: dict[str, str] = {}
    for file in candidates:
        if file.lower().endswith(".gguf"):
            models.setdefault(parts_of(file)[0], file)
    plain = [file for model, file in models.items() if not model.lower().startswith(_GGUF_EXTRAS)]
    return [(file,) for file in plain or models.values()]


def _read_index(source: Source, files: Mapping[str, int | None], index: str) -> tuple[bytes, Mapping[str, Any]]:
    """The index as it is, and the config."""
    _check_config(source, files)
    read = read_files(source, {index: MAX_INDEX_BYTES, CONFIG_FILE: _MAX_CONFIG_BYTES})
    return read[index], safetensors.parse_json_object(read[CONFIG_FILE], CONFIG_FILE)


def _read_config(source: Source, files: Mapping[str, int | None]) -> Mapping[str, Any]:
    _check_config(source, files)
    return safetensors.parse_json_object(source.read_file(CONFIG_FILE, _MAX_CONFIG_BYTES), CONFIG_FILE)


def _check_config(source: Source, files: Mapping[str, int | None]) -> None:
    if CONFIG_FILE not in files:
        raise CheckpointError(
            f"{source.name} has weights but no {CONFIG_FILE}, which says what they compute. "
            "Put the model's config.json beside them."
        )


def _nothing_to_open(
    source: Source, tensors: Sequence[str], models: Sequence[tuple[str, ...]], candidates: Sequence[str]
) -> CheckpointError | SourceNotFoundError:
    if tensors:
        return CheckpointError(
            f"{source.name} has {len(tensors)} safetensors files, but no {safetensors.INDEX_FILE} that says which "
            "holds what. Get the index, or name one file."
        )
    if models:
        return _several_gguf(source, [model[0] for model in models])
    pickles = [file for file in candidates if file.endswith(torch_table.SUFFIXES)]
    if pickles:
        return CheckpointError(
            f"{source.name} has {len(pickles)} PyTorch files ({', '.join(pickles[:3])}), but no "
            f"{torch_table.SINGLE_FILE} and no {torch_table.INDEX_FILE}. Get the index, or name one file."
        )
    weights = [file for file in source.list_files() if file.endswith((".safetensors", ".gguf"))]
    below = sorted({file.rpartition("/")[0] for file in weights} - {""})
    if below:
        return CheckpointError(
            f"{source.name} holds checkpoints in its subfolders alone: {_named(below)}. Name one of them, as in "
            f"{_address(source, below[0])}"
        )
    if not candidates:
        return SourceNotFoundError(f"{source.name} is empty. Name a folder or repo that holds a checkpoint.")
    return CheckpointError(
        f"{source.name} holds no checkpoint: no *.safetensors, no {torch_table.SINGLE_FILE} and no *.gguf file. "
        f"It has {', '.join(candidates[:5])}{' and more' if len(candidates) > 5 else ''}. Check the name."
    )


def _several_gguf(source: Source, files: Sequence[str]) -> CheckpointError:
    return CheckpointError(
        f"{source.name} has {len(files)} GGUF models, mostly the same one in several quantisations: {_named(files)}. "
        f"Name the file of one, as in {_address(source, files[0])} (the quantisation with most bits is nearest to the "
        "original: F16 or BF16, then Q8_0, Q6_K, ...)."
    )


def _named(names: Sequence[str]) -> str:
    more = f" and {len(names) - _MAX_NAMED} more" if len(names) > _MAX_NAMED else ""
    return ", ".join(names[:_MAX_NAMED]) + more


def _address(source: Source, part: str) -> str:
    """How a file or subfolder of a place is named."""
    return f"{'hf://' if source.kind == 'hub' else ''}{source.name.rstrip('/')}/{part}"
