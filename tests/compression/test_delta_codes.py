"""Vectors as codes: the packed stream against whole numbers, the quantiser against a loop over its entries."""

import itertools

import numpy as np
import pytest

from jaxsft.compression.quantize import dequantize, pack, quantize, unpack


@pytest.mark.parametrize("bits", range(1, 17))
def test_packing_is_one_number_written_in_little_endian(bits):
    """An odd count, so that codes cross the borders of bytes and the last byte is filled up with zeros."""
    codes = np.random.default_rng(bits).integers(0, 2**bits, 173).astype(np.uint16)
    codes[:2] = 2**bits - 1, 0
    number = sum(int(code) << (bits * i) for i, code in enumerate(codes))
    packed = pack(codes, bits)
    assert packed.tobytes() == number.to_bytes(-(-173 * bits // 8), "little")
    np.testing.assert_array_equal(unpack(packed, bits, 173), codes)


def loop(row, bits, group_size):
    """The quantiser of the paper's code in float64, one group after the other, by the scales that ours has stored."""
    values, scales = np.zeros(len(row)), quantize(row[None], bits, group_size, search=False).scales[0]
    for i, start in enumerate(range(0, len(row), group_size)):
        x = row[start : start + group_size].astype(np.float64)
        low, high = min(x.min(), 0), max(x.max(), 0)
        exact = (high - low) / (2**bits - 1)
        assert exact <= scales[i] <= exact * (1 + 2**-10) + 2**-24, "the scale is not the next float16 above"
        scale = float(scales[i]) or 1.0
        zero = round(-low / scale)
        values[start : start + group_size] = scale * (np.clip(np.round(x / scale) + zero, 0, 2**bits - 1) - zero)
    return values


@pytest.mark.parametrize("bits", [1, 2, 3, 8, 16])
def test_the_loop_over_groups(bits):
    """Also of rows that the groups do not divide, that are zero, or lie on one side of it."""
    rng = np.random.default_rng(bits)
    rows = rng.standard_normal((6, 50)).astype(np.float32) * 0.02
    rows[1], rows[2], rows[3, :16] = 0, np.abs(rows[2]) + 0.01, 0
    coded = quantize(rows, bits, 16, search=False)
    assert coded.codes.shape == (6, 50) and coded.zeros.shape == coded.scales.shape == (6, 4)
    assert coded.codes.max() <= 2**bits - 1 and coded.zeros.max() <= 2**bits - 1
    found = dequantize(coded, 16)
    np.testing.assert_allclose(found, [loop(row, bits, 16) for row in rows], rtol=1e-5, atol=1e-7)
    np.testing.assert_array_equal(found[1], 0)
    half = np.repeat(coded.scales.astype(np.float64), 16, axis=1)[:, :50] / 2
    assert (np.abs(found - rows) <= half * 1.001 + 1e-7).all(), "an entry is further off than half a step"


def test_a_smaller_scale_where_that_is_nearer():
    """The search lowers no group's error below what it was, and at 2 bits cuts that of normal entries by a third."""
    rows = np.random.default_rng(0).standard_normal((40, 256)).astype(np.float32)
    squares = lambda bits, search: (
        ((dequantize(quantize(rows, bits, 128, search), 128) - rows) ** 2).reshape(40, 2, 128).sum(-1)
    )
    for bits in range(1, 9):
        assert (squares(bits, True) <= squares(bits, False) * (1 + 1e-5)).all()
    assert squares(2, True).sum() < 2 / 3 * squares(2, False).sum()
    errors = [squares(bits, True).sum() for bits in range(1, 11)]
    assert all(one > 2 * other for one, other in itertools.pairwise(errors))
