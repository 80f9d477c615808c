"""Read untrusted YAML: plain values only, no tags for Python objects, no aliases, and with a size limit."""

import re
from pathlib import Path
from typing import Any

import yaml

from layer_surgeon.errors import ConfigError

# A plan or configuration that a person writes has a few kB.
MAX_CHARACTERS = 1_000_000

# [ \t\r] instead of \s: if it matched line ends too, a card of only line ends would take forever to search.
_FRONT_MATTER = re.compile(r"---[ \t\r]*\n(.*?)\n---[ \t\r]*(?:\n|$)", re.DOTALL)


# Numbers such as 5e-5, which YAML 1.1 reads as text because they have no point. With a longer exponent, it is a hash.
_POWER = re.compile(r"[-+]?\d+(\.\d*)?[eE][-+]?\d{1,2}$")
_NUMBER_TAGS = ("tag:yaml.org,2002:int", "tag:yaml.org,2002:float")


def _without_base_60(pattern: re.Pattern[str]) -> re.Pattern[str]:
    return re.compile(rf"(?!.*:)(?:{pattern.pattern})", pattern.flags)


class _PlainLoader(yaml.SafeLoader):  # type: ignore[misc]  # yaml is untyped here
    """YAML without aliases: nine lines of aliases can expand to billions of values.

    Numbers in base 60, which YAML 1.2 no longer has, are text: `8:24` is a slice of layers, and not 504.
    """

    yaml_implicit_resolvers = {
        first: [(tag, _without_base_60(pattern) if tag in _NUMBER_TAGS else pattern) for tag, pattern in resolvers]
        for first, resolvers in yaml.SafeLoader.yaml_implicit_resolvers.items()
    }

    def compose_node(self, parent: Any, index: Any) -> Any:
        if self.check_event(yaml.AliasEvent):
            event = self.peek_event()
            raise yaml.composer.ComposerError(
                None, None, f"aliases such as *{event.anchor} are not read; write the value out", event.start_mark
            )
        return super().compose_node(parent, index)


class _PlainDumper(yaml.SafeDumper):  # type: ignore[misc]  # yaml is untyped here
    """YAML without aliases, which `parse_yaml` can read: a value that occurs twice is written twice."""

    def ignore_aliases(self, data: Any) -> bool:
        return True

    def represent_str(self, data: str) -> Any:
        """Escape U+0085. PyYAML writes it as it is, and then reads a space."""
        return self.represent_scalar("tag:yaml.org,2002:str", data, style='"' if "\x85" in data else None)


_PlainDumper.add_representer(str, _PlainDumper.represent_str)
for _class in (_PlainLoader, _PlainDumper):
    _class.add_implicit_resolver("tag:yaml.org,2002:float", _POWER, list("-+0123456789"))


def parse_yaml(text: str, max_characters: int = MAX_CHARACTERS) -> Any:
    """Parse YAML text. Tags for Python objects and aliases are refused.

    Raises:
        ValueError: It is not plain YAML, has an alias or a value that doesn't fit its tag, is nested too deeply, or has
            over `max_characters`.
    """
    if len(text) > max_characters:
        raise ValueError(f"{len(text):,} characters of YAML; at most {max_characters:,} are read")
    try:
        loader = _PlainLoader(text)
    except yaml.YAMLError as error:  # a character that YAML doesn't allow
        raise ValueError(" ".join(str(error).split())) from error
    try:
        return loader.get_single_data()
    except yaml.YAMLError as error:
        raise ValueError(" ".join(str(error).split())) from error
    except (LookupError, AttributeError, TypeError) as error:  # PyYAML's for `!!bool x`, `!!float ""` and the like
        raise ValueError("a value doesn't fit its tag, such as !!bool; remove the tag") from error
    except RecursionError as error:
        raise ValueError("the YAML is nested too deeply") from error
    finally:
        loader.dispose()


def read_yaml(path: Path) -> dict[str, Any]:
    """Read a YAML file of `name: value` lines; an empty file gives {}.

    Raises:
        ConfigError: It can't be read, or is not a mapping.
    """
    try:
        if path.stat().st_size > 4 * MAX_CHARACTERS:
            raise ValueError(f"{path.stat().st_size:,} bytes; at most {MAX_CHARACTERS:,} characters are read")
        content = parse_yaml(path.read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(f"{path} can't be read: {getattr(error, 'strerror', None) or error}.") from error
    except ValueError as error:
        raise ConfigError(f"{path} is not valid YAML: {error}.") from error
    content = {} if content is None else content
    if not isinstance(content, dict):
        raise ConfigError(f"{path} must hold `name: value` lines, such as `batch_size: 16`.")
    return {name if isinstance(name, str) else str(name): value for name, value in content.items()}


def front_matter_text(text: str) -> str | None:
    """Return the front matter of a model card, the YAML between two lines of hyphens at its start; None without any."""
    match = _FRONT_MATTER.match(text)
    return None if match is None else match[1]


def front_matter(text: str) -> dict[str, Any]:
    """Parse the front matter of a model card; {} without any.

    Raises:
        ValueError: As in `parse_yaml`.
    """
    yaml_text = front_matter_text(text)
    content = None if yaml_text is None else parse_yaml(yaml_text)
    return content if isinstance(content, dict) else {}


def dump_yaml(content: Any, **settings: Any) -> str:
    """Format YAML text without aliases. Mappings keep their order."""
    text: str = yaml.dump(content, Dumper=_PlainDumper, sort_keys=False, allow_unicode=True, **settings)
    return text
