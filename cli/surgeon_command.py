"""The class of all commands: plain help that fits any terminal, and suggestions for mistyped options."""

import re
from difflib import get_close_matches
from typing import Any

from typer.core import TyperCommand

from layer_surgeon._text import printable

_MARKUP = re.compile(r"(?<!\\)\[/?(?:dim|bold|red| )*\]")
# Longer names are on a line of their own, with their help below.
_MAX_NAME_WIDTH = 26


class SurgeonCommand(TyperCommand):
    """A command whose help never cuts the names of options, and whose errors suggest what was meant."""

    def parse_args(self, ctx: Any, args: list[str]) -> list[str]:
        """Parse the arguments.

        Raises:
            NoSuchOption: An option is unknown. The message names a similar one.
            BadParameter: A value can't be used.
        """
        try:
            return super().parse_args(ctx, args)
        # These exceptions are in click or in a private copy of click, depending on typer's version.
        except Exception as error:
            flag = getattr(error, "option_name", None)
            if flag is not None and hasattr(error, "possibilities"):
                self._suggest(error, flag)
            message = getattr(error, "message", None)
            if isinstance(message, str):
                error.message = message.removeprefix("Value error, ")  # type: ignore[attr-defined]  # see above
            raise

    def _suggest(self, error: Any, flag: str) -> None:
        names = [name for parameter in self.params for name in parameter.opts if name.startswith("--")]
        similar = [name for name in names if _initials(name) == flag.lstrip("-")] or get_close_matches(flag, names, n=1)
        error.possibilities = None
        if flag == "--model" and "graft" in [parameter.name for parameter in self.params]:
            error.message = (
                f"No such option: {flag}. Name the graft without an option, as in: surgeon {self.name} my-graft"
            )
        elif similar:
            error.message = f"No such option: {flag}. Did you mean {similar[0]}?"

    def format_help_text(self, ctx: Any, formatter: Any) -> None:
        """Write the command's description."""
        if self.help:
            formatter.write_paragraph()
            with formatter.indentation():
                formatter.write_text(plain_text(self.help))

    def format_options(self, ctx: Any, formatter: Any) -> None:
        """Write arguments and options, in sections."""
        sections: dict[str, list[tuple[str, str]]] = {}
        for parameter in self.get_params(ctx):
            record = parameter.get_help_record(ctx)
            if record is None:
                continue
            is_argument = parameter.param_type_name == "argument"
            panel = getattr(parameter, "rich_help_panel", None) or ("Arguments" if is_argument else "Options")
            sections.setdefault(panel, []).append((record[0], plain_text(record[1])))
        for panel, rows in sections.items():
            with formatter.section(panel):
                formatter.write_dl(rows, col_max=_MAX_NAME_WIDTH)


def plain_text(text: str) -> str:
    r"""Remove the markup of rich, such as [dim], and unescape the brackets that \ protects."""
    return printable(_MARKUP.sub("", text)).replace("\\[", "[")


def _initials(name: str) -> str:
    return "".join(word[0] for word in name.removeprefix("--").split("-") if word)
