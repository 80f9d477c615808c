"""Ways to spoil bytes and JSON, chosen by a random generator: the same generator, the same damage.

The generator is Python's own, or one of hypothesis' (`st.randoms`), which then makes failing cases small.
"""

import json
from collections.abc import Callable, Iterator
from copy import deepcopy
from random import Random
from typing import Any

# What numbers of a format end at, and what a file claims that wants 2^60 bytes of memory.
_BOUNDS = (0, 1, 2, 3, 7, 8, 127, 128, 255, 256, 2**15, 2**16 - 1, 2**16, 2**31 - 1, 2**31, 2**32 - 1, 2**32)
_HUGE = (2**40, 2**53, 2**60, 2**62, 2**63 - 1, 2**63, 2**64 - 8, 2**64 - 1)


def mutate_bytes(content: bytes, random: Random, *, hot: tuple[int, int] | None = None) -> bytes:
    """One to four damages.

    Args:
        content: What is spoiled.
        random: Chooses.
        hot: Begin and end of what matters, where nine of ten damages begin.
    """
    spoiled = bytearray(content)
    for _ in range(random.choice((1, 1, 1, 2, 3, 4))):
        if not spoiled:
            break
        begin, end = hot if hot is not None and random.random() < 0.9 else (0, len(spoiled))
        end = min(end, len(spoiled))
        position = random.randrange(min(begin, end - 1), end)
        random.choice(_DAMAGES)(spoiled, position, random)
    return bytes(spoiled)


def _set_byte(content: bytearray, position: int, random: Random) -> None:
    content[position] = random.randrange(256)


def _flip_bit(content: bytearray, position: int, random: Random) -> None:
    content[position] ^= 1 << random.randrange(8)


def _set_number(content: bytearray, position: int, random: Random) -> None:
    """A number of 1 to 8 bytes: one of those that formats end at, the file's length, or one next to the old value."""
    width = random.choice((1, 2, 4, 4, 8, 8, 8))
    before = int.from_bytes(content[position : position + width], "little")
    value = random.choice((*_BOUNDS, *_HUGE, len(content), len(content) - position, before + 1, before - 1, ~before))
    order = random.choice(("little", "little", "big"))
    content[position : position + width] = (value % 2 ** (8 * width)).to_bytes(width, order)


def _set_digits(content: bytearray, position: int, random: Random) -> None:
    """Another decimal number in the place of the next one."""
    end = position
    while position < len(content) and not 48 <= content[position] <= 57:
        position += 1
    end = position
    while end < len(content) and 48 <= content[end] <= 57:
        end += 1
    content[position:end] = str(random.choice((*_BOUNDS, *_HUGE, -1, 10**30))).encode()


def _truncate(content: bytearray, position: int, random: Random) -> None:
    del content[position:]


def _delete(content: bytearray, position: int, random: Random) -> None:
    del content[position : position + random.choice((1, 2, 4, 8, 64, 1000))]


def _repeat(content: bytearray, position: int, random: Random) -> None:
    content[position:position] = content[position : position + random.choice((1, 4, 8, 40, 400))]


def _splice(content: bytearray, position: int, random: Random) -> None:
    """A stretch from elsewhere over what is here."""
    begin, length = random.randrange(len(content)), random.choice((1, 4, 8, 40, 400))
    stretch = content[begin : begin + length]
    content[position : position + len(stretch)] = stretch


def _insert(content: bytearray, position: int, random: Random) -> None:
    content[position:position] = bytes(random.randrange(256) for _ in range(random.choice((1, 2, 8))))


def _fill(content: bytearray, position: int, random: Random) -> None:
    length = min(random.choice((2, 8, 64, 512)), len(content) - position)
    content[position : position + length] = random.choice((b"\0", b"\xff", b"(", b"[")) * length


def _append(content: bytearray, position: int, random: Random) -> None:
    content += content[position : position + random.choice((1, 8, 100))]


_DAMAGES: tuple[Callable[[bytearray, int, Random], None], ...] = (
    _set_byte,
    _flip_bit,
    _set_number,
    _set_number,
    _set_digits,
    _truncate,
    _delete,
    _repeat,
    _splice,
    _insert,
    _fill,
    _append,
)

# What stands in the place of a value, as JSON: other types, numbers at every end, text that is none.
_VALUES = (
    "null",
    "true",
    "false",
    "0",
    "-1",
    "1",
    "3",
    "0.5",
    "-0.0",
    "1e400",
    "NaN",
    "-Infinity",
    *map(str, _BOUNDS),
    *map(str, _HUGE),
    "1" * 400,
    "9" * 5000,
    '""',
    '"x"',
    '"0"',
    '"../x"',
    '"/etc/passwd"',
    '"\\ud800"',
    '"\\u0000"',
    '"\\u202e\\u001b[2J"',
    '"' + "long " * 20_000 + '"',
    "[]",
    "{}",
    "[[]]",
    "[null]",
    "[0, 0]",
    "[" + "1," * 100 + "1]",
    '[""]',
    '{"": {}}',
    '{"a": [1, "b", null]}',
    "[" * 100_000,
    "[" * 100_000 + "]" * 100_000,
    "[" * 900 + "]" * 900,
    '{"a":' * 400 + "1" + "}" * 400,
)
_KEYS = ("", "x", "\ud800", "\0", "../x", "__metadata__", "0", "model.layers.0.x", "k" * 100_000)


def mutate_json(content: bytes, random: Random) -> bytes:
    """One to three damages to what a JSON text says; it mostly stays JSON."""
    value = json.loads(content)
    raw: dict[str, str] = {}
    for _ in range(random.choice((1, 1, 1, 2, 3))):
        places = list(_places(value))
        if not places:
            break
        _spoil_place(*random.choice(places), raw, random)
    text = json.dumps(value)
    for mark, written in raw.items():
        text = text.replace(json.dumps(mark), written)
    encoded = text.encode()
    return mutate_bytes(encoded, random) if random.random() < 0.1 else encoded


def _places(value: Any) -> Iterator[tuple[Any, Any]]:
    """All (container, key or index) in a document."""
    items = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    for key, part in items:
        yield value, key
        yield from _places(part)


def _spoil_place(container: Any, key: Any, raw: dict[str, str], random: Random) -> None:
    mark = f"@{len(raw)}@"
    kind = random.choice(("value", "value", "value", "value", "drop", "copy", "rename", "twice", "step"))
    if kind == "value":
        container[key] = mark
        raw[mark] = random.choice(_VALUES)
    elif kind == "drop":
        del container[key]
    elif kind == "copy":
        keys = list(container) if isinstance(container, dict) else range(len(container))
        container[key] = deepcopy(container[random.choice(keys)])
    elif kind == "step" and type(container[key]) is int:
        container[key] += random.choice((-2, -1, 1, 2, 8))
    elif isinstance(container, dict):
        if kind == "rename":
            container[random.choice((*_KEYS, *container))] = container.pop(key)
        else:
            container[mark] = deepcopy(container[key])
            raw[mark] = json.dumps(key)
