"""A study's folder to try things in: what is prepared in the study is used, and nothing is written there."""

import contextlib
import os
import tempfile
from collections.abc import Iterator
from pathlib import Path

from layer_surgeon.study.layout import StudyFolder


@contextlib.contextmanager
def rehearsal(study: Path) -> Iterator[StudyFolder]:
    """A folder that is thrown away, with links to the data sets, hosts and layers that a study has prepared.

    Args:
        study: The study's folder; it need not exist.

    Raises:
        WorkspaceError: A link in the study's folder leaves it.
    """
    original = StudyFolder(root=study)
    with tempfile.TemporaryDirectory(prefix="layer-surgeon-") as name:
        folder = StudyFolder(root=Path(name), prepared=study)
        # File by file: a file that has to be made again takes the place of its link.
        for kind in ("data", "hosts"):
            _link_files(original.path(kind), folder.path(kind))
        layers = original.path("layers")
        for entry in sorted(layers.iterdir()) if layers.is_dir() else ():
            path = original.path("layers", entry.name)
            # A layer is whole or not there; what an extraction left that was stopped is not its folder's config.json.
            if path.is_file() or (path / "config.json").is_file():
                folder.path("layers").mkdir(exist_ok=True)
                folder.path("layers", entry.name).symlink_to(path.resolve())
        yield folder


def _link_files(source: Path, target: Path) -> None:
    for folder, _, names in os.walk(source):
        for name in names:
            path = Path(folder) / name
            # Locks are made where they are needed, and links stay unused.
            if path.suffix != ".lock" and not path.is_symlink():
                link = target / path.relative_to(source)
                link.parent.mkdir(parents=True, exist_ok=True)
                link.symlink_to(path.resolve())
