"""The guards of the fuzz tests work, and error messages stay readable."""

import pickle
import subprocess
import sys
from pathlib import Path

import pytest

from layer_surgeon.errors import CheckpointError, LayerNotFoundError, LayerSurgeonError, SourceError
from tests.support.fuzz_guard import TooLongError, check_error, limited_work

_MEMORY = """
from tests.support.fuzz_guard import MAX_BYTES, limited_memory

with limited_memory():
    assert len(bytearray(MAX_BYTES // 2)) == MAX_BYTES // 2
    try:
        bytearray(MAX_BYTES * 3 // 2)
    except MemoryError:
        print("limited")
assert len(bytearray(MAX_BYTES * 3 // 2)) == MAX_BYTES * 3 // 2
"""


@pytest.mark.skipif(sys.platform != "linux", reason="only Linux enforces such a memory limit")
def test_memory_is_limited() -> None:
    """Runs in a subprocess, because a process that has already freed memory can reuse it within the limit."""
    root = Path(__file__).resolve().parents[2]
    process = subprocess.run([sys.executable, "-c", _MEMORY], cwd=root, capture_output=True, text=True, check=True)
    assert process.stdout == "limited\n"


def test_work_is_limited() -> None:
    def work() -> None:
        while True:
            pass

    with limited_work(0.05), pytest.raises(TooLongError, match="in work"):
        work()


def test_running_out_of_memory_fails_the_check() -> None:
    def raise_wrapped() -> None:
        try:
            raise MemoryError
        except MemoryError as error:
            raise CheckpointError("The file can't be read.") from error

    with pytest.raises(CheckpointError) as caught:
        raise_wrapped()
    with pytest.raises(AssertionError, match="memory ran out"):
        check_error(caught.value)


@pytest.mark.parametrize("kind", [LayerSurgeonError, CheckpointError, SourceError, LayerNotFoundError])
def test_messages_are_short_and_printable(kind: type[LayerSurgeonError]) -> None:
    assert str(kind("Two lines\nof text, and an é.")) == "Two lines\nof text, and an é."
    long = str(kind("Found " + "x" * 10**7 + ". Get it again."))
    assert len(long) < 2100
    assert long.startswith("Found xxx")
    assert " [...] x" in long
    assert long.endswith(". Get it again.")
    assert str(kind("a\x1b[2J\ud800\u202e")) == r"a\x1b[2J\ud800\u202e"
    error = pickle.loads(pickle.dumps(kind("Get it again.")))  # noqa: S301  # errors are passed between processes like this
    assert (type(error), str(error), error.args) == (kind, "Get it again.", ("Get it again.",))
