"""Read byte ranges over N connections with http.client and write each to its position: a hand-written baseline.

Run as a script with a JSON document as its only argument:

    {"connections": 8, "target": FILE, "pieces": [[URL, start, length, offset in FILE], ...]}
    {"connections": 8, "target": FILE, "endpoint": URL, "repo": ID, "prefix": "model.layers.31."}

The first form knows the byte ranges. The second finds them first, with as few requests as possible: the repo's commit,
its index, and for each shard the URL and the two parts of its header. The script prints its seconds and its number of
requests as JSON. It only imports the modules of the standard library that it needs, because its start is measured too.
"""

import json
import os
import sys
import threading
import time
from http.client import HTTPConnection, HTTPResponse
from itertools import pairwise
from queue import Empty, SimpleQueue
from urllib.parse import urlsplit

Piece = tuple[str, int, int, int]


def cut(ranges: list[Piece], number: int) -> list[Piece]:
    """Split ranges into `number` pieces (at least one per range), with the longest piece as short as possible."""
    counts = [1] * len(ranges)
    for _ in range(number - len(ranges)):
        longest = max(range(len(ranges)), key=lambda index: ranges[index][2] / counts[index])
        counts[longest] += 1
    pieces = []
    for (url, start, length, offset), count in zip(ranges, counts, strict=True):
        cuts = [length * position // count for position in range(count + 1)]
        for begin, end in pairwise(cuts):
            pieces.append((url, start + begin, end - begin, offset + begin))
    return sorted(pieces, key=lambda piece: -piece[2])


class Connections:
    """Keeps one connection open to each server, and counts the requests."""

    def __init__(self) -> None:
        self._open: dict[str, HTTPConnection] = {}
        self.requests = 0

    def ask(self, method: str, url: str, start: int | None = None, length: int = 0) -> HTTPResponse:
        """Send a request. Read the body of the response before the next request to the same server.

        Raises:
            SystemExit: The status is an error.
        """
        parts = urlsplit(url)
        connection = self._open.setdefault(parts.netloc, HTTPConnection(parts.netloc))
        headers = {} if start is None else {"Range": f"bytes={start}-{start + length - 1}"}
        target = f"{parts.path}?{parts.query}" if parts.query else parts.path
        connection.request(method, target, headers=headers)
        self.requests += 1
        response = connection.getresponse()
        if response.status not in (200, 206, 302):
            raise SystemExit(f"{method} {url}: status {response.status}")
        return response


def find(endpoint: str, repo: str, prefix: str) -> tuple[list[Piece], int]:
    """Find the ranges of a layer whose tensors are contiguous in each shard.

    Returns:
        The ranges, and the number of requests made.
    """
    hub = Connections()
    commit = json.load(hub.ask("GET", f"{endpoint}/api/models/{repo}"))["sha"]
    base = f"{endpoint}/{repo}/resolve/{commit}"
    weight_map = json.load(hub.ask("GET", f"{base}/model.safetensors.index.json"))["weight_map"]
    files = sorted({file for name, file in weight_map.items() if name.startswith(prefix)})
    range_of_file: dict[str, Piece] = {}
    connections = [hub, *(Connections() for _ in files[1:])]

    def find_range(connection: Connections, file: str) -> None:
        redirect = connection.ask("HEAD", f"{base}/{file}")
        redirect.read()
        signed_url = redirect.headers["Location"]
        length = int.from_bytes(connection.ask("GET", signed_url, 0, 8).read(), "little")
        header = json.loads(connection.ask("GET", signed_url, 8, length).read())
        offsets = [tensor["data_offsets"] for name, tensor in header.items() if name.startswith(prefix)]
        begin, end = min(begin for begin, _ in offsets), max(end for _, end in offsets)
        range_of_file[file] = (signed_url, 8 + length + begin, end - begin, 0)

    _run_in_parallel([threading.Thread(target=find_range, args=pair) for pair in zip(connections, files, strict=True)])
    ranges, offset = [], 0
    for file in files:
        url, start, length, _ = range_of_file[file]
        ranges.append((url, start, length, offset))
        offset += length
    return ranges, sum(connection.requests for connection in connections)


def fetch(pieces: list[Piece], connections: int, target: str) -> None:
    """Read all pieces and write each to its position. A connection takes the next piece when it has finished one."""
    queue: SimpleQueue[Piece] = SimpleQueue()
    for piece in pieces:
        queue.put(piece)
    descriptor = os.open(target, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o644)
    failures: list[BaseException] = []

    def work() -> None:
        connection, buffer = Connections(), memoryview(bytearray(1 << 20))
        try:
            while True:
                try:
                    url, start, length, offset = queue.get_nowait()
                except Empty:
                    return
                response = connection.ask("GET", url, start, length)
                done = 0
                while done < length:
                    count = response.readinto(buffer[: length - done])
                    if not count:
                        raise OSError(f"{url} ended after {done} of {length} bytes")
                    written = 0
                    while written < count:
                        written += os.pwrite(descriptor, buffer[written:count], offset + done + written)
                    done += count
                response.read()
        except BaseException as error:
            failures.append(error)
            raise

    _run_in_parallel([threading.Thread(target=work) for _ in range(min(connections, len(pieces)))])
    os.close(descriptor)
    if failures:
        raise SystemExit(f"by hand: {failures[0]}")


def _run_in_parallel(threads: list[threading.Thread]) -> None:
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()


def main() -> None:
    begin = time.perf_counter()
    task = json.loads(sys.argv[1])
    requests = 0
    if "endpoint" in task:
        ranges, requests = find(task["endpoint"], task["repo"], task["prefix"])
        pieces = cut(ranges, task["connections"])
    else:
        pieces = [tuple(piece) for piece in task["pieces"]]
    fetch(pieces, task["connections"], task["target"])
    seconds = time.perf_counter() - begin
    sys.stdout.write(json.dumps({"seconds": seconds, "requests": requests + len(pieces)}))


if __name__ == "__main__":
    main()
