"""The files by which sentence-transformers loads a feature-extraction graft as it loads its host."""

from pathlib import Path
from typing import Any

from layer_surgeon._io import write_json
from layer_surgeon._loading import read_optional_json
from layer_surgeon.graft.model_config import SurgeonGraftConfig

MODULES, TRANSFORMER, POOLING = "modules.json", "sentence_bert_config.json", "1_Pooling/config.json"
SENTENCE_FILES = (MODULES, TRANSFORMER, POOLING)
# The pooling of a graft -> the key of sentence-transformers. It has nothing like mean_with_padding.
_POOLING_KEYS = {"cls": "pooling_mode_cls_token", "mean": "pooling_mode_mean_tokens", "last": "pooling_mode_lasttoken"}
_LONGEST = 1_000_000


def write_sentence_files(folder: Path, config: SurgeonGraftConfig, host: str, token: str | bool | None) -> None:
    """Write modules.json and the configs that it names: the graft's pooling, and the host's maximum length and norm.

    These are the formats of sentence-transformers 2, which all later versions read. Without them, it would average the
    tokens, not normalise the vectors, and use the maximum length of the tokenizer.

    Args:
        folder: The graft's folder.
        config: The graft's config. Nothing is written if sentence-transformers lacks its pooling.
        host: The host's folder, repo id or `packaged:NAME`.
        token: Hub token.
    """
    key = _POOLING_KEYS.get(str(config.settings.pooling))
    if key is None:
        return
    hub = {"revision": (config.host or {}).get("commit"), "token": token}
    modules = [("", "Transformer"), ("1_Pooling", "Pooling")]
    if _normalizes(read_optional_json(host, MODULES, **hub)):
        modules.append(("2_Normalize", "Normalize"))
    write_json(folder / POOLING, {"word_embedding_dimension": config.hidden_size, key: True})
    transformer = read_optional_json(host, TRANSFORMER, **hub)
    length = transformer.get("max_seq_length") if isinstance(transformer, dict) else None
    if type(length) is int and 0 < length <= _LONGEST:
        write_json(folder / TRANSFORMER, {"max_seq_length": length, "do_lower_case": False})
    write_json(
        folder / MODULES,
        [
            {"idx": number, "name": str(number), "path": path, "type": f"sentence_transformers.models.{kind}"}
            for number, (path, kind) in enumerate(modules)
        ],
    )


def _normalizes(modules: Any) -> bool:
    """Whether the host's modules.json ends with a Normalize module."""
    last = modules[-1] if isinstance(modules, list) and modules else None
    return isinstance(last, dict) and str(last.get("type")).rpartition(".")[2] == "Normalize"
