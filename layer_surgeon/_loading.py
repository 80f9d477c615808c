"""Load models, configs, tokenizers and data sets from untrusted sources.

Every call of a transformers or datasets loader with a name or a folder is in this module; a test walks the package to
find any others. A downloaded file can tell these loaders to run Python code or kernels from its repo, to load weights
from outside the folder, or to load another model that an adapter's config names. This module refuses all of that.
"""

import contextlib
import os
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from transformers import AutoConfig, AutoTokenizer, PretrainedConfig, PreTrainedTokenizerBase, dynamic_module_utils
from transformers.models.auto.tokenization_auto import TOKENIZER_MAPPING_NAMES
from transformers.utils import CONFIG_NAME, cached_file, is_peft_available

from layer_surgeon._folders import check_links, expand_home, resolve_blob
from layer_surgeon._io import MAX_JSON_BYTES, read_json, read_object
from layer_surgeon._limits import check_config_sizes, check_no_code
from layer_surgeon._text import without_secrets
from layer_surgeon.checkpoint.packaged import local_model
from layer_surgeon.checkpoint.sources.shards import INDEX_FILES, lies_inside
from layer_surgeon.errors import GraftError, LayerSurgeonError

_ADAPTER = "adapter_config.json"
# The key in config.json that names a weights file to load instead of model.safetensors.
_WEIGHTS = "transformers_weights"
# The files that configure a tokenizer; the second takes precedence.
_SPECIAL_TOKENS = "special_tokens_map.json"
_TOKENIZER_FILES = ("tokenizer_config.json", _SPECIAL_TOKENS)
_TEXT_SUFFIXES = frozenset({".json", ".jinja", ".txt", ".model", ".vocab", ".bpe", ".tiktoken"})
# The protocols that only unpack the file behind them, as zip in zip://train.csv::hf://datasets/owner/name/data.zip
_ARCHIVES = frozenset({"zip", "tar", "gzip", "bz2", "xz", "zstd", "lz4"})
_HUB_SETTINGS = ("revision", "token", "cache_dir", "force_download", "local_files_only")


def load_config(
    name: str | os.PathLike[str], *, revision: str | None = None, token: str | bool | None = None
) -> PretrainedConfig:
    """Load the config of a transformers model.

    Args:
        name: A folder, a repo id, or `packaged:NAME`.
        revision: Branch, tag or commit of a repo.
        token: Hub token.

    Raises:
        GraftError: Its sizes are implausible, or it asks for code from the Hub.
        OSError, ValueError, KeyError: As transformers raises them.
    """
    hub = {"revision": revision, "token": token}
    name = local_model(os.fspath(name))
    read_config(name, **hub)
    return AutoConfig.from_pretrained(name, trust_remote_code=False, **hub)


def read_config(name: str | os.PathLike[str], **hub: Any) -> dict[str, Any]:
    """Read a model's config.json and check it with `check_config`.

    Args:
        name: A folder, a repo id, or `packaged:NAME`.
        hub: revision, token, subfolder, ... as in `from_pretrained`.

    Raises:
        GraftError: It is too large or nested too deeply, or as in `check_config`.
        OSError, ValueError: As transformers raises them.
    """
    path = local_model(os.fspath(name))
    file = Path(path)
    if not file.is_file():
        cached = cached_file(path, CONFIG_NAME, **hub)
        if cached is None:  # transformers raises OSError for a repo, but not for a folder
            raise OSError(f"{_shown(name)} has no {CONFIG_NAME}")
        file = Path(cached)
    num_bytes = file.stat().st_size
    if num_bytes > MAX_JSON_BYTES:
        raise GraftError(
            f"The config.json of {_shown(name)} has {num_bytes:,} bytes; at most {MAX_JSON_BYTES:,} are read."
        )
    try:
        values, _ = PretrainedConfig.get_config_dict(file)
        check_config(values, _shown(name))
    except RecursionError as error:
        raise GraftError(
            f"The config.json of {_shown(name)} is nested too deeply to be a model's config. Get the model again."
        ) from error
    checked: dict[str, Any] = values
    return checked


def check_config(values: Mapping[str, Any], name: str) -> None:
    """Refuse a config.json that has implausible sizes or asks for code.

    Raises:
        GraftError: It has too many layers, experts or labels, an implementation is a repo of kernels, or it names
            weights in another folder.
    """
    check_config_sizes(values, name, GraftError)
    weights = values.get(_WEIGHTS)
    if weights is not None and not lies_inside(str(weights)):
        raise GraftError(
            f"The config.json of {name} sets {_WEIGHTS} to {weights!r}, which is not in its folder. Get the model "
            "again."
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
    """Load a model with one of transformers' Auto classes.

    Args:
        loader: The class, such as `AutoModel`.
        name: A folder, a repo id, or `packaged:NAME`.
        revision: Branch, tag or commit of a repo.
        token: Hub token.
        settings: Other keyword arguments for the class's `from_pretrained`.

    Raises:
        GraftError: Its index names weights outside its folder, or it is an adapter of another model.
        OSError, ValueError, KeyError, RuntimeError: As transformers raises them.
    """
    name = local_model(os.fspath(name))
    check_weights(name, revision=revision, token=token, subfolder=settings.get("subfolder") or "")
    return loader.from_pretrained(name, revision=revision, token=token, **{**settings, "trust_remote_code": False})


def check_weights(name: str | os.PathLike[str], *, subfolder: str = "", **hub: Any) -> None:
    """Refuse files that would make transformers read weights of a model other than the named one.

    Args:
        name: A folder, a repo id, or `packaged:NAME`.
        subfolder: The subfolder that holds the model, if it is in one.
        hub: revision, token, cache_dir, ... of a repo.

    Raises:
        GraftError: An index names a file outside the folder, or an adapter's config names another model.
    """
    folder = Path(expand_home(name))
    # Of an adapter, the Auto classes read the one in the top folder, and the model's class the one in the subfolder.
    parts = {"", subfolder}
    if folder.is_dir():
        _check_text_links(folder / subfolder)
        for part in parts:
            check_indexes(folder / part)
        adapters = [folder / part / _ADAPTER for part in parts]
        has_model = (folder / CONFIG_NAME).is_file()
    else:
        repo_id = os.fspath(name)
        for index_name in (*INDEX_FILES, _named_index(repo_id, subfolder, hub)):
            index_file = _fetch(repo_id, index_name, subfolder, hub)
            if index_file is not None:
                _check_index(index_file, f"{index_name} of {_shown(name)}")
        adapters = [file for part in parts if (file := _fetch(repo_id, _ADAPTER, part, hub))]
        has_model = False
    if is_peft_available():
        for file in filter(Path.is_file, adapters):
            _check_adapter(_read_adapter(file), os.fspath(name), has_model=has_model)


def check_indexes(folder: Path) -> None:
    """Refuse an index of weights that names a file outside its folder.

    Raises:
        GraftError: One does.
    """
    # transformers may load any of them: for a variant (model.safetensors.index.fp16.json), or because
    # transformers_weights names it.
    for index in sorted(folder.glob("*.index*.json")):
        _check_index(index, str(index))


def read_optional_json(name: str, file_name: str, **hub: Any) -> Any:
    """Read a JSON file of a model, by `name` as in `load_config`; None if there is none, or it can't be read."""
    name = local_model(name)
    folder = Path(name)
    path = folder / file_name if folder.is_dir() else _fetch(name, file_name, "", hub)
    try:
        return read_json(path) if path is not None and path.is_file() else None
    except (OSError, ValueError):
        return None


def _fetch(repo_id: str, file_name: str | None, subfolder: str, hub: Mapping[str, Any]) -> Path | None:
    """Get a file of a repo, or None if it has no such file. The loader reports any other problem with the repo."""
    if file_name is None:
        return None
    hub_settings = {key: value for key, value in hub.items() if key in _HUB_SETTINGS}
    # transformers asks for optional files with these flags: it then caches that a file is missing, and doesn't ask the
    # Hub again.
    flags = {f"_raise_exceptions_for_{name}": False for name in ("gated_repo", "missing_entries", "connection_errors")}
    try:
        path = cached_file(repo_id, file_name, subfolder=subfolder, **hub_settings, **flags)
    except (OSError, ValueError):
        return None
    return None if path is None else Path(path)


def _named_index(repo_id: str, subfolder: str, hub: Mapping[str, Any]) -> str | None:
    """Return the index that a repo's config.json names instead of the usual ones."""
    file = _fetch(repo_id, CONFIG_NAME, subfolder, hub)
    weights = None if file is None else read_object(file).get(_WEIGHTS)
    return weights if isinstance(weights, str) and weights.endswith(".index.json") else None


def _check_index(file: Path, name: str) -> None:
    try:
        content = read_json(file)
        if file.name not in INDEX_FILES and not (isinstance(content, dict) and "weight_map" in content):
            return  # It is not an index of weights.
        shards = {str(shard) for shard in content["weight_map"].values()}
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise GraftError(f"{name} is not an index of weights: {error}. Get the model again.") from error
    outside = sorted(shard for shard in shards if not lies_inside(shard))
    if outside:
        raise GraftError(f"{name} names the file {outside[0]!r}, which is not in the folder. Get the model again.")


def _read_adapter(file: Path) -> Any:
    try:
        return read_json(file)
    except (OSError, ValueError) as error:
        # An unreadable file is not skipped: transformers reads it without a size limit.
        raise GraftError(f"{_shown(file)} can't be read: {error}. Get the model again.") from error


def _check_adapter(adapter: Any, name: str, *, has_model: bool) -> None:
    """Refuse an adapter of another model.

    If peft is installed, transformers loads the model that an adapter's config names: any repo, any path.

    Args:
        adapter: The content of adapter_config.json.
        name: The folder or repo id that the caller named.
        has_model: The folder holds a whole model, so transformers doesn't load the one that the adapter names.
    """
    base = adapter.get("base_model_name_or_path") if isinstance(adapter, dict) else None
    if base != name and not has_model:
        raise GraftError(
            f"{_shown(name)} holds a peft adapter for {base!r}, which would load a model that you didn't name. Merge "
            "the adapter into its model first (merge_and_unload), and name the result."
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
    """Load a tokenizer.

    Args:
        name: A folder, a repo id, or `packaged:NAME`.
        revision: Branch, tag or commit of a repo.
        token: Hub token.

    Raises:
        GraftError: Its files name other files of this machine to read, or are links out of the folder.
        OSError, ValueError, KeyError, TypeError, ImportError: As transformers raises them. All other errors that a
            damaged file causes, such as an invalid regular expression, become a ValueError, and so do missing files.
    """
    hub = {"revision": revision, "token": token}
    name = local_model(os.fspath(name))
    with contextlib.suppress(OSError):  # A tokenizer may come without a config.json.
        read_config(name, **hub)
    _check_tokenizer(name, hub)
    try:
        tokenizer = AutoTokenizer.from_pretrained(name, revision=revision, token=token, trust_remote_code=False)
    except (OSError, ValueError, KeyError, TypeError, ImportError, LayerSurgeonError):
        raise
    except RecursionError as error:
        raise ValueError("its files are nested too deeply") from error
    except Exception as error:  # The Rust tokenizers library raises plain Exception.
        raise ValueError(str(error) or type(error).__name__) from error
    checked: PreTrainedTokenizerBase = tokenizer
    if _knows_nothing(checked):
        raise ValueError("the tokenizer's files are missing")
    return checked


def _knows_nothing(tokenizer: PreTrainedTokenizerBase) -> bool:
    """Whether a tokenizer is the one that transformers makes without files: every text would be unknown.

    It has special tokens, sometimes twice, and in some families "▁" (a space) or ".".
    """
    special = set(getattr(tokenizer, "all_special_tokens", ()))
    few = 2 * len(special) + 2
    return bool(special) and len(tokenizer) <= few and set(tokenizer.get_vocab()) <= special | {"▁", "."}


def load_gguf_tokenizer(file: Path, model_type: str) -> PreTrainedTokenizerBase:
    """Load the tokenizer in the header of a GGUF file. It is built from the header alone, so no code can run.

    Args:
        file: The file, or one with only its header.
        model_type: The model's family, which has the tokenizer's class.

    Raises:
        ValueError: There is no tokenizer that transformers can read.
        OSError, KeyError, TypeError, ImportError: As transformers raises them.
    """
    # Without tokenizer_type, transformers reads the header twice: 11 s more for Gemma's 262,144 tokens.
    is_known = TOKENIZER_MAPPING_NAMES.get(model_type) not in (None, "MistralCommonBackend")
    family = {"tokenizer_type": model_type} if is_known else {}
    try:
        tokenizer = AutoTokenizer.from_pretrained(file.parent, gguf_file=file.name, trust_remote_code=False, **family)
    except (OSError, ValueError, KeyError, TypeError, ImportError, LayerSurgeonError):
        raise
    except Exception as error:  # The Rust tokenizers library raises plain Exception.
        raise ValueError(str(error) or type(error).__name__) from error
    loaded: PreTrainedTokenizerBase = tokenizer
    return loaded


@contextlib.contextmanager
def without_asking() -> Iterator[None]:
    """Make transformers refuse code from a repo instead of asking, for libraries that load models themselves.

    transformers asks on stdin whether to run such code, and data that is piped into a command could answer.
    """
    previous_timeout = dynamic_module_utils.TIME_OUT_REMOTE_CODE
    dynamic_module_utils.TIME_OUT_REMOTE_CODE = 0
    try:
        yield
    finally:
        dynamic_module_utils.TIME_OUT_REMOTE_CODE = previous_timeout


def _check_tokenizer(name: str | os.PathLike[str], hub: Mapping[str, Any]) -> None:
    """Refuse files that would make transformers read another file of this machine into the vocabulary."""
    folder = Path(expand_home(name))
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
                    f"The {file_name} of {_shown(name)} sets {key} to {value!r}, but a tokenizer may only read files "
                    f"in its own folder. Remove {key}."
                )


def _names_a_file(file_name: str, key: str, value: Any) -> bool:
    """Whether transformers takes a key's value as the path of a file anywhere on this machine.

    vocab_file and similar keys in tokenizer_config.json don't count. Old versions wrote paths of their own machine
    there, and transformers ignores them: it always looks in the folder.
    """
    if key in ("vocab", "merges", "donor_tokenizer_file"):
        return isinstance(value, str)
    if key == "init_inputs":
        return bool(value)
    if key == "fast_tokenizer_files":
        return not isinstance(value, list) or not all(isinstance(file, str) and lies_inside(file) for file in value)
    return file_name == _SPECIAL_TOKENS and key.endswith("_file") and value is not None


def _check_text_links(folder: Path) -> None:
    """Refuse links out of a folder among its text files, whose content is stored with the result."""
    text_files = (
        path
        for pattern in ("*", "additional_chat_templates/*")
        for path in folder.glob(pattern)
        if path.suffix in _TEXT_SUFFIXES
    )
    check_links((path for path in text_files if not _is_cached(resolve_blob(path))), folder, GraftError)


def _is_cached(target: Path) -> bool:
    """Whether a file is in the Hub's cache: `hf download --local-dir` made links to it for some years."""
    return target.parent.name == "blobs" and target.parent.parent.name.startswith("models--")


def load_dataset(
    hub_id: str, subset: str | None = None, *, revision: str | None = None, streaming: bool = False
) -> Any:
    """Load a data set from the Hub, as `datasets.load_dataset` does. Since version 4, datasets runs no scripts.

    Args:
        hub_id: The repo.
        subset: One of its configurations.
        revision: Branch, tag or commit.
        streaming: Read rows as they are needed.

    Raises:
        ValueError: The name is a local folder or file, or the repo names files outside it: on this machine, in
            another repo, or anywhere on the web.
        OSError, RuntimeError, DatasetsError: As datasets raises them.
    """
    # The import takes a second, and models are loaded without it.
    import datasets

    if Path(hub_id).exists():
        raise ValueError(f"{hub_id} is a local folder or file; name its files, or ./{hub_id}")
    # The two steps of `datasets.load_dataset`, to check the file names in between.
    builder = datasets.load_dataset_builder(hub_id, subset, revision=revision)
    repo_prefix = f"hf://datasets/{hub_id}@".lower()
    for url in [url for urls in (builder.config.data_files or {}).values() for url in urls]:
        *hops, file_url = url.split("::")
        if (
            not file_url.lower().startswith(repo_prefix)
            or ".." in url.split("/")
            or any(hop.partition("://")[0] not in _ARCHIVES for hop in hops)
        ):
            raise ValueError(f"its card names the file {without_secrets(url)}, which is not in the repo")
    if streaming:
        return builder.as_streaming_dataset()
    builder.download_and_prepare()
    return builder.as_dataset()


def _shown(name: str | os.PathLike[str]) -> str:
    return without_secrets(os.fspath(name))
