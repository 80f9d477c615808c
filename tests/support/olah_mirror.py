"""olah, a mirror of the Hub that people run in their own networks, as a process in front of another Hub.

It needs other versions of what we need, and so lives in an environment of its own, made once and kept.
"""

import fcntl
import os
import shutil
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from urllib.parse import urlsplit

VERSION = "0.5.4"
_START_SECONDS = 120.0
# 64 MiB is the default: far more than a tiny layer, so that no test would see a file that is there in part.
_BLOCK_BYTES = 1 << 20
_CONFIG = """[basic]
host = "127.0.0.1"
port = {port}
hf-scheme = "http"
hf-netloc = "{hub}"
hf-lfs-netloc = "{cdn}"
mirror-netloc = "127.0.0.1:{port}"
mirror-lfs-netloc = "127.0.0.1:{port}"
repos-path = "{folder}/repos"
cache-block-size = {block}
cache-chunk-size = {block}
"""


class NoEnvironmentError(Exception):
    """olah can't be installed here: no pip, or no registry."""


def make_environment(folder: Path) -> Path:
    """Install olah into `folder`, unless it is there already, and return its command.

    Raises:
        NoEnvironmentError: pip failed; the text is the end of what it said.
    """
    command, ready = folder / "bin" / "olah-cli", folder / f"olah-{VERSION}.ready"
    folder.parent.mkdir(parents=True, exist_ok=True)
    with open(folder.with_suffix(".lock"), "w") as lock:
        # Two runs of the tests at once must not install into one folder.
        fcntl.flock(lock, fcntl.LOCK_EX)
        if ready.exists():
            return command
        shutil.rmtree(folder, ignore_errors=True)
        install = ["-m", "pip", "install", "--quiet", "--retries", "1", "--timeout", "15", f"olah=={VERSION}"]
        for arguments in ([sys.executable, "-m", "venv", str(folder)], [str(folder / "bin" / "python"), *install]):
            done = subprocess.run(arguments, capture_output=True, text=True, check=False)
            if done.returncode:
                raise NoEnvironmentError((done.stderr or done.stdout).strip()[-300:])
        ready.touch()
    return command


@contextmanager
def run_mirror(command: Path, folder: Path, *, hub: str, cdn: str) -> Iterator[str]:
    """A context in which olah answers for the Hub at `hub`; yields its URL.

    Args:
        command: olah's command.
        folder: Where it may keep its cache, configuration and log.
        hub: The URL of the Hub.
        cdn: The URL of the Hub's CDN.
    """
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    config = folder / "olah.toml"
    netlocs = {"hub": urlsplit(hub).netloc, "cdn": urlsplit(cdn).netloc}
    config.write_text(_CONFIG.format(port=port, folder=folder, block=_BLOCK_BYTES, **netlocs))
    environment = {name: value for name, value in os.environ.items() if not name.startswith(("HF_", "OLAH_"))}
    with open(folder / "olah.txt", "w") as log:
        process = subprocess.Popen(
            [str(command), "--config", str(config), "--log-path", str(folder / "logs")],
            cwd=folder,
            env=environment,
            stdout=log,
            stderr=subprocess.STDOUT,
        )
        try:
            _wait_for(port, process, folder / "olah.txt")
            yield f"http://127.0.0.1:{port}"
        finally:
            process.terminate()
            process.wait()


def _wait_for(port: int, process: subprocess.Popen[bytes], log: Path) -> None:
    deadline = time.monotonic() + _START_SECONDS
    while time.monotonic() < deadline:
        assert process.poll() is None, log.read_text()[-2000:]
        try:
            socket.create_connection(("127.0.0.1", port), 1).close()
            return
        except OSError:
            time.sleep(0.05)
    raise AssertionError(f"olah did not start: {log.read_text()[-2000:]}")
