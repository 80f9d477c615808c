"""Malicious pickles: nothing runs, and the message names the attempt."""

import pickle
import pickletools
import struct
import subprocess
import sys
import zipfile

import pytest
import torch

from layer_surgeon import open_checkpoint
from layer_surgeon.checkpoint.torch_pickle import read_state_dict
from layer_surgeon.errors import CheckpointError
from tests.support.command_line import surgeon
from tests.support.torch_files import (
    STORAGE,
    TENSOR,
    reduce_pickle,
    state_dict_pickle,
    tiny_state_dict,
    write_checkpoint,
    write_zip,
)


class Call:
    """An object whose pickle calls a function when it is loaded."""

    def __init__(self, module, name, *arguments):
        __import__(module)
        self.function = sys.modules[module]
        for part in name.split("."):
            self.function = getattr(self.function, part)
        self.arguments = arguments

    def __reduce__(self):
        return self.function, self.arguments


def touch(marker):
    return f"touch {marker}"


# (module, name, arguments) of functions that attacks on torch.load have used or could use.
GADGETS = [
    ("os", "system", ["{touch}"]),
    ("posix", "system", ["{touch}"]),
    ("nt", "system", ["{touch}"]),
    ("subprocess", "Popen", ["{touch}"]),
    ("subprocess", "check_output", [["sh", "-c", "{touch}"]]),
    ("builtins", "eval", ["__import__('os').system('{touch}')"]),
    ("builtins", "exec", ["import os; os.system('{touch}')"]),
    ("builtins", "getattr", [{}, "update"]),
    ("builtins", "__import__", ["antigravity"]),
    ("builtins", "open", ["{marker}", "w"]),
    ("builtins", "compile", ["1", "x", "exec"]),
    ("__builtin__", "eval", ["1"]),
    ("runpy", "_run_code", ["import os", {}]),
    ("runpy", "run_path", ["{marker}"]),
    ("timeit", "timeit", ["__import__('os').system('{touch}')"]),
    ("pdb", "run", ["import os"]),
    ("cProfile", "run", ["import os"]),
    ("pty", "spawn", ["sh"]),
    ("webbrowser", "open", ["http://127.0.0.1"]),
    ("importlib", "import_module", ["antigravity"]),
    ("operator", "attrgetter", ["system"]),
    ("operator", "methodcaller", ["system", "{touch}"]),
    ("functools", "partial", ["{touch}"]),
    ("pickle", "loads", [b"."]),
    ("_pickle", "loads", [b"."]),
    ("marshal", "loads", [b"."]),
    ("codecs", "decode", ["x", "rot13"]),
    ("_codecs", "encode", ["x", "latin1"]),
    ("socket", "create_connection", [("127.0.0.1", 9)]),
    ("shutil", "rmtree", ["{marker}"]),
    ("copyreg", "_reconstructor", [1, 2, 3]),
    ("numpy.core.multiarray", "_reconstruct", [1, (0,), b"b"]),
    ("numpy._core.multiarray", "scalar", [1, b"b"]),
    ("numpy.testing._private.utils", "runstring", ["import os", {}]),
    ("torch.hub", "load", ["a/b", "c"]),
    ("torch.hub", "load_state_dict_from_url", ["http://127.0.0.1:9/x"]),
    ("torch.serialization", "load", ["{marker}"]),
    ("torch", "load", ["{marker}"]),
    ("torch.jit", "load", ["{marker}"]),
    ("torch.ops", "load_library", ["{marker}"]),
    ("torch.utils.collect_env", "run", ["{touch}"]),
    ("torch.utils._config_module", "load_config", ["x"]),
    ("torch.utils.bottleneck.__main__", "run_cprofile", ["import os", {}]),
    ("torch.distributed.rpc.internal", "_run_function", [b"."]),
    ("torch._dynamo.guards.GuardBuilder", "get", [1, "x"]),
    ("torch._utils", "_rebuild_parameter_with_state", [1, True, {}, {}]),
    ("torch._utils", "_rebuild_sparse_tensor", [1, 2]),
    ("torch._utils", "_rebuild_device_tensor_from_numpy", [1, 2, 3, 4]),
    ("torch._utils", "_import_dotted_name", ["os.system"]),
    ("torch._tensor", "_rebuild_from_type_v2", [1, 2, 3, 4]),
    ("torch", "QInt8Storage", []),
    ("collections", "defaultdict", [1]),
    ("collections", "Counter", []),
    ("collections", "OrderedDict.__reduce__", []),
    ("transformers.utils.hub", "cached_file", ["a/b", "c"]),
    ("pip", "main", [["install", "x"]]),
]


def fill(value, marker):
    if isinstance(value, str):
        return value.format(marker=marker, touch=touch(marker))
    if isinstance(value, (list, tuple)):
        return type(value)(fill(part, marker) for part in value)
    return value


@pytest.mark.parametrize("protocol", [2, 4])
@pytest.mark.parametrize(("module", "name", "arguments"), GADGETS, ids=[f"{m}.{n}" for m, n, _ in GADGETS])
def test_nothing_runs_and_the_message_names_the_function(tmp_path, module, name, arguments, protocol):
    marker = tmp_path / "ran"
    loaded = set(sys.modules)
    write_checkpoint(tmp_path, {})
    write_zip(tmp_path / "pytorch_model.bin", reduce_pickle(module, name, *fill(arguments, marker), protocol=protocol))
    with pytest.raises(CheckpointError) as caught:
        open_checkpoint(tmp_path)
    assert f"tries to use {module}.{name}." in str(caught.value)
    assert "nothing was run" in str(caught.value)
    assert not marker.exists()
    assert not {"antigravity", "pip"} & (set(sys.modules) - loaded)


@pytest.mark.parametrize(
    ("module", "name", "argument"),
    [
        ("os", "system", "{touch}"),
        ("builtins", "eval", "__import__('os').system('{touch}')"),
        ("builtins", "exec", "1"),
    ],
)
def test_a_malicious_object_saved_by_torch(tmp_path, module, name, argument):
    marker = tmp_path / "ran"
    state = tiny_state_dict(torch.float32)
    state["model.norm.weight"] = Call(module, name, fill(argument, marker))
    write_checkpoint(tmp_path / "donor", state)
    # `os.system` is pickled under its name on this platform, and builtins in this protocol under their Python 2 names.
    own = Call(module, name).function.__module__.replace("builtins", "__builtin__")
    with pytest.raises(CheckpointError, match=rf"tries to use {own}\.{name}\."):
        open_checkpoint(tmp_path / "donor")
    process = surgeon("extract", "donor", cwd=tmp_path)
    assert (process.code, marker.exists()) == (1, False)
    assert f"{own}.{name}" in process.err


def test_an_ordinary_unpickler_would_create_the_marker(tmp_path):
    marker = tmp_path / "ran"
    content = reduce_pickle("os", "system", touch(marker)).replace(TENSOR, b"N")
    pickle.loads(content)  # noqa: S301  # only runs `touch`
    assert marker.exists()
    with pytest.raises(CheckpointError, match=r"os\.system"):
        read_state_dict(content, "x")


def text(word):
    return b"X" + struct.pack("<I", len(word)) + word.encode()


ODD = [
    # the oldest format, with text before the name
    (b"(S'touch x'\nios\nsystem\n.", r"os\.system"),
    (b"(" + text("touch x") + b"ios\nsystem\n.", r"instance of os\.system"),
    (b"cos\nsystem\n(S'touch x'\ntR.", r"to use os\.system"),
    (b"(cos\nsystem\n" + text("touch x") + b"o.", r"to use os\.system"),
    (b"(ccollections\nOrderedDict\no.", r"OBJ"),
    (b"ccollections\nOrderedDict\n)\x81.", r"NEWOBJ"),
    (b"ccollections\nOrderedDict\n)}\x92.", r"NEWOBJ_EX"),
    (b"\x82\x01.", r"extension registry \(EXT1\)"),
    (b"\x83\x01\x01.", r"extension registry \(EXT2\)"),
    (b"\x84\x01\x01\x01\x01.", r"extension registry \(EXT4\)"),
    # calls of allowed names with arguments that are not allowed
    (b"ccollections\nOrderedDict\n(]tR.", r"call collections\.OrderedDict with \(list\)"),
    (b"ccollections\nOrderedDict\nK\x05R.", r"to call collections\.OrderedDict"),
    (b"ctorch\nFloatStorage\n(J\xff\xff\xff\x7ftR.", r"call torch\.FloatStorage with \(int\)"),
    (b"ctorch\nfloat8_e4m3fn\n)R.", r"call torch\.float8_e4m3fn"),
    (b"ctorch._utils\n_rebuild_parameter\n(NNNtR.", r"call torch\._utils\._rebuild_parameter"),
    (b"ctorch._utils\n_rebuild_tensor_v2\n)R.", r"described by 0 values"),
    (b"ctorch._utils\n_rebuild_tensor_v2\n(NNNNNNtR.", r"has the wrong type"),
    (b"])R.", r"to call a list"),
    (b"NNR.", r"to call a NoneType"),
    # states
    (b"ctorch\nFloatStorage\n}b.", r"set the state of torch\.FloatStorage"),
    (b"ctorch._utils\n_rebuild_tensor_v2\n}b.", r"set the state of torch\._utils\._rebuild_tensor_v2"),
    (TENSOR + b"}b.", r"set the state of a tensor"),
    (b"}Nb.", r"set the state of a dict"),
    (b"ctorch\nFloatStorage\n" + text("a") + b"Ns.", r"set items of a torch\.FloatStorage"),
    (b"Na.", r"damaged"),
    (b"NNa.", r"append to a NoneType"),
    # persistent ids
    (b"Pos.system\n.", r"'os\.system' \(PERSID\)"),
    (text("os.system") + b"Q.", r"named by \(?str"),
    (
        b"(" + text("module") + b"ctorch\nFloatStorage\n" + text("0") + text("cpu") + b"K\x04tQ.",
        r"is not the storage of a tensor",
    ),
    (b"(" + text("storage") + b"cos\nsystem\n" + text("0") + text("cpu") + b"K\x04tQ.", r"os\.system"),
    (b"(" + text("storage") + b"ccollections\nOrderedDict\n" + text("0") + text("cpu") + b"K\x04tQ.", r"OrderedDict"),
    (
        b"(" + text("storage") + b"ctorch\nFloatStorage\n" + text("0") + text("cpu") + b"J\xff\xff\xff\xfftQ.",
        r"is not the storage of a tensor",
    ),
    (
        b"(" + text("storage") + b"ctorch\nFloatStorage\nK\x00" + text("cpu") + b"K\x04tQ.",
        r"is not the storage of a tensor",
    ),
    (STORAGE.replace(b"Float", b"Half") + STORAGE + b".", r"in two ways"),
    (b"NQ.", r"NoneType"),
    # numbers, keys and text
    (b"\x8b\xff\xff\xff\x7f.", r"LONG4"),
    (b"\x8a\xff" + b"\xff" * 255 + b".", r"a number of 255 bytes"),
    (b"})Ns.", r"a tuple as the key"),
    (b"}]Ns.", r"a list as the key"),
    (b"}(Nu.", r"set items"),
    (b"\x8c\x02\xff\xff.", r"UnicodeDecodeError"),
    (b"X\xff\xff\xff\xff.", r"ends in the middle"),
    (b"\x8d" + b"\xff" * 8 + b".", r"0x8d"),
    (b"\x95" + b"\xff" * 7, r"ends in the middle"),
    (b"c" + b"a" * 5000 + b"\nb\n.", r"a name does not end"),
    (b"c\x1b[2J\nb\n.", r"\\x1b\[2J"),
    # the stack machine itself
    (b"", r"damaged"),
    (b".", r"damaged"),
    (b"t.", r"mark that was not set"),
    (b"\x85.", r"too short"),
    (b"(\x85.", r"too short"),
    (b"h\x07.", r"KeyError"),
    (b"0.", r"0x30"),
    (b"\xff.", r"0xff"),
    (b"N\x93.", r"damaged"),
    (b"NN\x93.", r"a name is not a string"),
    (b"K\x05.", r"contains a value of type int"),
]


@pytest.mark.parametrize(("content", "word"), ODD, ids=range(len(ODD)))
def test_an_odd_pickle_is_refused(content, word):
    with pytest.raises(CheckpointError, match=word):
        read_state_dict(content, "x.bin")


def tensor_with(first=b"K\x00", shape=b"K\x04\x85", stride=b"K\x01\x85", storage=STORAGE, more=b""):
    hooks = b"ccollections\nOrderedDict\n)R"
    return b"ctorch._utils\n_rebuild_tensor_v2\n(" + storage + first + shape + stride + b"\x89" + hooks + more + b"tR"


@pytest.mark.parametrize(
    ("tensor", "word"),
    [
        (tensor_with(first=b"K\x01"), "beyond the end"),
        (tensor_with(first=b"J\xff\xff\xff\xff"), "has the wrong type"),
        (tensor_with(first=b"\x8a\x08" + b"\xff" * 7 + b"\x7f"), "beyond the end"),
        (tensor_with(first=b"\x88"), "has the wrong type"),
        (tensor_with(shape=b"K\x05\x85"), "beyond the end"),
        (tensor_with(shape=b"J\xff\xff\xff\xff\x85"), "has the wrong type"),
        (tensor_with(shape=b"K\x02K\x02\x86"), "2 sizes, but 1 strides"),
        (tensor_with(shape=b"(" + b"\x8a\x08" + b"\xff" * 7 + b"\x7ft"), "beyond the end"),
        (tensor_with(shape=b"(" + b"K\x01" * 65 + b"t", stride=b"(" + b"K\x01" * 65 + b"t"), "has the wrong type"),
        (tensor_with(shape=b"]"), "has the wrong type"),
        (tensor_with(shape=b"G" + bytes(8) + b"\x85"), "has the wrong type"),
        (tensor_with(stride=b"K\x02\x85"), "beyond the end"),
        (tensor_with(storage=b"N"), "has the wrong type"),
        (tensor_with(storage=STORAGE.replace(b"Float", b"Untyped")), "has the wrong type"),
        (tensor_with(more=b"}" + text("neg") + b"\x88s"), "negated"),
        (tensor_with(more=b"NNN"), "described by 9 values"),
    ],
)
def test_a_false_tensor_is_refused(tensor, word):
    assert set(read_state_dict(state_dict_pickle(tensor_with()), "x")) == {"a"}
    with pytest.raises(CheckpointError, match=word):
        read_state_dict(state_dict_pickle(tensor), "x")


BOMBS = {
    "a memo of 2**31 places": b"Nr\xff\xff\xff\xff" + b"j\xff\xff\xff\xff.",
    "tuples that double": b"N" + b"\x94h\x00h\x00\x86q\x00" * 400_000,
    "a tuple that doubles, as a key": b"}N" + b"q\x00h\x00h\x00\x860"[:-1] * 100 + b"Ns.",
    "deep": b"N" + b"\x85" * 690_000 + b".",
    "deep lists": b"]" * 300_000 + b"a" * 299_999 + b".",
    "marks": b"(" * 5_000_000,
    "dicts": b"}\x94" * 2_500_000,
    "a list in itself": b"]\x94" + b"h\x00a" * 1_600_000,
    "many names": b"ccollections\nOrderedDict\n" * 200_000,
    "text before many names": b"S" + b"ccollections\nOrderedDict\n" * 200_000,
    "text before no name": b"S" + b"ca" * 2_500_000,
    "wide text": b"X" + struct.pack("<I", 4_900_000) + "😀".encode() + b"a" * 4_899_996 + b".",
}


# Prints by how much reading the pickle raises the peak memory, compared with only loading the bytes.
READ = """
import resource, sys
from layer_surgeon.checkpoint.torch_pickle import read_state_dict
from layer_surgeon.errors import CheckpointError
content = sys.stdin.buffer.read()
before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
try:
    read_state_dict(content, "x")
except CheckpointError:
    print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before)
"""


@pytest.mark.parametrize("content", BOMBS.values(), ids=BOMBS)
def test_pickle_bombs_take_little_memory(content):
    process = subprocess.run([sys.executable, "-c", READ], input=content, capture_output=True, check=True)
    kilobytes = int(process.stdout) // (1024 if sys.platform == "darwin" else 1)
    assert kilobytes < 200_000


def test_only_names_that_torch_writes_are_allowed(tmp_path):
    # Beyond storages and dtypes, these are all names that a pickle may use.
    from layer_surgeon.checkpoint.torch_records import DTYPES, KNOWN_NAMES, STORAGES

    functions = KNOWN_NAMES - set(STORAGES) - set(DTYPES)
    assert {name for _, name in functions} == {
        "OrderedDict",
        "_rebuild_tensor_v2",
        "_rebuild_tensor_v3",
        "_rebuild_parameter",
    }
    for (_, name), code in STORAGES.items():
        assert hasattr(torch, name), code
    for (_, name), code in DTYPES.items():
        assert isinstance(getattr(torch, name), torch.dtype), code
    write_checkpoint(tmp_path, tiny_state_dict(torch.float32))
    with zipfile.ZipFile(tmp_path / "pytorch_model.bin") as archive:
        content = archive.read("pytorch_model/data.pkl")
    names = {tuple(arg.split(" ")) for op, arg, _ in pickletools.genops(content) if op.name == "GLOBAL"}
    assert names <= KNOWN_NAMES
