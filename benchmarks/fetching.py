"""Fetch one layer over a link several times, and compute the times of each run from the server's log."""

import hashlib
import json
import os
import shutil
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from benchmarks import by_hand
from benchmarks.command import SURGEON, plan_last_layer
from benchmarks.link import REPO, Exchange, Link
from benchmarks.machine import say

FOLDER = Path(__file__).resolve().parent


@dataclass(frozen=True, kw_only=True)
class Layer:
    """A checkpoint and the byte ranges of its last layer.

    Attributes:
        checkpoint: The checkpoint's folder.
        prefix: The start of the names of the layer's tensors.
        num_bytes: Size of the layer.
        ranges: (file, start, length, offset in a file with only the layer), in the order of the files.
    """

    checkpoint: Path
    prefix: str
    num_bytes: int
    ranges: tuple[by_hand.Piece, ...]

    def at(self, url: str) -> list[by_hand.Piece]:
        """The ranges with URLs instead of file names."""
        return [(f"{url}/{file}", start, length, offset) for file, start, length, offset in self.ranges]


@dataclass(kw_only=True)
class Run:
    """One run of a row.

    Attributes:
        whole: Seconds of the process, including its start.
        transfer: Seconds from the arrival of the first request for weights until the last weights are in the file. The
            time when the server has sent them would be too early: the sockets of 8 connections buffer up to 80 MB.
        start: Seconds from the start of the process to its first request.
        places: Seconds from the first request to the first request for weights: the time to find the ranges.
        finish: Seconds from the end of `transfer` to the end of the process.
        connections: Number of connections that carried weights.
        requests: Total number of requests.
        wire_bytes: Bytes of all responses, including their headers.
        log: All requests.
    """

    whole: float
    transfer: float
    start: float
    places: float
    finish: float
    connections: int
    requests: int
    wire_bytes: int
    log: list[Exchange] = field(repr=False)

    @property
    def after_start(self) -> float:
        """Seconds from the first request to the end of the process."""
        return self.whole - self.start

    @property
    def with_end(self) -> float:
        """Seconds from the first request for weights to the end of the process."""
        return self.transfer + self.finish


def find_layer(checkpoint: Path) -> Layer:
    """Find the byte ranges of the last layer with `surgeon extract --dry-run`."""
    plan = plan_last_layer(checkpoint)
    ranges: list[list[Any]] = []
    offset = 0
    for tensor in sorted(plan["tensors"], key=lambda tensor: (tensor["file"], tensor["offset"])):
        if ranges and ranges[-1][0] == tensor["file"] and ranges[-1][1] + ranges[-1][2] == tensor["offset"]:
            ranges[-1][2] += tensor["num_bytes"]
        else:
            ranges.append([tensor["file"], tensor["offset"], tensor["num_bytes"], offset])
        offset += tensor["num_bytes"]
    prefix = f"model.layers.{plan['layer_indices'][0]}."
    pieces = tuple((file, start, length, offset) for file, start, length, offset in ranges)
    return Layer(checkpoint=checkpoint, prefix=prefix, num_bytes=plan["num_bytes"], ranges=pieces)


class Bench:
    """Runs rows against one link and records the results."""

    def __init__(self, layer: Layer, link: Link, folder: Path) -> None:
        self.layer, self.link, self.folder = layer, link, folder
        self.results: dict[str, list[Run]] = {}
        self.expected: str | None = None

    def surgeon(self) -> Run:
        """Run the installed `surgeon extract`."""
        output = self.folder / "artifact"
        command = [str(SURGEON), "extract", REPO, "--layer", "-1", "--output", str(output)]
        run = self._run(command, output / "model.safetensors")
        with (output / "model.safetensors").open("rb") as file:
            file.seek(8 + int.from_bytes(file.read(8), "little"))
            self._check("surgeon extract", hashlib.file_digest(file, "sha256").hexdigest())
        shutil.rmtree(output)
        return run

    def script(self, name: str, task: dict[str, Any]) -> Run:
        """Run a script of this folder in a new process."""
        output = self.folder / "layer"
        run = self._run([sys.executable, str(FOLDER / name), json.dumps(task | {"target": str(output)})], output)
        with output.open("rb") as file:
            self._check(name, hashlib.file_digest(file, "sha256").hexdigest())
        output.unlink()
        return run

    def known(self, connections: int, pieces_each: int) -> Run:
        """Run the baseline with known ranges, split into pieces of nearly equal size."""
        pieces = by_hand.cut(self.layer.at(self.link.storage), connections * pieces_each)
        return self.script("by_hand.py", {"connections": connections, "pieces": pieces})

    def found(self, connections: int) -> Run:
        """Run the baseline that finds the ranges first."""
        task = {"connections": connections, "endpoint": self.link.endpoint, "repo": REPO, "prefix": self.layer.prefix}
        return self.script("by_hand.py", task)

    def replayed(self, script: str, model: Run) -> Run:
        """Repeat the requests for weights of another run with a script, over the same number of connections."""
        offsets = {file: (start, offset) for file, start, _, offset in self.layer.ranges}
        pieces = []
        for exchange in self.weights(model.log):
            file, begin, length = Path(exchange.path).name, *_range_of(exchange)
            start, offset = offsets[file]
            pieces.append((f"{self.link.storage}/{file}", begin, length, offset + begin - start))
        return self.script(script, {"connections": model.connections, "pieces": pieces})

    def in_turn(self, rows: dict[str, Callable[[], Run]], runs: int) -> None:
        """Run all rows in turn, `runs` times."""
        for number in range(runs):
            for name, row in rows.items():
                run = row()
                self.results.setdefault(name, []).append(run)
                say(f"  {number + 1}/{runs}  {name}: {run.whole:.2f} s, weights in {run.transfer:.2f} s")

    def median(self, name: str, field_name: str) -> float:
        """The median of one field over all runs of a row."""
        return float(statistics.median(getattr(run, field_name) for run in self.results[name]))

    def weights(self, log: list[Exchange]) -> list[Exchange]:
        """The requests of a run for weights, which are those for bytes within the layer's ranges."""
        bounds_of_file = {file: (start, start + length) for file, start, length, _ in self.layer.ranges}

        def inside(exchange: Exchange) -> bool:
            if exchange.server != "cdn" or exchange.range is None:
                return False
            begin, length = _range_of(exchange)
            layer_begin, layer_end = bounds_of_file.get(Path(exchange.path).name, (0, 0))
            return layer_begin <= begin and begin + length <= layer_end

        return [exchange for exchange in log if inside(exchange)]

    def _run(self, command: list[str], output: Path) -> Run:
        environment = hub_environment(self.link, self.folder / "home")
        self.link.take_log()
        begin = time.monotonic()
        subprocess.run(command, check=True, stdout=subprocess.DEVNULL, env=environment, stderr=subprocess.DEVNULL)
        end = time.monotonic()
        log = self.link.take_log()
        weights = self.weights(log)
        # The file's modification time is the time of its last write. It is on the wall clock, so convert it.
        first_request = weights[0].arrived
        last_write = output.stat().st_mtime - (time.time() - time.monotonic())
        return Run(
            whole=end - begin,
            transfer=last_write - first_request,
            start=log[0].arrived - begin,
            places=first_request - log[0].arrived,
            finish=end - last_write,
            connections=len({exchange.client for exchange in weights}),
            requests=len(log),
            wire_bytes=sum(exchange.num_bytes for exchange in log),
            log=log,
        )

    def _check(self, name: str, digest: str) -> None:
        self.expected = self.expected or digest
        if digest != self.expected:
            raise SystemExit(f"{name} wrote different bytes than the row before it.")


def _range_of(exchange: Exchange) -> tuple[int, int]:
    first, last = (exchange.range or "").removeprefix("bytes=").split("-")
    return int(first), int(last) - int(first) + 1


def hub_environment(link: Link, home: Path) -> dict[str, str]:
    """The environment of a process that uses the link as its Hub, with an empty cache."""
    return os.environ | {"HF_ENDPOINT": link.endpoint, "HF_HOME": str(home), "HF_HUB_DISABLE_TELEMETRY": "1"}
