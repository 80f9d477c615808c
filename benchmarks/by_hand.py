"""Reads byte ranges over N connections with http.client and writes them to their place: what anyone could do by hand.

Run as a script, in a process of its own, with a JSON document as its only argument:

    {"connections": 8, "target": FILE, "pieces": [[URL, start, length, offset in FILE], ...]}
    {"connections": 8, "target": FILE, "endpoint": URL, "repo": ID, "prefix": "model.layers.31."}

The first form knows the places. The second finds them first, with the fewest requests that do: the repo's commit, its
index, and for each shard its URL and the two parts of its header. It prints its seconds and requests as JSON.
Only the standard library, and of that only what is needed: its start is part of what is measured.
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
    """Cut ranges into `number` pieces (at least one for each) whose longest is as short as can be."""
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
    """One kept connection to each server; counts the requests."""

    def __init__(self) -> None:
        self._open: dict[str, HTTPConnection] = {}
        self.requests = 0

    def ask(self, method: str, url: str, start: int | None = None, length: int = 0) -> HTTPResponse:
        """An answer whose status is no error; its body has to be read before the next request to that server."""
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
    """The ranges of a layer whose tensors lie side by side in each shard, and how many requests it took."""
    hub = Connections()
    commit = json.load(hub.ask("GET", f"{endpoint}/api/models/{repo}"))["sha"]
    base = f"{endpoint}/{repo}/resolve/{commit}"
    weight_map = json.load(hub.ask("GET", f"{base}/model.safetensors.index.json"))["weight_map"]
    files = sorted({file for name, file in weight_map.items() if name.startswith(prefix)})
    found: dict[str, Piece] = {}
    askers = [hub, *(Connections() for _ in files[1:])]

    def look(asker: Connections, file: str) -> None:
        redirect = asker.ask("HEAD", f"{base}/{file}")
        redirect.read()
        url = redirect.headers["Location"]
        length = int.from_bytes(asker.ask("GET", url, 0, 8).read(), "little")
        header = json.loads(asker.ask("GET", url, 8, length).read())
        places = [entry["data_offsets"] for name, entry in header.items() if name.startswith(prefix)]
        first, last = min(place[0] for place in places), max(place[1] for place in places)
        found[file] = (url, 8 + length + first, last - first, 0)

    _all_at_once([threading.Thread(target=look, args=pair) for pair in zip(askers, files, strict=True)])
    ranges, offset = [], 0
    for file in files:
        url, start, length, _ = found[file]
        ranges.append((url, start, length, offset))
        offset += length
    return ranges, sum(asker.requests for asker in askers)


def fetch(pieces: list[Piece], connections: int, target: str) -> None:
    """Read all pieces, each connection taking the next one when it is done, and write them to their place."""
    waiting: SimpleQueue[Piece] = SimpleQueue()
    for piece in pieces:
        waiting.put(piece)
    descriptor = os.open(target, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o644)
    failures: list[BaseException] = []

    def work() -> None:
        connection, buffer = Connections(), memoryview(bytearray(1 << 20))
        try:
            while True:
                try:
                    url, start, length, offset = waiting.get_nowait()
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

    _all_at_once([threading.Thread(target=work) for _ in range(min(connections, len(pieces)))])
    os.close(descriptor)
    if failures:
        raise SystemExit(f"by hand: {failures[0]}")


def _all_at_once(threads: list[threading.Thread]) -> None:
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
