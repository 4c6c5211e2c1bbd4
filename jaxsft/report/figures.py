"""Names, units and directions of figures, and how a number is written."""

import dataclasses
import math
from typing import Any

from jaxsft.report.read import number

MISSING = "\u2013"  # en dash
MINUS = "\u2212"
NARROW = "\u202f"  # narrow no-break space, between a number and its unit


@dataclasses.dataclass(frozen=True)
class Metric:
    """What a figure is called, whether it is a share of 1, and whether more of it is better (None: neither)."""

    key: str
    label: str
    share: bool = False
    higher_is_better: bool | None = None


METRICS = {
    metric.key: metric
    for metric in (
        Metric("exact_match", "exact match", True, True),
        Metric("accuracy", "accuracy", True, True),
        Metric("nll_per_token", "nll per token", False, False),
        Metric("loss", "loss", False, False),
        Metric("perplexity", "perplexity", False, False),
        Metric("deviation", "deviation", False, False),
        Metric("kl_per_token", "KL per token", False, False),
        Metric("log_ratio_per_token", "log ratio per token"),
        Metric("mean_token_accuracy", "token accuracy", True, True),
        Metric("prompt_strict", "prompts followed", True, True),
        Metric("prompt_loose", "prompts followed, loosely", True, True),
        Metric("instruction_strict", "instructions followed", True, True),
        Metric("instruction_loose", "instructions followed, loosely", True, True),
        Metric("pass_at_1", "pass@1", True, True),
        Metric("format_accuracy", "format accuracy", True, True),
        Metric("ifs", "IFS", True, True),
        Metric("ifs_partial", "IFS, partial", True),
        Metric("ifs_full", "IFS, full", True, True),
        Metric("separation", "separation", True, True),
        Metric("utility", "utility", True, True),
        Metric("probe_in_data", "probe executed in data", True, False),
        Metric("counterfactual", "counterfactual", True, True),
        Metric("parametric", "parametric", True),
        Metric("prefers_context", "prefers context", True),
        Metric("recalled", "recalled", True, True),
        Metric("strict_match", "strict match", True, True),
        Metric("flexible_match", "flexible match", True, True),
        Metric("contains", "contains", True, True),
        Metric("f1", "F1", True, True),
        Metric("macro_f1", "macro F1", True, True),
        Metric("bleu", "BLEU", False, True),
        Metric("chrf", "chrF", False, True),
        Metric("right_mass", "mass on right choices", True, True),
        Metric("ece", "calibration error", True, False),
        Metric("watched", "watched", True),
        Metric("cv", "CV of expert load"),
        Metric("own_type", "weight on own type", True),
        Metric("ended", "answers that end", True, True),
        Metric("tokens", "tokens"),
        Metric("support/replaced", "tuned weights replaced", True),
        Metric("support/since_first", "tuned since the first change", True),
        Metric("support/forgotten", "norm of dropped deltas over all", True),
        Metric("support/age", "mean age of tuned weights, steps"),
    )
}
HEADLINES = (
    "exact_match", "accuracy", "prompt_strict", "pass_at_1", "format_accuracy", "ifs", "separation", "counterfactual",
    "nll_per_token", "loss", "perplexity", "deviation", "kl_per_token", "cv", "tokens",
)  # fmt: skip
SUPPORT = ("support/replaced", "support/since_first", "support/forgotten", "support/age")  # at changes of a support
SECOND = ("watched", "kl_per_token", "own_type")  # columns of their own beside the headline


def metric(key: str) -> Metric:
    """The known metric of that name, or one that is nothing but a number."""
    return METRICS.get(key, Metric(key, key.replace("_", " ")))


def headline(figures: dict[str, Any]) -> Metric | None:
    """The figure that stands for a task: the first known one, else its first number."""
    keys = [key for key in HEADLINES if number(figures.get(key)) is not None]
    keys += [key for key, value in figures.items() if number(value) is not None]
    return metric(keys[0]) if keys else None


def write(value: float | None, kind: Metric, digits: int = 1, unit: bool = False, like: float | None = None) -> str:
    """A figure as text: per cent with `digits` decimals for shares, else three to four significant digits.

    Args:
      value: None and what is not finite are written as a dash.
      kind: what it is.
      digits: decimals of a percentage.
      unit: whether a percentage carries its sign.
      like: the value whose decimals it takes, for an error or a difference.
    """
    if value is None or not math.isfinite(value):
        return MISSING
    if kind.share:
        return _percent(100 * value, digits) + (NARROW + "%" if unit else "")
    size = abs(value if like is None else like)
    if size and (size < 1e-3 or size >= 1e6):
        return f"{value:.2e}".replace("e-0", "e-").replace("e+0", "e").replace("-", MINUS)
    return f"{value:.{0 if size >= 1000 else 1 if size >= 100 else 2 if size >= 10 else 3}f}".replace("-", MINUS)


def difference(value: float | None, kind: Metric, like: float | None = None) -> str:
    """A signed difference, in percentage points for shares, with the decimals of `like`."""
    if value is None or not math.isfinite(value):
        return ""
    text = write(abs(value), kind, like=like)
    return f"±{text}" if float_of(text) == 0 else ("+" if value > 0 else MINUS) + text


def float_of(text: str) -> float:
    """The number that `write` wrote."""
    return float(text.replace(MINUS, "-").replace(NARROW, "").rstrip("%"))


def rate(value: float) -> str:
    """A learning rate as people type it: 3e-4."""
    mantissa, exponent = f"{value:.6e}".split("e")
    return f"{float(mantissa):g}e{int(exponent)}"


def _percent(value: float, digits: int) -> str:
    """Never rounds to 0 or 100 what is not."""
    text = f"{value:.{digits}f}"
    if digits == 0 and ((text == "100" and value < 100) or (text == "0" and value > 0)):
        text = f"{value:.1f}"
    return text.replace("-", MINUS)
