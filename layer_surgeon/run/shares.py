"""A run in several processes: each takes a share of the batches, and their states are joined afterwards.

    .NAME.partial/share-0.json         what the process is to do
    .NAME.partial/share-0.jsonl        its texts
    .NAME.partial/share-0/             its states, a folder of hidden states like any other
    .NAME.partial/.share-0.partial/    the same while it runs, from which it goes on after an interruption
    .NAME.partial/share-0.log, share-0.tokens.json, share-0.failed.json

A share consists of whole batches, so each batch has the same texts and the same padding as in a single process.
"""

import contextlib
import json
import os
import subprocess
from collections.abc import Generator, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path

import torch
from torch import Tensor

from layer_surgeon import errors
from layer_surgeon._io import read_json, write_json, write_text
from layer_surgeon._workers import (
    Running,
    describe_end,
    environment_of,
    run_locally,
    run_module,
    run_on_ray,
    threads_each,
)
from layer_surgeon.checkpoint import Checkpoint
from layer_surgeon.checkpoint.sources.addresses import without_revision
from layer_surgeon.errors import ArtifactError, ConfigError, LayerSurgeonError, WorkspaceError
from layer_surgeon.progress import Progress
from layer_surgeon.run.batches import Batch
from layer_surgeon.run.identity import model_identity, run_versions
from layer_surgeon.run.inputs import RunInputs, SourceLike
from layer_surgeon.run.settings import RunConfig
from layer_surgeon.run.state_files import KeptStates
from layer_surgeon.run.states import HiddenStates
from layer_surgeon.run.walk import name_layers
from layer_surgeon.workspace import Workspace

PROCESS = "layer_surgeon.run.share_process"
SOURCE_VARIABLE = "SURGEON_RUN_SOURCE"
_LOOK_SECONDS = 0.5


@dataclass(frozen=True, kw_only=True)
class ShareSource:
    """How the processes open the model.

    Attributes:
        source: As in `run_layers`, but not an open checkpoint.
        revision: Branch, tag or commit of a Hub repo.
        token: Access token for a Hub repo.
        workspace: Where layers are kept; None keeps none.
        force: Whether to replace other layers there.
    """

    source: str | list[str]
    revision: str | None
    token: str | bool | None
    workspace: str | None
    force: bool = False

    @classmethod
    def make(
        cls,
        source: SourceLike,
        checkpoint: Checkpoint,
        *,
        revision: str | None,
        token: str | bool | None,
        workspace: Workspace | None,
        force: bool = False,
    ) -> "ShareSource":
        """Describe a source, with the commit that this process has opened.

        Raises:
            ConfigError: It is an open checkpoint, which can't be passed to other processes.
        """
        if isinstance(source, Checkpoint):
            raise ConfigError(
                "The source is an open checkpoint, which other processes can't use. Give its path or repo id, or use "
                "workers=1."
            )
        spec = os.fspath(source) if isinstance(source, str | os.PathLike) else [os.fspath(part) for part in source]
        if checkpoint.source.kind == "hub" and isinstance(spec, str):
            # A branch may move before all processes have opened it.
            spec, revision = without_revision(spec), checkpoint.commit
        return cls(
            source=spec,
            revision=revision,
            token=token,
            workspace=None if workspace is None else str(workspace.root),
            force=force,
        )

    def environment(self) -> dict[str, str]:
        """The environment variables that pass on what files must not have: the token, and a URL with its password."""
        variables = {SOURCE_VARIABLE: json.dumps(self.source)}
        if isinstance(self.token, str):
            variables |= {"HF_TOKEN": self.token, "HF_HUB_DISABLE_IMPLICIT_TOKEN": ""}
        elif self.token is False:
            variables |= {"HF_HUB_DISABLE_IMPLICIT_TOKEN": "1", "HF_TOKEN": ""}
        return variables


@dataclass(frozen=True, kw_only=True)
class Share:
    """The part of the texts that one process takes.

    Attributes:
        index: Its number, from 0.
        texts: Indices of its texts, in the order of the batches.
        num_tokens: Number of their tokens.
    """

    index: int
    texts: tuple[int, ...]
    num_tokens: int

    def path(self, folder: Path, suffix: str = "") -> Path:
        """The folder of its states or, with a suffix, a file next to it."""
        return share_path(folder, self.index, suffix)


def share_path(folder: Path, index: int, suffix: str = "") -> Path:
    """The folder of the states of the share of this number or, with a suffix, a file next to it."""
    return folder / f"share-{index}{suffix}"


def make_shares(batches: Sequence[Batch], count: int) -> list[Share]:
    """Share out batches so that shares have about the same number of tokens, padding included.

    Args:
        batches: The batches of a run.
        count: Number of shares. There are fewer if there are fewer batches.
    """
    count = min(count, len(batches))
    taken: list[list[int]] = [[] for _ in range(count)]
    sizes = [0] * count
    order = sorted(range(len(batches)), key=lambda number: -len(batches[number].texts) * batches[number].width)
    for number in order:
        smallest = sizes.index(min(sizes))
        taken[smallest].append(number)
        sizes[smallest] += len(batches[number].texts) * batches[number].width
    # In the order of the run, `make_batches` makes the same batches from the texts of a share.
    shares = [[batches[number] for number in sorted(numbers)] for numbers in taken]
    return [
        Share(
            index=index,
            texts=tuple(text for batch in share for text in batch.texts),
            num_tokens=sum(batch.num_tokens for batch in share),
        )
        for index, share in enumerate(shares)
    ]


def run_shares(
    inputs: RunInputs, source: ShareSource, folder: Path, num_shares: int, progress: Progress
) -> list[Share]:
    """Run all shares that are not finished.

    Args:
        inputs: The inputs of the whole run.
        source: How the processes open the model.
        folder: The folder of the run.
        num_shares: Number of shares.
        progress: Receives the tokens of all processes together.

    Raises:
        LayerSurgeonError: A share failed. It has the type of the share's error.
        ConfigError: Ray is not installed, or the cluster can't be reached.
    """
    shares = make_shares(inputs.tokens.batches, num_shares)
    for share in shares:
        _write_task(inputs, source, share, folder)
    remaining = [share for share in shares if not share.path(folder, "/run.json").is_file()]
    config, num_layers = inputs.config, inputs.checkpoint.num_layers
    last_depth = num_layers if config.score else config.depths(num_layers)[-1]
    watch = _Watch(shares, folder, last_depth, progress)
    progress.begin(f"{name_layers(last_depth)}, {len(shares)} shares", inputs.num_tokens * last_depth, "tokens")
    with contextlib.closing(_start(remaining, source, folder, config, watch)) as outcomes:
        for share, reason in outcomes:
            if reason is not None:
                raise _error(share, len(shares), folder, reason)
    watch.look()
    progress.end()
    return shares


def _start(
    shares: Sequence[Share], source: ShareSource, folder: Path, config: RunConfig, watch: "_Watch"
) -> Generator[tuple[Share, str | None]]:
    threads = threads_each(config.workers)
    environment = {**environment_of(threads), **source.environment()}
    if config.executor == "ray":
        root, current_folder = str(folder.resolve()), str(Path.cwd())
        return run_on_ray(
            shares,
            _on_ray,
            lambda share: (root, share.index, current_folder, environment),
            threads=threads,
            address=config.address,
            look=watch.look,
            seconds=_LOOK_SECONDS,
        )
    running = Running()
    return run_locally(
        shares,
        lambda share: run_share(folder, share.index, environment, running),
        config.workers,
        running,
        look=watch.look,
        seconds=_LOOK_SECONDS,
    )


def run_share(folder: Path, index: int, environment: Mapping[str, str], running: Running) -> str | None:
    """Run a share in a process of its own.

    Args:
        folder: The folder of the run.
        index: The number of the share.
        environment: Environment variables of the process, in addition to those of this one.
        running: Keeps track of the process, and can end it.

    Returns:
        None if the share is finished; otherwise the reason why it failed.
    """
    log, arguments = share_path(folder, index, ".log"), [str(folder), str(index)]
    # The process ends when its standard input does, so that it doesn't outlive a process that is killed.
    code = run_module(PROCESS, arguments, log, environment, running, stdin=subprocess.PIPE)
    return None if share_path(folder, index, "/run.json").is_file() else describe_end(code, log)


def _on_ray(root: str, index: int, current_folder: str, environment: dict[str, str]) -> str | None:
    """Run a share on a machine of the cluster, in the folder that relative paths start from."""
    folder = Path(root)
    if not share_path(folder, index, ".json").is_file():
        raise WorkspaceError(
            f"{root} is not the run's folder on this machine. Choose an --output on a disk that all machines share."
        )
    with contextlib.chdir(current_folder):
        return run_share(folder, index, environment, Running())


def _write_task(inputs: RunInputs, source: ShareSource, share: Share, folder: Path) -> None:
    share.path(folder, ".failed.json").unlink(missing_ok=True)
    rows = [json.dumps({"text": inputs.texts.texts[text]}, ensure_ascii=False) for text in share.texts]
    write_text(share.path(folder, ".jsonl"), "".join(f"{row}\n" for row in rows))
    config = replace(inputs.config, workers=1, executor="local", address=None, text_column="text")
    layers = list(config.depths(inputs.checkpoint.num_layers))
    write_json(
        share.path(folder, ".json"),
        {
            # The machines of a cluster may have copies of a model, whose times differ.
            "model": None if inputs.config.executor == "ray" else model_identity(inputs.checkpoint),
            "revision": source.revision,
            "workspace": source.workspace,
            "force": source.force,
            "config": {**asdict(config), "layers": layers},
        },
    )


class _Watch:
    """Reports the tokens of all processes, which write their numbers to files."""

    def __init__(self, shares: Sequence[Share], folder: Path, last_depth: int, progress: Progress) -> None:
        self._files = {share.path(folder, ".tokens.json"): share.num_tokens * last_depth for share in shares}
        self._finished = {share.path(folder, ".tokens.json"): share.path(folder, "/run.json") for share in shares}
        self._progress = progress
        self._done = 0

    def look(self) -> None:
        """Read the numbers."""
        done = sum(total if self._finished[file].is_file() else _read(file) for file, total in self._files.items())
        if done != self._done:
            self._progress.advance(done - self._done)
            self._done = done


def _read(path: Path) -> int:
    try:
        return int(read_json(path))
    except (OSError, ValueError, TypeError):
        return 0


def _error(share: Share, num_shares: int, folder: Path, reason: str) -> LayerSurgeonError:
    """The error of a share, in the type that its process raised."""
    kind, message = "LayerSurgeonError", reason
    with contextlib.suppress(OSError, ValueError, KeyError, TypeError):
        content = read_json(share.path(folder, ".failed.json"))
        kind, message = str(content["type"]), str(content["message"])
    known = getattr(errors, kind, None)
    if not (isinstance(known, type) and issubclass(known, LayerSurgeonError)):
        known = LayerSurgeonError
    return known(f"Process {share.index + 1} of {num_shares} failed: {message}")


def join_shares(
    inputs: RunInputs, shares: Sequence[Share], folder: Path, kept: KeptStates, offsets: Tensor
) -> tuple[Tensor | None, int]:
    """Put the states of all shares into one file, in the order of the texts.

    Args:
        inputs: The inputs of the whole run.
        shares: The shares, which are finished.
        folder: The folder of the run.
        kept: The file of the states.
        offsets: Where each text's tokens begin, [texts + 1].

    Returns:
        The log-likelihoods of all tokens, in the order of the texts, or None without scores; and the bytes of weights
        that all processes read.

    Raises:
        ArtifactError: A share was computed with other versions of the libraries.
    """
    depths = inputs.config.depths(inputs.checkpoint.num_layers)
    scores = torch.empty(inputs.num_tokens) if inputs.exit is not None else None
    num_bytes = 0
    for share in shares:
        states = HiddenStates.open(share.path(folder))
        if states.info["versions"] != run_versions():
            raise ArtifactError(
                f"Process {share.index + 1} of {len(shares)} used {states.info['versions']}, but this one has "
                f"{run_versions()}. Install the same versions on all machines, and delete {folder}."
            )
        num_bytes += int(states.info["num_bytes_read"])
        own_offsets = states.offsets.tolist()
        for depth in depths:
            rows = states[depth]
            for number, text in enumerate(share.texts):
                if inputs.config.pool == "none":
                    kept.add(f"layer.{depth}", int(offsets[text]), rows[own_offsets[number] : own_offsets[number + 1]])
                else:
                    kept.add(f"layer.{depth}", text, rows[number])
        if scores is not None:
            values = states.log_likelihoods
            for number, text in enumerate(share.texts):
                scores[offsets[text] : offsets[text + 1]] = values[own_offsets[number] : own_offsets[number + 1]]
    return scores, num_bytes
