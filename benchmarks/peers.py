"""The rows of `benchmarks.extract`: how each extracts the layer, and where the tensors are in its output."""

import hashlib
import json
import os
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

from benchmarks.command import SURGEON, plan_last_layer
from benchmarks.machine import ROOT

PEERS = ROOT / ".venv-peers" / "bin"
SCRIPTS = ROOT / "benchmarks" / "rows"
# No row may look for the model on the Hub.
_OFFLINE = {"HF_HUB_OFFLINE": "1", "HF_HUB_DISABLE_TELEMETRY": "1", "TOKENIZERS_PARALLELISM": "false"}
_VERSIONS = """
import importlib.metadata, json
print(json.dumps({name: importlib.metadata.version(name) for name in
    ("torch", "transformers", "safetensors", "safetensors-layer-grabber", "mergekit")}))
"""

# A tensor in a file: its name inside the layer, the file, the position of its first byte, its length.
StoredTensor = tuple[str, Path, int, int]


@dataclass(frozen=True, kw_only=True)
class Job:
    """A layer to extract.

    Attributes:
        checkpoint: The checkpoint's folder.
        index: Index of the layer, counted from 0.
        tensors: The layer's tensors in the checkpoint, in the order of the plan.
        output: The file or folder that a row writes.
    """

    checkpoint: Path
    index: int
    tensors: tuple[StoredTensor, ...]
    output: Path

    @property
    def prefix(self) -> str:
        """The start of the names of the layer's tensors."""
        return f"model.layers.{self.index}."

    @property
    def num_bytes(self) -> int:
        """Size of the layer in bytes."""
        return sum(length for *_, length in self.tensors)


@dataclass(frozen=True, kw_only=True)
class Row:
    """One way to extract a layer.

    Attributes:
        title: The title in the table.
        command: Makes the command line.
        tensors: Finds the layer's tensors in the output.
        peer: Whether the row needs the environment of the other tools, .venv-peers.
    """

    title: str
    command: Callable[[Job], list[str]]
    tensors: Callable[[Job], Iterator[StoredTensor]]
    peer: bool = True


def find_job(checkpoint: Path, output: Path) -> Job:
    """Find the last layer with `surgeon extract --dry-run`."""
    plan = plan_last_layer(checkpoint)
    (index,) = plan["layer_indices"]
    prefix = f"model.layers.{index}."
    tensors = tuple(
        (tensor["name"].removeprefix(prefix), checkpoint / tensor["file"], tensor["offset"], tensor["num_bytes"])
        for tensor in plan["tensors"]
    )
    return Job(checkpoint=checkpoint, index=index, tensors=tensors, output=output)


def digest_of(tensors: Iterator[StoredTensor]) -> str:
    """Compute a sha256 of tensors that does not depend on their order."""
    digest, buffer = hashlib.sha256(), memoryview(bytearray(1 << 20))
    for name, path, start, length in sorted(tensors):
        digest.update(f"{name} {length}\n".encode())
        with path.open("rb", buffering=0) as file:
            file.seek(start)
            while length and (count := file.readinto(buffer[:length])):
                digest.update(buffer[:count])
                length -= count
    return digest.hexdigest()


def size_of(path: Path) -> int:
    """Size of a file, or of all files in a folder, in bytes."""
    return sum(file.stat().st_size for file in (path.rglob("*") if path.is_dir() else [path]) if file.is_file())


def remove(path: Path) -> None:
    """Remove a file or folder."""
    if path.is_dir():
        shutil.rmtree(path)
    else:
        path.unlink(missing_ok=True)


def settle() -> None:
    """Wait until all earlier writes are on the disk, so that they don't slow down the next row."""
    os.sync()


def environment() -> dict[str, str]:
    """The environment of every row."""
    return os.environ | _OFFLINE


def peer_versions() -> dict[str, str]:
    """The versions of the other tools; empty if they are not installed."""
    if not (PEERS / "python").exists():
        return {}
    output = subprocess.run([PEERS / "python", "-c", _VERSIONS], capture_output=True).stdout
    version_of: dict[str, str] = json.loads(output)
    return version_of


def in_safetensors(path: Path, prefix: str) -> Iterator[StoredTensor]:
    """Yield the tensors of a file whose names start with `prefix`, without the prefix."""
    with path.open("rb") as file:
        length = int.from_bytes(file.read(8), "little")
        header = json.loads(file.read(length))
    for name, tensor in header.items():
        if name != "__metadata__" and name.startswith(prefix):
            begin, end = tensor["data_offsets"]
            yield name.removeprefix(prefix), path, 8 + length + begin, end - begin


def copy_command(job: Job) -> list[str]:
    """Make the command line of a copy with a sha256, with only the standard library."""
    ranges = [[str(path), start, length] for _, path, start, length in job.tensors]
    return [sys.executable, str(SCRIPTS / "copy_and_hash.py"), json.dumps(ranges), str(job.output)]


def copied(job: Job) -> Iterator[StoredTensor]:
    """Yield the tensors that this copy has written."""
    position = 0
    for name, _, _, length in job.tensors:
        yield name, job.output, position, length
        position += length


def _surgeon_command(job: Job) -> list[str]:
    return [str(SURGEON), "extract", str(job.checkpoint), "--layer", "-1", "--output", str(job.output)]


def _script(name: str, *arguments: str) -> list[str]:
    return [str(PEERS / "python"), str(SCRIPTS / name), *arguments]


def _grabber_command(job: Job) -> list[str]:
    options = ["--model-dir", str(job.checkpoint), "--layer", job.prefix.rstrip("."), "--output", str(job.output)]
    return [str(PEERS / "safetensors_layer_grabber"), *options]


def _grabbed(job: Job) -> Iterator[StoredTensor]:
    # The output is a file of torch.save. Convert it with torch, which doesn't change the bytes.
    converted = job.output.with_suffix(".safetensors")
    subprocess.run(_script("as_safetensors.py", str(job.output), str(converted)), check=True)
    job.output.unlink()
    converted.rename(job.output)
    yield from in_safetensors(job.output, "")


def mergekit_command(job: Job, layer_range: list[int]) -> list[str]:
    """Make the command line with which mergekit writes a model of these layers, embeddings and head."""
    config = job.output.with_suffix(".yaml")
    source = {"model": str(job.checkpoint), "layer_range": layer_range}
    # mergekit reads YAML, and JSON is valid YAML.
    config.write_text(
        json.dumps({"slices": [{"sources": [source]}], "merge_method": "passthrough", "dtype": "bfloat16"})
    )
    return [str(PEERS / "mergekit-yaml"), str(config), str(job.output), "--no-copy-tokenizer", "--quiet"]


def _mergekit_command(job: Job) -> list[str]:
    return mergekit_command(job, [job.index, job.index + 1])


def _merged(job: Job) -> Iterator[StoredTensor]:
    for path in job.output.glob("*.safetensors"):
        yield from in_safetensors(path, "model.layers.0.")


ROWS = {
    "copy": Row(title="copy + sha256 (standard library)", command=copy_command, tensors=copied, peer=False),
    "surgeon": Row(
        title="surgeon extract",
        command=_surgeon_command,
        tensors=lambda job: in_safetensors(job.output / "model.safetensors", "layers.0."),
        peer=False,
    ),
    "safe_open": Row(
        title="safe_open by hand",
        command=lambda job: _script("by_safe_open.py", str(job.checkpoint), job.prefix, str(job.output)),
        tensors=lambda job: in_safetensors(job.output, ""),
    ),
    "from_pretrained": Row(
        title="from_pretrained, keep one layer",
        command=lambda job: _script("by_from_pretrained.py", str(job.checkpoint), str(job.output)),
        tensors=lambda job: in_safetensors(job.output, ""),
    ),
    "grabber": Row(title="safetensors-layer-grabber", command=_grabber_command, tensors=_grabbed),
    "mergekit": Row(title="mergekit passthrough", command=_mergekit_command, tensors=_merged),
}
