"""Routed experts and batches that tests of LoRAMoE share."""

from pathlib import Path

import jax.numpy as jnp
import numpy as np

from jaxsft.adapters.loramoe import LoRAMoENode
from jaxsft.data.batch import Batch
from tests.tiny import make_batch

# Recorded from the authors' layer (peft/tuners/lora.py of Ablustrund/LoRAMoE) on fixed inputs, torch's orientation.
GOLDEN = dict(np.load(Path(__file__).parent / "recorded" / "loramoe.npz"))


def golden_node(a=GOLDEN["A"], router=GOLDEN["Wg"], b=GOLDEN["Bm"], **fields) -> LoRAMoENode:
    """Arrays in the authors' orientation, A [N, r, in], router [N, in], B [N, out, r], as a node."""
    experts, rank, fan_in = a.shape
    columns = jnp.asarray(np.moveaxis(a, 2, 0).reshape(fan_in, experts * rank))
    rows = jnp.asarray(np.swapaxes(b, 1, 2).reshape(experts * rank, -1))
    return LoRAMoENode(columns, jnp.asarray(router.T), rows, (1, 1, 0, 0), 8 / 2, **fields)


def node(experts: int, rank: int, seed: int, scale: float, fan_in: int = 8, fan_out: int = 6) -> LoRAMoENode:
    """Random experts, the first half of type 1."""
    rng = np.random.default_rng(seed)
    shapes = (fan_in, experts * rank), (fan_in, experts), (experts * rank, fan_out)
    types = tuple(int(n < experts / 2) for n in range(experts))
    return LoRAMoENode(*(jnp.asarray(rng.normal(size=s), jnp.float32) for s in shapes), types, scale)


def one_example_rows(lengths: list[int], types=None, length: int = 0) -> Batch:
    """A row for an example of each length, with the types of the examples."""
    tokens = lambda n: (np.ones(n, np.int32), np.ones(n, np.float32))
    batch = make_batch([[tokens(n)] for n in lengths], length or max(lengths), 1)
    if types is not None:
        batch.extras["type"] = np.asarray(types, np.int32)[:, None]
    return batch
