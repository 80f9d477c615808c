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
from huggingface_hub import hf_hub_download
from huggingface_hub.errors import EntryNotFoundError
from transformers import AutoConfig, AutoTokenizer, PretrainedConfig, PreTrainedTokenizerBase, dynamic_module_utils
from transformers.utils import is_peft_available

from layer_surgeon._io import read_json
from layer_surgeon._limits import check_config_sizes
from layer_surgeon._text import without_secrets
from layer_surgeon.checkpoint.sources.shards import INDEX_FILES, lies_inside
from layer_surgeon.errors import GraftError, LayerSurgeonError

_ADAPTER = "adapter_config.json"


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
    try:
        values, _ = PretrainedConfig.get_config_dict(os.fspath(name), **hub)
        check_config(values, _shown(name))
        return AutoConfig.from_pretrained(os.fspath(name), trust_remote_code=False, **hub)
    except RecursionError as error:
        raise GraftError(f"The config.json of {_shown(name)} is nested too deeply to be a model's.") from error


def check_config(values: Mapping[str, Any], name: str) -> None:
    """Refuse a config.json that no model has, or that asks for code.

    Raises:
        GraftError: A number of layers, experts or labels is too large, or an implementation is a repo of kernels.
    """
    check_config_sizes(values, name, GraftError)
    for key, value in _implementations(values):
        # transformers takes "owner/name" for a repo of compiled kernels, and loads and runs them.
        if any("/" in str(choice) for choice in (value.values() if isinstance(value, Mapping) else (value,))):
            raise GraftError(
                f"The config.json of {name} says {key} {value!r}: code from the Hub, which is not run. Remove {key}."
            )


def _implementations(values: Mapping[str, Any]) -> Iterator[tuple[str, Any]]:
    for key, value in values.items():
        if key.endswith(("attn_implementation", "experts_implementation")):
            yield key, value
        elif isinstance(value, Mapping):
            yield from _implementations(value)


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
    check_weights(name, revision=revision, token=token)
    return loader.from_pretrained(
        os.fspath(name), revision=revision, token=token, **{**settings, "trust_remote_code": False}
    )


def check_weights(
    name: str | os.PathLike[str], *, revision: str | None = None, token: str | bool | None = None
) -> None:
    """Refuse what would make transformers read the weights of another model than the one that is named.

    Raises:
        GraftError: An index names a file outside of the folder, or an adapter's config names another model.
    """
    folder = Path(name).expanduser()
    for index in INDEX_FILES if folder.is_dir() else ():
        if not (folder / index).is_file():
            continue
        try:
            shards = {str(shard) for shard in read_json(folder / index)["weight_map"].values()}
        except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
            raise GraftError(f"{folder / index} is not an index of weights: {error}. Get the model again.") from error
        outside = sorted(shard for shard in shards if not lies_inside(shard))
        if outside:
            raise GraftError(
                f"{folder / index} names the file {outside[0]!r}, which is not in the folder. Get the model again."
            )
    if not folder.is_dir() or not (folder / "config.json").is_file():
        _check_adapter(os.fspath(name), revision, token)


def _check_adapter(name: str, revision: str | None, token: str | bool | None) -> None:
    """Where peft is installed, transformers loads the model that an adapter's config names: any repo, any path."""
    if not is_peft_available():
        return
    path = Path(name).expanduser() / _ADAPTER
    try:
        content = read_json(
            path if path.parent.is_dir() else Path(hf_hub_download(name, _ADAPTER, revision=revision, token=token))
        )
    except (OSError, ValueError, EntryNotFoundError):
        # There is none. What else is wrong with the folder, the repo or the way to it, the loader says.
        return
    base = content.get("base_model_name_or_path") if isinstance(content, dict) else None
    if base != name:
        raise GraftError(
            f"{_shown(name)} holds an adapter (peft) for {base!r}, and no other model is loaded than the one that is "
            "named. Merge the adapter into its model first (merge_and_unload), and name the result."
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
        OSError, ValueError, KeyError, TypeError, ImportError: As transformers raises them; ValueError for all else that
            a damaged file makes its tokenizer raise, such as a regular expression that is none.
    """
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
