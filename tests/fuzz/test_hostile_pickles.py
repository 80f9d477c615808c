"""Hostile pickles, whole files of them: nothing runs, nothing is imported, and the message names what was tried.

Each payload is a real attack: `pickle.loads` of those marked live makes a file, which is checked first. Reading them is
watched by an audit hook of the interpreter, which hears of every import, call of the system and look-up of a pickle.
"""

import io
import json
import subprocess
import sys
import tarfile
from pathlib import Path

import pytest
import torch

from layer_surgeon import open_checkpoint
from layer_surgeon.errors import CheckpointError
from tests.support.command_line import surgeon
from tests.support.hostile_pickles import LAUGHS, PAYLOADS, call, legacy, name, text
from tests.support.torch_files import TENSOR, TINY, state_dict_pickle, tiny_state_dict, write_checkpoint, write_zip


@pytest.mark.parametrize("kind", [kind for kind, payload in PAYLOADS.items() if payload.live])
def test_a_live_payload_runs_in_an_ordinary_unpickler(kind: str, tmp_path: Path) -> None:
    marker = tmp_path / "ran"
    content = PAYLOADS[kind].make(str(marker)) + b"."
    script = "import pickle, sys; pickle.loads(sys.stdin.buffer.read())"
    subprocess.run([sys.executable, "-c", script], input=content, capture_output=True, check=False)
    assert marker.exists()


# Watches everything that happens while the files are read, once what reading needs is imported.
WATCH = """
import json, sys
from layer_surgeon import open_checkpoint
from layer_surgeon.errors import CheckpointError
folders = json.load(sys.stdin)
heard, watching = [], False
HARMLESS = {"open", "os.scandir", "os.listdir"}
def hook(event, arguments):
    if watching and event not in HARMLESS and not event.startswith("object.__getattr__"):
        heard.append(f"{event} {str(arguments)[:100]}")
    if watching and event == "open" and arguments[1] not in ("r", "rb", None):
        heard.append(f"open {arguments}")
sys.addaudithook(hook)
def read(folder):
    try:
        open_checkpoint(folder)
    except CheckpointError as error:
        return str(error)
    return "opened"
read(folders[0])
modules = set(sys.modules)
result = []
for folder in folders:
    heard.clear()
    watching = True
    message = read(folder)
    watching = False
    result.append({"message": message, "heard": list(heard), "imported": sorted(set(sys.modules) - modules)})
json.dump(result, sys.stdout)
"""


@pytest.fixture(scope="module")
def seen(tmp_path_factory: pytest.TempPathFactory) -> dict[str, dict[str, object]]:
    """What happened when each of the payloads was read, alone and beside the tensors of a model."""
    root = tmp_path_factory.mktemp("payloads")
    folders = {}
    for number, (kind, payload) in enumerate(PAYLOADS.items()):
        made = payload.make(str(root / f"ran{number}"))
        for where, content in {
            "alone": made + b".",
            "beside": state_dict_pickle(made.removeprefix(b"\x80\x04")),
            "inside": b"\x80\x04}" + text("a") + made.removeprefix(b"\x80\x04") + b"s" + text("b") + TENSOR + b"s.",
        }.items():
            folder = root / f"{number} {where}"
            write_checkpoint(folder, {})
            write_zip(folder / "pytorch_model.bin", content)
            folders[f"{kind}, {where}"] = str(folder)
    done = subprocess.run(
        [sys.executable, "-c", WATCH],
        input=json.dumps(list(folders.values())).encode(),
        capture_output=True,
        check=True,
        cwd=root,
    )
    assert not list(root.glob("ran*")), "a payload ran"
    return dict(zip(folders, json.loads(done.stdout), strict=True))


@pytest.mark.parametrize("where", ["alone", "beside", "inside"])
@pytest.mark.parametrize("kind", PAYLOADS)
def test_nothing_runs_and_it_is_named(seen: dict[str, dict[str, object]], kind: str, where: str) -> None:
    result = seen[f"{kind}, {where}"]
    assert result["heard"] == []
    assert result["imported"] == []
    assert PAYLOADS[kind].named in str(result["message"])
    assert "nothing was run" in str(result["message"])


def test_the_hook_hears(tmp_path: Path) -> None:
    """Were a payload run, or a name of it looked up, the test above would see it."""
    script = WATCH.replace("open_checkpoint(folder)", "__import__('pickle').loads(b'cos\\nsystem\\n(Vtrue\\ntR.')")
    done = subprocess.run(
        [sys.executable, "-c", script], input=json.dumps([str(tmp_path)] * 2).encode(), capture_output=True, check=True
    )
    heard = " ".join(json.loads(done.stdout)[1]["heard"])
    assert "pickle.find_class" in heard
    assert "os.system" in heard


@pytest.mark.parametrize(
    "kind", ["os.system", "a partial", "torch.load inside", "OBJ", "a dotted name of a known module"]
)
def test_the_command_refuses_them(tmp_path: Path, kind: str) -> None:
    marker = tmp_path / "ran"
    write_checkpoint(tmp_path / "donor", tiny_state_dict(torch.float32))
    made = PAYLOADS[kind].make(str(marker)).removeprefix(b"\x80\x04")
    write_zip(tmp_path / "donor" / "pytorch_model.bin", b"\x80\x04}" + text("a") + made + b"s.")
    done = surgeon("extract", "donor", "--output", "out", cwd=tmp_path)
    assert done.code == 1
    assert PAYLOADS[kind].named in " ".join(done.err.split())
    assert "Traceback" not in done.err
    assert sorted(path.name for path in tmp_path.iterdir() if not path.name.startswith(".")) == ["donor"]


def test_a_shard_that_is_hostile_is_found_when_it_is_read(tmp_path: Path) -> None:
    folder = write_checkpoint(tmp_path / "donor", tiny_state_dict(torch.float32), shards=2)
    write_zip(
        folder / "pytorch_model-00002-of-00002.bin", call(name("os", "system"), text(f"touch {tmp_path}/ran")) + b"."
    )
    done = surgeon("extract", "donor", "--output", "out", cwd=tmp_path)
    assert (done.code, (tmp_path / "ran").exists(), (tmp_path / "out").exists()) == (1, False, False)
    assert "os.system" in done.err


def test_a_pickle_that_is_no_zip_is_not_read(tmp_path: Path) -> None:
    write_checkpoint(tmp_path, {})
    bare = call(name("os", "system"), text(f"touch {tmp_path}/ran")) + b"."
    tar = io.BytesIO()
    with tarfile.open(fileobj=tar, mode="w") as archive:
        entry = tarfile.TarInfo("pickle")
        entry.size = len(bare)
        archive.addfile(entry, io.BytesIO(bare))
    for content in (bare, legacy(f"{tmp_path}/ran"), tar.getvalue(), bare * 100):
        (tmp_path / "pytorch_model.bin").write_bytes(content)
        with pytest.raises(CheckpointError):
            open_checkpoint(tmp_path)
    assert not (tmp_path / "ran").exists()


def test_what_follows_the_end_is_never_looked_at(tmp_path: Path) -> None:
    """A second pickle behind the first, a second entry: what is read stays the description of tensors."""
    folder = write_checkpoint(tmp_path, {})
    evil = call(name("os", "system"), text(f"touch {tmp_path}/ran")) + b"."
    names = {tensor: tensor for tensor in tiny_state_dict(torch.float32)}
    pickled = b"\x80\x02}" + b"".join(text(tensor) + TENSOR + b"s" for tensor in names) + b"."
    storage = {"data/0": bytes(16), "data/evil.pkl": evil, "version": evil, ".data/serialization_id": evil}
    write_zip(folder / "pytorch_model.bin", pickled + evil, storage)
    assert open_checkpoint(folder).num_layers == TINY["num_hidden_layers"]
    assert not (tmp_path / "ran").exists()


def test_attributes_of_a_state_dict_are_inert(tmp_path: Path) -> None:
    """BUILD on the dict of tensors: torch keeps versions of modules there. Whatever stands there is thrown away."""
    folder = write_checkpoint(tmp_path, {})
    names = list(tiny_state_dict(torch.float32))
    items = b"".join(text(tensor) + TENSOR + b"s" for tensor in names)
    state = b"}" + b"".join(
        text(key) + b"Ns" for key in ("__class__", "__dict__", "__setstate__", "items", "_metadata")
    )
    write_zip(folder / "pytorch_model.bin", call(name("collections", "OrderedDict")) + items + state + b"b.")
    checkpoint = open_checkpoint(folder)
    assert list(checkpoint.table.files()) == names
    assert type(checkpoint.table.files()) is dict


@pytest.mark.parametrize("kind", LAUGHS)
def test_a_billion_laughs(tmp_path: Path, kind: str) -> None:
    """Values that double with each step, 2^200 in the end: as a result, a dict's value, arguments and a name."""
    write_checkpoint(tmp_path, {})
    bomb = LAUGHS[kind]
    for content in (
        bomb + b".",
        state_dict_pickle(bomb),
        name("collections", "OrderedDict") + bomb + b"\x85R.",
        b"}" + bomb + b"Ns.",
        bomb + b"Q.",
        bomb + text("x") + b"\x93.",
        name("torch", "FloatStorage") + bomb + b"b.",
        TENSOR.replace(b"K\x04\x85", bomb + b"\x85"),
    ):
        write_zip(tmp_path / "pytorch_model.bin", content)
        with pytest.raises(CheckpointError) as caught:
            open_checkpoint(tmp_path)
        assert len(str(caught.value)) < 2500
