"""Choose the columns for text, text pair and label: from the settings, from the registry, or by a guess."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from difflib import get_close_matches
from typing import Any

from layer_surgeon.errors import DataError
from layer_surgeon.finetune.config import FinetuneConfig
from layer_surgeon.finetune.registry import DatasetRecord
from layer_surgeon.finetune.sources import Table
from layer_surgeon.tasks import ColumnRoles

_ROLES = ("text", "text_pair", "label")


@dataclass(frozen=True, kw_only=True)
class ColumnChoice:
    """The columns in use.

    Attributes:
        text: The text column.
        text_pair: The column of the second text, or None.
        label: The label column; None if only texts are needed.
        guessed: Whether a column was guessed from its name or its content.
    """

    text: str
    text_pair: str | None
    label: str | None
    guessed: bool

    @property
    def texts(self) -> tuple[str, ...]:
        """The text columns: one or two."""
        return (self.text,) if self.text_pair is None else (self.text, self.text_pair)

    @property
    def used(self) -> tuple[str, ...]:
        """The text columns and the label column, if there is one."""
        return self.texts if self.label is None else (*self.texts, self.label)

    def __str__(self) -> str:
        parts = {"text": self.text, "pair": self.text_pair, "label": self.label}
        return ", ".join(f"{role} = {name!r}" for role, name in parts.items() if name is not None)


def choose_columns(
    table: Table,
    config: FinetuneConfig,
    record: DatasetRecord | None = None,
    *,
    with_label: bool = True,
    roles: ColumnRoles,
) -> ColumnChoice:
    """Choose the columns of a table.

    Raises:
        DataError: A named column is missing, or a column can't be guessed. The message lists the existing columns.
    """
    names = list(table.columns)
    with_label = with_label and bool(roles.label)
    named = {role: getattr(config, f"{role}_column") for role in _ROLES}
    for role, name in named.items():
        if name is not None and name not in names and (role != "label" or with_label):
            raise DataError(_missing_message(table, f"{role} column {name!r}", name, role))
    if record is not None:
        named = {role: name or getattr(record, f"{role}_column") for role, name in named.items()}
        return ColumnChoice(
            text=_check_column(table, named["text"], "text"),
            text_pair=_check_column(table, named["text_pair"], "text_pair") if named["text_pair"] else None,
            label=_check_column(table, named["label"], "label") if with_label else None,
            guessed=False,
        )
    chosen = _guess(table, named, roles, with_label=with_label)
    guessed = named["text"] is None or (with_label and named["label"] is None)
    for role, title in zip(_ROLES, roles.titles, strict=True):
        needed = {"text": True, "text_pair": bool(roles.pair), "label": with_label}[role]
        if needed and chosen[role] is None:
            raise DataError(_missing_message(table, f"{title} column", title, role))
    label = chosen["label"] if with_label else None
    return ColumnChoice(text=str(chosen["text"]), text_pair=chosen["text_pair"], label=label, guessed=guessed)


def _check_column(table: Table, name: str | None, role: str) -> str:
    if name is None or name not in table.columns:
        raise DataError(_missing_message(table, f"{role} column {name!r}", name or role, role))
    return name


def _missing_message(table: Table, missing: str, wanted_name: str, role: str) -> str:
    similar = get_close_matches(wanted_name, table.columns, n=1)
    hint = f" Did you mean {similar[0]!r}?" if similar else ""
    return (
        f"{table.location} has no {missing}. Its columns are: {', '.join(table.columns)}.{hint} Choose one with "
        f"--{role.replace('_', '-')}-column."
    )


def _guess(
    table: Table, named: Mapping[str, str | None], roles: ColumnRoles, *, with_label: bool
) -> dict[str, str | None]:
    chosen = dict(named)

    def free_names() -> list[str]:
        return [name for name in table.columns if name not in chosen.values()]

    if roles.learns_pair:
        _guess_source_and_target(table, chosen, roles)
    # Find the label even if it is not needed, so that it is not taken for the text.
    if chosen["label"] is None:
        chosen["label"] = _find(free_names(), roles.label) or (_declared(table) if with_label else None)
    if chosen["text"] is None and chosen["text_pair"] is None and not roles.learns_pair:
        pairs = ((_find(free_names(), (first,)), _find(free_names(), (second,))) for first, second in roles.pairs)
        chosen["text"], chosen["text_pair"] = next((pair for pair in pairs if all(pair)), (None, None))
    if chosen["text"] is None:
        chosen["text"] = _find(free_names(), roles.text)
    if roles.pair and chosen["text_pair"] is None:
        chosen["text_pair"] = _find(free_names(), roles.pair)
    if chosen["text"] is None and roles.only_text:
        texts = [name for name in free_names() if _is_text(table.columns[name])]
        chosen["text"] = texts[0] if len(texts) == 1 else None
    return chosen


def _guess_source_and_target(table: Table, chosen: dict[str, str | None], roles: ColumnRoles) -> None:
    """Guess source and target from a known pair of names, else take the only two columns with sentences, in order."""
    names = list(table.columns)
    pairs = [(_find(names, (source,)), _find(names, (target,))) for source, target in roles.pairs]
    texts = [name for name in names if _is_text(table.columns[name])]
    if len(texts) == 2:
        pairs.append((texts[0], texts[1]))
    for source, target in pairs:
        if source and target and chosen["text"] in (None, source) and chosen["label"] in (None, target):
            chosen["text"], chosen["label"] = source, target
            return


def _declared(table: Table) -> str | None:
    # A list has labels of words.
    declared = [name for name in table.label_names if not isinstance(next(iter(table.columns[name]), None), list)]
    return declared[0] if len(declared) == 1 else None


def _find(names: Sequence[str], wanted: Sequence[str]) -> str | None:
    by_key = {name.lower().replace("_", "").replace("-", "").replace(" ", ""): name for name in reversed(names)}
    return next((by_key[key] for key in wanted if key in by_key), None)


def _is_text(values: Sequence[Any]) -> bool:
    sample = [value for value in values[:100] if value is not None]
    # In a CSV, numbers and ids are strings too. Sentences contain spaces.
    return bool(sample) and all(isinstance(value, str) for value in sample) and any(" " in value for value in sample)
