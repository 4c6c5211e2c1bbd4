"""The norm of the gradient layer by layer, as metrics: what shows which part of a deep model learns."""

from typing import Any

import jax
import jax.numpy as jnp

from jaxsft.models import layout
from jaxsft.models.architecture import Architecture
from jaxsft.training.workdir import GRADIENT, LAYER_GRADIENT

Tree = Any


def layer_norms(arch: Architecture, gradients: Tree) -> dict[str, jax.Array]:
    """Euclidean norms [] of the gradients of each layer, and of the modules that are in none.

    Args:
      arch: the model, which knows the layer of each row of a stacked array.
      gradients: of the trained parameters; their squares add up to that of `grad_norm`.
    """
    squares: dict[str, jax.Array] = {}
    digits = max(2, len(str(arch.num_layers - 1)))
    for path, leaf in layout.leaves(gradients):
        if path[0] == "stacks":
            stack = arch.stacks[int(path[1])]
            rows = jnp.sum(jnp.square(leaf), axis=tuple(range(1, leaf.ndim)))
            layers = [stack.layer(int(path[2]), row) for row in range(stack.repeats)]
            names = [f"{LAYER_GRADIENT}{layer:0{digits}d}" for layer in layers]
            parts = dict(zip(names, rows))
        else:
            parts = {GRADIENT + path[0]: jnp.sum(jnp.square(leaf))}
        squares |= {name: squares.get(name, 0.0) + part for name, part in parts.items()}
    return {name: jnp.sqrt(square) for name, square in sorted(squares.items())}
