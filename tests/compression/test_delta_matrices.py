"""One matrix: how many singular vectors it gets, what they take, and how near they come, against NumPy in float64."""

import itertools
import math

import numpy as np
import pytest

from jaxsft.compression.delta import decode, decompose, encode, product, rank
from jaxsft.compression.groups import Group, check, choose, code_bits, cut, entries, total
from jaxsft.config import CompressConfig
from jaxsft.errors import UserError
from jaxsft.validation import validate

PAPER = (Group(8, 2), Group(3, 32), Group(2, 968))


def power_law(shape, exponent, seed=0):
    """A matrix with random singular vectors and singular values 1 / i^exponent."""
    rng, small = np.random.default_rng(seed), min(shape)
    sides = [np.linalg.qr(rng.standard_normal((n, small)))[0] for n in shape]
    return ((sides[0] * np.arange(1.0, small + 1) ** -exponent) @ sides[1].T).astype(np.float32)


def missed(change, factors, groups, refine=True):
    """The norm of what a change loses, over its own."""
    found = product(decode(encode(factors, groups, 128, refine)))
    return np.linalg.norm(found - change) / np.linalg.norm(change)


def test_the_sizes_of_the_paper():
    """4096 x 4096 at 2, 32 and 968 columns are a sixteenth to the bit, 4096 x 11008 at 1428 are 1/16.09."""
    assert code_bits(PAPER, (4096, 4096)) * 16 == 16 * 4096 * 4096
    wide = (*PAPER[:2], Group(2, 1428))
    assert round(16 * 4096 * 11008 / code_bits(wide, (4096, 11008)), 2) == 16.09
    rule = CompressConfig(counts="codes")
    assert choose(rule, (4096, 4096)) == PAPER
    assert choose(rule, (4096, 11008)) == choose(rule, (11008, 4096)) == (*PAPER[:2], Group(2, 1436))
    assert choose(CompressConfig(columns=(2, 32, 1428)), (4096, 11008)) == wide


@pytest.mark.parametrize("counts", ["codes", "stored"])
@pytest.mark.parametrize("shape", [(4096, 4096), (1024, 300), (64, 64), (33, 70), (8, 5)])
@pytest.mark.parametrize("ratio", [2.0, 8.0, 16.0, 24.0])
def test_as_much_as_fits(shape, ratio, counts):
    """No more than the size asked for, and no room for one more column."""
    config = CompressConfig(size_ratio=ratio, counts=counts)
    groups = choose(config, shape)
    size = lambda g: code_bits(g, shape) if counts == "codes" else 8 * total(entries(g, shape, 128))
    most = 16 * math.prod(shape) / ratio
    assert size(groups) <= most
    columns = [sum(g.columns for g in groups if g.bits == bits) for bits in config.bits]
    if sum(columns) < min(shape):
        full = [columns[0] == 2, columns[1] == 32, False]
        more = full.index(False)
        columns[more] += 1
        assert size([Group(*pair) for pair in zip(config.bits, columns) if pair[1]]) > most


def test_explicit_columns_and_lower_ranks():
    config = CompressConfig(columns=(2, 3, 4), size_ratio=1000.0)
    assert choose(config, (100, 50)) == (Group(8, 2), Group(3, 3), Group(2, 4))
    assert choose(config, (100, 4)) == (Group(8, 2), Group(3, 2))
    assert cut(PAPER, 2000) == PAPER and cut(PAPER, 5) == (Group(8, 2), Group(3, 3)) and cut(PAPER, 0) == ()
    assert choose(CompressConfig(size_ratio=1000.0), (100, 50)) == ()


@pytest.mark.parametrize("shape", [(48, 80), (200, 33), (130, 7)])
def test_the_bytes_are_those_of_the_arrays(shape):
    groups = (Group(7, 2), Group(3, 3), Group(1, 2))
    coded = encode(decompose(power_law(shape, 1.0)), groups, 32)
    announced = entries(groups, shape, 32)
    assert {name: (array.dtype, array.shape) for name, array in coded.arrays.items()} == announced
    by_hand = 4 * 7 + 2 * 7 * sum(-(-n // 32) for n in shape)
    for bits, columns in groups:
        by_hand += sum(-(-columns * count * bits // 8) for n in shape for count in (n, -(-n // 32)))
    assert sum(array.nbytes for array in coded.arrays.values()) == total(announced) == by_hand


@pytest.mark.parametrize("shape", [(40, 60), (60, 40)])
def test_everything_kept_is_everything_back(shape):
    change = power_law(shape, 0.5)
    factors = decompose(change)
    np.testing.assert_allclose(product(factors), change, atol=2e-6)
    np.testing.assert_allclose(product(factors, (slice(3, 9), slice(5, 30))), change[3:9, 5:30], atol=2e-6)


def test_sixteen_bits_are_the_truncated_decomposition():
    """To the truncated SVD itself, and so to the nearest matrix of the rank (Eckart and Young)."""
    change = power_law((96, 160), 0.7)
    factors = decompose(change)
    left, values, right = np.linalg.svd(change.astype(np.float64), full_matrices=False)
    for columns in (1, 10, 40):
        found = product(decode(encode(factors, (Group(16, columns),), 128)))
        wanted = (left[:, :columns] * values[:columns]) @ right[:columns]
        assert np.linalg.norm(found - wanted) < 1e-4 * np.linalg.norm(wanted)
        exact = np.sqrt((values[columns:] ** 2).sum() / (values**2).sum())
        assert abs(missed(change, factors, (Group(16, columns),)) - exact) < 1e-4


def test_more_columns_and_more_bits_are_nearer():
    change = power_law((96, 160), 0.7)
    factors = decompose(change)
    by_columns = [missed(change, factors, (Group(8, 2), Group(3, columns))) for columns in (1, 4, 16, 64)]
    by_bits = [missed(change, factors, (Group(bits, 96),)) for bits in range(1, 11)]
    for errors in (by_columns, by_bits):
        assert all(one > 1.05 * other for one, other in itertools.pairwise(errors)), errors
    assert by_bits[-1] < 5e-3


def rivals(change, values):
    """In a sixteenth of bfloat16: signs times their mean size (BitDelta), and the nearest of as many 16-bit columns."""
    signs = np.linalg.norm(change - np.sign(change) * np.abs(change).mean()) / np.linalg.norm(change)
    columns = change.size // (16 * sum(change.shape))
    return signs, np.sqrt((values[columns:] ** 2).sum() / (values**2).sum())


def test_mixed_bits_against_equal_bytes_of_others():
    """On the spectrum i^-0.7 nearer than both rivals, though only ours counts its scales; than 1 bit for all;
    and than without refining."""
    shape = (512, 640)
    change = power_law(shape, 0.7)
    factors, values = decompose(change), np.arange(1.0, min(shape) + 1) ** -0.7
    mixed = choose(CompressConfig(), shape)
    assert total(entries(mixed, shape, 128)) * 8 <= shape[0] * shape[1]
    assert missed(change, factors, mixed) < 0.85 * min(rivals(change, values))
    one_bit = choose(CompressConfig(bits=(1,), columns=()), shape)
    assert missed(change, factors, mixed) < 0.9 * missed(change, factors, one_bit)
    assert missed(change, factors, mixed) < 0.95 * missed(change, factors, mixed, refine=False)


@pytest.mark.parametrize(("exponent", "best"), [(0.3, "signs"), (1.5, "low rank")])
def test_where_others_are_nearer(exponent, best):
    """As docs/methods/delta_come.md says."""
    shape = (512, 640)
    change = power_law(shape, exponent)
    signs, low_rank = rivals(change, np.arange(1.0, min(shape) + 1) ** -exponent)
    ours = missed(change, decompose(change), choose(CompressConfig(), shape))
    assert min(("ours", ours), ("signs", signs), ("low rank", low_rank), key=lambda pair: pair[1])[0] == best


def test_refined_terms_are_as_long_as_the_true_ones():
    """u_i^T (what is coded of the i-th term) v_i = s_i; and no term, at 1 bit neither, is worse than none."""
    change = power_law((96, 160), 0.7)
    factors = decompose(change)
    for bits in (1, 2, 3):
        coded = decode(encode(factors, (Group(bits, 30),), 32))
        along = np.sum(factors.left[:30] * coded.left, axis=1) * np.sum(factors.right[:30] * coded.right, axis=1)
        if bits > 1:
            np.testing.assert_allclose(along * coded.values, factors.values[:30], rtol=1e-4)
        squares = np.sum(coded.left**2, axis=1) * np.sum(coded.right**2, axis=1) * coded.values**2
        missed = squares - 2 * along * coded.values * factors.values[:30] + factors.values[:30] ** 2
        assert (missed < 1.1 * factors.values[:30] ** 2).all()


@pytest.mark.parametrize("r", [1, 3, 8])
@pytest.mark.parametrize("scale", [1e-3, 1.0])
def test_a_low_rank_update_has_its_rank(r, scale):
    """Added to float32 weights, whose rounding is no singular value."""
    rng = np.random.default_rng(r)
    draw = lambda *shape: rng.standard_normal(shape).astype(np.float32)
    base = 0.05 * draw(96, 64)
    tuned = base + scale * 0.05 * draw(96, r) @ draw(r, 64)
    factors = decompose(tuned - base)
    assert rank(factors, tuned, base) == r
    assert rank(decompose(base * np.float32(1 + 2**-24) - base), base, base) == 0
    assert rank(decompose(draw(96, 64)), tuned, base) == 64


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"bits": ()}, r"config\.bits is \(\)"),
        ({"bits": (17, 2), "columns": (1,)}, r"config\.bits is \(17, 2\); give each group 1 to 16 bits"),
        ({"bits": (0,), "columns": ()}, r"give each group 1 to 16 bits"),
        ({"columns": (2,)}, r"config\.columns is \(2,\) for config\.bits \(8, 3, 2\)"),
        ({"columns": (2, 0)}, r"give each group a positive number"),
        ({"size_ratio": 0.0}, r"config\.size_ratio is 0\.0; it must be positive"),
        ({"group_size": 0}, r"config\.group_size is 0; it must be positive"),
    ],
)
def test_settings_that_cannot_be(fields, message):
    config = CompressConfig(**fields)
    with pytest.raises(UserError, match=message):
        validate(config)
        check(config)
