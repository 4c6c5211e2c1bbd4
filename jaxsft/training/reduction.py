"""How fast the training loss falls beside the held-out loss: the bias diagnostic of Disperse-Then-Merge.

Fu et al. 2024 (arXiv:2405.13432) read from it that a model takes up what is peculiar to its data: at about 1 what is
learnt carries over, and in their runs it grows to almost 20. They say neither the interval nor the smoothing; here it
is taken between evaluations, over all training losses that are logged in between.
"""

from collections.abc import Sequence

Losses = Sequence[tuple[int, float]]  # (step, loss) in the order of steps


def reduction_ratio(training: Losses, held_out: Losses) -> float | None:
    """Reduction of the training loss over the reduction of the held-out loss, in the last two evaluation intervals.

    With evaluations V0, V1, V2 and mean training losses T1, T2 between them it is (T1 - T2) / ((V0 - V2) / 2): a mean
    over an interval stands for its middle, where the held-out loss is (V0 + V1) / 2 and (V1 + V2) / 2. It is below 0
    where one of the two rises.

    Args:
      training: logged training losses.
      held_out: evaluations, the last one being now.

    Returns:
      None before the third evaluation, without a training loss in each interval, and where the held-out loss stands
      still.
    """
    if len(held_out) < 3:
        return None
    (first, v0), (middle, _), (last, v2) = held_out[-3:]
    intervals = [
        [loss for step, loss in training if begin < step <= end] for begin, end in ((first, middle), (middle, last))
    ]
    if not all(intervals) or v0 == v2:
        return None
    t1, t2 = (sum(losses) / len(losses) for losses in intervals)
    return (t1 - t2) / ((v0 - v2) / 2)
