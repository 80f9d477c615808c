"""Which columns hold the text, its pair and the label: as said, as the registry has it, or guessed and said aloud."""

from collections.abc import Sequence
from dataclasses import dataclass
from difflib import get_close_matches
from typing import Any

from layer_surgeon.errors import DataError
from layer_surgeon.finetune.config import FinetuneConfig
from layer_surgeon.finetune.registry import DatasetRecord
from layer_surgeon.finetune.sources import Table

# Compared without case and with spaces, hyphens and underscores left out; best first.
_TEXT_NAMES = ("text", "sentence", "review", "content", "document", "comment", "tweet", "message", "body", "question")
_LABEL_NAMES = ("label", "labels", "labelid", "class", "target", "category", "sentiment", "intent", "y")
_PAIRS = (
    ("premise", "hypothesis"),
    ("sentence1", "sentence2"),
    ("sentencea", "sentenceb"),
    ("question1", "question2"),
    ("text1", "text2"),
    ("question", "sentence"),
    ("text", "textpair"),
)


@dataclass(frozen=True, kw_only=True)
class ColumnChoice:
    """The columns that are used. `label` is None where only texts are wanted; `guessed`: nobody named them."""

    text: str
    text_pair: str | None
    label: str | None
    guessed: bool

    def __str__(self) -> str:
        parts = {"text": self.text, "pair": self.text_pair, "label": self.label}
        return ", ".join(f"{role} = {name!r}" for role, name in parts.items() if name is not None)


def choose_columns(
    table: Table, config: FinetuneConfig, record: DatasetRecord | None = None, *, with_label: bool = True
) -> ColumnChoice:
    """Settle the columns of a table.

    Raises:
        DataError: A named column is missing, or no good guess can be made; the message lists the columns there are.
    """
    names = list(table.columns)
    said = {role: getattr(config, f"{role}_column") for role in ("text", "text_pair", "label")}
    for role, name in said.items():
        if name is not None and name not in names and (role != "label" or with_label):
            raise DataError(_missing(table, f"{role} column {name!r}", name))
    if record is not None:
        said = {role: name or getattr(record, f"{role}_column") for role, name in said.items()}
        return ColumnChoice(
            text=_present(table, said["text"], "text"),
            text_pair=_present(table, said["text_pair"], "text_pair") if said["text_pair"] else None,
            label=_present(table, said["label"], "label") if with_label else None,
            guessed=False,
        )
    label = (said["label"] or _guess_label(table)) if with_label else said["label"] or _find(names, _LABEL_NAMES)
    if with_label and label is None:
        raise DataError(_missing(table, "label column", "label"))
    rest = [name for name in names if name != label]
    text, pair = _guess_texts(table, rest, said["text"], said["text_pair"])
    guessed = said["text"] is None or (with_label and said["label"] is None)
    return ColumnChoice(text=text, text_pair=pair, label=label if with_label else None, guessed=guessed)


def _present(table: Table, name: str | None, role: str) -> str:
    if name is None or name not in table.columns:
        raise DataError(_missing(table, f"{role} column {name!r}", name or role))
    return name


def _missing(table: Table, what: str, wanted: str) -> str:
    near = get_close_matches(wanted, table.columns, n=1)
    hint = f" Did you mean {near[0]!r}?" if near else ""
    option = what.split(" ", 1)[0].replace("_", "-")
    return (
        f"{table.place} has no {what}. Its columns are: {', '.join(table.columns)}.{hint} Say which it is with "
        f"--{option}-column."
    )


def _guess_label(table: Table) -> str | None:
    if found := _find(list(table.columns), _LABEL_NAMES):
        return found
    declared = list(table.label_names)
    return declared[0] if len(declared) == 1 else None


def _guess_texts(table: Table, rest: Sequence[str], text: str | None, pair: str | None) -> tuple[str, str | None]:
    if text is not None:
        return text, pair
    if pair is None:
        for first, second in _PAIRS:
            found = _find(rest, (first,)), _find(rest, (second,))
            if found[0] and found[1]:
                return found[0], found[1]
    others = [name for name in rest if name != pair]
    if found_text := _find(others, _TEXT_NAMES):
        return found_text, pair
    texts = [name for name in others if _is_text(table.columns[name])]
    if len(texts) != 1:
        raise DataError(_missing(table, "text column", "text"))
    return texts[0], pair


def _find(names: Sequence[str], wanted: Sequence[str]) -> str | None:
    plain = {name.lower().replace("_", "").replace("-", "").replace(" ", ""): name for name in reversed(names)}
    return next((plain[name] for name in wanted if name in plain), None)


def _is_text(values: Sequence[Any]) -> bool:
    sample = [value for value in values[:100] if value is not None]
    # A column of numbers or ids is text too in a CSV; what a person wrote has spaces.
    return bool(sample) and all(isinstance(value, str) for value in sample) and any(" " in value for value in sample)
