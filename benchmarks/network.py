"""Measure `surgeon extract` from a Hub over a slow and a fast link, compared with hand-written baselines.

    python -m benchmarks.network
    python -m benchmarks.network --only link --runs 5 --json network.json
    python -m benchmarks.network --shape small --latency 0.01          a test that takes a few seconds

Starts its own servers on loopback. Link: a delay of 80 ms before each response and for each new connection, and 50 MB/s
per connection, with any number of connections. Plain: the same server without delay or limit.
docs/benchmarks/network.md explains the rows. The rows take turns. The tables show medians, with the fastest and slowest
run in brackets.
"""

import argparse
import subprocess
import sys
import tempfile
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

from benchmarks.command import SMALL
from benchmarks.fetching import Bench, Layer, Run, find_layer, hub_environment
from benchmarks.link import REPO, Link
from benchmarks.machine import heading, machine, save, spread, table, versions
from tests.support.checkpoints import LLAMA_8B, LLAMA_70B, write_sparse_checkpoint

# Config, and size of the largest shard. The last layer of the small shape is in two shards too.
SHAPES = {"small": (SMALL, 2_500_000), "8B": (LLAMA_8B, 5_000_000_000), "70B": (LLAMA_70B, 5_000_000_000)}
# Equal pieces per connection: one is best if all connections are equally fast, two if one of them may be slower.
PIECES_EACH = (1, 2)
WEIGHTS_TARGET, FOUND_TARGET, PROCESS_TARGET, WIRE_TARGET, PLAIN_TARGET = 1.05, 1.1, 1.3, 1.001, 0.8
DOWNLOAD = "import sys; from huggingface_hub import hf_hub_download; hf_hub_download(sys.argv[1], sys.argv[2])"


def measure_link(bench: Bench, settings: argparse.Namespace) -> dict[str, Any]:
    """Run all rows over the link, and compare them."""
    used = bench.surgeon().connections
    grid = sorted({*settings.connections, used})
    rows: dict[str, Callable[[], Run]] = {"surgeon extract": bench.surgeon}
    for number in grid:
        for each in PIECES_EACH:
            rows[f"ranges known, {number} connections, {each} each"] = partial(bench.known, number, each)
        rows[f"ranges found first, {number} connections"] = partial(bench.found, number)
    bench.in_turn(rows, settings.runs)

    def ideal_seconds(connections: int) -> float:
        # Two delays, for the connection and the response, then the bytes.
        return float(2 * settings.latency + bench.layer.num_bytes / (connections * settings.rate * 1e6))

    lines = []
    for name, runs in bench.results.items():
        median = bench.median(name, "transfer")
        lines.append(
            [
                name,
                str(runs[-1].connections),
                str(runs[-1].requests),
                spread([run.transfer for run in runs]),
                f"{ideal_seconds(runs[-1].connections) / median:.0%}",
                spread([run.after_start for run in runs]),
                spread([run.whole for run in runs]),
            ]
        )
    header = ("row", "conn.", "requests", "weights", "of the link", "from 1st request on", "process")
    print(f"\nLink: {settings.latency * 1e3:.0f} ms per request, {settings.rate:.0f} MB/s per connection\n")
    print(table(header, lines))
    return compare_link(bench, grid, used, requests=settings.requests)


def compare_link(bench: Bench, grid: list[int], used: int, *, requests: bool) -> dict[str, Any]:
    """Compare the command with the best baseline over the same number of connections, and over any number."""
    ours = {phase: bench.median("surgeon extract", phase) for phase in ("transfer", "after_start", "whole")}
    ratios = {}
    for description, numbers in (("the same number of connections", [used]), ("any number of connections", grid)):
        known_rows = [f"ranges known, {number} connections, {each} each" for number in numbers for each in PIECES_EACH]
        found_rows = [f"ranges found first, {number} connections" for number in numbers]
        for title, rows, phase, target in (
            ("weights alone", known_rows, "transfer", WEIGHTS_TARGET),
            ("from the first request on, ranges found first", found_rows, "after_start", FOUND_TARGET),
            ("whole process, ranges found first", found_rows, "whole", PROCESS_TARGET),
        ):
            best = min(rows, key=lambda row: bench.median(row, phase))
            ratio = ours[phase] / bench.median(best, phase)
            ratios[f"{title}, best baseline over {description} ({best}); target {target} x"] = ratio
    start, finding, finish = (bench.median("surgeon extract", phase) for phase in ("start", "places", "finish"))
    print(
        f"\nsurgeon extract: {start:.2f} s until its first request (Python's start and imports), {finding:.2f} s to "
        f"find the ranges, {ours['transfer']:.2f} s weights, {finish:.2f} s from the last byte to the end.\n"
    )
    if requests:
        print(table(("request", "server", "after"), _requests(bench)) + "\n")
    for title, ratio in ratios.items():
        print(f"{ratio:5.2f} x  {title}")
    return {"rows": rows_of(bench), "ratios": ratios}


def _requests(bench: Bench) -> list[list[str]]:
    """The requests of the command's last run, each with the seconds since the first one."""
    log = bench.results["surgeon extract"][-1].log
    return [
        [f"{e.method} {e.path} {e.range or ''}".strip(), e.server, f"{e.arrived - log[0].arrived:.3f} s"] for e in log
    ]


def measure_wire(bench: Bench, download: int | None) -> dict[str, Any]:
    """Compare the bytes on the wire with the size of the layer, and with downloads of whole files."""
    run = bench.results["surgeon extract"][-1]
    layer = bench.layer
    weights = sum(exchange.body_bytes for exchange in bench.weights(run.log))
    other_bodies = sum(exchange.body_bytes for exchange in run.log) - weights
    headers = run.wire_bytes - weights - other_bodies
    sizes = {path.name: path.stat().st_size for path in layer.checkpoint.iterdir()}
    shards = sum(sizes[file] for file, *_ in layer.ranges)
    all_files = sum(sizes.values())

    def line(title: str, num_bytes: int, digits: int) -> list[str]:
        return [title, f"{num_bytes:,}", f"{num_bytes / layer.num_bytes:.{digits}f}"]

    rows = [
        line("layer", layer.num_bytes, 0),
        line("surgeon extract, all responses", run.wire_bytes, 5),
        line("- weights", weights, 5),
        line("- index, config, list of files, headers of shards", other_bodies, 5),
        line("- HTTP headers", headers, 5),
        line(f"hf_hub_download, {len(layer.ranges)} shards (listed)", shards, 2),
        line("snapshot_download, from_pretrained (listed)", all_files, 1),
    ]
    if download is not None:
        rows.insert(5, line("hf_hub_download, smallest of the shards (measured)", download, 2))
    print("\nBytes on the wire\n")
    print(table(("", "bytes", "x layer"), rows))
    ratio = weights / layer.num_bytes
    print(f"\n{ratio:.5f} x the layer's bytes, without headers; target {WIRE_TARGET} x")
    return {"rows": rows, "ratio": ratio}


def measure_plain(bench: Bench, runs: int) -> dict[str, Any]:
    """Measure the command's rate without delay or limit, compared with the client library and http.client."""
    first = bench.surgeon()
    rows: dict[str, Callable[[], Run]] = {
        "surgeon extract": bench.surgeon,
        "huggingface_hub's client, the same ranges": partial(bench.replayed, "client_library.py", first),
        "http.client, the same ranges": partial(bench.replayed, "by_hand.py", first),
    }
    bench.in_turn(rows, runs)
    megabytes = bench.layer.num_bytes / 1e6
    lines = []
    for name, results in bench.results.items():
        rates = [megabytes / bench.median(name, phase) for phase in ("transfer", "with_end")]
        times = [spread([getattr(run, phase) for run in results]) for phase in ("transfer", "with_end", "whole")]
        lines.append([name, str(results[-1].connections), *times, *(f"{rate:,.0f} MB/s" for rate in rates)])
    print("\nPlain server on loopback, without delay or limit\n")
    print(table(("row", "conn.", "weights", "until the process ends", "process", "weights", "until the end"), lines))
    library = "huggingface_hub's client, the same ranges"
    shares = {
        phase: bench.median(library, phase) / bench.median("surgeon extract", phase)
        for phase in ("transfer", "with_end")
    }
    print(
        f"\n{shares['transfer']:.0%} of the client library's rate ({shares['with_end']:.0%} including the time after "
        f"the last byte: hashes, artifact, Python's exit); target {PLAIN_TARGET:.0%}"
    )
    return {"rows": rows_of(bench), "shares": shares}


def measure_download(layer: Layer, link: Link, folder: Path) -> int:
    """Bytes on the wire when the client library downloads the smallest shard that contains a part of the layer."""
    file = min({file for file, *_ in layer.ranges}, key=lambda name: (layer.checkpoint / name).stat().st_size)
    link.take_log()
    with tempfile.TemporaryDirectory(dir=folder) as home:
        environment = hub_environment(link, Path(home))
        command = [sys.executable, "-c", DOWNLOAD, REPO, file]
        subprocess.run(command, check=True, env=environment, stderr=subprocess.DEVNULL)
    return sum(exchange.num_bytes for exchange in link.take_log())


def rows_of(bench: Bench) -> dict[str, list[dict[str, Any]]]:
    """Convert all runs to plain data, without their logs."""

    def fields(run: Run) -> dict[str, Any]:
        return {key: value for key, value in vars(run).items() if key != "log"}

    return {name: [fields(run) for run in runs] for name, runs in bench.results.items()}


def parse(arguments: list[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--shape", choices=SHAPES, default="8B")
    parser.add_argument("--only", choices=("link", "plain"))
    parser.add_argument("--runs", type=int, default=3)
    parser.add_argument("--connections", type=int, nargs="+", default=[2, 4, 8, 16, 32], help="of the baselines")
    parser.add_argument("--latency", type=float, default=0.08, help="seconds per request")
    parser.add_argument("--rate", type=float, default=50.0, help="MB/s per connection")
    parser.add_argument("--requests", action="store_true", help="list the requests of the command's last run")
    parser.add_argument("--folder", type=Path, help="where to make files, such as /dev/shm (default: TMPDIR)")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write all measurements to this file")
    return parser.parse_args(arguments)


def main(arguments: list[str] | None = None) -> None:
    settings = parse(arguments)
    facts = machine()
    packages = versions("layer-surgeon", "huggingface_hub", "httpx2", "httpx")
    print(heading(facts, packages))
    config, max_shard_bytes = SHAPES[settings.shape]
    last = config["num_hidden_layers"] - 1
    document: dict[str, Any] = {"machine": facts, "versions": packages, "settings": vars(settings)}
    with tempfile.TemporaryDirectory(dir=settings.folder) as name:
        folder = Path(name)
        checkpoint = write_sparse_checkpoint(folder / "donor", config, [last], max_shard_bytes=max_shard_bytes)
        layer = find_layer(checkpoint)
        print(f"{settings.shape}, layer {last}: {layer.num_bytes:,} bytes in {len(layer.ranges)} ranges")
        download = None
        if settings.only != "link":
            with Link(checkpoint) as link:
                bench = Bench(layer, link, folder)
                document["plain"] = measure_plain(bench, settings.runs)
                download = measure_download(layer, link, folder)
        if settings.only != "plain":
            with Link(checkpoint, latency=settings.latency, bytes_per_second=settings.rate * 1e6) as link:
                bench = Bench(layer, link, folder)
                document["link"] = measure_link(bench, settings)
        document["wire"] = measure_wire(bench, download)
    save(settings.json, document)


if __name__ == "__main__":
    main()
