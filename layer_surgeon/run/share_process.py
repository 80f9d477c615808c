"""A share of a run, in its own process: `python -m layer_surgeon.run.share_process FOLDER NUMBER`; see `shares`."""

import json
import os
import sys
import threading
import time
from pathlib import Path

import torch

from layer_surgeon._io import read_json, write_json
from layer_surgeon.errors import LayerSurgeonError
from layer_surgeon.progress import NullProgress
from layer_surgeon.run.identity import check_same_model
from layer_surgeon.run.inputs import prepare_run
from layer_surgeon.run.running import run_prepared
from layer_surgeon.run.settings import RunConfig
from layer_surgeon.run.shares import SOURCE_VARIABLE, share_path
from layer_surgeon.workspace import Workspace


class _TokensFile(NullProgress):
    """Writes the number of tokens to a file, at most twice per second, and notices to the log."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._num_tokens = 0
        self._is_counting = False
        self._written = 0.0

    def begin(self, description: str, total: int | None, unit: str) -> None:
        self._is_counting = unit == "tokens"

    def advance(self, amount: int) -> None:
        if self._is_counting:
            self._num_tokens += amount
            if time.monotonic() - self._written > 0.5:
                write_json(self._path, self._num_tokens)
                self._written = time.monotonic()

    def notice(self, message: str) -> None:
        print(message, flush=True)


def main(arguments: list[str]) -> int:
    """Run a share.

    Args:
        arguments: The folder of the run, and the number of the share.

    Returns:
        0 if the share is finished, 1 if it failed. The reason is then in its `.failed.json`.
    """
    folder, index = Path(arguments[0]), int(arguments[1])
    try:
        task = read_json(share_path(folder, index, ".json"))
        take_gpu(index)
        source, revision = json.loads(os.environ[SOURCE_VARIABLE]), task["revision"]
        config, texts = RunConfig(**task["config"]), share_path(folder, index, ".jsonl")
        progress = _TokensFile(share_path(folder, index, ".tokens.json"))
        inputs = prepare_run(source, texts, config, revision=revision, progress=progress)
        if task["model"] is not None:
            check_same_model(inputs.checkpoint, task["model"])
        run_prepared(
            inputs,
            source,
            share_path(folder, index),
            revision=revision,
            progress=progress,
            workspace=Workspace(task["workspace"]),
            force=task["force"],
        )
    except LayerSurgeonError as error:
        write_json(share_path(folder, index, ".failed.json"), {"type": type(error).__name__, "message": str(error)})
        print(f"{type(error).__name__}: {error}", file=sys.stderr)
        return 1
    return 0


def take_gpu(index: int) -> None:
    """Make the processes use the GPUs of this machine in turn. Ray shows each process its own GPU only."""
    if torch.cuda.is_available():
        torch.cuda.set_device(index % torch.cuda.device_count())


def _end_with_parent() -> None:
    # Not sys.stdin: a thread that waits in it holds its lock, and Python then aborts when it ends.
    while os.read(0, 1024):
        pass
    os._exit(1)


if __name__ == "__main__":
    threading.Thread(target=_end_with_parent, daemon=True).start()
    sys.exit(main(sys.argv[1:]))
