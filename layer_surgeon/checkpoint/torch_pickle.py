"""Read the pickle in a PyTorch checkpoint as a description of tensors, without running anything in it. No torch.

A pickle is a program for a small stack machine. The machine in this module only supports the instructions that
`torch.save` writes for a state dict. Names of functions and types become inert records, and only names on an allow-list
are accepted. Any other name, call or instruction is refused, and the error message says which one it was.

The standard library's unpickler with an allow-list would not run anything either, but a small file can make it use up
all memory: its memo is an array, so five bytes (`LONG_BINPUT 2**31`) allocate 16 GB.
"""

import re
import struct
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from layer_surgeon.checkpoint.torch_records import (
    DTYPES,
    KNOWN_NAMES,
    ORDERED_DICT,
    PARAMETER,
    REBUILD,
    REBUILD_WITH_DTYPE,
    STORAGES,
    PickledTensor,
    Storage,
)
from layer_surgeon.errors import CheckpointError

# torch.save writes 25 to 33 instructions and 130 to 250 bytes per tensor. These limits allow 20,000 tensors in one
# file, which take 0.6 s to read. No model without shards has as many.
MAX_PICKLE_BYTES = 5_000_000
_MAX_INSTRUCTIONS = 700_000
_MAX_NAME_BYTES = 1000
_MAX_SEARCHED_BYTES = 100_000

_CONVERT = (
    "If you trust the file, load it with torch.load and save it with transformers' save_pretrained, which writes "
    "safetensors files."
)


def read_state_dict(raw: bytes, file: str) -> dict[str, PickledTensor]:
    """Read the tensors of a pickled state dict, by name. Other values in it are ignored.

    Args:
        raw: The pickle.
        file: The name of the checkpoint's file.

    Raises:
        CheckpointError: The pickle is damaged, does anything but describe tensors (the message names it), or is not a
            state dict.
    """
    content = _Machine(raw, file).run()
    if type(content) is dict and type(content.get("state_dict")) is dict:
        # pytorch-lightning and many training scripts wrap the state dict like this.
        content = content["state_dict"]
    if type(content) is not dict:
        raise CheckpointError(
            f"{file} contains a value of type {_type_name(content)}, but a dict of tensors by name is expected. "
            f"{_CONVERT}"
        )
    tensors = {name: value for name, value in content.items() if type(name) is str and type(value) is PickledTensor}
    if not tensors:
        names = ", ".join(name[:40] for name in list(content)[:5] if type(name) is str)
        raise CheckpointError(
            f"{file} contains a dict without tensors (entries: {names or 'none'}), but a model's state dict is "
            f"expected, or a dict that has one as `state_dict`. {_CONVERT}"
        )
    return tensors


@dataclass(frozen=True, kw_only=True, slots=True)
class _Name:
    """The name of a function or type in a pickle. It is only a record: the object itself is never imported."""

    module: str
    name: str

    def __str__(self) -> str:
        return f"{self.module}.{self.name}"


class _Mark:
    """A marker on the stack. Some instructions take all items above the last one."""


_MARK = _Mark()


class _Machine:
    """Interpreter for one pickle, on records and plain data only."""

    def __init__(self, raw: bytes, file: str) -> None:
        self._raw, self._file = raw, file
        self._position = 0
        self._stack: list[Any] = []
        # A dict, because a pickle chooses its own numbers, and a list would have to be as long as the largest.
        self._memo: dict[int, Any] = {}
        self._storages: dict[str, Storage] = {}

    def run(self) -> Any:
        """Run the pickle and return its value: dicts, lists, tuples, tensors and plain values."""
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

    def _refused(self, action: str) -> CheckpointError:
        return CheckpointError(
            f"The pickle in {self._file} tries {action}. Only descriptions of tensors are read, so nothing was run. "
            f"If you don't expect this, the file may be malicious. {_CONVERT}"
        )

    def _damaged(self, problem: str) -> CheckpointError:
        return CheckpointError(f"The pickle in {self._file} is damaged: {problem}. Get the file again.")

    def _explain(self, code: int) -> str:
        """Describe what an unsupported instruction would have done."""
        name = _REFUSED.get(code, f"0x{code:02x}")
        if name == "INST":
            return f"to make an instance of {_full_name(self._line(), self._line())} (INST)"
        if name.startswith("EXT"):
            return f"to get an object from pickle's extension registry ({name})"
        if name == "PERSID":
            return (
                f"to get an external object named {self._line()[:100]!r} (PERSID), which is not the storage of a tensor"
            )
        # The instruction may come before the name that explains it, so search the pickle for an unknown name.
        pairs = (match.groups() for match in _NAME_INSTRUCTION.finditer(self._raw[:_MAX_SEARCHED_BYTES]))
        names = ((module.decode(), name.decode()) for module, name in pairs)
        unknown_name = next((pair for pair in names if pair not in KNOWN_NAMES), None)
        detail = "" if unknown_name is None else f" (it names {_full_name(*unknown_name)})"
        return f"to use the instruction {name}{detail}, which no state dict needs"

    # Reading the program.

    def _take(self, length: int) -> bytes:
        start, self._position = self._position, self._position + length
        if self._position > len(self._raw):
            raise self._damaged("it ends in the middle")
        return self._raw[start : self._position]

    def _number(self, form: struct.Struct) -> int:
        (value,) = form.unpack(self._take(form.size))
        return int(value)

    def _line(self) -> str:
        end = self._raw.find(b"\n", self._position, self._position + _MAX_NAME_BYTES)
        if end < 0:
            raise self._damaged("a name does not end")
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
        raise self._damaged("an instruction refers to a mark that was not set")

    # Names, calls and storages.

    def _name(self, module: Any, name: Any) -> None:
        if type(module) is not str or type(name) is not str:
            raise self._damaged("a name is not a string")
        if (module, name) not in KNOWN_NAMES:
            raise self._refused(f"to use {_full_name(module, name)}")
        self._stack.append(_Name(module=module, name=name))

    def _global(self) -> None:
        self._name(self._line(), self._line())

    def _stack_global(self) -> None:
        name, module = self._stack.pop(), self._stack.pop()
        self._name(module, name)

    def _reduce(self) -> None:
        arguments, target = self._stack.pop(), self._stack.pop()
        if type(target) is not _Name or type(arguments) is not tuple:
            raise self._refused(f"to call {target if type(target) is _Name else f'a {_type_name(target)}'}")
        key = (target.module, target.name)
        if key == ORDERED_DICT and not arguments:
            self._stack.append({})
        elif key in (REBUILD, REBUILD_WITH_DTYPE):
            self._stack.append(self._tensor(arguments, with_dtype=key == REBUILD_WITH_DTYPE))
        elif key == PARAMETER and len(arguments) == 3 and type(arguments[0]) is PickledTensor:
            self._stack.append(arguments[0])
        else:
            kinds = ", ".join(_type_name(value) for value in arguments[:8])
            raise self._refused(f"to call {target} with ({kinds})")

    def _build(self) -> None:
        state, target = self._stack.pop(), self._stack[-1]
        # torch stores module versions as an attribute of the OrderedDict. Nothing else in a state dict has a state.
        if type(target) is not dict or type(state) is not dict:
            raise self._refused(f"to set the state of {target if type(target) is _Name else f'a {_type_name(target)}'}")

    def _persistent_id(self) -> None:
        persistent_id = self._stack.pop()
        if (
            type(persistent_id) is not tuple
            or [type(part) for part in persistent_id] != [str, _Name, str, str, int]
            or persistent_id[0] != "storage"
            or (persistent_id[1].module, persistent_id[1].name) not in STORAGES
            or not 0 <= persistent_id[4] < 2**56
        ):
            kinds = (
                ", ".join(_type_name(part) for part in persistent_id[:8])
                if type(persistent_id) is tuple
                else _type_name(persistent_id)
            )
            raise self._refused(f"to get an external object named by ({kinds}), which is not the storage of a tensor")
        dtype = STORAGES[persistent_id[1].module, persistent_id[1].name]
        storage = Storage(key=persistent_id[2], dtype=dtype, num_elements=persistent_id[4])
        if self._storages.setdefault(storage.key, storage) != storage:
            raise self._damaged(f"it describes the storage {storage.key[:40]!r} in two ways")
        self._stack.append(storage)

    def _tensor(self, arguments: tuple[Any, ...], *, with_dtype: bool) -> PickledTensor:
        names = ("storage", "first", "shape", "stride", "requires_grad", "hooks", *(("dtype",) if with_dtype else ()))
        if not len(names) <= len(arguments) <= len(names) + 1:
            raise self._damaged(f"a tensor is described by {len(arguments)} values, but {len(names)} are expected")
        if len(arguments) > len(names) and arguments[-1]:
            raise self._refused("to load a tensor that is stored negated or conjugated")
        storage, first, shape, stride = arguments[:4]
        dtype = storage.dtype if type(storage) is Storage else None
        if with_dtype:
            dtype_name = arguments[6]
            dtype = DTYPES.get((dtype_name.module, dtype_name.name)) if type(dtype_name) is _Name else None
        if dtype is None or not _are_sizes((first,)) or not _are_sizes(shape) or not _are_sizes(stride):
            raise self._damaged("the storage, dtype, shape or stride of a tensor has the wrong type")
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
            raise self._refused(f"to load a number of {length} bytes, which no state dict needs")
        self._stack.append(int.from_bytes(self._take(length), "little", signed=True))

    def _tuple(self, length: int) -> None:
        items = self._stack[-length:]
        if len(items) < length or _MARK in items:
            raise self._damaged("the stack is too short")
        self._stack[-length:] = [tuple(items)]

    def _set_items(self, items: list[Any]) -> None:
        target = self._stack[-1]
        if type(target) is not dict or len(items) % 2:
            raise self._refused(f"to set items of a {_type_name(target)}")
        for key, value in zip(items[::2], items[1::2], strict=True):
            # Only keys with a fast hash: hashing nested tuples can take forever.
            if type(key) not in (str, int, float, bool, type(None)):
                raise self._refused(f"to use a {_type_name(key)} as the key of a dict")
            target[key] = value

    def _append_items(self, items: list[Any]) -> None:
        target = self._stack[-1]
        if type(target) is not list:
            raise self._refused(f"to append to a {_type_name(target)}")
        target.extend(items)

    def _set_item(self) -> None:
        value, key = self._stack.pop(), self._stack.pop()
        self._set_items([key, value])

    def _remember(self, number: int) -> None:
        self._memo[number] = self._stack[-1]


def _full_name(module: str, name: str) -> str:
    """Format a name for a message: printable and at most 200 characters."""
    text = f"{module}.{name}"
    return text[:200] if text.isprintable() else repr(text[:200])


def _type_name(value: Any) -> str:
    """Return the type of a value for a message. The value itself is not shown: its nesting may be too deep."""
    if type(value) is _Name:
        return str(value)
    return {PickledTensor: "tensor", Storage: "storage", _Mark: "mark"}.get(type(value), type(value).__name__)


def _are_sizes(values: Any) -> bool:
    """Return True for valid sizes of a tensor: at most 64 non-negative integers of 8 bytes."""
    return type(values) is tuple and len(values) <= 64 and all(type(n) is int and 0 <= n < 2**63 for n in values)


_STOP = ord(".")
_U16, _U32, _I32, _F64 = struct.Struct("<H"), struct.Struct("<I"), struct.Struct("<i"), struct.Struct(">d")
# GLOBAL and INST: a letter, then the module and the name, a line each.
_NAME_INSTRUCTION = re.compile(rb"[ci]([A-Za-z_][\w.]{0,99})\n([A-Za-z_][\w.]{0,99})\n")
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
# The supported instructions by opcode. pickletools describes each of them.
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
