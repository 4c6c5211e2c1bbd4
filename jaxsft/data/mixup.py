"""The grouping "mixup": pairs of a confident example and an unconfident one (SFTMix, Jin et al., arXiv:2410.05248).

    D^c = the half of the examples with the higher scores,  D^u = the other                                     (M2)

Scores are confidences, always at most -1; any other score splits the data as well. Of equal scores the earlier example
counts as the more confident. An odd one out belongs to the unconfident half, which then leaves out one, another one
each epoch.
"""

from typing import Any

import numpy as np

from jaxsft.data.groups import Groups
from jaxsft.data.selection import by_score
from jaxsft.errors import UserError


def halves(scores: np.ndarray, members: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """The confident and the unconfident half of the members, each from the highest score to the lowest.

    Args:
      scores: [examples].
      members: int64 [N], examples.
    """
    order = by_score(scores, members)
    return order[: len(order) // 2], order[len(order) // 2 :]


def pairs(dataset: Any, members: np.ndarray, epoch: int) -> Groups:
    """Groups of two, the confident example first, drawn at random for the epoch.

    Args:
      dataset: a `jaxsft.data.dataset.Dataset` with scores.
      members: int64 [N], the epoch's examples.
      epoch: which.

    Raises:
      UserError: without scores, for a single example, and for rows of one slot.
    """
    if dataset.ranking is None:
        raise UserError(
            "config.data.grouping 'mixup' pairs examples by their scores; name a table of them as config.data.scores "
            "(configs/recipes/sftmix.py makes one)."
        )
    if len(members) < 2:
        raise UserError("config.data.grouping 'mixup' needs two examples at least.")
    if dataset.config.max_examples_per_row < 2:
        raise UserError("config.data.max_examples_per_row is 1, but a pair has two examples; raise it.")
    confident, unconfident = halves(dataset.ranking, members)
    random = dataset.random(epoch)
    partners = random.permutation(unconfident)[: len(confident)]
    both = np.stack([random.permutation(confident), partners], axis=1)
    return Groups.of(both.reshape(-1), np.full(len(both), 2))
