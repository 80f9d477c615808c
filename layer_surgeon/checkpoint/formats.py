"""Find the checkpoint in a source: choose its format by the file names and open the table that reads it."""

import re
from collections.abc import Mapping, Sequence
from typing import Any

from layer_surgeon._format import list_names
from layer_surgeon.checkpoint import safetensors
from layer_surgeon.checkpoint.sources import FileSource, Source
from layer_surgeon.checkpoint.sources.parts import PartsSource
from layer_surgeon.checkpoint.sources.shards import MAX_INDEX_BYTES, parts_of
from layer_surgeon.checkpoint.sources.together import read_files
from layer_surgeon.checkpoint.types import TensorTable
from layer_surgeon.errors import CheckpointError, SourceNotFoundError

CONFIG_FILE = "config.json"
TORCH_INDEX_FILE = "pytorch_model.bin.index.json"
TORCH_SINGLE_FILE = "pytorch_model.bin"
# Extensions of the PyTorch files that can be opened by name.
_TORCH_SUFFIXES = (".bin", ".pt", ".pth")
# The longest real config.json is 200 kB: a mixture of experts whose quantisation settings list every module.
_MAX_CONFIG_BYTES = 16_000_000
# llama.cpp's name prefixes of GGUF files that are not language models: vision towers and importance matrices.
_GGUF_EXTRAS = ("mmproj", "imatrix")
_MAX_LISTED_NAMES = 12
# The names that transformers gives to the files of a large model.
_SHARD = re.compile(r".+-\d{5}-of-(?P<count>\d{5})\.(safetensors|bin)")


def open_table(source: Source) -> TensorTable:
    """Find the checkpoint in a source and read its config and index.

    Safetensors files (single or with an index) come first, then PyTorch files, then a safetensors file of another name,
    then GGUF.

    Raises:
        CheckpointError: There is no checkpoint, more than one, or a damaged one.
        SourceNotFoundError: The source is empty.
        SourceError: A file can't be read.
    """
    files = source.list_files()
    if isinstance(source, FileSource):
        candidates = [source.file]
    else:
        candidates = [file for file in files if "/" not in file]
    safetensors_files = [file for file in candidates if file.endswith(".safetensors")]
    if safetensors.SINGLE_FILE in safetensors_files:
        return safetensors.SafetensorsTable(source, _read_config(source, files), single_file=safetensors.SINGLE_FILE)
    if safetensors.INDEX_FILE in candidates:
        raw, config = _read_index(source, files, safetensors.INDEX_FILE)
        shard_of = safetensors.parse_index(raw, safetensors.INDEX_FILE, files)
        return safetensors.SafetensorsTable(source, config, shard_of=shard_of)
    pickle_files = [file for file in candidates if file.endswith(_TORCH_SUFFIXES)]
    if TORCH_SINGLE_FILE in pickle_files:
        return _torch_table(source, _read_config(source, files), single_file=TORCH_SINGLE_FILE)
    if TORCH_INDEX_FILE in candidates:
        raw, config = _read_index(source, files, TORCH_INDEX_FILE)
        shard_of = safetensors.parse_index(raw, TORCH_INDEX_FILE, files, suffix=".bin")
        return _torch_table(source, config, shard_of=shard_of)
    if len(safetensors_files) == 1:
        # After all names that mean a whole model, because it may be an adapter.
        _check_is_whole(source, safetensors_files[0])
        return safetensors.SafetensorsTable(source, _read_config(source, files), single_file=safetensors_files[0])
    gguf_models = _gguf_models(source, candidates)
    if len(gguf_models) == 1 and not safetensors_files:
        return _gguf_table(source, gguf_models[0])
    if len(pickle_files) == 1 and not safetensors_files and not gguf_models:
        # Last, because training leaves pickles of other things next to the weights.
        _check_is_whole(source, pickle_files[0])
        return _torch_table(source, _read_config(source, files), single_file=pickle_files[0])
    raise _nothing_to_open(source, safetensors_files, gguf_models, candidates)


def _check_is_whole(source: Source, file: str) -> None:
    """Refuse one shard of several: it can hold a part of a layer, which nothing would show."""
    match = _SHARD.fullmatch(file)
    if match is not None and int(match["count"]) > 1:
        raise CheckpointError(
            f"{file} of {source.name} is one of {int(match['count'])} files of a model. Give the folder or repo with "
            "all of them, and with their index."
        )


# Importing the formats takes 15 ms, as long as Python's start, and safetensors need neither.
def _torch_table(source: Source, config: Mapping[str, Any], **files: Any) -> TensorTable:
    from layer_surgeon.checkpoint.torch_table import TorchZipTable

    return TorchZipTable(source, config, **files)


def _gguf_table(source: Source, files: Sequence[str]) -> TensorTable:
    from layer_surgeon.checkpoint.gguf import GgufTable

    return GgufTable(source, *files)


def _gguf_models(source: Source, candidates: Sequence[str]) -> list[tuple[str, ...]]:
    """Return the files of each GGUF model: one file, or all parts if the user listed them."""
    if isinstance(source, PartsSource):
        return [source.files]
    # Any part of a split model represents the whole model, even if other parts are missing.
    model_files: dict[str, str] = {}
    for file in candidates:
        if file.lower().endswith(".gguf"):
            model_files.setdefault(parts_of(file)[0], file)
    plain = [file for model, file in model_files.items() if not model.lower().startswith(_GGUF_EXTRAS)]
    return [(file,) for file in plain or model_files.values()]


def _read_index(source: Source, files: Mapping[str, int | None], index: str) -> tuple[bytes, Mapping[str, Any]]:
    """Read the raw index and the parsed config."""
    _check_config(source, files)
    contents = read_files(source, {index: MAX_INDEX_BYTES, CONFIG_FILE: _MAX_CONFIG_BYTES})
    return contents[index], safetensors.parse_json_object(contents[CONFIG_FILE], CONFIG_FILE)


def _read_config(source: Source, files: Mapping[str, int | None]) -> Mapping[str, Any]:
    _check_config(source, files)
    return safetensors.parse_json_object(source.read_file(CONFIG_FILE, _MAX_CONFIG_BYTES), CONFIG_FILE)


def _check_config(source: Source, files: Mapping[str, int | None]) -> None:
    if CONFIG_FILE not in files:
        raise CheckpointError(
            f"{source.name} has weights but no {CONFIG_FILE}, which describes the architecture. "
            "Put the model's config.json next to the weights."
        )


def _nothing_to_open(
    source: Source, safetensors_files: Sequence[str], gguf_models: Sequence[tuple[str, ...]], candidates: Sequence[str]
) -> CheckpointError | SourceNotFoundError:
    if safetensors_files:
        return CheckpointError(
            f"{source.name} has {len(safetensors_files)} safetensors files, but no {safetensors.INDEX_FILE} that lists "
            "their tensors. Get the index, or give the name of one file."
        )
    if gguf_models:
        return _several_gguf(source, [model[0] for model in gguf_models])
    pickle_files = [file for file in candidates if file.endswith(_TORCH_SUFFIXES)]
    if pickle_files:
        return CheckpointError(
            f"{source.name} has {len(pickle_files)} PyTorch files ({', '.join(pickle_files[:3])}), but no "
            f"{TORCH_SINGLE_FILE} and no {TORCH_INDEX_FILE}. Get the index, or give the name of one file."
        )
    weight_files = [file for file in source.list_files() if file.endswith((".safetensors", ".gguf"))]
    subfolders = sorted({file.rpartition("/")[0] for file in weight_files} - {""})
    if subfolders:
        return CheckpointError(
            f"{source.name} has checkpoints only in its subfolders: "
            f"{list_names(subfolders, _MAX_LISTED_NAMES)}. Give the name of one of them, such as "
            f"{_address(source, subfolders[0])}"
        )
    if not candidates:
        return SourceNotFoundError(f"{source.name} is empty. Give a folder or repo with a checkpoint.")
    return CheckpointError(
        f"{source.name} has no checkpoint: no *.safetensors, no {TORCH_SINGLE_FILE} and no *.gguf file. "
        f"It contains {', '.join(candidates[:5])}{' and more' if len(candidates) > 5 else ''}. Check the name."
    )


def _several_gguf(source: Source, files: Sequence[str]) -> CheckpointError:
    return CheckpointError(
        f"{source.name} has {len(files)} GGUF files, often the same model in several quantisations: "
        f"{list_names(files, _MAX_LISTED_NAMES)}. Give the name of one file, such as {_address(source, files[0])}. "
        "The quantisation with the most bits is closest to the original: F16 or BF16, then Q8_0, Q6_K, ..."
    )


def _address(source: Source, path: str) -> str:
    """Return the address that a user would type for a file or subfolder of a source."""
    return f"{'hf://' if source.kind == 'hub' else ''}{source.name.rstrip('/')}/{path}"
