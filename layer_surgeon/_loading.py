"""Models, configs, tokenizers and data sets of strangers, loaded so that nothing of theirs runs or reaches further.

Every call of a loader of transformers or datasets by a name or a folder is here (a test walks the package for others).
What they would do on the word of a file is refused here: run Python code or kernels that a repo brings, load weights
from outside a folder, or load another model because an adapter's config names it.
"""

import contextlib
import os
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import datasets
from transformers import AutoConfig, AutoTokenizer, PretrainedConfig, PreTrainedTokenizerBase, dynamic_module_utils
from transformers.utils import CONFIG_NAME, cached_file, is_peft_available

from layer_surgeon._folders import check_links
from layer_surgeon._io import MAX_JSON_BYTES, read_json
from layer_surgeon._limits import check_config_sizes, check_no_code
from layer_surgeon._text import without_secrets
from layer_surgeon.checkpoint.sources.shards import INDEX_FILES, lies_inside
from layer_surgeon.errors import GraftError, LayerSurgeonError

_ADAPTER = "adapter_config.json"
# The entry of a config.json that names a file of weights in place of model.safetensors.
_WEIGHTS = "transformers_weights"
# What says how a tokenizer is made; the second has precedence.
_SPECIAL_TOKENS = "special_tokens_map.json"
_TOKENIZER_FILES = ("tokenizer_config.json", _SPECIAL_TOKENS)
_TEXTS = frozenset({".json", ".jinja", ".txt", ".model", ".vocab", ".bpe", ".tiktoken"})
_HUB_SETTINGS = ("revision", "token", "cache_dir", "force_download", "local_files_only")


def load_config(
    name: str | os.PathLike[str], *, revision: str | None = None, token: str | bool | None = None
) -> PretrainedConfig:
    """The config of a transformers model.

    Args:
        name: A folder or a repo id.
        revision: Branch, tag or commit of a repo.
        token: Hub token.

    Raises:
        GraftError: Its numbers are no model's, or it asks for code from the Hub.
        OSError, ValueError, KeyError: As transformers raises them.
    """
    hub = {"revision": revision, "token": token}
    read_config(name, **hub)
    return AutoConfig.from_pretrained(os.fspath(name), trust_remote_code=False, **hub)


def read_config(name: str | os.PathLike[str], **hub: Any) -> dict[str, Any]:
    """What the config.json of a model says, if it is one that can be used; see `check_config`.

    Args:
        name: A folder or a repo id.
        hub: revision, token, subfolder, ... of its `from_pretrained`.

    Raises:
        GraftError: It is too large or too deep, or as in `check_config`.
        OSError, ValueError: As transformers raises them.
    """
    file = Path(name)
    if not file.is_file():
        file = Path(cached_file(os.fspath(name), CONFIG_NAME, **hub))
    num_bytes = file.stat().st_size
    if num_bytes > MAX_JSON_BYTES:
        raise GraftError(
            f"The config.json of {_shown(name)} has {num_bytes:,} bytes; at most {MAX_JSON_BYTES:,} are read."
        )
    try:
        values, _ = PretrainedConfig.get_config_dict(file)
        check_config(values, _shown(name))
    except RecursionError as error:
        raise GraftError(f"The config.json of {_shown(name)} is nested too deeply to be a model's.") from error
    checked: dict[str, Any] = values
    return checked


def check_config(values: Mapping[str, Any], name: str) -> None:
    """Refuse a config.json that no model has, or that asks for code.

    Raises:
        GraftError: A number of layers, experts or labels is too large, an implementation is a repo of kernels, or the
            weights are said to be in another folder.
    """
    check_config_sizes(values, name, GraftError)
    weights = values.get(_WEIGHTS)
    if weights is not None and not lies_inside(str(weights)):
        raise GraftError(
            f"The config.json of {name} says {_WEIGHTS} {weights!r}, which is not in its folder. Get the model again."
        )
    if not isinstance(values.get("quantization_config"), Mapping | None):
        raise GraftError(
            f"The config.json of {name} has a quantization_config that is not a table. Get the model again."
        )
    check_no_code(values, name, GraftError)


def load_model(
    loader: Any,
    name: str | os.PathLike[str],
    *,
    revision: str | None = None,
    token: str | bool | None = None,
    **settings: Any,
) -> Any:
    """A model, by one of transformers' Auto classes.

    Args:
        loader: The class, such as `AutoModel`.
        name: A folder or a repo id.
        revision: Branch, tag or commit of a repo.
        token: Hub token.
        settings: Of its `from_pretrained`.

    Raises:
        GraftError: Its index names weights outside of it, or it is an adapter of another model.
        OSError, ValueError, KeyError, RuntimeError: As transformers raises them.
    """
    check_weights(name, revision=revision, token=token, subfolder=settings.get("subfolder") or "")
    return loader.from_pretrained(
        os.fspath(name), revision=revision, token=token, **{**settings, "trust_remote_code": False}
    )


def check_weights(name: str | os.PathLike[str], *, subfolder: str = "", **hub: Any) -> None:
    """Refuse what would make transformers read the weights of another model than the one that is named.

    Args:
        name: A folder or a repo id.
        subfolder: Of it, where the model is in one.
        hub: revision, token, cache_dir, ... of a repo.

    Raises:
        GraftError: An index names a file outside of the folder, or an adapter's config names another model.
    """
    folder = Path(name).expanduser()
    if folder.is_dir():
        _check_text_links(folder / subfolder)
        # Any of them can be meant: by a variant (model.safetensors.index.fp16.json), or by transformers_weights.
        for index in sorted({*folder.glob("*.index*.json"), *(folder / subfolder).glob("*.index*.json")}):
            _check_index(index, str(index))
        local = folder / subfolder / _ADAPTER
        adapter = _read_adapter(local) if local.is_file() and is_peft_available() else None
        ours = (folder / CONFIG_NAME).is_file()
    else:
        repo_id = os.fspath(name)
        for index_name in (*INDEX_FILES, _named_index(repo_id, subfolder, hub)):
            file = _fetch(repo_id, index_name, subfolder, hub)
            if file is not None:
                _check_index(file, f"{index_name} of {_shown(name)}")
        file = _fetch(repo_id, _ADAPTER, subfolder, hub) if is_peft_available() else None
        adapter, ours = None if file is None else _read_adapter(file), False
    if adapter is not None:
        _check_adapter(adapter, os.fspath(name), ours=ours)


def _fetch(repo_id: str, file: str | None, subfolder: str, hub: Mapping[str, Any]) -> Path | None:
    """A file of a repo; None where there is none. What else is wrong with the repo, the loader says."""
    if file is None:
        return None
    known = {key: value for key, value in hub.items() if key in _HUB_SETTINGS}
    # As transformers asks for a file that may be missing: it remembers that it is, and doesn't ask the Hub again.
    quietly = dict.fromkeys(("gated_repo", "missing_entries", "connection_errors"), False)
    flags = {f"_raise_exceptions_for_{name}": value for name, value in quietly.items()}
    try:
        path = cached_file(repo_id, file, subfolder=subfolder, **known, **flags)
    except (OSError, ValueError):
        return None
    return None if path is None else Path(path)


def _named_index(repo_id: str, subfolder: str, hub: Mapping[str, Any]) -> str | None:
    """The index that a repo's config.json names in place of the usual ones."""
    file = _fetch(repo_id, CONFIG_NAME, subfolder, hub)
    try:
        weights = None if file is None else read_json(file).get(_WEIGHTS)
    except (ValueError, AttributeError):
        return None
    return weights if isinstance(weights, str) and weights.endswith(".index.json") else None


def _check_index(file: Path, name: str) -> None:
    try:
        content = read_json(file)
        if file.name not in INDEX_FILES and not (isinstance(content, dict) and "weight_map" in content):
            return  # an index of something else
        shards = {str(shard) for shard in content["weight_map"].values()}
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise GraftError(f"{name} is not an index of weights: {error}. Get the model again.") from error
    outside = sorted(shard for shard in shards if not lies_inside(shard))
    if outside:
        raise GraftError(f"{name} names the file {outside[0]!r}, which is not in the folder. Get the model again.")


def _read_adapter(file: Path) -> Any:
    try:
        return read_json(file)
    except (OSError, ValueError):
        return None


def _check_adapter(adapter: Any, name: str, *, ours: bool) -> None:
    """Where peft is installed, transformers loads the model that an adapter's config names: any repo, any path.

    Args:
        adapter: What adapter_config.json says.
        name: The folder or the repo id that was named.
        ours: The folder holds the whole model, so that what the adapter names is not loaded.
    """
    base = adapter.get("base_model_name_or_path") if isinstance(adapter, dict) else None
    if base != name and not ours:
        raise GraftError(
            f"{_shown(name)} holds an adapter (peft) for {base!r}, and no other model is loaded than the one that is "
            "named. Merge the adapter into its model first (merge_and_unload), and name the result."
        )
    if isinstance(adapter, dict) and adapter.get("megatron_config") is not None:
        # peft imports the module that megatron_core names.
        raise GraftError(
            f"The adapter_config.json of {_shown(name)} has a megatron_config, which names Python modules to import. "
            "Merge the adapter into its model first (merge_and_unload), and name the result."
        )


def load_tokenizer(
    name: str | os.PathLike[str], *, revision: str | None = None, token: str | bool | None = None
) -> PreTrainedTokenizerBase:
    """A tokenizer.

    Args:
        name: A folder or a repo id.
        revision: Branch, tag or commit of a repo.
        token: Hub token.

    Raises:
        GraftError: Its files name files of this machine to be read into it, or are links out of the folder.
        OSError, ValueError, KeyError, TypeError, ImportError: As transformers raises them; ValueError for all else that
            a damaged file makes its tokenizer raise, such as a regular expression that is none.
    """
    hub = {"revision": revision, "token": token}
    with contextlib.suppress(OSError):  # Without a config.json there is none to be checked.
        read_config(name, **hub)
    _check_tokenizer(name, hub)
    try:
        tokenizer = AutoTokenizer.from_pretrained(
            os.fspath(name), revision=revision, token=token, trust_remote_code=False
        )
    except (OSError, ValueError, KeyError, TypeError, ImportError, LayerSurgeonError):
        raise
    except RecursionError as error:
        raise ValueError("its files are nested too deeply.") from error
    except Exception as error:  # of Rust's tokenizers, which raises nothing more special
        raise ValueError(str(error) or type(error).__name__) from error
    checked: PreTrainedTokenizerBase = tokenizer
    return checked


@contextlib.contextmanager
def without_asking() -> Iterator[None]:
    """For libraries that load models themselves: code that a repo brings is refused, where transformers would ask.

    It asks on stdin whether to run that code, and data that is piped into a command can answer.
    """
    before = dynamic_module_utils.TIME_OUT_REMOTE_CODE
    dynamic_module_utils.TIME_OUT_REMOTE_CODE = 0
    try:
        yield
    finally:
        dynamic_module_utils.TIME_OUT_REMOTE_CODE = before


def _check_tokenizer(name: str | os.PathLike[str], hub: Mapping[str, Any]) -> None:
    """Refuse what would make transformers read another file of this machine into the vocabulary."""
    folder = Path(name).expanduser()
    if folder.is_dir():
        _check_text_links(folder)
    for file_name in _TOKENIZER_FILES:
        path = folder / file_name if folder.is_dir() else _fetch(os.fspath(name), file_name, "", hub)
        try:
            content = read_json(path) if path is not None and path.is_file() else None
        except (OSError, ValueError) as error:
            raise GraftError(f"The {file_name} of {_shown(name)} can't be read: {error}. Get it again.") from error
        for key, value in (content if isinstance(content, dict) else {}).items():
            if _names_a_file(file_name, key, value):
                raise GraftError(
                    f"The {file_name} of {_shown(name)} says {key} {value!r}: a tokenizer's files are those in its own "
                    f"folder, and no others are read. Remove {key}."
                )


def _names_a_file(file_name: str, key: str, value: Any) -> bool:
    """Whether an entry is taken for the path of a file, wherever that is.

    Not among them are vocab_file and the like in tokenizer_config.json: old versions wrote the paths of the machine
    they ran on, and transformers looks for the files in the folder whatever they say.
    """
    if key in ("vocab", "merges"):
        return isinstance(value, str)
    if key == "init_inputs":
        return bool(value)
    if key == "fast_tokenizer_files":
        return not isinstance(value, list) or not all(isinstance(file, str) and lies_inside(file) for file in value)
    return file_name == _SPECIAL_TOKENS and key.endswith("_file") and value is not None


def _check_text_links(folder: Path) -> None:
    """Refuse links out of a folder among the files whose text is stored with what is made of them."""
    texts = (
        path
        for pattern in ("*", "additional_chat_templates/*")
        for path in folder.glob(pattern)
        if path.suffix in _TEXTS
    )
    check_links((path for path in texts if not _is_cached(path.resolve())), folder, GraftError)


def _is_cached(target: Path) -> bool:
    """Whether a file is one of the Hub's cache, to which `hf download --local-dir` made links for some years."""
    return target.parent.name == "blobs" and target.parent.parent.name.startswith("models--")


def load_dataset(
    hub_id: str, subset: str | None = None, *, revision: str | None = None, streaming: bool = False
) -> Any:
    """A data set of the Hub, as `datasets.load_dataset` gives it; since its version 4 it runs no scripts.

    Args:
        hub_id: The repo.
        subset: One of its configurations.
        revision: Branch, tag or commit.
        streaming: Read rows as they are needed.

    Raises:
        ValueError: The name is that of a folder here, or the repo names files outside of it: on this machine, of
            another repo, or anywhere on the web.
        OSError, RuntimeError, DatasetsError: As datasets raises them.
    """
    if Path(hub_id).exists():
        raise ValueError(f"{hub_id} is a folder or file here; name its files, or ./{hub_id}")
    # `datasets.load_dataset` in its steps, to look at the names of the files between the first and the second.
    builder = datasets.load_dataset_builder(hub_id, subset, revision=revision)
    inside = f"hf://datasets/{hub_id}@".lower()
    for file in [file for files in (builder.config.data_files or {}).values() for file in files]:
        # The file of an archive is named as in zip://train.csv::hf://datasets/owner/name@commit/data.zip
        if not file.rpartition("::")[2].lower().startswith(inside) or ".." in file.split("/"):
            raise ValueError(f"its card names the file {without_secrets(file)}, which is not in the repo")
    if streaming:
        return builder.as_streaming_dataset()
    builder.download_and_prepare()
    return builder.as_dataset()


def _shown(name: str | os.PathLike[str]) -> str:
    return without_secrets(os.fspath(name))
