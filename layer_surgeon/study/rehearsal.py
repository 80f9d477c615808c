"""A temporary folder for trials of a study. It uses what the study has prepared, and leaves the study unchanged."""

import contextlib
import os
import tempfile
from collections.abc import Iterator
from pathlib import Path

from layer_surgeon.study.layout import StudyFolder


@contextlib.contextmanager
def rehearsal(study: Path) -> Iterator[StudyFolder]:
    """Create a temporary folder with links to the data sets and layers of a study.

    Args:
        study: The study's folder, which does not have to exist.

    Raises:
        WorkspaceError: A link leads out of the study's folder.
    """
    original = StudyFolder(root=study)
    with tempfile.TemporaryDirectory(prefix="layer-surgeon-") as root:
        folder = StudyFolder(root=Path(root), prepared=study)
        if original.models.is_file():
            folder.models.symlink_to(original.models.resolve())
        # Link single files, because a file that has to be made again replaces its link.
        _link_files(original.path("data"), folder.path("data"))
        layers = original.path("layers")
        for name in sorted(path.name for path in layers.iterdir()) if layers.is_dir() else ():
            path = original.path("layers", name)
            # Link only complete layers: config.json is missing until an extraction has finished.
            if path.is_file() or (path / "config.json").is_file():
                folder.path("layers").mkdir(exist_ok=True)
                folder.path("layers", name).symlink_to(path.resolve())
        yield folder


def _link_files(source: Path, target: Path) -> None:
    for folder, _, names in os.walk(source):
        for name in names:
            path = Path(folder) / name
            # Locks are created when they are needed, and existing links are not followed.
            if path.suffix != ".lock" and not path.is_symlink():
                link = target / path.relative_to(source)
                link.parent.mkdir(parents=True, exist_ok=True)
                link.symlink_to(path.resolve())
