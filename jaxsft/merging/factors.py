"""LoRA adapters of one base made into one, without the base.

With updates s_k A_k B_k (A [in, r], B [r, out]) and weights w_k:

    factor:  A = sum w_k A_k, B = sum w_k B_k, scale s      what the code of Disperse-Then-Merge does (arXiv:2405.13432)
    concat:  A = [w_k s_k A_k], B = [B_k], scale 1          exactly sum w_k s_k A_k B_k, of rank sum r_k
    svd:     that, cut to its largest singular values       nearest of its rank in the Frobenius norm

The mean of factors is the mean of updates less sum w_k (A_k - A) (B_k - B): little is lost where all started from one
A and moved it little; of unrelated A it loses most. To merge the updates into the base's kernels, merge the runs.
"""

from collections.abc import Sequence

import jax
import jax.numpy as jnp

from jaxsft.merging.linear import coefficients

ADAPTER_METHODS = ("lora_factor", "lora_concat", "lora_svd")
Factors = tuple[jax.Array, jax.Array]  # A [in, r], B [r, out]


def mean_factors(adapters: Sequence[Factors], weights: Sequence[float]) -> Factors:
    """The mean of each factor, weights normalised; all of one rank, and to be applied with the one scale they share.

    Raises:
      ValueError: for another number of weights, or weights that cancel.
    """
    shares = coefficients(weights, len(adapters), normalize=True)
    mean = lambda factors: sum(share * factor.astype(jnp.float32) for share, factor in zip(shares.tolist(), factors))
    return mean([a for a, _ in adapters]), mean([b for _, b in adapters])


def concat_factors(adapters: Sequence[Factors], scales: Sequence[float], weights: Sequence[float]) -> Factors:
    """Side by side, to be applied with scale 1: [in, sum r], [sum r, out].

    Raises:
      ValueError: for another number of weights.
    """
    factors = coefficients(weights, len(adapters), normalize=False).tolist()
    left = [w * s * a.astype(jnp.float32) for w, s, (a, _) in zip(factors, scales, adapters, strict=True)]
    return jnp.concatenate(left, -1), jnp.concatenate([b.astype(jnp.float32) for _, b in adapters], -2)


def truncate(a: jax.Array, b: jax.Array, rank: int) -> tuple[Factors, jax.Array]:
    """The factors of rank `rank` whose product is nearest to A B, and what is lost, as a share of the norm of A B.

    The product, which is as large as the kernel, is never made: of A = Q R and B = (Q' R')^T only R R'^T is decomposed.
    Both new factors get the square roots of the singular values.
    """
    with jax.default_matmul_precision("highest"):
        q, r = jnp.linalg.qr(a)
        q2, r2 = jnp.linalg.qr(b.T)
        u, sizes, v = jnp.linalg.svd(r @ r2.T)
        roots = jnp.sqrt(sizes[:rank])
        whole = jnp.linalg.norm(sizes)
        lost = jnp.where(whole > 0, jnp.linalg.norm(sizes[rank:]) / jnp.where(whole > 0, whole, 1), 0)
        return (q @ (u[:, :rank] * roots), (roots[:, None] * v[:rank]) @ q2.T), lost
