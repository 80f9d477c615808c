"""The data sets of a study: named in the plan, and put once into files that every training reads.

What every cell reads is the same file, so that the n-th digit of each cell's `correct` is the same example.
"""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, fields
from pathlib import Path
from types import MappingProxyType
from typing import Any, Self

from layer_surgeon._io import read_json, write_text
from layer_surgeon._text import without_secrets
from layer_surgeon.errors import ConfigError
from layer_surgeon.finetune.config import FinetuneConfig
from layer_surgeon.study.checked import MAX_NAME, as_text, check_types, shown
from layer_surgeon.workspace import short_name

# Several that belong together, by one name.
_GROUPS = MappingProxyType({"sentences": ("sentences-imdb", "sentences-amazon", "sentences-yelp")})
SPLIT_SEED = 2023
INFO = "data.json"


@dataclass(frozen=True, kw_only=True)
class DataSpec:
    """A data set as the plan names it.

    Attributes:
        name: As in tables, and of its folder.
        train: Names, Hub ids or files, whose rows are put together; empty: only tested on.
        validation: Likewise; empty: the data set's own, else a part of the training rows, by the seed.
        test: Likewise; empty: the data set's own, else a part that is held out once.
        labels: Label -> label: renames classes, and leaves out the rows of those that are not named. Empty: as it is.
        columns: Fields of `FinetuneConfig` that name columns.
    """

    name: str
    train: tuple[str, ...]
    validation: tuple[str, ...] = ()
    test: tuple[str, ...] = ()
    labels: Mapping[str, str] = field(default_factory=dict)
    columns: Mapping[str, str] = field(default_factory=dict)

    def __post_init__(self) -> None:
        check_types(self)
        check_name(self.name, "data set")
        FinetuneConfig.from_settings(None, self.columns)

    def as_dict(self) -> dict[str, Any]:
        """As plain JSON types, without secrets."""
        parts = {part: list(map(without_secrets, getattr(self, part))) for part in ("train", "validation", "test")}
        return {"name": self.name, **parts, "labels": dict(self.labels), "columns": dict(self.columns)}

    @classmethod
    def from_dict(cls, content: Mapping[str, Any]) -> Self:
        """What `as_dict` gave."""
        read: dict[str, Any] = {k: tuple(v) if isinstance(v, list) else v for k, v in content.items()}
        return cls(**read)


def check_name(name: str, kind: str) -> None:
    """Refuse a name that is not one for a folder as `short_name` makes them.

    Args:
        name: The name.
        kind: Of what, for the message.

    Raises:
        ConfigError: It is a path, or has other characters.
    """
    # A name that ends like a file loses its ending in short_name, although it may have come from there.
    if len(name) > MAX_NAME or short_name(f"{name}_") != f"{name}_" or name != name.strip("-."):
        raise ConfigError(
            f"A {kind} is called {name!r}; a name has at most {MAX_NAME} characters: letters, digits and ._+-, no - or "
            f". at its ends. Call it {short_name(name)[:MAX_NAME]}, for example."
        )


def parse_data(value: Any) -> DataSpec:
    """A data set from YAML: a name, or a mapping with name, train, validation, test, labels and columns.

    Raises:
        ConfigError: It is neither, or has another key.
    """
    if isinstance(value, str):
        return DataSpec(
            name=short_name(Path(value).stem if Path(value).suffix else value), train=_GROUPS.get(value, (value,))
        )
    known = [entry.name for entry in fields(DataSpec)]
    if not isinstance(value, Mapping) or "name" not in value or set(value) - set(known):
        raise ConfigError(
            f"A data set is {shown(value)}; it must be a name, a Hub id or a file, or a mapping of name and some of "
            f"{', '.join(known[1:])}."
        )
    content: dict[str, Any] = dict(value)
    for part in ("train", "validation", "test"):
        entry = content.get(part, as_text(value["name"]) if part == "train" and "test" not in value else ())
        names = (entry,) if isinstance(entry, str) else entry or ()
        if not isinstance(names, list | tuple) or not all(isinstance(name, str) for name in names):
            raise ConfigError(f"{part} of a data set is {shown(entry)}; it must be names, Hub ids or files.")
        content[part] = tuple(piece for name in names for piece in _GROUPS.get(name, (name,)))
    labels = content.get("labels") or {}
    if not isinstance(labels, Mapping):
        raise ConfigError(f"labels of a data set are {shown(labels)}; they must be `label: label` lines.")
    labels = {as_text(old): as_text(new) for old, new in labels.items()}
    return DataSpec(**{**content, "name": short_name(as_text(value["name"])), "labels": labels})


@dataclass(frozen=True, kw_only=True)
class PreparedData:
    """A data set in files.

    Attributes:
        folder: Where they lie.
        labels: Class names.
        pairs: Whether each example is a pair of texts.
        examples: How many each part has.
    """

    folder: Path
    labels: tuple[str, ...]
    pairs: bool
    examples: Mapping[str, int]

    @classmethod
    def open(cls, folder: Path) -> Self:
        """What `prepare_data_set` wrote.

        Raises:
            ConfigError: It is not there.
        """
        try:
            content = read_json(folder / INFO)
            read = {"labels": tuple(content["labels"]), "pairs": content["pairs"], "examples": content["examples"]}
        except (OSError, ValueError, KeyError, TypeError) as error:
            raise ConfigError(f"{folder} holds no prepared data set ({error}). Start the study again.") from error
        return cls(folder=folder, **read)

    def __post_init__(self) -> None:
        check_types(self)

    def part(self, name: str) -> str | None:
        """The file of a part; None where there is none."""
        return str(self.folder / f"{name}.jsonl") if name in self.examples else None

    def rows(self, name: str) -> list[dict[str, Any]]:
        """The rows of a part."""
        lines = (self.folder / f"{name}.jsonl").read_text(encoding="utf-8").splitlines()
        return [json.loads(line) for line in lines]

    @property
    def columns(self) -> dict[str, str]:
        """Fields of `FinetuneConfig` that name the files' columns."""
        pair = {"text_pair_column": "text_pair"} if self.pairs else {}
        return {"text_column": "text", "label_column": "label", **pair}


def spec_key(spec: DataSpec, test_fraction: float) -> dict[str, Any]:
    """What decides a prepared data set's content, as far as the plan says."""
    return {"spec": spec.as_dict(), "test_fraction": test_fraction, "seed": SPLIT_SEED}


def write_rows(path: Path, rows: Sequence[Mapping[str, Any]]) -> None:
    """A JSON Lines file, whole or not at all."""
    write_text(path, "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows))
