"""Make the same reads as `by_hand` with huggingface_hub's own HTTP client: the upper bound for a user of that client.

Run as a script with {"connections": N, "target": FILE, "pieces": [[URL, start, length, offset in FILE], ...]}. Prints
as JSON the seconds from the first request on, without imports.
"""

import json
import os
import sys
import time
from concurrent.futures import ThreadPoolExecutor

from huggingface_hub import get_session


def fetch(descriptor: int, url: str, start: int, length: int, offset: int) -> None:
    """Read one range, and write it to its position as it arrives."""
    headers = {"range": f"bytes={start}-{start + length - 1}", "accept-encoding": "identity"}
    with get_session().stream("GET", url, headers=headers) as response:
        response.raise_for_status()
        end = offset + length
        for chunk in response.iter_raw():
            view = memoryview(chunk)
            while view:
                written = os.pwrite(descriptor, view, offset)
                view, offset = view[written:], offset + written
        if offset != end:
            raise OSError(f"{url} ended {end - offset} bytes early")


def main() -> None:
    task = json.loads(sys.argv[1])
    descriptor = os.open(task["target"], os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o644)
    get_session()
    begin = time.perf_counter()
    with ThreadPoolExecutor(task["connections"]) as pool:
        for future in [pool.submit(fetch, descriptor, *piece) for piece in task["pieces"]]:
            future.result()
    sys.stdout.write(json.dumps({"seconds": time.perf_counter() - begin, "requests": len(task["pieces"])}))
    os.close(descriptor)


if __name__ == "__main__":
    main()
