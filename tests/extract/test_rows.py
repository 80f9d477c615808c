"""Single rows of a matrix, and tensors in memory: the right numbers, few reads, and no other bytes."""

from itertools import pairwise

import numpy as np
import pytest
import torch

from layer_surgeon import TensorInfo, open_checkpoint
from layer_surgeon.errors import CheckpointError
from layer_surgeon.extract import other_tensors
from layer_surgeon.extract.codec import Shifted
from layer_surgeon.extract.fp8 import Fp8Codec
from layer_surgeon.extract.memory import read_tensors
from layer_surgeon.extract.other_tensors import plan_rows, plan_tensors
from tests.support.checkpoints import LLAMA_8B, write_sparse_checkpoint
from tests.support.gguf_models import write_model
from tests.support.recorder import Recorder
from tests.support.torch_files import tiny_state_dict, write_checkpoint

TINY = LLAMA_8B | {
    "hidden_size": 16,
    "intermediate_size": 24,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "num_hidden_layers": 2,
    "vocab_size": 40,
}
TABLE = "model.embed_tokens.weight"


@pytest.fixture
def checkpoint(tmp_path):
    folder = write_sparse_checkpoint(tmp_path, TINY, range(2))
    info = open_checkpoint(folder).table.tensors([TABLE])[0]
    with (folder / info.file).open("r+b") as file:
        file.seek(info.offset)
        file.write(np.arange(40 * 16, dtype="<u2").tobytes())
    return open_checkpoint(folder)


def read(checkpoint, plan, dtype):
    buffers = [bytearray(planned.num_bytes) for planned in plan.planned]
    progress = Recorder()
    progress.begin("read", None, "bytes")
    read_tensors(checkpoint.source, plan, [memoryview(buffer) for buffer in buffers], progress)
    assert progress.done == plan.num_bytes_read
    return np.frombuffer(b"".join(buffers), dtype=dtype)


@pytest.mark.parametrize("connections", [1, 4])
@pytest.mark.parametrize("rows", [[0], [3, 4, 5], [0, 2, 3, 39], list(range(40)), [1, 20]])
def test_rows(checkpoint, connections, rows, monkeypatch):
    monkeypatch.setattr(other_tensors, "MAX_ROW_GAP_BYTES", 32)
    monkeypatch.setattr(other_tensors, "MAX_LOCAL_ROW_GAP_BYTES", 0)
    checkpoint.source.connections = connections
    plan = plan_rows(checkpoint, TABLE, rows)
    values = read(checkpoint, plan, "<u2").reshape(-1, 16)
    assert values[:, 0].tolist() == [row * 16 for row in rows]
    assert plan.num_bytes == len(rows) * 32
    gaps = [later - earlier - 1 for earlier, later in pairwise(rows)]
    dropped = sum(gap for gap in gaps if gap == 1) if connections > 1 else 0
    assert plan.num_bytes_read == (len(rows) + dropped) * 32


def test_rows_are_converted(checkpoint):
    values = read(checkpoint, plan_rows(checkpoint, TABLE, [7, 9], dtype="float32"), "<f4").reshape(2, 16)
    expected = torch.arange(40 * 16, dtype=torch.int16).view(torch.bfloat16).float().reshape(40, 16)
    assert np.array_equal(values, expected[[7, 9]].numpy())


def test_rows_of_a_gguf_file(tmp_path):
    source = open_checkpoint(write_model(tmp_path / "model.gguf", "llama", "Q8_0"))
    (whole,) = plan_tensors(source, {"table": TABLE}).planned
    width = whole.source.shape[1]
    table = read(source, plan_tensors(source, {"table": TABLE}), "<f4").reshape(-1, width)
    plan = plan_rows(source, TABLE, [2, 3, 60])
    assert np.array_equal(read(source, plan, "<f4").reshape(3, width), table[[2, 3, 60]])
    assert plan.num_bytes == 3 * whole.source.num_bytes // len(table)


def test_matrix_without_rows_is_read_as_a_whole(tmp_path):
    state = tiny_state_dict(torch.float32)
    state[TABLE] = torch.arange(12.0).reshape(3, 4).t()
    source = open_checkpoint(write_checkpoint(tmp_path, state))
    plan = plan_rows(source, TABLE, [2])
    assert np.array_equal(read(source, plan, "<f4").reshape(4, 3), state[TABLE].numpy())


def test_missing_rows(checkpoint):
    with pytest.raises(CheckpointError, match=f"{TABLE} has 40 rows, but row 40 is needed: the tokenizer has tokens"):
        plan_rows(checkpoint, TABLE, [3, 40])


def test_part_of_an_fp8_matrix_has_its_own_scales():
    weight = TensorInfo(name="w", dtype="F8_E4M3", shape=(40, 2), file="f", offset=0, num_bytes=80)
    scales = np.arange(1, 41, dtype="<f4").reshape(40, 1)
    one = bytes([0x38])
    rows = Shifted(Fp8Codec(weight, scales, (1, 2), "F32"), 5).convert(one * 4)
    assert np.frombuffer(rows, "<f4").tolist() == [6, 6, 7, 7]
