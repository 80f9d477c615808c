"""Folders as a stranger might send them: files that leave a mark if anything of theirs is executed."""

import json
from pathlib import Path

MARK = "a-stranger-was-here"
# What every command imports. Each is found before the installed one where the current folder counts as a place of
# modules.
MODULES = ("numpy", "torch", "transformers", "yaml", "layer_surgeon", "json", "tokenizers")


def plant_modules(folder: Path) -> None:
    """Put Python files with the names of well-known modules into a folder."""
    for name in MODULES:
        (folder / f"{name}.py").write_text(f"open({str(folder / MARK)!r}, 'w').close()\nraise SystemExit({name!r})\n")


def was_run(folder: Path) -> bool:
    """Whether one of them ran."""
    return (folder / MARK).exists()


def plant_model_code(folder: Path, *, model_type: str = "custom") -> None:
    """Make a model's folder bring Python code for its config, its model and its tokenizer."""
    code = f"open({str(folder / MARK)!r}, 'w').close()\n"
    for name in ("configuration_custom", "modeling_custom", "tokenization_custom"):
        (folder / f"{name}.py").write_text(code)
    config = json.loads((folder / "config.json").read_text()) if (folder / "config.json").exists() else {}
    config["model_type"] = model_type
    config["auto_map"] = {
        "AutoConfig": "configuration_custom.CustomConfig",
        "AutoModel": "modeling_custom.CustomModel",
        "AutoModelForSequenceClassification": "modeling_custom.CustomModel",
        "AutoModelForCausalLM": "modeling_custom.CustomModel",
        "AutoModelForSeq2SeqLM": "modeling_custom.CustomModel",
    }
    (folder / "config.json").write_text(json.dumps(config))
    tokenizer = {
        "tokenizer_class": "CustomTokenizer",
        "auto_map": {"AutoTokenizer": ["tokenization_custom.CustomTokenizer", None]},
    }
    (folder / "tokenizer_config.json").write_text(json.dumps(tokenizer))
