"""Copying into a file, and hashing it while it is written."""

import hashlib
import itertools
import os
import threading
import time
from types import SimpleNamespace

import pytest

from layer_surgeon import open_checkpoint, plan_extraction
from layer_surgeon.checkpoint.sources.local import FolderSource
from layer_surgeon.checkpoint.sources.retry import HubLimits, Tries, TroubleError
from layer_surgeon.errors import ArtifactError, SourceError
from layer_surgeon.extract import plan as plan_module
from layer_surgeon.extract.copy import copy_tensors, fill_range
from layer_surgeon.extract.follow import hash_file
from layer_surgeon.progress import NullProgress
from tests.support.checkpoints import TINY, write_sparse_checkpoint


@pytest.mark.parametrize("num_left", [12, 5, 0])
def test_a_file_that_another_program_shortened_is_an_error(tmp_path, num_left):
    path = tmp_path / "model.safetensors"
    path.write_bytes(b"twelve bytes"[:num_left])
    plan, front = SimpleNamespace(num_out_bytes=12), SimpleNamespace(wait_beyond=lambda position: 12)
    descriptor = os.open(path, os.O_RDONLY)
    try:
        if num_left == 12:
            assert hash_file(descriptor, plan, front) == hashlib.sha256(b"twelve bytes").hexdigest()
        else:
            with pytest.raises(ArtifactError, match=f"ends at byte {num_left}, after 12 bytes were written. Run"):
                hash_file(descriptor, plan, front)
    finally:
        os.close(descriptor)


def test_an_origin_that_another_program_shortened_is_an_error(tmp_path):
    for name in ("origin", "copy"):
        (tmp_path / name).write_bytes(b"12345")
    with pytest.raises(ArtifactError, match=r"ends at byte 5, before the end of a tensor\. Run"):
        fill_range(tmp_path / "copy", 0, 5, (tmp_path / "origin", 2))


def test_a_stopped_copy_does_not_wait_for_a_server(tmp_path):
    """A Hub that limits requests asks for minutes; after an error or Ctrl-C, no one wants to wait for them."""
    folder = write_sparse_checkpoint(tmp_path / "donor", TINY, range(4), max_shard_bytes=8_000)
    calls = itertools.count()

    class Limited(FolderSource):
        connections = 2

        def stream_range(self, file, start, length):
            if next(calls) == 0:
                Tries(file, HubLimits()).wait(TroubleError("too many requests", asked_wait=300))
            raise SourceError("the other connection broke")

    checkpoint = open_checkpoint(folder)
    with pytest.raises(SourceError, match="the other connection broke"):
        copy_tensors(Limited(folder, name="limited"), plan_extraction(checkpoint, -1), tmp_path / "out", NullProgress())
    assert next(calls) >= 2


@pytest.mark.parametrize("whole_file", [True, False])
def test_no_more_ranges_are_read_at_once_than_connections(tmp_path, monkeypatch, whole_file):
    monkeypatch.setattr(plan_module, "MIN_PIECE_BYTES", 2_000)
    source = open_checkpoint(write_sparse_checkpoint(tmp_path / "donor", TINY, [0])).source
    plain, active, most, lock = FolderSource.stream_range, [0], [0], threading.Lock()

    def stream_range(self, *byte_range):
        with lock:
            active[0] += 1
            most[0] = max(most[0], active[0])
        try:
            time.sleep(0.01)
            yield from plain(self, *byte_range)
        finally:
            with lock:
                active[0] -= 1

    monkeypatch.setattr(FolderSource, "stream_range", stream_range)
    monkeypatch.setattr(FolderSource, "connections", 2)
    plan = plan_extraction(open_checkpoint(tmp_path / "donor"), 0)
    assert len(plan.pieces) > 3
    copy_tensors(source, plan, tmp_path / "out", NullProgress(), whole_file=whole_file)
    assert most == [2]
