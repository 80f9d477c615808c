"""Layers from PyTorch files: few requests over a network, resumable, and transposed tensors in row-major order."""

import math

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

from layer_surgeon import extract_layer, open_checkpoint, plan_extraction
from layer_surgeon.checkpoint.sources.hub import HubSource
from layer_surgeon.checkpoint.sources.retry import HubLimits
from layer_surgeon.errors import CheckpointError, SourceError
from layer_surgeon.extract import copy as copy_module
from layer_surgeon.extract import permute
from layer_surgeon.extract import plan as plan_module
from layer_surgeon.extract.dtypes import plain_codec
from tests.support.hub_faults import cut
from tests.support.hub_reading import read_from
from tests.support.loopback_hub import LoopbackHub
from tests.support.recorder import Recorder
from tests.support.torch_files import tiny_state_dict, write_checkpoint

LAYER = "model.layers.3."


def large_state():
    """Nine tensors of 80 kB for each of four layers, with the names of a Llama."""
    generator = torch.Generator().manual_seed(0)
    return {name: torch.randn(20_000, generator=generator) for name in tiny_state_dict(torch.float32)}


def has_tensors(artifact, state, layers=(3,)):
    """Whether the artifact has exactly the tensors of these layers."""
    actual = load_file(artifact.path / "model.safetensors")
    expected = {
        f"layers.{position}.{name.removeprefix(f'model.layers.{layer}.')}": tensor
        for position, layer in enumerate(layers)
        for name, tensor in state.items()
        if name.startswith(f"model.layers.{layer}.")
    }
    return actual.keys() == expected.keys() and all(torch.equal(actual[name], expected[name]) for name in expected)


@pytest.fixture
def hub(monkeypatch):
    limits = HubLimits(tries=1, bad_answer_tries=1, base_wait=0.001, max_wait=0.002)
    monkeypatch.setattr(HubSource, "limits", limits)
    with LoopbackHub() as hub:
        read_from(hub.endpoint, monkeypatch)
        yield hub


def weight_requests(hub, plan):
    """The requests to the CDN for pieces of the plan, as (range, bytes sent)."""
    ranges = {f"bytes={piece.range.start}-{piece.range.end - 1}" for piece in plan.pieces}
    return [(r.range, r.body_bytes) for r in hub.requests if r.server == "cdn" and r.range in ranges]


@pytest.mark.parametrize("shards", [0, 3])
@pytest.mark.parametrize("layers", [[-1], [1, 2], [3, 0]])
def test_neighbours_are_one_request_of_the_planned_bytes(hub, tmp_path, shards, layers):
    state = large_state()
    hub.add_repo("owner/name", write_checkpoint(tmp_path / "donor", state, shards=shards))
    checkpoint = open_checkpoint("owner/name")
    plan = plan_extraction(checkpoint, layers)
    infos = [info for layer in layers for info in checkpoint.layer_tensors(layer)]
    assert plan.num_bytes == sum(info.num_bytes for info in infos) == len(layers) * 9 * 80_000
    # Neighbouring layers are one read.
    num_ranges = 1 if shards == 0 and layers != [3, 0] else 2
    assert plan.num_requests == (1 if layers == [-1] else max(num_ranges, len(plan.files)))
    assert plan.num_bytes < plan.num_bytes_read < 1.001 * plan.num_bytes + 128 * len(infos)
    hub.reset_log()
    progress = Recorder()
    artifact = extract_layer(checkpoint, layers, tmp_path / "out", progress=progress)
    requests = weight_requests(hub, plan)
    assert len(requests) == plan.num_requests == sum(request.server == "cdn" for request in hub.requests)
    assert sum(sent for _, sent in requests) == plan.num_bytes_read == progress.total == progress.done
    assert has_tensors(artifact, state, [checkpoint.layer_index(layer) for layer in layers])


def test_gaps_are_not_read_from_a_disk(tmp_path):
    plan = plan_extraction(open_checkpoint(write_checkpoint(tmp_path, large_state())))
    assert plan.num_bytes_read == plan.num_bytes
    assert plan.num_requests == 9


@pytest.mark.parametrize("connections", [2, 3, 8])
@pytest.mark.parametrize("size", [100, 1_000, 79_999, 80_000, 80_128, 200_000])
def test_pieces_may_end_anywhere(tmp_path, monkeypatch, connections, size):
    monkeypatch.setattr(plan_module, "MIN_PIECE_BYTES", size)
    state = large_state()
    checkpoint = open_checkpoint(write_checkpoint(tmp_path / "donor", state))
    checkpoint.source.connections = connections
    plan = plan_extraction(checkpoint, [3, 2])
    for piece in plan.pieces:
        assert piece.segments[0].out_length
        assert piece.segments[-1].out_length
        assert piece.range.length == sum(segment.length for segment in piece.segments)
    segments = [segment for piece in plan.pieces for segment in piece.segments]
    assert sum(segment.length for segment in segments if segment.out_length) == plan.num_bytes
    assert has_tensors(extract_layer(checkpoint, [3, 2], tmp_path / "out"), state, [3, 2])


def test_wide_gap_is_not_read(tmp_path):
    settings = torch.utils.serialization.config.save
    before, settings.storage_alignment = settings.storage_alignment, 4096
    try:
        checkpoint = open_checkpoint(write_checkpoint(tmp_path, large_state()))
    finally:
        settings.storage_alignment = before
    checkpoint.source.connections = 8
    plan = plan_extraction(checkpoint)
    assert plan.num_requests == 9
    assert plan.num_bytes_read == plan.num_bytes


@pytest.mark.parametrize("after", [50_000, 79_990, 80_060, 80_200, 400_000, 719_999])
def test_continues_before_within_and_after_a_gap(hub, tmp_path, monkeypatch, after):
    monkeypatch.setattr(copy_module, "STRETCH_BYTES", 20_000)
    monkeypatch.setattr(copy_module, "CHUNK_BYTES", 10_000)
    state = large_state()
    hub.add_repo("owner/name", write_checkpoint(tmp_path / "donor", state))
    checkpoint = open_checkpoint("owner/name")
    plan = plan_extraction(checkpoint)
    (end,) = [piece.range.end for piece in plan.pieces]
    hub.faults.add(cut(after), server="cdn", path=r"\.bin", times=-1)
    with pytest.raises(SourceError):
        extract_layer(checkpoint, -1, tmp_path / "out")
    hub.faults.clear()
    hub.reset_log()
    progress = Recorder()
    artifact = extract_layer("owner/name", -1, tmp_path / "out", progress=progress)
    assert has_tensors(artifact, state)
    assert progress.done == progress.total == plan.num_bytes_read
    (sent_again,) = [request.body_bytes for request in hub.requests if f"-{end - 1}" in (request.range or "")]
    assert sent_again <= plan.num_bytes_read - after + 20_000


@pytest.mark.parametrize("dtype", [None, "float32", "bfloat16"])
@pytest.mark.parametrize("connections", [1, 8])
def test_transposed_and_permuted_tensors_are_reordered(tmp_path, dtype, connections):
    state = tiny_state_dict(torch.float16)
    generator = torch.Generator().manual_seed(1)
    several = torch.randn(3, 4, 5, 1, generator=generator).half()
    views = {
        "self_attn.q_proj.weight": torch.randn(16, 16, generator=generator).half().t(),
        "mlp.up_proj.weight": torch.randn(16, 24, generator=generator).half().t(),
        "mlp.down_proj.weight": torch.randn(24, 48, generator=generator).half()[8:24].t(),
        "mlp.experts": several.permute(2, 0, 3, 1),
        "mlp.more": several.transpose(0, 1),
        "mlp.wide": torch.randn(1, 7, generator=generator).half().t(),
    }
    assert not any(view.is_contiguous() for name, view in views.items() if name != "mlp.wide")
    state |= {f"{LAYER}{name}": view for name, view in views.items()}
    checkpoint = open_checkpoint(write_checkpoint(tmp_path / "donor", state))
    checkpoint.source.connections = connections
    for info in checkpoint.layer_tensors(3):
        assert info.shape == tuple(state[info.name].shape)
    kind = torch.float16 if dtype is None else getattr(torch, dtype)
    artifact = extract_layer(checkpoint, -1, tmp_path / "out", dtype=dtype)
    assert has_tensors(artifact, {name: tensor.to(kind) for name, tensor in state.items()})


@pytest.mark.parametrize("shape", [(2000, 300), (300, 2000), (1, 5), (5, 1), (3, 700_000), (700_000, 3)])
def test_long_transposed_tensors_are_reordered_in_steps(shape):
    stored = np.arange(math.prod(shape), dtype="<f4").reshape(shape)
    info = permute.PermutedTensorInfo(
        name="a", dtype="F32", shape=shape[::-1], file="x", offset=0, num_bytes=stored.nbytes, order=(1, 0)
    )
    codec = permute.Permuted(info, plain_codec("F32", None))
    assert bytes(codec.convert(stored.tobytes())) == stored.T.tobytes()


def test_transposed_tensor_that_is_too_large_is_refused(tmp_path, monkeypatch):
    monkeypatch.setattr(permute, "MAX_BYTES", 1000)
    state = tiny_state_dict(torch.float32)
    state[f"{LAYER}mlp.up_proj.weight"] = torch.randn(16, 24).t()
    checkpoint = open_checkpoint(write_checkpoint(tmp_path / "donor", state))
    with pytest.raises(CheckpointError, match=r"up_proj.* transposed, with 1,536 bytes.* at most 1,000"):
        plan_extraction(checkpoint)
