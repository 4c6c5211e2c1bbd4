"""Ways to cut n items into K parts: pure functions, the same for the same seed.

Fu et al. 2024, "Disperse-Then-Merge: Pushing the Limits of Instruction Tuning via Alignment Tax Reduction"
(arXiv:2405.13432), cut at random ("K equal portions") or by k-means on embeddings; their code embeds the responses.
"""

from collections.abc import Sequence

import numpy as np
from scipy.cluster import vq

from jaxsft.errors import UserError

ITERATIONS = 100  # of Lloyd's algorithm, which has settled long before
CHUNK = 1 << 14  # items whose distances exist at once


def permuted(count: int, parts: int, seed: int) -> np.ndarray:
    """int32 [count]: a random permutation cut into parts whose sizes differ by one at most."""
    assignment = np.empty(count, np.int32)
    order = np.random.default_rng(seed).permutation(count)
    for part, members in enumerate(np.array_split(order, parts)):
        assignment[members] = part
    return assignment


def independent(count: int, parts: int, seed: int) -> np.ndarray:
    """int32 [count]: every item by a draw of its own, so that sizes differ by chance."""
    return np.random.default_rng(seed).integers(0, parts, count, dtype=np.int32)


def by_name(ids: np.ndarray, names: Sequence[str], parts: int) -> tuple[np.ndarray, list[list[str]]]:
    """The items of a name stay together; names go, the largest first, to the part that has the fewest items by then.

    Args:
      ids: int [count], index into `names`.
      names: of sources, task types or the like.
      parts: 0 gives every name a part of its own.

    Returns:
      int32 [count], and the names in each part.

    Raises:
      UserError: if there are fewer names than parts.
    """
    sizes = np.bincount(ids, minlength=len(names))
    used = np.flatnonzero(sizes)
    parts = parts or len(used)
    if len(used) < parts:
        raise UserError(
            f"the data has {len(used)} names ({', '.join(names[i] for i in used)}), which do not fill {parts} parts; "
            "ask for fewer."
        )
    filled, part_of, held = np.zeros(parts, np.int64), np.zeros(len(names), np.int32), [[] for _ in range(parts)]
    for name in used[np.argsort(-sizes[used], kind="stable")]:
        part = int(np.argmin(filled))
        filled[part] += sizes[name]
        part_of[name] = part
        held[part].append(names[name])
    return part_of[ids], held


def kmeans(vectors: np.ndarray, parts: int, seed: int, balanced: bool = False) -> tuple[np.ndarray, np.ndarray]:
    """k-means on vectors scaled to unit length, begun by k-means++.

    Args:
      vectors: float [count, D]; their lengths say nothing.
      parts: K.
      seed: of the start.
      balanced: give the parts sizes that differ by one at most, the items that are surest of their part first.

    Returns:
      int32 [count], and the centroids float32 [K, D]. Unless `balanced`, every item is in the part of the nearest
      centroid, of equally near ones the first.

    Raises:
      UserError: if there are fewer different vectors than parts.
    """
    units = normalised(vectors)
    if len(np.unique(units, axis=0)) < parts:
        raise UserError(f"the vectors have fewer than {parts} different directions; ask for fewer parts.")
    for attempt in range(10):  # a start that loses a centroid is drawn anew
        rng = np.random.default_rng((seed, attempt))
        try:
            centroids, _ = vq.kmeans2(units, parts, iter=ITERATIONS, minit="++", missing="raise", rng=rng)
        except vq.ClusterError:
            continue
        assignment = nearest(units, centroids)
        if len(np.unique(assignment)) == parts:
            break
    else:
        raise UserError(f"k-means left a part of {parts} empty in ten starts; ask for fewer parts.")
    return (even(distances(units, centroids)) if balanced else assignment), centroids.astype(np.float32)


def normalised(vectors: np.ndarray) -> np.ndarray:
    """float32 [count, D] of unit length.

    Raises:
      UserError: for one that is zero or not finite.
    """
    wide = np.asarray(vectors, np.float64)
    lengths = np.linalg.norm(wide, axis=1, keepdims=True)
    if not np.all(np.isfinite(lengths) & (lengths > 0)):
        bad = int(np.flatnonzero(~(np.isfinite(lengths) & (lengths > 0)))[0])
        raise UserError(f"vector {bad} is zero or not finite, so it has no direction; leave that example out.")
    return (wide / lengths).astype(np.float32)


def nearest(units: np.ndarray, centroids: np.ndarray) -> np.ndarray:
    """int32 [count], the nearest centroid of each; of equally near ones the first."""
    return np.argmin(distances(units, centroids), axis=1).astype(np.int32)


def distances(units: np.ndarray, centroids: np.ndarray) -> np.ndarray:
    """float32 [count, K], squared."""
    squares = np.sum(np.square(centroids, dtype=np.float64), axis=1)
    chunks = [units[i : i + CHUNK] for i in range(0, len(units), CHUNK)]
    return np.concatenate([(1 + squares - 2 * (c.astype(np.float64) @ centroids.T)) for c in chunks]).astype(np.float32)


def even(costs: np.ndarray) -> np.ndarray:
    """int32 [count]: parts whose sizes differ by one at most, at low total cost.

    Items choose in the order of how much worse their second choice is; one whose part is full takes the next best.

    Args:
      costs: [count, K] of an item in a part.
    """
    count, parts = costs.shape
    room = np.full(parts, count // parts)
    larger = count % parts  # so many parts may take one more; those that fill first do
    best = np.partition(costs, 1, axis=1) if parts > 1 else np.pad(costs, ((0, 0), (0, 1)))
    assignment = np.empty(count, np.int32)
    for item in np.argsort(best[:, 0] - best[:, 1], kind="stable"):
        for part in np.argsort(costs[item], kind="stable"):
            if room[part] > 0 or (room[part] == 0 and larger > 0):
                larger -= room[part] == 0
                room[part] -= 1
                assignment[item] = part
                break
    return assignment
