"""Conversions give the same bits as torch."""

import numpy as np
import pytest
import torch

from layer_surgeon.extract.dtypes import CODE_OF_NAME, NAME_OF_CODE, ByteCopy, plain_codec

VALUES = torch.cat(
    [
        torch.randn(20_000, dtype=torch.float64, generator=torch.Generator().manual_seed(0)) * 1e3,
        torch.tensor([0.0, -0.0, 1e-45, 1e-40, 65504, 65520, 1e30, 3.4e38, float("inf"), -float("inf"), float("nan")]),
        torch.tensor([1 + 2**-8, 1 + 3 * 2**-8, 1 + 2**-11, 1 + 3 * 2**-11], dtype=torch.float64),
    ]
)
DTYPES = {"F64": torch.float64, "F32": torch.float32, "BF16": torch.bfloat16, "F16": torch.float16}


def raw(tensor):
    return tensor.contiguous().view(torch.uint8).numpy().tobytes()


@pytest.mark.parametrize(
    ("source", "target"),
    [
        *(("F64", target) for target in CODE_OF_NAME.values()),
        *((source, target) for source in ("F32", "BF16", "F16") for target in CODE_OF_NAME.values()),
    ],
)
def test_cast_equals_torch(source, target):
    numbers = VALUES.to(DTYPES[source])
    codec = plain_codec(source, target)
    converted = torch.frombuffer(bytearray(codec.convert(raw(numbers))), dtype=DTYPES[target])
    expected = numbers.to(DTYPES[target])
    assert codec.dtype == target
    assert torch.equal(converted.isnan(), expected.isnan())
    assert raw(converted[~converted.isnan()]) == raw(expected[~expected.isnan()])
    assert len(raw(numbers)) // codec.block_bytes == len(raw(converted)) // codec.out_block_bytes


def test_every_bfloat16_survives_a_round_trip_through_float32():
    all_codes = np.arange(2**16, dtype=np.uint16)
    wide = plain_codec("BF16", "F32").convert(all_codes.tobytes())
    round_trip = np.frombuffer(plain_codec("F32", "BF16").convert(wide), dtype=np.uint16)
    nan = (all_codes & 0x7F80 == 0x7F80) & (all_codes & 0x7F != 0)
    assert np.array_equal(round_trip[~nan], all_codes[~nan])
    assert (round_trip[nan] & 0x7FFF > 0x7F80).all()


@pytest.mark.parametrize(("source", "target"), [("F32", None), ("BF16", "BF16"), ("I64", "F16"), ("BOOL", "F32")])
def test_bytes_are_copied_if_no_cast_is_needed(source, target):
    codec = plain_codec(source, target)
    assert isinstance(codec, ByteCopy)
    assert codec.dtype == source
    assert codec.convert(b"12345678") == b"12345678"


def test_names_are_torch_dtypes():
    for name in NAME_OF_CODE.values():
        assert isinstance(getattr(torch, name), torch.dtype)
