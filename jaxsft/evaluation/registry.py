"""Tasks by the name that a config gives them."""

import dataclasses
import math
from collections.abc import Callable
from typing import Any, NamedTuple

from jaxsft.config import TaskConfig
from jaxsft.data.templates import as_trained
from jaxsft.errors import UserError
from jaxsft.evaluation.answers import format_following, generation, judges
from jaxsft.evaluation.choices import multiple_choice
from jaxsft.evaluation.ifeval import following
from jaxsft.evaluation.likelihood import deviation, perplexity, routing
from jaxsft.evaluation.papers import instruction_following, knowledge_conflict, separation
from jaxsft.evaluation.programs import problems
from jaxsft.evaluation.task import Result, Subject, Task


class Kind(NamedTuple):
    """A kind of task.

    Attributes:
      prepare: (config, subject) -> the task.
      figure: the one that stands for it.
      headline: what it has found, in half a line, with its figures by name.
      beside: figures that the line names too, where there are such.
    """

    prepare: Callable[..., Task]
    figure: str
    headline: str
    beside: tuple[str, ...] = ()


KINDS: dict[str, Kind] = {
    "perplexity": Kind(
        perplexity.prepare,
        "nll_per_token",
        "nll_per_token {nll_per_token:.5f} (perplexity {perplexity:.4g}) over {tokens} tokens of {examples} examples",
    ),
    "multiple_choice": Kind(
        multiple_choice.prepare,
        "accuracy",
        "accuracy {accuracy:.4f} +- {standard_error:.4f} (chance {chance:.4f}) on {questions} questions",
        ("right_mass", "ece"),
    ),
    "generation": Kind(
        generation.prepare,
        "exact_match",
        "exact_match {exact_match:.4f} +- {standard_error:.4f} on {questions} questions",
        ("strict_match", "flexible_match", "contains", "f1", "macro_f1", "bleu", "chrf"),
    ),
    "answers": Kind(
        judges.prepare,
        "tokens",
        "{turns} answers to {questions} questions, {tokens:.1f} tokens on average, {ended:.1%} of them ended",
    ),
    "ifeval": Kind(
        following.prepare,
        "prompt_strict",
        "prompt_strict {prompt_strict:.4f} +- {standard_error:.4f}, instruction_strict {instruction_strict:.4f} on "
        "{prompts} prompts, {undecided} instructions undecided",
    ),
    "code": Kind(
        problems.prepare,
        "pass_at_1",
        "pass_at_1 {pass_at_1:.4f} +- {standard_error:.4f} on {problems} problems, {programs} programs run",
    ),
    "deviation": Kind(
        deviation.prepare,
        "deviation",
        "deviation {deviation:.5f}, kl_per_token {kl_per_token:.5f} over {tokens} tokens, {examples} examples",
    ),
    "format": Kind(
        format_following.prepare,
        "format_accuracy",
        "format_accuracy {format_accuracy:.4f} +- {standard_error:.4f} on {questions} prompts",
    ),
    "routing": Kind(routing.prepare, "cv", "cv {cv:.4f} over {tokens} tokens, {examples} examples"),
    "instruction_following": Kind(
        instruction_following.prepare,
        "ifs",
        "ifs {ifs:.4f} (partial {ifs_partial:.4f}, full {ifs_full:.4f}) on {questions} prompts",
    ),
    "separation": Kind(
        separation.prepare,
        "separation",
        "separation {separation:.4f} with utility {utility:.4f}, probe executed in data {probe_in_data:.4f}, on "
        "{items} items",
    ),
    "knowledge_conflict": Kind(
        knowledge_conflict.prepare,
        "counterfactual",
        "counterfactual {counterfactual:.4f}, parametric {parametric:.4f}, recalled {recalled:.4f} on {questions} "
        "questions",
    ),
}


def prepare(
    config: TaskConfig,
    subject: Subject,
    template: str = "auto",
    reference: Any | None = None,
    condition: str = "auto",
) -> Task:
    """Reads and tokenises what a task needs.

    Args:
      config: the task.
      subject: the model that is to be measured.
      template: the chat template that the model was trained with, which the task's "auto" stands for.
      reference: for a deviation: the `jaxsft.training.restore.OpenModel` to compare with; None is the base under the
        model's adapter.
      condition: the condition with which the model is asked, which the task's "auto" stands for under that template.

    Raises:
      UserError: for data that cannot be read or does not fit the task.
    """
    config = dataclasses.replace(config, data=as_trained(config.data, template, condition))
    more = (reference,) if config.task == "deviation" else ()
    return _checked(KINDS[config.task].prepare(config, subject, *more))


def prepare_kept(config: TaskConfig, subject: Subject, template: str, condition: str) -> tuple[Task, deviation.Kept]:
    """A deviation from the model that is given to `Kept.score` first; arguments as for `prepare`."""
    config = dataclasses.replace(config, data=as_trained(config.data, template, condition))
    kept = deviation.Kept(config, subject)
    return _checked(kept.task), kept


def headline(config: TaskConfig, result: Result) -> str:
    """What a task has found, in half a line."""
    figures = {name: UNDEFINED if value is None else value for name, value in result.figures.items()}
    kind = KINDS[config.task]
    beside = [name for name in kind.beside if name in figures]
    return kind.headline.format(**figures) + "".join(f", {name} {figures[name]:.4g}" for name in beside)


class _Undefined:
    """Stands for a figure that is not defined, such as a share of nothing."""

    def __format__(self, _: str) -> str:
        return "undefined"


UNDEFINED = _Undefined()


def _checked(task: Task) -> Task:
    """The task, which refuses figures that are no numbers."""

    def measure(params: Any, adapters: Any) -> Result:
        result = task.measure(params, adapters)
        if bad := [name for name, value in result.numbers.items() if not math.isfinite(value)]:
            raise UserError(
                f"{task.name}: {bad[0]} is {result.figures[bad[0]]}: the model does not fit the data, or nothing of it "
                "was scored."
            )
        return result

    return task._replace(measure=measure)
