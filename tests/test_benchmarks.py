"""The benchmarks at tiny sizes: their rows work, compare bytes, and count correctly."""

import http.client
import json
import os
import subprocess
import sys
from types import SimpleNamespace
from urllib.parse import urlsplit

import pytest

from benchmarks import assemble, by_hand, diff, extract, gguf, network
from benchmarks.command import SMALL, SURGEON
from benchmarks.fetching import Bench, find_layer
from benchmarks.link import REPO, Link
from benchmarks.machine import ROOT, spread, table
from benchmarks.peers import ROWS, digest_of, find_job
from benchmarks.process import HAS_PROC, Usage, drop_from_cache, measure
from layer_surgeon import diff_checkpoints
from tests.support.checkpoints import write_sparse_checkpoint

TINY = SMALL | {"hidden_size": 64, "intermediate_size": 128}
# Resolution of a file's modification time.
CLOCK_TICK = 0.01
needs_proc = pytest.mark.skipif(not HAS_PROC, reason="this system has no /proc")


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory):
    """A checkpoint whose last layer is in two shards."""
    return write_sparse_checkpoint(tmp_path_factory.mktemp("donor") / "donor", TINY, [2], max_shard_bytes=180_000)


@pytest.fixture(scope="module")
def layer(checkpoint):
    return find_layer(checkpoint)


def test_layer_is_in_two_contiguous_ranges(layer, checkpoint):
    files, starts, lengths, offsets = zip(*layer.ranges, strict=True)
    assert len(set(files)) == 2
    assert offsets == (0, lengths[0])
    assert sum(lengths) == layer.num_bytes
    content = b"".join(
        (checkpoint / file).read_bytes()[start : start + length]
        for file, start, length in zip(files, starts, lengths, strict=True)
    )
    assert content.count(0) < len(content) / 100


@pytest.mark.parametrize("number", [1, 2, 3, 7, 16])
def test_ranges_are_cut_into_nearly_equal_pieces(number):
    ranges = [("a", 100, 7_000, 0), ("b", 5, 3_000, 7_000)]
    pieces = by_hand.cut(ranges, number)
    assert len(pieces) == max(number, 2)
    lengths = [length for _, _, length, _ in pieces]
    assert lengths == sorted(lengths, reverse=True)
    covered = sorted((offset, offset + length) for _, _, length, offset in pieces)
    assert [begin for begin, _ in covered] == [0, *(end for _, end in covered[:-1])]
    assert covered[-1][1] == 10_000
    for url, start, _, offset in pieces:
        assert start - offset == (100 if url == "a" else 5 - 7_000)
    if number == 7:
        assert max(lengths) == 1_500


def test_link_delays_limits_and_counts(checkpoint, layer):
    file, start, length, _ = layer.ranges[0]
    with Link(checkpoint, latency=0.05, bytes_per_second=1e6) as link:
        storage_url = urlsplit(link.storage)
        connection = http.client.HTTPConnection(storage_url.netloc)
        for _ in range(2):
            connection.request("GET", f"/any/{file}", headers={"Range": f"bytes={start}-{start + length - 1}"})
            response = connection.getresponse()
            body = response.read()
        connection.close()
        log = link.take_log()
        assert link.take_log() == []
    with (checkpoint / file).open("rb") as content:
        content.seek(start)
        assert body == content.read(length)
    assert response.status == 206
    assert [exchange.body_bytes for exchange in log] == [length, length]
    assert all(100 < exchange.num_bytes - length < 400 for exchange in log)
    assert len({exchange.client for exchange in log}) == 1
    first, second = (exchange.ended - exchange.arrived for exchange in log)
    assert first >= 0.1 + length / 1e6
    assert second >= 0.05 + length / 1e6


def test_all_rows_of_the_network_benchmark_fetch_the_same_bytes(checkpoint, layer, tmp_path):
    with Link(checkpoint, latency=0.01) as link:
        bench = Bench(layer, link, tmp_path)
        ours = bench.surgeon()
        rows = {
            "known": bench.known(4, 2),
            "found": bench.found(2),
            "library": bench.replayed("client_library.py", ours),
            "by hand": bench.replayed("by_hand.py", ours),
        }
        bench.expected = "something else"
        with pytest.raises(SystemExit, match="wrote different bytes"):
            bench.known(1, 1)
    for run in (ours, *rows.values()):
        weights = bench.weights(run.log)
        assert sum(exchange.body_bytes for exchange in weights) == layer.num_bytes
        assert layer.num_bytes < run.wire_bytes < 2 * layer.num_bytes
        assert 0.01 < run.transfer + CLOCK_TICK < run.whole
        assert run.start + run.places + run.transfer + run.finish == pytest.approx(run.whole)
    assert rows["known"].requests == len(rows["known"].log) == 8
    # The repo and its index; for two shards the URL and the two parts of the header; then the weights.
    assert rows["found"].requests == 2 + 2 * 3 + 2
    for name in ("library", "by hand"):
        assert {e.range for e in bench.weights(rows[name].log)} == {e.range for e in bench.weights(ours.log)}


def test_the_network_benchmark_runs_and_writes_its_results(tmp_path, capsys, monkeypatch):
    monkeypatch.setitem(network.SHAPES, "small", (TINY, 180_000))
    target = tmp_path / "network.json"
    options = ["--shape", "small", "--latency", "0.002", "--runs", "1", "--connections", "2"]
    network.main([*options, "--requests", "--folder", str(tmp_path), "--json", str(target)])
    shown = capsys.readouterr().out
    assert f"| GET /api/models/{REPO} " in shown
    document = json.loads(target.read_text())
    assert document["wire"]["ratio"] == 1
    assert len(document["link"]["ratios"]) == 6
    assert document["plain"]["rows"]["surgeon extract"][0]["connections"] >= 1
    assert list(tmp_path.iterdir()) == [target]


def test_the_extraction_benchmark_runs_and_writes_its_results(tmp_path, capsys):
    target = tmp_path / "extract.json"
    extract.main(
        ["--only", "small", "--cache", "warm", "--runs", "1", "--folder", str(tmp_path), "--json", str(target)]
    )
    shown = capsys.readouterr().out
    assert "x the copy" in shown
    rows = json.loads(target.read_text())["shapes"]["small"]["warm"]
    assert list(rows) == ["copy", "surgeon"]
    assert len(rows["surgeon"]) == 1
    assert list(tmp_path.iterdir()) == [target]


def test_the_assembly_benchmark_runs_and_writes_its_results(tmp_path, capsys):
    target = tmp_path / "assemble.json"
    settings = ["--only", "small", "--rows", "copy", "surgeon", "--runs", "1"]
    assemble.main([*settings, "--folder", str(tmp_path), "--json", str(target)])
    assert "x the copy" in capsys.readouterr().out
    assert list(json.loads(target.read_text())["rows"]) == ["copy", "surgeon"]
    assert list(tmp_path.iterdir()) == [target]


@pytest.mark.real_weights
def test_the_gguf_benchmark_runs_and_writes_its_results(tmp_path, capsys):
    target = tmp_path / "gguf.json"
    gguf.main(["--runs", "1", "--other", str(SURGEON), "--json", str(target)])
    assert "| other inspect " in capsys.readouterr().out
    rows = json.loads(target.read_text())["rows"]
    assert len(rows) == 6
    assert all(len(usages) == 1 and usages[0]["cpu_seconds"] > 0 for usages in rows.values())


def test_the_models_of_the_diff_benchmark_are_equal_and_different(tmp_path, capsys):
    a, copy, b = diff.write_models(tmp_path, TINY | {"num_hidden_layers": 2})
    assert diff_checkpoints(a, copy).equal
    groups = diff_checkpoints(a, b).groups
    assert all(0.05 < group.relative_l2 < 0.2 for group in groups)
    reading = measure([sys.executable, str(diff._READ), str(a), str(b)])
    diff.show({"read both": [reading], "surgeon diff": [reading]})
    assert "| surgeon diff |" in capsys.readouterr().out


def test_row_that_writes_different_bytes_is_detected(checkpoint, tmp_path, monkeypatch):
    job = find_job(checkpoint, tmp_path / "out")
    spoil = "import sys; data = bytearray(int(sys.argv[2])); open(sys.argv[1], 'wb').write(data)"
    row = SimpleNamespace(
        title="spoiled",
        command=lambda job: [sys.executable, "-c", spoil, str(job.output), str(job.num_bytes)],
        tensors=ROWS["copy"].tensors,
    )
    monkeypatch.setitem(ROWS, "copy", row)
    with pytest.raises(SystemExit, match="spoiled wrote different bytes"):
        extract.run_rows(job, ["copy"], 1, cold=False)


def test_missing_tools_are_reported(tmp_path, monkeypatch):
    monkeypatch.setattr(extract, "PEERS", tmp_path / "bin")
    with pytest.raises(SystemExit, match="make bench"):
        extract.main(["--only", "small", "--rows", "safe_open"])


def test_digest_depends_on_names_and_bytes_but_not_on_order(tmp_path):
    path = tmp_path / "file"
    path.write_bytes(b"aabbb")
    one, two = ("x", path, 0, 2), ("y", path, 2, 3)
    digest = digest_of(iter([one, two]))
    assert digest == digest_of(iter([two, one]))
    assert digest != digest_of(iter([("z", path, 0, 2), two]))
    path.write_bytes(b"aabbc")
    assert digest != digest_of(iter([one, two]))


@needs_proc
def test_memory_includes_children_and_separates_files(tmp_path):
    path = tmp_path / "file"
    path.write_bytes(os.urandom(30 << 20))
    map_file = (
        "import mmap, sys, time; file = open(sys.argv[1], 'rb');"
        "m = mmap.mmap(file.fileno(), 0, prot=mmap.PROT_READ); sum(m[::4096]); time.sleep(0.2)"
    )
    allocate = "import time; data = bytearray(b'x') * (60 << 20); time.sleep(0.2)"
    child = "import subprocess, sys; subprocess.run([sys.executable, '-c', sys.argv[1]])"
    plain, file, own, childs = (
        measure([sys.executable, "-c", *arguments])
        for arguments in (
            ["import time; time.sleep(0.2)"],
            [map_file, str(path)],
            [allocate],
            [child, allocate],
        )
    )
    for usage in (own, childs):
        assert usage.anonymous_bytes > plain.anonymous_bytes + (55 << 20)
        assert usage.resident_bytes > plain.resident_bytes + (55 << 20)
    assert file.resident_bytes > plain.resident_bytes + (28 << 20)
    assert file.anonymous_bytes < plain.anonymous_bytes + (10 << 20)


def test_failed_command_is_reported_with_its_stderr():
    with pytest.raises(SystemExit, match=r"(?s)status 3.*no such thing"):
        measure([sys.executable, "-c", "import sys; sys.stderr.write('no such thing'); sys.exit(3)"])


@pytest.mark.skipif(not hasattr(os, "posix_fadvise"), reason="this system can't drop pages")
def test_dropping_pages_keeps_the_bytes(checkpoint):
    before = [path.read_bytes() for path in sorted(checkpoint.iterdir())]
    drop_from_cache(checkpoint)
    assert [path.read_bytes() for path in sorted(checkpoint.iterdir())] == before


def test_by_hand_only_imports_the_standard_library():
    code = "import sys; sys.argv = ['', '{}']; import benchmarks.by_hand; print(*sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, text=True, cwd=ROOT)
    assert not {"huggingface_hub", "numpy", "layer_surgeon", "tests"} & set(done.stdout.split())


def test_tables_and_spreads():
    assert table(("row", "time"), [["a", "1 s"], ["long", "10 s"]]).splitlines() == [
        "| row  | time |",
        "|------|-----:|",
        "| a    |  1 s |",
        "| long | 10 s |",
    ]
    assert spread([1.0]) == "1.00 s"
    assert spread([3.0, 1.0, 2.0]) == "2.00 s (1.00-3.00)"
    usage = Usage(seconds=1, cpu_seconds=1, resident_bytes=1, anonymous_bytes=None, disk_bytes=None)
    assert extract._megabytes([usage.anonymous_bytes]) == "unknown"
