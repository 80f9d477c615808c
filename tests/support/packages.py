"""Installed packages that hold weights, made up."""

import hashlib
import io
import zipfile
from collections.abc import Mapping
from pathlib import Path

from layer_surgeon.checkpoint.packaged import PackagedModel


def install(site: Path, package: str, version: str, file: str, content: bytes) -> None:
    """What pip leaves behind of a package with one file."""
    module = package.replace("-", "_")
    target = site / module / file
    target.parent.mkdir(parents=True, exist_ok=True)
    target.write_bytes(content)
    (site / module / "__init__.py").write_text("raise RuntimeError('the package was imported')")
    info = site / f"{module}-{version}.dist-info"
    info.mkdir()
    (info / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {package}\nVersion: {version}\n")
    (info / "RECORD").write_text(f"{module}/__init__.py,,\n{module}/{file},,\n{info.name}/METADATA,,\n")


def install_archive(
    site: Path, name: str, files: Mapping[str, bytes], *, others: Mapping[str, bytes] | None = None, parts: int = 3
) -> PackagedModel:
    """A zip with the folder of a model, in so many packages.

    Args:
        site: What is on the path of Python.
        name: Of the model, and of the folder in the zip.
        files: What belongs to the model, model.safetensors among it.
        others: What else is in the zip, by its whole name there.
        parts: How many packages.

    Returns:
        What describes them.
    """
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w", zipfile.ZIP_DEFLATED) as archive:
        for file, content in files.items():
            archive.writestr(f"{name}/{file}", content)
        for file, content in (others or {}).items():
            archive.writestr(file, content)
    content, size = buffer.getvalue(), -(-buffer.tell() // parts)
    for number in range(parts):
        part = content[number * size : (number + 1) * size]
        install(site, f"{name}-part-{number}", "1.0", f"input/{name}.zip.{number:03}", part)
    hashes = {file: hashlib.sha256(content).hexdigest() for file, content in files.items()}
    return PackagedModel(
        packages=tuple(f"{name}-part-{number}" for number in range(parts)),
        version="1.0",
        file="model.safetensors",
        part=rf"[^/]+/input/{name}\.zip\.\d+",
        sha256=hashes.pop("model.safetensors"),
        install=f"{name}-part-0",
        other_files=hashes,
    )
