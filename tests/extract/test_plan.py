"""The plan covers exactly the layer's bytes, and reads nothing else."""

import pytest

from layer_surgeon import open_checkpoint, plan_extraction
from layer_surgeon.errors import ConfigError, LayerNotFoundError, UnsupportedArchitectureError
from layer_surgeon.extract import plan as plan_module
from tests.support.checkpoints import LLAMA_8B, LLAMA_70B, write_safetensors, write_sparse_checkpoint

TINY = LLAMA_8B | {
    "hidden_size": 16,
    "intermediate_size": 24,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "num_hidden_layers": 4,
    "vocab_size": 40,
}


@pytest.fixture
def checkpoint(tmp_path):
    return open_checkpoint(write_sparse_checkpoint(tmp_path, TINY, range(4), max_shard_bytes=8_000))


def covered(plan):
    """Every source byte of the plan, as (file, position)."""
    return [
        (piece.range.file, position) for piece in plan.pieces for position in range(piece.range.start, piece.range.end)
    ]


def runs(positions):
    """The first byte of every contiguous range."""
    covered_bytes = set(positions)
    return [(file, position) for file, position in positions if (file, position - 1) not in covered_bytes]


@pytest.mark.parametrize("connections", [1, 3, 8])
@pytest.mark.parametrize("layer", [0, 1, -1, [2, 0], [-1, -2, 0, 1]])
def test_plan_reads_exactly_the_layers_bytes(checkpoint, layer, connections, monkeypatch):
    monkeypatch.setattr(plan_module, "MIN_PIECE_BYTES", 100)
    checkpoint.source.connections = connections
    plan = plan_extraction(checkpoint, layer)
    layers = layer if isinstance(layer, list) else [layer]
    expected = [
        (info.file, position)
        for index in layers
        for info in checkpoint.layer_tensors(index)
        for position in range(info.offset, info.end)
    ]
    assert sorted(covered(plan)) == sorted(expected)
    assert plan.num_bytes == len(expected)
    assert plan.num_requests == len(plan.pieces)
    longest = max(piece.range.length for piece in plan.pieces)
    assert connections == 1 or longest <= 1.5 * plan.num_bytes / connections
    assert connections > 1 or plan.num_requests == len(runs(expected))


@pytest.mark.parametrize("dtype", [None, "float32", "float16"])
def test_plan_writes_every_byte_once(checkpoint, dtype):
    plan = plan_extraction(checkpoint, [1, 3], dtype=dtype)
    segments = sorted(
        (segment.offset, segment.offset + segment.out_length) for piece in plan.pieces for segment in piece.segments
    )
    position = len(plan.header)
    for begin, end in segments:
        assert begin == position
        position = end
    assert position == plan.num_out_bytes
    assert plan.dtype == (dtype or "bfloat16")


@pytest.mark.parametrize(("config", "num_bytes"), [(LLAMA_8B, 436_224_000), (LLAMA_70B, 1_711_308_800)])
def test_llama_shapes(tmp_path, config, num_bytes):
    checkpoint = open_checkpoint(write_sparse_checkpoint(tmp_path, config, []))
    plan = plan_extraction(checkpoint, -1)
    assert plan.num_bytes == num_bytes
    assert plan.num_requests == len(plan.files) <= 2
    checkpoint.source.connections = 16
    split = plan_extraction(checkpoint, -1)
    assert split.num_bytes == num_bytes
    # Each connection reads pieces that shrink, and all connections read equally much.
    rounds = 2 if num_bytes < 1e9 else 3
    lengths = [piece.range.length for piece in split.pieces]
    assert len(lengths) == rounds * 16
    rounded_lengths = [round(length, -6) for length in lengths]
    assert rounded_lengths == sorted(rounded_lengths, reverse=True)
    assert max(lengths) < 0.8 * num_bytes / 16
    assert sum(lengths[-16:]) < 140_000_000
    read_by_connection = [sum(lengths[connection::16]) for connection in range(16)]
    assert max(read_by_connection) < 1.02 * num_bytes / 16


def test_wide_elements_are_aligned(tmp_path):
    write_safetensors(
        tmp_path / "model.safetensors",
        {
            "model.layers.0.a": ("U8", [3], b"abc"),
            "model.layers.0.b": ("F32", [1], b"1234"),
            "model.layers.0.c": ("BF16", [1], b"12"),
        },
    )
    (tmp_path / "config.json").write_text('{"model_type": "llama", "num_hidden_layers": 1}')
    plan = plan_extraction(open_checkpoint(tmp_path))
    assert [tensor.name for tensor in plan.planned] == ["layers.0.b", "layers.0.c", "layers.0.a"]
    assert all(tensor.offset % tensor.codec.block_bytes == 0 for tensor in plan.planned)


@pytest.mark.parametrize(
    ("layer", "indices"),
    [
        ("-1", (3,)),
        ("1:3", (1, 2)),
        ("-2:", (2, 3)),
        (":1", (0,)),
        (":", (0, 1, 2, 3)),
        ("2:4", (2, 3)),
        (["3", "0:2"], (3, 0, 1)),
        ([-1, "0"], (3, 0)),
    ],
)
def test_layer_selection(checkpoint, layer, indices):
    assert plan_extraction(checkpoint, layer).layer_indices == indices


def test_bad_arguments_are_refused(checkpoint):
    with pytest.raises(LayerNotFoundError, match="no layer 99"):
        plan_extraction(checkpoint, 99)
    with pytest.raises(ConfigError, match="no layer twice"):
        plan_extraction(checkpoint, [3, -1])
    with pytest.raises(ConfigError, match="at least one"):
        plan_extraction(checkpoint, [])
    with pytest.raises(ConfigError, match="a slice such as"):
        plan_extraction(checkpoint, "last")
    with pytest.raises(LayerNotFoundError, match="no layer 9"):
        plan_extraction(checkpoint, "2:9")
    with pytest.raises(ConfigError, match="at least one"):
        plan_extraction(checkpoint, "3:3")
    with pytest.raises(ConfigError, match="float64"):
        plan_extraction(checkpoint, dtype="float64")


def test_quantised_checkpoint_is_refused(tmp_path):
    config = TINY | {"quantization_config": {"quant_method": "gptq", "bits": 4}}
    folder = write_sparse_checkpoint(tmp_path, config, [])
    with pytest.raises(UnsupportedArchitectureError, match=r"quantised \(gptq, 4 bits\).*from the unquantised model"):
        plan_extraction(open_checkpoint(folder))
