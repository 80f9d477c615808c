"""Reading from a loopback Hub: that repo ids are found there, what was waited and sent, and what is kept of a layer."""

import json
from pathlib import Path
from typing import Any

import pytest

from layer_surgeon.checkpoint.sources import hub as hub_module
from layer_surgeon.checkpoint.sources import retry
from layer_surgeon.checkpoint.sources.hub import HubSource
from tests.support.loopback_hub import LoopbackHub


def read_from(endpoint: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Let repo ids be those of the Hub at this URL, and be read without a token of the machine's user."""

    def open_repo(name: str, *, revision: str | None = None, path: str = "", **_: Any) -> HubSource:
        return HubSource(name, revision=revision, path=path, endpoint=endpoint, token=False)

    monkeypatch.setattr(hub_module, "HubSource", open_repo)


def note_waits(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    """The list to which each wait of a reader, in seconds, is added instead of being made."""
    waited: list[float] = []
    monkeypatch.setattr(retry, "pause", waited.append)
    return waited


def weight_bytes(hub: LoopbackHub) -> int:
    """Bytes of weights that the CDN sent since the log was begun, headers of files apart."""
    return sum(
        request.body_bytes
        for request in tuple(hub.requests)
        if request.server == "cdn" and not str(request.range).startswith(("bytes=0-", "bytes=8-"))
    )


def journaled(output: Path) -> int:
    """Bytes of the layer that the journal of a cut off extraction to `output` tells of.

    A line that was being written when the process ended is none.
    """
    journal = output.with_name(f".{output.name}.partial") / ".journal"
    if not journal.exists():
        return 0
    lines = [json.loads(line) for line in journal.read_bytes().splitlines()[1:] if line.endswith(b"}")]
    return sum(line["end"] - line["start"] for line in lines)
