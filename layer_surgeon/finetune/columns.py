"""Which columns hold the text, its pair and the label: as said, as the registry has it, or guessed and said aloud."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from difflib import get_close_matches
from typing import Any

from layer_surgeon.errors import DataError
from layer_surgeon.finetune.config import FinetuneConfig
from layer_surgeon.finetune.registry import DatasetRecord
from layer_surgeon.finetune.sources import Table

_ROLES = ("text", "text_pair", "label")


@dataclass(frozen=True, kw_only=True)
class ColumnRoles:
    """What a task's columns are called: for people, and by the names that data sets give them.

    Names are compared without case and with spaces, hyphens and underscores left out; best first.

    Attributes:
        titles: What text, pair and label are to the task, for messages.
        text: Names of the column that is read.
        pair: Names of a second column that is read; only for a task that needs one.
        label: Names of the column that is learned; empty for a task that learns from the text itself.
        pairs: Names of two columns that stand for text and pair (or, `learns_pair`, for text and label).
        learns_pair: The second of `pairs` is what is learned.
        only_text: Where no name is known, the only column with sentences is taken.
    """

    titles: tuple[str, str, str] = ("text", "text_pair", "label")
    text: tuple[str, ...]
    pair: tuple[str, ...] = ()
    label: tuple[str, ...] = ()
    pairs: tuple[tuple[str, str], ...] = ()
    learns_pair: bool = False
    only_text: bool = False


CLASSIFICATION = ColumnRoles(
    text=("text", "sentence", "review", "content", "document", "comment", "tweet", "message", "body", "question"),
    label=("label", "labels", "labelid", "class", "target", "category", "sentiment", "intent", "y"),
    pairs=(
        ("premise", "hypothesis"),
        ("sentence1", "sentence2"),
        ("sentencea", "sentenceb"),
        ("question1", "question2"),
        ("text1", "text2"),
        ("question", "sentence"),
        ("text", "textpair"),
    ),
    only_text=True,
)


@dataclass(frozen=True, kw_only=True)
class ColumnChoice:
    """The columns that are used. `label` is None where only texts are wanted; `guessed`: nobody named them."""

    text: str
    text_pair: str | None
    label: str | None
    guessed: bool

    @property
    def texts(self) -> tuple[str, ...]:
        """The one or two columns of texts."""
        return (self.text,) if self.text_pair is None else (self.text, self.text_pair)

    @property
    def used(self) -> tuple[str, ...]:
        """Those of texts and, where there is one, that of the label."""
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
    roles: ColumnRoles = CLASSIFICATION,
) -> ColumnChoice:
    """Settle the columns of a table.

    Raises:
        DataError: A named column is missing, or no good guess can be made; the message lists the columns there are.
    """
    names = list(table.columns)
    with_label = with_label and bool(roles.label)
    said = {role: getattr(config, f"{role}_column") for role in _ROLES}
    for role, name in said.items():
        if name is not None and name not in names and (role != "label" or with_label):
            raise DataError(_missing(table, f"{role} column {name!r}", name, role))
    if record is not None:
        said = {role: name or getattr(record, f"{role}_column") for role, name in said.items()}
        return ColumnChoice(
            text=_present(table, said["text"], "text"),
            text_pair=_present(table, said["text_pair"], "text_pair") if said["text_pair"] else None,
            label=_present(table, said["label"], "label") if with_label else None,
            guessed=False,
        )
    found = _guess(table, said, roles, with_label=with_label)
    guessed = said["text"] is None or (with_label and said["label"] is None)
    for role, title in zip(_ROLES, roles.titles, strict=True):
        needed = {"text": True, "text_pair": bool(roles.pair), "label": with_label}[role]
        if needed and found[role] is None:
            raise DataError(_missing(table, f"{title} column", title, role))
    label = found["label"] if with_label else None
    return ColumnChoice(text=str(found["text"]), text_pair=found["text_pair"], label=label, guessed=guessed)


def _present(table: Table, name: str | None, role: str) -> str:
    if name is None or name not in table.columns:
        raise DataError(_missing(table, f"{role} column {name!r}", name or role, role))
    return name


def _missing(table: Table, what: str, wanted: str, role: str) -> str:
    near = get_close_matches(wanted, table.columns, n=1)
    hint = f" Did you mean {near[0]!r}?" if near else ""
    return (
        f"{table.place} has no {what}. Its columns are: {', '.join(table.columns)}.{hint} Say which it is with "
        f"--{role.replace('_', '-')}-column."
    )


def _guess(
    table: Table, said: Mapping[str, str | None], roles: ColumnRoles, *, with_label: bool
) -> dict[str, str | None]:
    found = dict(said)

    def rest() -> list[str]:
        return [name for name in table.columns if name not in found.values()]

    if roles.learns_pair:
        _guess_both(table, found, roles)
    # Also where no label is wanted: it is then no text.
    if found["label"] is None:
        found["label"] = _find(rest(), roles.label) or (_declared(table) if with_label else None)
    if found["text"] is None and found["text_pair"] is None and not roles.learns_pair:
        pairs = ((_find(rest(), (one,)), _find(rest(), (two,))) for one, two in roles.pairs)
        found["text"], found["text_pair"] = next((pair for pair in pairs if all(pair)), (None, None))
    if found["text"] is None:
        found["text"] = _find(rest(), roles.text)
    if roles.pair and found["text_pair"] is None:
        found["text_pair"] = _find(rest(), roles.pair)
    if found["text"] is None and roles.only_text:
        texts = [name for name in rest() if _is_text(table.columns[name])]
        found["text"] = texts[0] if len(texts) == 1 else None
    return found


def _guess_both(table: Table, found: dict[str, str | None], roles: ColumnRoles) -> None:
    """Source and target by a known pair of names; else the only two columns with sentences, in their order."""
    names = list(table.columns)
    pairs = [(_find(names, (one,)), _find(names, (two,))) for one, two in roles.pairs]
    texts = [name for name in names if _is_text(table.columns[name])]
    if len(texts) == 2:
        pairs.append((texts[0], texts[1]))
    for one, two in pairs:
        if one and two and found["text"] in (None, one) and found["label"] in (None, two):
            found["text"], found["label"] = one, two
            return


def _declared(table: Table) -> str | None:
    declared = list(table.label_names)
    return declared[0] if len(declared) == 1 else None


def _find(names: Sequence[str], wanted: Sequence[str]) -> str | None:
    plain = {name.lower().replace("_", "").replace("-", "").replace(" ", ""): name for name in reversed(names)}
    return next((plain[name] for name in wanted if name in plain), None)


def _is_text(values: Sequence[Any]) -> bool:
    sample = [value for value in values[:100] if value is not None]
    # A column of numbers or ids is text too in a CSV; what a person wrote has spaces.
    return bool(sample) and all(isinstance(value, str) for value in sample) and any(" " in value for value in sample)
