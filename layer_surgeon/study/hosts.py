"""The hosts of a study: turns the host in a plan into a folder or repo id that transformers can load."""

from collections.abc import Iterable

from layer_surgeon._folders import foreign_files
from layer_surgeon.checkpoint.packaged import ARCHIVES, packaged_host
from layer_surgeon.errors import SourceError
from layer_surgeon.progress import Progress
from layer_surgeon.study.arms import PACKAGED
from layer_surgeon.study.layout import StudyFolder, locked


def host_source(host: str, folder: StudyFolder, progress: Progress | None = None) -> str:
    """Return a folder or repo id that transformers can load.

    Args:
        host: A host that `surgeon graft` takes, or `packaged:NAME`.
        folder: The study's folder. A host from an archive is unpacked there, once for all trainings.
        progress: Receives updates about the unpacking.

    Raises:
        SourceNotFoundError: The packaged model does not exist, or a package that contains it is not installed.
        CheckpointError: A package has other files than expected.
        SourceError: The folder can't be written, or has files that the archive doesn't have.
    """
    if not host.startswith(PACKAGED):
        return host
    name = host.removeprefix(PACKAGED)
    if name not in ARCHIVES:
        return str(packaged_host(name, folder.hosts))
    model = ARCHIVES[name]
    known = [model.file, *model.other_files, ".*", "*/.*"]  # with a dot: leftovers of unpacking that was killed
    foreign = foreign_files(folder.path("hosts", name), known)
    if foreign:
        # transformers would load such files too, for example an adapter of another model.
        raise SourceError(
            f"{folder.hosts / name} contains {foreign[0]}, which is not part of {name}. Delete that folder."
        )
    # One process unpacks hundreds of MB, and the others wait instead of doing the same.
    with locked(folder.path("hosts", f"{name}.lock"), wait=True):
        return str(packaged_host(name, folder.hosts, progress))


def prepare_hosts(hosts: Iterable[str], folder: StudyFolder, progress: Progress | None = None) -> None:
    """Unpack the packaged hosts before the first training.

    Raises:
        SourceNotFoundError, CheckpointError, SourceError: As in `host_source`.
    """
    for host in dict.fromkeys(hosts):
        host_source(host, folder, progress)
