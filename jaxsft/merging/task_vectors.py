"""What methods on sparse task vectors share: differences to the base, rescaling, election of signs, the sum.

With tau_k = theta_k - theta_0, sparse task vectors s_k and v_k = w_k s_k:

    sum:   theta_0 + scale * sum_k v_k                  [/ sum_k w_k]
    vote:  theta_0 + scale * sum_k m_k v_k              [/ sum_k m_k w_k],   m_k = [sgn v_k = e]

where e is the elected sign of the entry, + where sum_k v_k >= 0, and the division is that of `normalize`. The functions
here are traced inside the methods' own.
"""

from collections.abc import Sequence

import jax
import jax.numpy as jnp
import numpy as np

from jaxsft.merging.linear import check_divisible, coefficients, wide

RESCALES = ("none", "l1", "density")


def differences(models: Sequence[jax.Array], base: jax.Array) -> list[jax.Array]:
    """The task vectors, wide."""
    start = wide(base)
    return [wide(model) - start for model in models]


def magnitude(model: jax.Array, base: jax.Array) -> jax.Array:
    """|tau| as float32."""
    return jnp.abs(wide(model) - wide(base)).astype(jnp.float32)


magnitudes = jax.jit(magnitude)


def match_l1(sparse: jax.Array, tau: jax.Array) -> jax.Array:
    """`sparse`, scaled to the L1 norm of `tau`; as it is where either norm is 0."""
    before, after = _l1(tau), _l1(sparse)
    return sparse * jnp.where((before > 0) & (after > 0), before / jnp.where(after > 0, after, 1), 1)


def combine(
    base: jax.Array, sparse: Sequence[jax.Array], weights: jax.Array, scale: float, vote: bool, normalize: bool
) -> jax.Array:
    """The sum of the module's first lines, wide."""
    factors = [weights[k].astype(s.dtype) for k, s in enumerate(sparse)]
    values = [factor * s for factor, s in zip(factors, sparse)]
    if not vote:
        divisor = sum(factors[1:], factors[0])
    else:
        elected = jnp.where(sum(values[1:], values[0]) >= 0, 1, -1)
        agree = [jnp.sign(value) == elected for value in values]
        values = [jnp.where(agrees, value, 0) for agrees, value in zip(agree, values)]
        divisor = sum(jnp.where(agrees, factor, 0) for agrees, factor in zip(agree, factors))
    total = sum(values[1:], values[0])
    if normalize:
        total = total / jnp.where(divisor == 0, 1, divisor)
    return wide(base) + scale * total


def checked_weights(weights: Sequence[float], count: int, vote: bool, normalize: bool) -> np.ndarray:
    """The weights as float64 [count].

    Raises:
      ValueError: for another number of them; where they are divided by, as `check_divisible` and `check_vote`.
    """
    factors = coefficients(weights, count, normalize=False)
    if normalize:
        check_divisible(weights)
        if vote:
            check_vote(weights)
    return factors


def check_vote(weights: Sequence[float]) -> None:
    """Refuses weights of both signs where a vote is divided by the weights of those that agree.

    Raises:
      ValueError: for them: those that agree on an entry may cancel.
    """
    if min(weights) < 0 < max(weights):
        raise ValueError(
            f"the weights {', '.join(f'{w:g}' for w in weights)} have both signs, so those that agree on an entry may "
            "cancel, and their sum is divided by; choose weights of one sign, or set normalize to False"
        )


def _l1(x: jax.Array) -> jax.Array:
    """In two steps that the compiler may not join: one float32 sum over 10^8 entries would stand still."""
    rows = jax.lax.optimization_barrier(jnp.sum(jnp.abs(x), axis=-1))
    return jnp.sum(rows)
