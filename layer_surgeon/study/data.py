"""The data sets of a study: named in the plan, then written once to files that every training reads.

Every cell reads the same file, so the n-th digit of each cell's `correct` is about the same example.
"""

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, fields
from pathlib import Path
from types import MappingProxyType
from typing import Any, Self

from layer_surgeon._folders import expand_home
from layer_surgeon._io import read_json, write_text
from layer_surgeon._settings import MAX_NAME, as_text, check, check_types, shown
from layer_surgeon._table_files import find_files
from layer_surgeon._text import without_secrets
from layer_surgeon.errors import ConfigError, DataError
from layer_surgeon.finetune.config import FinetuneConfig
from layer_surgeon.finetune.registry import find_dataset
from layer_surgeon.workspace import short_name

# Names for several data sets that belong together.
_GROUPS = MappingProxyType({"sentences": ("sentences-imdb", "sentences-amazon", "sentences-yelp")})
SPLIT_SEED = 2023
INFO = "data.json"


@dataclass(frozen=True, kw_only=True)
class DataSpec:
    """A data set, as described in the plan.

    Attributes:
        name: The name in tables, and of its folder.
        train: Names, Hub ids or files, whose rows are concatenated. If empty, the data set is only used for tests.
        validation: The same for the validation part. If empty, the data set's own part, or else training rows that
            each seed holds out.
        test: The same for the test part. If empty, the data set's own part, or else a part that is held out once.
        labels: Old label -> new label. Rows with a label that is not listed are dropped. If empty, labels stay as they
            are.
        columns: Fields of `FinetuneConfig` that name columns.
        max_test_samples: Test on at most this many examples, the same for every training. None: on all.
    """

    name: str
    train: tuple[str, ...]
    validation: tuple[str, ...] = ()
    test: tuple[str, ...] = ()
    labels: Mapping[str, str] = field(default_factory=dict)
    columns: Mapping[str, str] = field(default_factory=dict)
    max_test_samples: int | None = None

    def __post_init__(self) -> None:
        check_types(self)
        check_name(self.name, "data set")
        limit = self.max_test_samples
        check(limit is None or limit > 0, f"max_test_samples of {self.name}", limit, "a number above 0")
        FinetuneConfig.from_settings(None, self.columns)

    def as_dict(self) -> dict[str, Any]:
        """Return plain JSON types, without secrets."""
        parts = {part: list(map(without_secrets, getattr(self, part))) for part in ("train", "validation", "test")}
        # Without a limit there is no key, so that the names of earlier trainings, which are hashes, stay as they are.
        limit = {} if self.max_test_samples is None else {"max_test_samples": self.max_test_samples}
        return {"name": self.name, **parts, "labels": dict(self.labels), "columns": dict(self.columns), **limit}

    @classmethod
    def from_dict(cls, content: Mapping[str, Any]) -> Self:
        """Read the result of `as_dict`."""
        arguments: dict[str, Any] = {k: tuple(v) if isinstance(v, list) else v for k, v in content.items()}
        return cls(**arguments)


def check_name(name: str, kind: str) -> None:
    """Reject a name that can't be the name of a folder, by the rules of `short_name`.

    Args:
        name: The name.
        kind: What is named, for the message.

    Raises:
        ConfigError: The name is a path, is too long, or has other characters.
    """
    # The "_" keeps short_name from removing a file suffix: a name that short_name returned can end like a file name.
    if len(name) > MAX_NAME or short_name(f"{name}_") != f"{name}_" or name != name.strip("-."):
        raise ConfigError(
            f"A {kind} is called {name!r}. A name has at most {MAX_NAME} characters: letters, digits and ._+-, with no "
            f"- or . at either end. Call it {short_name(name)[:MAX_NAME]}, for example."
        )


def parse_data(value: Any) -> DataSpec:
    """Read a data set from YAML: a name, or a mapping with name and other fields of `DataSpec`.

    Raises:
        ConfigError: The value is neither, or has an unknown key.
    """
    if isinstance(value, str):
        return DataSpec(
            name=short_name(Path(value).stem if Path(value).suffix else value), train=_GROUPS.get(value, (value,))
        )
    known = [item.name for item in fields(DataSpec)]
    if not isinstance(value, Mapping) or "name" not in value or set(value) - set(known):
        raise ConfigError(
            f"A data set is {shown(value)}; it must be a name, a Hub id or a file, or a mapping with a name and some "
            f"of {', '.join(known[1:])}."
        )
    content: dict[str, Any] = dict(value)
    for part in ("train", "validation", "test"):
        sources = content.get(part, as_text(value["name"]) if part == "train" and "test" not in value else ())
        source_names = (sources,) if isinstance(sources, str) else sources or ()
        if not isinstance(source_names, list | tuple) or not all(isinstance(name, str) for name in source_names):
            raise ConfigError(f"{part} of a data set is {shown(sources)}; it must be names, Hub ids or files.")
        content[part] = tuple(source_name for name in source_names for source_name in _GROUPS.get(name, (name,)))
    labels = content.get("labels") or {}
    if not isinstance(labels, Mapping):
        raise ConfigError(f"labels of a data set are {shown(labels)}; they must be a mapping of `label: label` lines.")
    labels = {as_text(old): as_text(new) for old, new in labels.items()}
    return DataSpec(**{**content, "name": short_name(as_text(value["name"])), "labels": labels})


@dataclass(frozen=True, kw_only=True)
class PreparedData:
    """A data set, written to files.

    Attributes:
        folder: The folder of the files.
        labels: The class names.
        pairs: Whether each example is a pair of texts.
        examples: Part -> number of examples.
    """

    folder: Path
    labels: tuple[str, ...]
    pairs: bool
    examples: Mapping[str, int]

    @classmethod
    def open(cls, folder: Path) -> Self:
        """Open a data set that `prepare_data_set` wrote.

        Raises:
            ConfigError: The folder does not contain a prepared data set.
        """
        try:
            content = read_json(folder / INFO)
            attributes = {
                "labels": tuple(content["labels"]),
                "pairs": content["pairs"],
                "examples": content["examples"],
            }
        except (OSError, ValueError, KeyError, TypeError) as error:
            raise ConfigError(f"{folder} has no prepared data set ({error}). Start the study again.") from error
        return cls(folder=folder, **attributes)

    def __post_init__(self) -> None:
        check_types(self)

    def part(self, name: str) -> str | None:
        """Return the file of a part, or None if the data set does not have that part."""
        return str(self.folder / f"{name}.jsonl") if name in self.examples else None

    def rows(self, name: str) -> list[dict[str, Any]]:
        """Return the rows of a part."""
        # Not splitlines(): it also splits at characters inside a text, such as U+2028.
        with (self.folder / f"{name}.jsonl").open(encoding="utf-8") as file:
            return [json.loads(line) for line in file]

    @property
    def columns(self) -> dict[str, str]:
        """Fields of `FinetuneConfig` that name the files' columns."""
        pair = {"text_pair_column": "text_pair"} if self.pairs else {}
        return {"text_column": "text", "label_column": "label", **pair}


def spec_key(spec: DataSpec, test_fraction: float) -> dict[str, Any]:
    """Return the settings of the plan that decide the content of a prepared data set."""
    return {"spec": spec.as_dict(), "test_fraction": test_fraction, "seed": SPLIT_SEED}


def file_hashes(spec: DataSpec) -> dict[str, str]:
    """Return path -> sha256 for the local files of a data set.

    Raises:
        DataError: A file can't be read.
    """
    hashes: dict[str, str] = {}
    for source in (*spec.train, *spec.validation, *spec.test):
        for path in _local_files(source):
            try:
                with Path(expand_home(path)).open("rb") as file:
                    hashes[without_secrets(str(path))] = hashlib.file_digest(file, "sha256").hexdigest()
            except OSError as error:
                raise DataError(f"{path} can't be read: {error.strerror or error}.") from error
    return hashes


def _local_files(source: str) -> list[Path]:
    """Return the files that `load_data` reads for a source; none for a name of the registry or the Hub."""
    path = Path(source)
    if Path(expand_home(path)).is_file():
        return [path]
    if find_dataset(source) is not None:
        return []
    return [path / file.name for file in find_files(Path(expand_home(path)))] or [
        path / "data" / file.name for file in find_files(Path(expand_home(path)) / "data")
    ]


def write_rows(path: Path, rows: Sequence[Mapping[str, Any]]) -> None:
    """Write a JSON Lines file, atomically."""
    write_text(path, "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows))
