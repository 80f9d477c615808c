"""Write a GGUF model of Python packages as one file, for tools that can't read it in parts."""

from pathlib import Path

from layer_surgeon.checkpoint import open_checkpoint


def write_packaged_gguf(name: str, folder: Path) -> Path:
    """Write the parts of a packaged model into one file.

    Args:
        name: Such as `packaged:gemma-3-270m`.
        folder: The folder for the file.

    Returns:
        The file.
    """
    checkpoint = open_checkpoint(name)
    (file,) = set(checkpoint.table.files().values())
    with (folder / file).open("wb") as target:
        target.writelines(checkpoint.source.stream_range(file, 0, checkpoint.source.size(file)))
    return folder / file
