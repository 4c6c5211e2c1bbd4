"""Whether a model is right as often as it is sure.

With n answers in bins b of n_b answers each, the expected calibration error is

    ECE = sum_b n_b / n |right_b - confidence_b|

the difference of the share of right answers and the mean confidence (Naeini et al. 2015; Guo et al. 2017,
arXiv:1706.04599). The bins have equal width over [0, 1], or the same number of answers (Nguyen and O'Connor 2015,
arXiv:1508.05154).
"""

import numpy as np

BINS = 15  # of Guo et al.


def calibration_error(confidence: np.ndarray, right: np.ndarray, equal_mass: bool = False, bins: int = BINS) -> float:
    """The expected calibration error.

    Args:
      confidence: float [answers], the probability that was given to each answer.
      right: bool [answers].
      equal_mass: bins of as many answers each as divides best; else of equal width, each with its upper edge.
      bins: how many.
    """
    if equal_mass:
        parts = np.array_split(np.argsort(confidence, kind="stable"), min(bins, len(confidence)))
    else:
        bin_of = np.clip(np.ceil(confidence * bins) - 1, 0, bins - 1).astype(int)
        parts = [np.flatnonzero(bin_of == b) for b in range(bins)]
    gap = lambda part: abs(float(right[part].mean()) - float(confidence[part].mean()))
    return sum(len(part) * gap(part) for part in parts if len(part)) / len(confidence)
