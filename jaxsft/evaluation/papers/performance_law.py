"""The Performance Law: MMLU guessed from the shape of a model and the tokens it was pretrained on. Empirical.

    u  = exp(-(gamma N (10 / d + 20 / h))^2)                       N layers of width h with a feed-forward width d
    T' = min(T, S)                                                 T tokens / 10^12, S parameters / 10^9
    m  = 13.950182 ln(u N) + 0.230720 ln(u h) - 0.485234 ln(u d) + 5.398017 ln(u T') + 9.195411

and m is held above 25, a guess among four, and bent below 100: 90 + 10 tanh(0.1 m - 9) where m > 90. Wu and Tang 2024
(arXiv:2408.09895), with the constants of their planner. It is a fit to published models and no more than a rough prior:
it gives Llama-2-7B 58, which scores about 46.
"""

import math


def performance_law(
    layers: int, width: int, mlp_width: int, parameters: float, tokens: float, precision_loss: float = 1.0
) -> float:
    """The guessed MMLU accuracy, in per cent.

    Args:
      layers: N.
      width: h.
      mlp_width: d, of one feed-forward block.
      parameters: S, in 10^9.
      tokens: T of pretraining, in 10^12; beyond one a parameter times 1000 they count no more.
      precision_loss: gamma, 1 for training in bfloat16 and wider.

    Raises:
      ValueError: for sizes that are not positive.
    """
    if min(layers, width, mlp_width, parameters, tokens) <= 0:
        raise ValueError("layers, widths, parameters and tokens must be positive")
    log_stability = -((precision_loss * layers * (10 / mlp_width + 20 / width)) ** 2)
    score = (
        13.950182 * (log_stability + math.log(layers))
        + 0.230720 * (log_stability + math.log(width))
        - 0.485234 * (log_stability + math.log(mlp_width))
        + 5.398017 * (log_stability + math.log(min(tokens, parameters)))
        + 9.195411
    )
    return 90 + 10 * math.tanh(0.1 * score - 9) if score > 90 else max(score, 25.0)
