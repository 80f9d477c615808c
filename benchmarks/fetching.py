"""One layer, fetched over a link again and again: what a run is, and what a server's log tells about it."""

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
    """The checkpoint and the places of its last layer.

    Attributes:
        ranges: (file, start, length, offset in a file that holds only the layer), in the order of the files.
    """

    checkpoint: Path
    prefix: str
    num_bytes: int
    ranges: tuple[by_hand.Piece, ...]

    def at(self, url: str) -> list[by_hand.Piece]:
        """The ranges with URLs in place of file names."""
        return [(f"{url}/{file}", start, length, offset) for file, start, length, offset in self.ranges]


@dataclass(kw_only=True)
class Run:
    """One run of a row.

    Attributes:
        whole: Seconds of the process, its start included.
        transfer: Seconds from the arrival of the first request for weights until the last of them is in the file. Not
            until the server has sent it: 8 connections hide up to 80 MB in the sockets' buffers.
        start: Seconds from the start of the process to its first request.
        places: Seconds from its first request to the first one for weights.
        finish: Seconds from then to the end of the process.
        connections: How many connections carried weights.
        requests: How many requests were made in all.
        wire_bytes: Bytes of all answers, with their headers.
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
        """Seconds from its first request to the end of the process."""
        return self.whole - self.start

    @property
    def with_end(self) -> float:
        """Seconds from the first request for weights to the end of the process."""
        return self.transfer + self.finish


def find_layer(checkpoint: Path) -> Layer:
    """Where the last layer lies, from what `surgeon extract --dry-run` says of the folder."""
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
    """Runs rows against one link and notes what they took."""

    def __init__(self, layer: Layer, link: Link, folder: Path) -> None:
        self.layer, self.link, self.folder = layer, link, folder
        self.results: dict[str, list[Run]] = {}
        self.expected: str | None = None

    def surgeon(self) -> Run:
        """`surgeon extract`, as it is installed."""
        output = self.folder / "artifact"
        command = [str(SURGEON), "extract", REPO, "--layer", "-1", "--output", str(output)]
        run = self._run(command, output / "model.safetensors")
        with (output / "model.safetensors").open("rb") as file:
            file.seek(8 + int.from_bytes(file.read(8), "little"))
            self._check("surgeon extract", hashlib.file_digest(file, "sha256").hexdigest())
        shutil.rmtree(output)
        return run

    def script(self, name: str, task: dict[str, Any]) -> Run:
        """A script of this folder, in a process of its own."""
        output = self.folder / "layer"
        run = self._run([sys.executable, str(FOLDER / name), json.dumps(task | {"target": str(output)})], output)
        with output.open("rb") as file:
            self._check(name, hashlib.file_digest(file, "sha256").hexdigest())
        output.unlink()
        return run

    def known(self, connections: int, pieces_each: int) -> Run:
        """By hand over some connections, the places known: as equal pieces as the layer's ranges can be cut into."""
        pieces = by_hand.cut(self.layer.at(self.link.storage), connections * pieces_each)
        return self.script("by_hand.py", {"connections": connections, "pieces": pieces})

    def found(self, connections: int) -> Run:
        """By hand over some connections, the places found first."""
        task = {"connections": connections, "endpoint": self.link.endpoint, "repo": REPO, "prefix": self.layer.prefix}
        return self.script("by_hand.py", task)

    def replayed(self, script: str, model: Run) -> Run:
        """The requests for weights of another run, made by a script over as many connections."""
        offsets = {file: (start, offset) for file, start, _, offset in self.layer.ranges}
        pieces = []
        for exchange in self.weights(model.log):
            file, begin, length = Path(exchange.path).name, *_range_of(exchange)
            start, offset = offsets[file]
            pieces.append((f"{self.link.storage}/{file}", begin, length, offset + begin - start))
        return self.script(script, {"connections": model.connections, "pieces": pieces})

    def in_turn(self, rows: dict[str, Callable[[], Run]], runs: int) -> None:
        """Run each row once, then all of them once more, and so on."""
        for number in range(runs):
            for name, row in rows.items():
                run = row()
                self.results.setdefault(name, []).append(run)
                say(f"  {number + 1}/{runs}  {name}: {run.whole:.2f} s, weights in {run.transfer:.2f} s")

    def median(self, name: str, what: str) -> float:
        """The median of one of a row's numbers."""
        return float(statistics.median(getattr(run, what) for run in self.results[name]))

    def weights(self, log: list[Exchange]) -> list[Exchange]:
        """The requests for weights among those of a run: those for bytes inside of the layer's ranges."""
        places = {file: (start, start + length) for file, start, length, _ in self.layer.ranges}

        def inside(exchange: Exchange) -> bool:
            if exchange.server != "cdn" or exchange.range is None:
                return False
            begin, length = _range_of(exchange)
            first, last = places.get(Path(exchange.path).name, (0, 0))
            return first <= begin and begin + length <= last

        return [exchange for exchange in log if inside(exchange)]

    def _run(self, command: list[str], written: Path) -> Run:
        environment = hub_environment(self.link, self.folder / "home")
        self.link.take_log()
        begin = time.monotonic()
        subprocess.run(command, check=True, stdout=subprocess.DEVNULL, env=environment, stderr=subprocess.DEVNULL)
        end = time.monotonic()
        log = self.link.take_log()
        weights = self.weights(log)
        # The file's time of modification is that of its last write, on another clock.
        first, last = weights[0].arrived, written.stat().st_mtime - (time.time() - time.monotonic())
        return Run(
            whole=end - begin,
            transfer=last - first,
            start=log[0].arrived - begin,
            places=first - log[0].arrived,
            finish=end - last,
            connections=len({exchange.client for exchange in weights}),
            requests=len(log),
            wire_bytes=sum(exchange.num_bytes for exchange in log),
            log=log,
        )

    def _check(self, name: str, digest: str) -> None:
        self.expected = self.expected or digest
        if digest != self.expected:
            raise SystemExit(f"{name} wrote other bytes than the row before it.")


def _range_of(exchange: Exchange) -> tuple[int, int]:
    first, last = (exchange.range or "").removeprefix("bytes=").split("-")
    return int(first), int(last) - int(first) + 1


def hub_environment(link: Link, home: Path) -> dict[str, str]:
    """The environment of a process for which the link's other end is the Hub, with nothing cached."""
    return os.environ | {"HF_ENDPOINT": link.endpoint, "HF_HOME": str(home), "HF_HUB_DISABLE_TELEMETRY": "1"}
