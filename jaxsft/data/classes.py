"""C-RLFT: fine-tuning on data of mixed quality, conditioned on its class and weighted by its class's reward.

Wang et al., OpenChat, ICLR 2024, arXiv:2309.11235. Records are tagged with a class c of coarse reward r_c. The best
policy under that reward and a KL penalty of strength beta to the class-conditioned policy that wrote the data,
projected onto the model, gives supervised fine-tuning on weighted examples:

    maximise  E_{(x, y, c)} [ exp(r_c / beta) log p(y | x, c) ]                                                   (C1)

No reference model and no sampling are needed. A common factor of the weights cancels under the normaliser below, so two
classes are told apart by one number alone; the paper's 0.1 for the poor class is

    w_poor / w_good = exp((r_poor - r_good) / beta)                                                               (C2)

with r = (1, 0) and beta = 1 / ln 10. What is minimised, with w_t the weight of target t and ce_t its cross-entropy, is

    loss = sum_t w_t ce_t / sum_t w_t,  both sums over the whole global batch                                     (C3)

which is `jaxsft.objectives.sft` as it is. So the method is a transformation of the data: the condition goes into the
prompt (`Template.given`), the weight of a class into the loss weights of its tokens, here. Weights are divided by the
largest, so that equal ones are exactly 1 and leave plain fine-tuning bit for bit.
"""

import math
from collections.abc import Mapping, Sequence

import numpy as np

from jaxsft.config import ClassesConfig, DataConfig
from jaxsft.data.conversation import Conversation
from jaxsft.errors import UserError
from jaxsft.validation import did_you_mean

WHERE = "config.data.classes"
AUTO = "auto"  # of `DataConfig.condition`

BASE_LEARNING_RATES = {"llama2": 3e-4, "mistral": 3e-4 / 6, "gemma": 3e-4 / 5.5, "llama3": 3e-4 / 5.3}
BASE_TOKENS = 4e6  # supervised tokens of the step that they are for


def check(data: DataConfig) -> None:
    """Refuses what cannot be meant, before any data is read.

    Raises:
      UserError: naming the field.
    """
    classes = data.classes
    if classes.weight and classes.reward:
        raise UserError(f"{WHERE} has both a weight and a reward; set one of them.")
    if classes.reward and not classes.beta:
        raise UserError(f"{WHERE}.reward needs a temperature; set {WHERE}.beta, e.g. to 0.4343 for 1 : 0.1.")
    if classes.beta and not classes.reward:
        raise UserError(f"{WHERE}.beta is the temperature of a reward, but {WHERE}.reward is empty; set it.")
    for name, weight in classes.weight.items():
        if not 0 <= weight < math.inf:
            raise UserError(f"{WHERE}.weight of {name!r} is {weight}; it must be a number that is not negative.")
    for name, reward in classes.reward.items():
        if not math.isfinite(reward):
            raise UserError(f"{WHERE}.reward of {name!r} is {reward}; it must be a number.")
    if classes.condition and not classes.inference and data.condition == AUTO:
        raise UserError(
            f"{WHERE}.condition is set, but not {WHERE}.inference, the class whose condition is used when the model is "
            f"asked; name one of {_names(classes)}."
        )
    if classes.inference and classes.inference not in classes.condition:
        hint = did_you_mean(classes.inference, classes.condition) or f"; add it, or name one of {_names(classes)}."
        raise UserError(f"{WHERE}.inference is {classes.inference!r}, which {WHERE}.condition does not name{hint}")


def inference_condition(data: DataConfig) -> str:
    """The condition with which a model that was trained on `data` is asked; "auto" for none."""
    return data.classes.condition[data.classes.inference] if data.classes.inference else data.condition


def for_held_out(data: DataConfig) -> tuple[ClassesConfig, str, str]:
    """`classes`, `condition` and `weighting` of held-out data: the conditions alone.

    A record of no known class is asked as the model will be. Weights of classes are no part of the figure.
    """
    return ClassesConfig(by=data.classes.by, condition=data.classes.condition), inference_condition(data), "token"


def condition_of(conversation: Conversation, source: str, data: DataConfig, where: str) -> str | None:
    """The condition of a record; None without any.

    Args:
      conversation: the record.
      source: the name of its source, where it has none of its own.
      data: for `classes` and `condition`.
      where: its place.

    Raises:
      UserError: for a class without condition where others have one, and for plain text of a class that has one.
    """
    default = None if data.condition == AUTO else data.condition
    if not data.classes.condition:
        return default
    own = conversation.task_type if data.classes.by == "task_type" else conversation.source or source
    condition = data.classes.condition.get(own, default)
    if conversation.text is not None and data.classes.condition.get(own):
        raise UserError(
            f"{where}: plain text has no turns, so it cannot have the condition of {own!r}; set that to '' in "
            f"{WHERE}.condition."
        )
    if condition is None:
        raise UserError(
            f"{where}: the record's {data.classes.by} is {own!r}, which {WHERE}.condition does not name"
            f"{did_you_mean(own, data.classes.condition) or '; add it'} (an empty text is the plain template), or set "
            "config.data.condition for all others."
        )
    return condition


def class_weights(classes: ClassesConfig, names: Sequence[str], counts: Sequence[int]) -> np.ndarray:
    """The weight of each class's tokens, of which the largest is 1.

    Args:
      classes: the config.
      names: the classes of the data.
      counts: how many examples each has that are not dropped.

    Returns:
      float64 [classes]; 0 for a class without examples. All are 1 where the config has neither weights nor rewards and
      is not `balanced`.

    Raises:
      UserError: for a class of the data that the config does not know, and the other way round.
    """
    given: Mapping[str, float] = classes.weight or classes.reward
    _check_known(classes, given, names)
    if not given and not classes.balanced:
        return np.ones(len(names))
    held = np.array(counts) > 0
    if classes.reward:
        best = max((classes.reward[name] for name, there in zip(names, held) if there), default=0.0)
        weights = np.array([math.exp(min(0.0, classes.reward[name] - best) / classes.beta) for name in names])
    else:
        weights = np.array([classes.weight.get(name, 1.0) for name in names])
    if classes.balanced:
        weights = weights * (sum(counts) / np.maximum(counts, 1))
    weights = np.where(held, weights, 0.0)
    return weights / weights.max() if weights.any() else weights


def spread(weights: np.ndarray, scale: float, weighting: str, supervised: int) -> np.ndarray:
    """The loss weights of an example under a weight of its class and `DataConfig.weighting`.

    Args:
      weights: float32 [n], of each token as a target, of the whole example, before it is cut to a row.
      scale: the class's.
      weighting: see `DataConfig.weighting`.
      supervised: how many tokens of it are supervised in its row.

    Returns:
      float32 [n].
    """
    if weighting == "token":
        return weights if scale == 1.0 else (weights * scale).astype(np.float32)
    size = turn_sizes(weights) if weighting == "turn" else max(supervised, 1)
    return (weights * (scale / size)).astype(np.float32)


def turn_sizes(weights: np.ndarray) -> np.ndarray:
    """int64 [n]: for every supervised token the length of its turn, a run of supervised tokens; 1 elsewhere."""
    inside = weights != 0
    run = np.cumsum(inside & ~np.concatenate([[False], inside[:-1]])) * inside
    sizes = np.bincount(run)
    sizes[0] = 1
    return sizes[run]


def auto_learning_rate(supervised_tokens: float, base: str = "llama2") -> float:
    """OpenChat's peak learning rate: the family's at 4 million supervised tokens a step, scaled by the square root.

    Args:
      supervised_tokens: of an optimizer step over all devices: rows x `max_length` x how full rows are x the share of
        supervised tokens, both of which `scripts/inspect_data.py` prints.
      base: the model's family: "llama2", "mistral", "gemma" or "llama3".

    Raises:
      UserError: for another family.

    Source: `calculate_auto_lr` in github.com/imoneoi/openchat, `ochat/training_deepspeed/train.py`; with 200,000
    supervised tokens it gives the paper's 6.7e-5 for Llama 2 13B.
    """
    if base not in BASE_LEARNING_RATES:
        raise UserError(
            f"there is no published learning rate for {base!r}{did_you_mean(base, BASE_LEARNING_RATES) or ''}; known "
            f"are {', '.join(BASE_LEARNING_RATES)}."
        )
    return BASE_LEARNING_RATES[base] * math.sqrt(supervised_tokens / BASE_TOKENS)


def _check_known(classes: ClassesConfig, given: Mapping[str, float], names: Sequence[str]) -> None:
    field = f"{WHERE}.{'weight' if classes.weight else 'reward'}"
    if given and (missing := [name for name in names if name not in given]):
        hint = did_you_mean(missing[0], given) or "; add it."
        raise UserError(f"the data has the {classes.by} {missing[0]!r}, which {field} does not name{hint}")
    known = {**given, **(classes.condition if classes.inference else {})}  # held-out data need not have all
    if extra := [name for name in known if name not in names]:
        hint = did_you_mean(extra[0], names) or f"; it has {', '.join(map(repr, names))}."
        raise UserError(f"{WHERE} names {extra[0]!r}, which is no {classes.by} of the data{hint}")


def _names(classes: ClassesConfig) -> str:
    return ", ".join(map(repr, classes.condition))
