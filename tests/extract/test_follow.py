"""Hashing a file while it is written."""

import hashlib
import os
from types import SimpleNamespace

import pytest

from layer_surgeon.errors import ArtifactError
from layer_surgeon.extract.follow import hash_file


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
