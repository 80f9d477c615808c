"""The pickle in a PyTorch checkpoint, read as a description of tensors. Nothing in it can run. No torch.

A pickle is a program for a small machine with a stack. The machine here knows the instructions that `torch.save` writes
for a state dict, and nothing else: names of functions and types become inert records, and only those of a list of
known ones are looked at. Every other name, call or instruction is refused, and the message says what it was.

The standard library's unpickler with an allow-list would run nothing either, but can be made to take memory without
end: its memo is an array, so that five bytes (`LONG_BINPUT 2**31`) ask for 16 GB.
"""

import re
import struct
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from layer_surgeon.checkpoint.torch_records import (
    DTYPES,
    KNOWN,
    ORDERED_DICT,
    PARAMETER,
    REBUILD,
    REBUILD_WITH_DTYPE,
    STORAGES,
    PickledTensor,
    Storage,
)
from layer_surgeon.errors import CheckpointError

# torch.save writes 25 to 33 instructions and 130 to 250 bytes per tensor, so these are 20,000 tensors in one file: more
# than any model has that is not saved in shards. They take 0.6 s.
MAX_PICKLE_BYTES = 5_000_000
_MAX_INSTRUCTIONS = 700_000
_MAX_NAME_BYTES = 1000
_MAX_SEARCHED_BYTES = 100_000

_CONVERT = (
    "Open it where you trust it, with torch.load and save_pretrained of transformers, which writes safetensors files."
)


def read_state_dict(raw: bytes, file: str) -> dict[str, PickledTensor]:
    """The tensors of a pickled state dict, by name; what else is in it is left aside.

    Args:
        raw: The pickle.
        file: The name of the checkpoint's file.

    Raises:
        CheckpointError: The pickle is damaged, wants anything but to describe tensors (the message names it), or is
            no state dict.
    """
    content = _Machine(raw, file).run()
    if type(content) is dict and type(content.get("state_dict")) is dict:
        # What pytorch-lightning and many training scripts write; the names inside are the model's own.
        content = content["state_dict"]
    if type(content) is not dict:
        raise CheckpointError(f"{file} holds a {_kind(content)}; a dict of tensors by name is expected. {_CONVERT}")
    tensors = {name: value for name, value in content.items() if type(name) is str and type(value) is PickledTensor}
    if not tensors:
        names = ", ".join(name[:40] for name in list(content)[:5] if type(name) is str)
        raise CheckpointError(
            f"{file} holds a dict without tensors (entries: {names or 'none'}); a model's state dict is expected, "
            f"or a dict with one as `state_dict`. {_CONVERT}"
        )
    return tensors


@dataclass(frozen=True, kw_only=True, slots=True)
class _Name:
    """A function or type that a pickle names: a record, never the thing itself."""

    module: str
    name: str

    def __str__(self) -> str:
        return f"{self.module}.{self.name}"


class _Mark:
    """What stands on the stack where an instruction counts from."""


_MARK = _Mark()


class _Machine:
    """Runs one pickle, on records and plain data only."""

    def __init__(self, raw: bytes, file: str) -> None:
        self._raw, self._file = raw, file
        self._position = 0
        self._stack: list[Any] = []
        # By number, whatever number a pickle chooses: an array would have to be as long as the largest.
        self._memo: dict[int, Any] = {}
        self._storages: dict[str, Storage] = {}

    def run(self) -> Any:
        """What the pickle describes: dicts, lists, tuples, tensors, plain values."""
        raw, actions = self._raw, _ACTIONS
        try:
            for _ in range(_MAX_INSTRUCTIONS):
                code = raw[self._position]
                self._position += 1
                if code == _STOP:
                    return self._stack.pop()
                action = actions.get(code)
                if action is None:
                    raise self._refused(self._explain(code))
                action(self)
        except (IndexError, KeyError, UnicodeDecodeError) as error:
            raise self._damaged(f"at byte {self._position:,}: {type(error).__name__}") from error
        raise self._damaged(f"it has over {_MAX_INSTRUCTIONS:,} instructions, more than 20,000 tensors need")

    def _refused(self, what: str) -> CheckpointError:
        return CheckpointError(
            f"The pickle in {self._file} wants {what}. Only the description of tensors is read, so nothing was run. "
            f"If that is unexpected, the file may be hostile. {_CONVERT}"
        )

    def _damaged(self, how: str) -> CheckpointError:
        return CheckpointError(f"The pickle in {self._file} is damaged: {how}. Get the file again.")

    def _explain(self, code: int) -> str:
        """What an unknown instruction would have done, in words."""
        name = _REFUSED.get(code, f"0x{code:02x}")
        if name == "INST":
            return f"to make an instance of {_shown(self._line(), self._line())} (INST)"
        if name.startswith("EXT"):
            return f"an object by its number in the registry of pickle's extensions ({name})"
        if name == "PERSID":
            return f"an outside object named {self._line()[:100]!r} (PERSID), which is no storage of a tensor"
        # Such an instruction may stand before the name that it is all about, as text does in the oldest form.
        pairs = (found.groups() for found in _NAMES.finditer(self._raw[:_MAX_SEARCHED_BYTES]))
        names = ((module.decode(), name.decode()) for module, name in pairs)
        strange = next((pair for pair in names if pair not in KNOWN), None)
        about = "" if strange is None else f" (it names {_shown(*strange)})"
        return f"the instruction {name}{about}, which no state dict needs"

    # Reading the program.

    def _take(self, length: int) -> bytes:
        begin, self._position = self._position, self._position + length
        if self._position > len(self._raw):
            raise self._damaged("it ends in the middle")
        return self._raw[begin : self._position]

    def _number(self, form: struct.Struct) -> int:
        (value,) = form.unpack(self._take(form.size))
        return int(value)

    def _line(self) -> str:
        end = self._raw.find(b"\n", self._position, self._position + _MAX_NAME_BYTES)
        if end < 0:
            raise self._damaged("a name has no end")
        line = self._take(end - self._position)
        self._position += 1
        return line.decode("utf-8")

    def _skip(self, length: int) -> None:
        self._take(length)

    def _from_mark(self) -> list[Any]:
        stack = self._stack
        for index in range(len(stack) - 1, -1, -1):
            if stack[index] is _MARK:
                items = stack[index + 1 :]
                del stack[index:]
                return items
        raise self._damaged("an instruction counts from a mark that was not set")

    # Names, calls and storages.

    def _name(self, module: Any, name: Any) -> None:
        if type(module) is not str or type(name) is not str:
            raise self._damaged("a name is no text")
        if (module, name) not in KNOWN:
            raise self._refused(f"to use {_shown(module, name)}")
        self._stack.append(_Name(module=module, name=name))

    def _global(self) -> None:
        self._name(self._line(), self._line())

    def _stack_global(self) -> None:
        name, module = self._stack.pop(), self._stack.pop()
        self._name(module, name)

    def _reduce(self) -> None:
        arguments, target = self._stack.pop(), self._stack.pop()
        if type(target) is not _Name or type(arguments) is not tuple:
            raise self._refused(f"to call {target if type(target) is _Name else f'a {_kind(target)}'}")
        key = (target.module, target.name)
        if key == ORDERED_DICT and not arguments:
            self._stack.append({})
        elif key in (REBUILD, REBUILD_WITH_DTYPE):
            self._stack.append(self._tensor(arguments, with_dtype=key == REBUILD_WITH_DTYPE))
        elif key == PARAMETER and len(arguments) == 3 and type(arguments[0]) is PickledTensor:
            self._stack.append(arguments[0])
        else:
            kinds = ", ".join(_kind(value) for value in arguments[:8])
            raise self._refused(f"to call {target} with ({kinds})")

    def _build(self) -> None:
        state, target = self._stack.pop(), self._stack[-1]
        # An OrderedDict of torch carries the versions of the modules as an attribute; nothing else has a state.
        if type(target) is not dict or type(state) is not dict:
            raise self._refused(f"to set the state of {target if type(target) is _Name else f'a {_kind(target)}'}")

    def _persistent_id(self) -> None:
        entry = self._stack.pop()
        if (
            type(entry) is not tuple
            or [type(part) for part in entry] != [str, _Name, str, str, int]
            or entry[0] != "storage"
            or (entry[1].module, entry[1].name) not in STORAGES
            or not 0 <= entry[4] < 2**56
        ):
            kinds = ", ".join(_kind(part) for part in entry[:8]) if type(entry) is tuple else _kind(entry)
            raise self._refused(f"an outside object named by ({kinds}), which is no storage of a tensor")
        dtype = STORAGES[entry[1].module, entry[1].name]
        storage = Storage(key=entry[2], dtype=dtype, num_elements=entry[4])
        if self._storages.setdefault(storage.key, storage) != storage:
            raise self._damaged(f"it describes the storage {storage.key[:40]!r} in two ways")
        self._stack.append(storage)

    def _tensor(self, arguments: tuple[Any, ...], *, with_dtype: bool) -> PickledTensor:
        names = ("storage", "first", "shape", "stride", "requires_grad", "hooks", *(("dtype",) if with_dtype else ()))
        if not len(names) <= len(arguments) <= len(names) + 1:
            raise self._damaged(f"a tensor is described by {len(arguments)} values; {len(names)} are expected")
        if len(arguments) > len(names) and arguments[-1]:
            raise self._refused("a tensor that is stored negated or conjugated")
        storage, first, shape, stride = arguments[:4]
        dtype = storage.dtype if type(storage) is Storage else None
        if with_dtype:
            stated = arguments[6]
            dtype = DTYPES.get((stated.module, stated.name)) if type(stated) is _Name else None
        if dtype is None or not _sizes((first,)) or not _sizes(shape) or not _sizes(stride):
            raise self._damaged("the storage, dtype, shape or stride of a tensor is something else")
        tensor = PickledTensor(dtype=dtype, shape=shape, stride=stride, storage=storage, first=first)
        if len(shape) != len(stride):
            raise self._damaged(f"a tensor has {len(shape)} sizes, but {len(stride)} strides")
        last = first + sum((size - 1) * step for size, step in zip(shape, stride, strict=True))
        if type(storage) is not Storage or (0 not in shape and (last + 1) * tensor.item_bytes > storage.num_bytes):
            raise self._damaged(f"a tensor of shape {list(shape)} reaches beyond the end of its storage")
        return tensor

    # Plain data.

    def _text(self, length: int) -> None:
        self._stack.append(self._take(length).decode("utf-8"))

    def _long(self) -> None:
        length = self._take(1)[0]
        if length > 8:
            raise self._refused(f"a number of {length} bytes, which no state dict needs")
        self._stack.append(int.from_bytes(self._take(length), "little", signed=True))

    def _tuple(self, length: int) -> None:
        items = self._stack[-length:]
        if len(items) < length or _MARK in items:
            raise self._damaged("the stack is too short")
        self._stack[-length:] = [tuple(items)]

    def _set_items(self, items: list[Any]) -> None:
        target = self._stack[-1]
        if type(target) is not dict or len(items) % 2:
            raise self._refused(f"to set items of a {_kind(target)}")
        for key, value in zip(items[::2], items[1::2], strict=True):
            # Only keys that are hashed at once: a tuple of tuples may take for ever.
            if type(key) not in (str, int, float, bool, type(None)):
                raise self._refused(f"a {_kind(key)} as the key of a dict")
            target[key] = value

    def _append_items(self, items: list[Any]) -> None:
        target = self._stack[-1]
        if type(target) is not list:
            raise self._refused(f"to append to a {_kind(target)}")
        target.extend(items)

    def _set_item(self) -> None:
        value, key = self._stack.pop(), self._stack.pop()
        self._set_items([key, value])

    def _remember(self, number: int) -> None:
        self._memo[number] = self._stack[-1]


def _shown(module: str, name: str) -> str:
    """A name for a message: printable, and not without end."""
    text = f"{module}.{name}"
    return text[:200] if text.isprintable() else repr(text[:200])


def _kind(value: Any) -> str:
    """What a value is, for a message; never the value itself, which may be nested without end."""
    if type(value) is _Name:
        return str(value)
    return {PickledTensor: "tensor", Storage: "storage", _Mark: "mark"}.get(type(value), type(value).__name__)


def _sizes(values: Any) -> bool:
    """Whether these are sizes as tensors have them: not many, not negative, 8 bytes each."""
    return type(values) is tuple and len(values) <= 64 and all(type(n) is int and 0 <= n < 2**63 for n in values)


_STOP = ord(".")
_U16, _U32, _I32, _F64 = struct.Struct("<H"), struct.Struct("<I"), struct.Struct("<i"), struct.Struct(">d")
# GLOBAL and INST: a letter, then the module and the name, a line each.
_NAMES = re.compile(rb"[ci]([A-Za-z_][\w.]{0,99})\n([A-Za-z_][\w.]{0,99})\n")
_REFUSED = {
    ord("S"): "STRING",
    ord("i"): "INST",
    ord("o"): "OBJ",
    ord("P"): "PERSID",
    0x81: "NEWOBJ",
    0x82: "EXT1",
    0x83: "EXT2",
    0x84: "EXT4",
    0x8B: "LONG4",
    0x92: "NEWOBJ_EX",
}
# The instructions by their codes (pickletools has a description of each).
_ACTIONS: Mapping[int, Callable[[_Machine], None]] = {
    0x80: lambda machine: machine._skip(1),  # PROTO
    0x95: lambda machine: machine._skip(8),  # FRAME
    ord("("): lambda machine: machine._stack.append(_MARK),
    ord("N"): lambda machine: machine._stack.append(None),
    0x88: lambda machine: machine._stack.append(True),
    0x89: lambda machine: machine._stack.append(False),
    ord(")"): lambda machine: machine._stack.append(()),
    ord("]"): lambda machine: machine._stack.append([]),
    ord("}"): lambda machine: machine._stack.append({}),
    ord("K"): lambda machine: machine._stack.append(machine._take(1)[0]),
    ord("M"): lambda machine: machine._stack.append(machine._number(_U16)),
    ord("J"): lambda machine: machine._stack.append(machine._number(_I32)),
    ord("G"): lambda machine: machine._stack.append(_F64.unpack(machine._take(8))[0]),
    0x8A: _Machine._long,
    ord("X"): lambda machine: machine._text(machine._number(_U32)),
    0x8C: lambda machine: machine._text(machine._take(1)[0]),
    ord("t"): lambda machine: machine._stack.append(tuple(machine._from_mark())),
    0x85: lambda machine: machine._tuple(1),
    0x86: lambda machine: machine._tuple(2),
    0x87: lambda machine: machine._tuple(3),
    ord("a"): lambda machine: machine._append_items([machine._stack.pop()]),
    ord("e"): lambda machine: machine._append_items(machine._from_mark()),
    ord("s"): _Machine._set_item,
    ord("u"): lambda machine: machine._set_items(machine._from_mark()),
    ord("q"): lambda machine: machine._remember(machine._take(1)[0]),
    ord("r"): lambda machine: machine._remember(machine._number(_U32)),
    0x94: lambda machine: machine._remember(len(machine._memo)),
    ord("h"): lambda machine: machine._stack.append(machine._memo[machine._take(1)[0]]),
    ord("j"): lambda machine: machine._stack.append(machine._memo[machine._number(_U32)]),
    ord("c"): _Machine._global,
    0x93: _Machine._stack_global,
    ord("R"): _Machine._reduce,
    ord("b"): _Machine._build,
    ord("Q"): _Machine._persistent_id,
}
