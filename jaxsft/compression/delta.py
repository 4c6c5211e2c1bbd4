"""The change of one matrix as a few of its singular vectors, coded.

Delta-CoMe (Ping et al. 2024, arXiv:2406.08903, section 4): the change W_tuned - W_base = U diag(s) V^T is cut to its
largest singular values, and the vectors of larger ones are coded by more bits,

    W_tuned ~ W_base + sum_g U^_g diag(s_g) V^_g^T.

Here codes are rounded to nearest; the paper's are corrected by GPTQ on calibration data, group after group. A scale is
that of neighbouring entries of one singular vector, in U as in V, and singular values are float32.

Codes whose scales were narrowed for their squared error stand for vectors that are too short. Their singular value is
made up for it, s_i / (<u_i, u^_i> <v_i, v^_i>), so that as much of the i-th term is in the coded one as in itself; but
not by more than a factor of 2, above which a term may do more harm than one that is left out.
"""

import dataclasses
from collections.abc import Sequence
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from jaxsft.compression.groups import Group, Shape, blocks, parts
from jaxsft.compression.quantize import Quantized, dequantize, pack, quantize, unpack


class Factors(NamedTuple):
    """Singular values, largest first, and their vectors as rows.

    Attributes:
      left: float32 [columns, out], the rows of U^T.
      values: float32 [columns].
      right: float32 [columns, in], the rows of V^T.
    """

    left: np.ndarray
    values: np.ndarray
    right: np.ndarray


@dataclasses.dataclass(frozen=True)
class Coded:
    """A change [out, in] as it is stored.

    Attributes:
      shape: [out, in].
      groups: of its singular vectors.
      group_size: entries that share a scale.
      singular_values: float32 [columns].
      scales: float16, group after group [columns, blocks of out], then [columns, blocks of in].
      codes: uint8, group after group the packed zero points and codes of the left vectors, then of the right ones, each
        of these four in whole bytes.
    """

    shape: Shape
    groups: tuple[Group, ...]
    group_size: int
    singular_values: np.ndarray
    scales: np.ndarray
    codes: np.ndarray

    @property
    def arrays(self) -> dict[str, np.ndarray]:
        """By the names of `jaxsft.compression.groups.entries`."""
        return {"singular_values": self.singular_values, "scales": self.scales, "codes": self.codes}


def decompose(change: np.ndarray) -> Factors:
    """The singular value decomposition of a change float32 [out, in], on the default device."""
    with jax.default_matmul_precision("highest"):
        left, values, right = jnp.linalg.svd(jnp.asarray(change, jnp.float32), full_matrices=False)
    return Factors(np.asarray(left).T, np.asarray(values), np.asarray(right))


def rank(factors: Factors, tuned: np.ndarray, base: np.ndarray) -> int:
    """How many singular values are more than the rounding of two matrices, computed in float32, can have made.

    What is added to W in float32 comes back with an error of at most half a unit in the last place of each entry, so no
    singular value of the error is above eps |W|_F. A LoRA of rank r has r of them.
    """
    noise = np.finfo(np.float32).eps * (np.linalg.norm(tuned) + np.linalg.norm(base))
    return int((factors.values > noise).sum())


def encode(factors: Factors, groups: Sequence[Group], group_size: int, refine: bool = True) -> Coded:
    """Codes as many of the singular vectors as the groups hold, which must not be more than there are.

    Args:
      factors: of the change.
      groups: of one column or more each.
      group_size: entries that share a scale.
      refine: whether scales are narrowed and singular values make up for it.
    """
    scales, codes, start = [], [], 0
    kept = np.ones(len(factors.values), np.float32)  # of each term, <u, u^> <v, v^>
    for bits, columns in groups:
        own = slice(start, start + columns)
        for vectors in (factors.left[own], factors.right[own]):
            coded = quantize(vectors, bits, group_size, refine)
            kept[own] *= np.sum(vectors * dequantize(coded, group_size), axis=1)
            scales.append(coded.scales.reshape(-1))
            codes += [pack(coded.zeros, bits), pack(coded.codes, bits)]
        start += columns
    shape = factors.left.shape[1], factors.right.shape[1]
    values = factors.values / np.maximum(kept, 0.5) if refine else factors.values
    return Coded(shape, tuple(groups), group_size, values[:start], np.concatenate(scales), np.concatenate(codes))


def decode(coded: Coded) -> Factors:
    """The singular vectors that codes stand for; they are no longer orthogonal."""
    sides: tuple[list[np.ndarray], list[np.ndarray]] = ([], [])
    scale = code = 0
    for group in coded.groups:
        sizes = iter(parts(group, coded.shape, coded.group_size))
        for length, vectors in zip(coded.shape, sides):
            count = group.columns * blocks(length, coded.group_size)
            arrays = []
            for number in (count, group.columns * length):
                size = next(sizes)
                arrays.append(unpack(coded.codes[code : code + size], group.bits, number).reshape(group.columns, -1))
                code += size
            scales = coded.scales[scale : scale + count].reshape(group.columns, -1)
            scale += count
            vectors.append(dequantize(Quantized(arrays[1], arrays[0], scales), coded.group_size))
    left, right = (np.concatenate(vectors) for vectors in sides)
    return Factors(left, coded.singular_values, right)


def product(factors: Factors, index: Sequence[slice] = ()) -> np.ndarray:
    """The change that factors make, or the part of it that `index` names: float32 [out, in]."""
    rows, columns = [*index, slice(None), slice(None)][:2]
    return (factors.left[:, rows].T * factors.values) @ factors.right[:, columns]
