"""Files with malicious pickles: nothing runs, nothing is imported, and the message names the attempt.

Each payload is a real attack. The first test checks that `pickle.loads` of a live payload creates a file. An audit hook
of the interpreter then watches how the files are read: it records every import, system call and pickle look-up.
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


# Records all audit events while the files are read, after the imports that reading needs.
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
def audits(tmp_path_factory: pytest.TempPathFactory) -> dict[str, dict[str, object]]:
    """The audit events and the message for each payload, alone and together with the tensors of a model."""
    root = tmp_path_factory.mktemp("payloads")
    folders = {}
    for number, (kind, payload) in enumerate(PAYLOADS.items()):
        payload_bytes = payload.make(str(root / f"ran{number}"))
        for position, content in {
            "alone": payload_bytes + b".",
            "adjacent": state_dict_pickle(payload_bytes.removeprefix(b"\x80\x04")),
            "inside": b"\x80\x04}"
            + text("a")
            + payload_bytes.removeprefix(b"\x80\x04")
            + b"s"
            + text("b")
            + TENSOR
            + b"s.",
        }.items():
            folder = root / f"{number} {position}"
            write_checkpoint(folder, {})
            write_zip(folder / "pytorch_model.bin", content)
            folders[f"{kind}, {position}"] = str(folder)
    process = subprocess.run(
        [sys.executable, "-c", WATCH],
        input=json.dumps(list(folders.values())).encode(),
        capture_output=True,
        check=True,
        cwd=root,
    )
    assert not list(root.glob("ran*")), "a payload ran"
    return dict(zip(folders, json.loads(process.stdout), strict=True))


@pytest.mark.parametrize("position", ["alone", "adjacent", "inside"])
@pytest.mark.parametrize("kind", PAYLOADS)
def test_nothing_runs_and_the_message_names_the_payload(
    audits: dict[str, dict[str, object]], kind: str, position: str
) -> None:
    result = audits[f"{kind}, {position}"]
    assert result["heard"] == []
    assert result["imported"] == []
    assert PAYLOADS[kind].named in str(result["message"])
    assert "nothing was run" in str(result["message"])


def test_the_audit_hook_works(tmp_path: Path) -> None:
    """The hook would record a payload that runs, or a look-up of its name."""
    script = WATCH.replace("open_checkpoint(folder)", "__import__('pickle').loads(b'cos\\nsystem\\n(Vtrue\\ntR.')")
    process = subprocess.run(
        [sys.executable, "-c", script], input=json.dumps([str(tmp_path)] * 2).encode(), capture_output=True, check=True
    )
    heard = " ".join(json.loads(process.stdout)[1]["heard"])
    assert "pickle.find_class" in heard
    assert "os.system" in heard


@pytest.mark.parametrize(
    "kind", ["os.system", "a partial", "torch.load inside", "OBJ", "a dotted name of a known module"]
)
def test_the_command_refuses_the_payload(tmp_path: Path, kind: str) -> None:
    marker = tmp_path / "ran"
    write_checkpoint(tmp_path / "donor", tiny_state_dict(torch.float32))
    payload_bytes = PAYLOADS[kind].make(str(marker)).removeprefix(b"\x80\x04")
    write_zip(tmp_path / "donor" / "pytorch_model.bin", b"\x80\x04}" + text("a") + payload_bytes + b"s.")
    process = surgeon("extract", "donor", "--output", "out", cwd=tmp_path)
    assert process.code == 1
    assert PAYLOADS[kind].named in " ".join(process.err.split())
    assert "Traceback" not in process.err
    assert sorted(path.name for path in tmp_path.iterdir() if not path.name.startswith(".")) == ["donor"]


def test_a_malicious_shard_is_refused_when_it_is_read(tmp_path: Path) -> None:
    folder = write_checkpoint(tmp_path / "donor", tiny_state_dict(torch.float32), shards=2)
    write_zip(
        folder / "pytorch_model-00002-of-00002.bin", call(name("os", "system"), text(f"touch {tmp_path}/ran")) + b"."
    )
    process = surgeon("extract", "donor", "--output", "out", cwd=tmp_path)
    assert (process.code, (tmp_path / "ran").exists(), (tmp_path / "out").exists()) == (1, False, False)
    assert "os.system" in process.err


def test_a_bare_pickle_is_not_read(tmp_path: Path) -> None:
    write_checkpoint(tmp_path, {})
    bare = call(name("os", "system"), text(f"touch {tmp_path}/ran")) + b"."
    tar = io.BytesIO()
    with tarfile.open(fileobj=tar, mode="w") as archive:
        tar_entry = tarfile.TarInfo("pickle")
        tar_entry.size = len(bare)
        archive.addfile(tar_entry, io.BytesIO(bare))
    for content in (bare, legacy(f"{tmp_path}/ran"), tar.getvalue(), bare * 100):
        (tmp_path / "pytorch_model.bin").write_bytes(content)
        with pytest.raises(CheckpointError):
            open_checkpoint(tmp_path)
    assert not (tmp_path / "ran").exists()


def test_anything_after_the_end_is_ignored(tmp_path: Path) -> None:
    """A second pickle after the first and a second entry are ignored."""
    folder = write_checkpoint(tmp_path, {})
    evil = call(name("os", "system"), text(f"touch {tmp_path}/ran")) + b"."
    names = {tensor: tensor for tensor in tiny_state_dict(torch.float32)}
    pickled = b"\x80\x02}" + b"".join(text(tensor) + TENSOR + b"s" for tensor in names) + b"."
    storage = {"data/0": bytes(16), "data/evil.pkl": evil, "version": evil, ".data/serialization_id": evil}
    write_zip(folder / "pytorch_model.bin", pickled + evil, storage)
    assert open_checkpoint(folder).num_layers == TINY["num_hidden_layers"]
    assert not (tmp_path / "ran").exists()


def test_attributes_of_a_state_dict_are_inert(tmp_path: Path) -> None:
    """BUILD on the dict of tensors, where torch stores the versions of modules, is ignored."""
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
    """Values that double 200 times, used as the result, as a value of a dict, as arguments and as a name."""
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
