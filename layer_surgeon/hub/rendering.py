"""Render model cards from templates. Every value is escaped, so names and labels of strangers stay plain text."""

import functools
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from layer_surgeon._text import code, markdown
from layer_surgeon._version import __version__
from layer_surgeon._yaml import dump_yaml
from layer_surgeon.hub.origin import shown_name
from layer_surgeon.tasks import score_title

if TYPE_CHECKING:
    from jinja2 import Environment
    from markupsafe import Markup

# The model's path in the examples of a model card, until it has a repo id.
PLACE_IN_CARD = "path/to/this/folder"


def render_card(template: str, metadata: Mapping[str, Any], **values: Any) -> str:
    """Return the text of README.md.

    Args:
        template: Name of a file in `templates`.
        metadata: The front matter, which the Hub reads.
        values: What the template uses.
    """
    body = _environment().get_template(template).render(**values)
    return f"---\n{dump_yaml(dict(metadata))}---\n\n{body}"


def _escape(value: Any) -> "Markup":
    from markupsafe import Markup

    return value if isinstance(value, Markup) else Markup(markdown(value))  # escaped


@functools.cache
def _environment() -> "Environment":
    # Extraction needs the card of a layer, but most commands need none. Importing Jinja2 takes time.
    from jinja2 import Environment, PackageLoader, StrictUndefined
    from markupsafe import Markup

    environment = Environment(
        loader=PackageLoader("layer_surgeon.hub"),
        # Templates and macros are Markup, and `finalize` escapes everything else for Markdown.
        autoescape=True,
        finalize=_escape,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        keep_trailing_newline=True,
    )
    environment.filters |= {
        "code": lambda value: Markup(code(value)),  # can't break out of the span
        "commas": lambda values: Markup(", ".join(map(_escape, values))),
        "strings": lambda values: Markup(", ".join(f'"{_escape(value)}"' for value in values)),
        "shown_name": shown_name,
        "score_title": score_title,
        "thousands": "{:,}".format,
        "score": "{:.4f}".format,
    }
    environment.globals |= {"place": PLACE_IN_CARD, "version": __version__}
    return environment
