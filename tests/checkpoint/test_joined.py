"""JoinedFile reads several files as one."""

import io
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from layer_surgeon.checkpoint.joined import JoinedFile


@given(
    parts=st.lists(st.binary(max_size=9), max_size=5),
    moves=st.lists(st.tuples(st.integers(0, 50), st.integers(0, 20)), max_size=8),
)
def test_reads_the_concatenation_of_the_parts(
    parts: list[bytes], moves: list[tuple[int, int]], tmp_path_factory: pytest.TempPathFactory
) -> None:
    folder = tmp_path_factory.mktemp("parts")
    for number, part in enumerate(parts):
        (folder / str(number)).write_bytes(part)
    whole = io.BytesIO(b"".join(parts))
    with JoinedFile([folder / str(number) for number in range(len(parts))]) as joined:
        assert joined.size == len(whole.getvalue())
        with io.BufferedReader(joined, buffer_size=4) as buffered:
            for position, count in moves:
                assert buffered.seek(position) == whole.seek(position)
                assert buffered.read(count) == whole.read(count)
                assert buffered.tell() == whole.tell()
            assert buffered.seek(0, io.SEEK_END) == joined.size
            assert buffered.seek(-joined.size, io.SEEK_CUR) == 0
            assert buffered.read() == whole.getvalue()


def test_a_position_before_the_beginning_is_an_error(tmp_path: Path) -> None:
    (tmp_path / "part").write_bytes(b"abc")
    with JoinedFile([tmp_path / "part"]) as joined:
        assert (joined.readable(), joined.seekable()) == (True, True)
        with pytest.raises(ValueError, match="position -1"):
            joined.seek(-4, io.SEEK_END)


def test_its_files_are_closed(tmp_path: Path) -> None:
    (tmp_path / "part").write_bytes(b"abc")
    joined = JoinedFile([tmp_path / "part"])
    assert joined.read(1) == b"a"
    assert joined._open is not None
    file = joined._open[1]
    joined.close()
    assert file.closed
    with pytest.raises(ValueError, match="closed"):
        joined.read(1)
