"""`ColumnRoles`: how to find the columns of a task in a data set."""

from dataclasses import dataclass


@dataclass(frozen=True, kw_only=True)
class ColumnRoles:
    """The names that data sets commonly use for a task's columns, best first.

    Names are compared in lower case and without spaces, hyphens and underscores.

    Attributes:
        titles: The task's words for text, text pair and label, for messages.
        text: Names of the text column.
        pair: Names of the second text column; empty unless the task requires one.
        label: Names of the label column; empty for a task that learns from the text itself.
        pairs: Pairs of names that mean text and text pair or, with `learns_pair`, text and label.
        learns_pair: The second column of `pairs` is the label.
        only_text: If no name matches, use the only column with sentences as the text.
    """

    titles: tuple[str, str, str] = ("text", "text_pair", "label")
    text: tuple[str, ...]
    pair: tuple[str, ...] = ()
    label: tuple[str, ...] = ()
    pairs: tuple[tuple[str, str], ...] = ()
    learns_pair: bool = False
    only_text: bool = False
