"""Layouts of the same examples."""

import dataclasses

import jax
import numpy as np

from tests.tiny import make_batch


def sharpened(decoder, seed):
    """Parameters whose predictions are far from uniform."""
    return jax.tree.map(lambda p: 2 * p if p.ndim > 1 else p, decoder.init(jax.random.key(seed)))


def lay_out(examples, rows, length=48, slots=8, packing=True):
    """Batches of `rows` rows that hold the examples in order, several in a row if packing."""
    table = [[]]
    for index, (ids, _) in enumerate(examples):
        used = sum(len(examples[i][0]) for i in table[-1])
        if table[-1] and (not packing or used + len(ids) > length or len(table[-1]) == slots):
            table.append([])
        table[-1].append(index)
    table += [[] for _ in range(-len(table) % rows)]
    for start in range(0, len(table), rows):
        chosen = table[start : start + rows]
        batch = make_batch([[examples[i] for i in row] for row in chosen], length, slots)
        index = np.array([row + [-1] * (slots - len(row)) for row in chosen], np.int32)
        yield dataclasses.replace(batch, extras={"example_index": index})
