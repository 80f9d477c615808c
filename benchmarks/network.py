"""`surgeon extract` from a Hub over a slow link and over a fast one, beside what could be done by hand.

    python -m benchmarks.network
    python -m benchmarks.network --only link --runs 5 --json network.json
    python -m benchmarks.network --shape small --latency 0.01          a few seconds, to see that it works

Starts its own servers on loopback. Link: 80 ms before each answer (and before a new connection's first), 50 MB/s for
each connection, as many connections as one likes. Plain: the same server without delay and limit. docs/benchmarks.md
says what each row is. Rows take turns; medians are shown, and the fastest and slowest run in brackets.
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

# Configuration, and the largest shard: the small shape's last layer, too, lies in two shards.
SHAPES = {"small": (SMALL, 2_500_000), "8B": (LLAMA_8B, 5_000_000_000), "70B": (LLAMA_70B, 5_000_000_000)}
# One or two equal pieces for each connection: one is best where all connections are alike, two where one may lag.
PIECES_EACH = (1, 2)
LINK_AIM, WIRE_AIM, PLAIN_AIM = 1.2, 1.001, 0.7
DOWNLOAD = "import sys; from huggingface_hub import hf_hub_download; hf_hub_download(sys.argv[1], sys.argv[2])"


def measure_link(bench: Bench, settings: argparse.Namespace) -> dict[str, Any]:
    """Run all rows over the link, and compare."""
    used = bench.surgeon().connections
    grid = sorted({*settings.connections, used})
    rows: dict[str, Callable[[], Run]] = {"surgeon extract": bench.surgeon}
    for number in grid:
        for each in PIECES_EACH:
            rows[f"places known, {number} connections, {each} each"] = partial(bench.known, number, each)
        rows[f"places found first, {number} connections"] = partial(bench.found, number)
    bench.in_turn(rows, settings.runs)

    def ideal(connections: int) -> float:
        # The connection and the answer, then the bytes.
        return float(2 * settings.latency + bench.layer.num_bytes / (connections * settings.rate * 1e6))

    lines = []
    for name, runs in bench.results.items():
        middle = bench.median(name, "transfer")
        lines.append(
            [
                name,
                str(runs[-1].connections),
                str(runs[-1].requests),
                spread([run.transfer for run in runs]),
                f"{ideal(runs[-1].connections) / middle:.0%}",
                spread([run.after_start for run in runs]),
                spread([run.whole for run in runs]),
            ]
        )
    header = ("row", "conn.", "requests", "weights", "of the link", "from 1st request on", "process")
    print(f"\nLink: {settings.latency * 1e3:.0f} ms per request, {settings.rate:.0f} MB/s per connection\n")
    print(table(header, lines))
    return compare_link(bench, grid, used, requests=settings.requests)


def compare_link(bench: Bench, grid: list[int], used: int, *, requests: bool) -> dict[str, Any]:
    """The ratios that the link is judged by: over as many connections as the command used, and over any number."""
    ours = {what: bench.median("surgeon extract", what) for what in ("transfer", "after_start", "whole")}
    verdicts = {}
    for words, numbers in (("as many connections", [used]), ("any number of connections", grid)):
        known = [f"places known, {number} connections, {each} each" for number in numbers for each in PIECES_EACH]
        found = [f"places found first, {number} connections" for number in numbers]
        for title, rows, what in (
            ("weights alone", known, "transfer"),
            ("from the first request on, places found first", found, "after_start"),
            ("whole process, places found first", found, "whole"),
        ):
            best = min(rows, key=lambda row: bench.median(row, what))
            verdicts[f"{title}, best by hand over {words} ({best})"] = ours[what] / bench.median(best, what)
    start, places = (bench.median("surgeon extract", what) for what in ("start", "places"))
    finish = bench.median("surgeon extract", "finish")
    print(
        f"\nsurgeon extract: {start:.2f} s until its first request (Python's start and imports), {places:.2f} s to "
        f"find the places, {ours['transfer']:.2f} s weights, {finish:.2f} s from the last byte to the end.\n"
    )
    if requests:
        print(table(("request", "server", "after"), _requests(bench)) + "\n")
    for title, ratio in verdicts.items():
        print(f"{ratio:5.2f} x  {title}; aim {LINK_AIM} x")
    return {"rows": rows_of(bench), "ratios": verdicts}


def _requests(bench: Bench) -> list[list[str]]:
    """The requests of the command's last run, and when each arrived after the first one."""
    log = bench.results["surgeon extract"][-1].log
    return [
        [f"{e.method} {e.path} {e.range or ''}".strip(), e.server, f"{e.arrived - log[0].arrived:.3f} s"] for e in log
    ]


def measure_wire(bench: Bench, download: int | None) -> dict[str, Any]:
    """Compare the bytes on the wire with the layer's, and with what whole files cost."""
    run = bench.results["surgeon extract"][-1]
    layer = bench.layer
    weights = sum(exchange.body_bytes for exchange in bench.weights(run.log))
    bodies = sum(exchange.body_bytes for exchange in run.log) - weights
    heads = run.wire_bytes - weights - bodies
    sizes = {path.name: path.stat().st_size for path in layer.checkpoint.iterdir()}
    shards = sum(sizes[file] for file, *_ in layer.ranges)
    whole = sum(sizes.values())
    rows = [
        ["layer", f"{layer.num_bytes:,}", "1"],
        ["surgeon extract, all answers", f"{run.wire_bytes:,}", f"{run.wire_bytes / layer.num_bytes:.5f}"],
        ["- weights", f"{weights:,}", f"{weights / layer.num_bytes:.5f}"],
        ["- index, config, list of files, headers of shards", f"{bodies:,}", f"{bodies / layer.num_bytes:.5f}"],
        ["- HTTP headers", f"{heads:,}", f"{heads / layer.num_bytes:.5f}"],
        [f"hf_hub_download, {len(layer.ranges)} shards (listed)", f"{shards:,}", f"{shards / layer.num_bytes:.2f}"],
        ["snapshot_download, from_pretrained (listed)", f"{whole:,}", f"{whole / layer.num_bytes:.1f}"],
    ]
    if download is not None:
        title = "hf_hub_download, smallest of the shards (measured)"
        rows.insert(5, [title, f"{download:,}", f"{download / layer.num_bytes:.2f}"])
    print("\nBytes on the wire\n")
    print(table(("", "bytes", "x layer"), rows))
    ratio = weights / layer.num_bytes
    print(f"\n{ratio:.5f} x the layer's bytes besides headers; aim {WIRE_AIM} x")
    return {"rows": rows, "ratio": ratio}


def measure_plain(bench: Bench, runs: int) -> dict[str, Any]:
    """What the command moves without delay and limit, beside the client library and http.client."""
    first = bench.surgeon()
    rows: dict[str, Callable[[], Run]] = {
        "surgeon extract": bench.surgeon,
        "huggingface_hub's client, the same ranges": partial(bench.replayed, "client_library.py", first),
        "http.client, the same ranges": partial(bench.replayed, "by_hand.py", first),
    }
    bench.in_turn(rows, runs)
    size = bench.layer.num_bytes / 1e6
    lines, rates = [], {}
    for name, results in bench.results.items():
        middle = bench.median(name, "transfer")
        rates[name] = size / middle
        with_end = size / bench.median(name, "with_end")
        times = [spread([getattr(run, what) for run in results]) for what in ("transfer", "with_end", "whole")]
        lines.append([name, str(results[-1].connections), *times, f"{rates[name]:,.0f} MB/s", f"{with_end:,.0f} MB/s"])
    print("\nPlain server on loopback, no delay, no limit\n")
    print(table(("row", "conn.", "weights", "until the process ends", "process", "weights", "until the end"), lines))
    library = "huggingface_hub's client, the same ranges"
    shares = {
        what: bench.median(library, what) / bench.median("surgeon extract", what) for what in ("transfer", "with_end")
    }
    print(
        f"\n{shares['transfer']:.0%} of what the client library moves ({shares['with_end']:.0%} with all that comes "
        f"after the last byte: hashes, artifact, Python's end); aim {PLAIN_AIM:.0%}"
    )
    return {"rows": rows_of(bench), "shares": shares}


def measure_download(layer: Layer, link: Link, folder: Path) -> int:
    """Bytes on the wire when the client library downloads the smallest shard that holds some of the layer."""
    file = min({file for file, *_ in layer.ranges}, key=lambda name: (layer.checkpoint / name).stat().st_size)
    link.take_log()
    with tempfile.TemporaryDirectory(dir=folder) as home:
        environment = hub_environment(link, Path(home))
        command = [sys.executable, "-c", DOWNLOAD, REPO, file]
        subprocess.run(command, check=True, env=environment, stderr=subprocess.DEVNULL)
    return sum(exchange.num_bytes for exchange in link.take_log())


def rows_of(bench: Bench) -> dict[str, list[dict[str, Any]]]:
    """All runs as plain data, without their logs."""

    def facts(run: Run) -> dict[str, Any]:
        return {key: value for key, value in vars(run).items() if key != "log"}

    return {name: [facts(run) for run in runs] for name, runs in bench.results.items()}


def parse(arguments: list[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--shape", choices=SHAPES, default="8B")
    parser.add_argument("--only", choices=("link", "plain"))
    parser.add_argument("--runs", type=int, default=3)
    parser.add_argument("--connections", type=int, nargs="+", default=[2, 4, 8, 16, 32], help="by hand")
    parser.add_argument("--latency", type=float, default=0.08, help="seconds per request")
    parser.add_argument("--rate", type=float, default=50.0, help="MB/s per connection")
    parser.add_argument("--requests", action="store_true", help="list the requests of the command's last run")
    parser.add_argument("--folder", type=Path, help="where files are made, such as /dev/shm (default: TMPDIR)")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write everything that was measured")
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
