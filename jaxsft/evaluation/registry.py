"""Tasks by the name that a config gives them."""

import dataclasses
import math
from collections.abc import Callable
from typing import Any

from jaxsft.config import DataConfig, TaskConfig
from jaxsft.errors import UserError
from jaxsft.evaluation import (
    deviation,
    format_following,
    generation,
    ifeval,
    instruction_following,
    judges,
    knowledge_conflict,
    multiple_choice,
    perplexity,
    programs,
    routing,
    separation,
)
from jaxsft.evaluation.task import Result, Subject, Task

HEADLINES = {
    "perplexity": "nll_per_token {nll_per_token:.5f} (perplexity {perplexity:.4g}) over {tokens} tokens of "
    "{examples} examples",
    "multiple_choice": "accuracy {accuracy:.4f} +- {standard_error:.4f} (chance {chance:.4f}) on {questions} questions",
    "generation": "exact_match {exact_match:.4f} +- {standard_error:.4f} on {questions} questions",
    "answers": "{turns} answers to {questions} questions, {tokens:.1f} tokens on average, {ended:.1%} of them ended",
    "ifeval": "prompt_strict {prompt_strict:.4f} +- {standard_error:.4f}, instruction_strict {instruction_strict:.4f} "
    "on {prompts} prompts, {undecided} instructions undecided",
    "code": "pass_at_1 {pass_at_1:.4f} +- {standard_error:.4f} on {problems} problems, {programs} programs run",
    "deviation": "deviation {deviation:.5f}, kl_per_token {kl_per_token:.5f} over {tokens} tokens, {examples} examples",
    "format": "format_accuracy {format_accuracy:.4f} +- {standard_error:.4f} on {questions} prompts",
    "routing": "cv {cv:.4f} over {tokens} tokens, {examples} examples",
    "instruction_following": "ifs {ifs:.4f} (partial {ifs_partial:.4f}, full {ifs_full:.4f}) on {questions} prompts",
    "separation": "separation {separation:.4f} with utility {utility:.4f}, probe executed in data {probe_in_data:.4f}, "
    "on {items} items",
    "knowledge_conflict": "counterfactual {counterfactual:.4f}, parametric {parametric:.4f}, recalled {recalled:.4f} "
    "on {questions} questions",
}
FIGURES = {  # the one that stands for a task
    "perplexity": "nll_per_token",
    "multiple_choice": "accuracy",
    "generation": "exact_match",
    "answers": "tokens",
    "ifeval": "prompt_strict",
    "code": "pass_at_1",
    "deviation": "deviation",
    "format": "format_accuracy",
    "routing": "cv",
    "instruction_following": "ifs",
    "separation": "separation",
    "knowledge_conflict": "counterfactual",
}
BESIDE = {  # what else is named, where there is such a figure
    "multiple_choice": ("right_mass", "ece"),
    "generation": ("strict_match", "flexible_match", "contains", "f1", "macro_f1", "bleu", "chrf"),
}
PREPARE: dict[str, Callable[..., Task]] = {
    "perplexity": perplexity.prepare,
    "multiple_choice": multiple_choice.prepare,
    "generation": generation.prepare,
    "answers": judges.prepare,
    "ifeval": ifeval.prepare,
    "code": programs.prepare,
    "format": format_following.prepare,
    "routing": routing.prepare,
    "instruction_following": instruction_following.prepare,
    "separation": separation.prepare,
    "knowledge_conflict": knowledge_conflict.prepare,
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
    if config.task == "deviation":
        return _checked(deviation.prepare(config, subject, reference))
    return _checked(PREPARE[config.task](config, subject))


def prepare_kept(config: TaskConfig, subject: Subject, template: str, condition: str) -> tuple[Task, deviation.Kept]:
    """A deviation from the model that is given to `Kept.score` first; arguments as for `prepare`."""
    config = dataclasses.replace(config, data=as_trained(config.data, template, condition))
    kept = deviation.Kept(config, subject)
    return _checked(kept.task), kept


def as_trained(data: DataConfig, template: str, condition: str) -> DataConfig:
    """The data as a model is asked about it: what `template` and `condition` "auto" stand for.

    Args:
      data: a task's.
      template: what the model was trained with, as `DataConfig.template`.
      condition: likewise; it belongs to that template, so data with a template of its own keeps what it says.
    """
    if data.template != "auto":
        return data
    return dataclasses.replace(
        data, template=template, condition=condition if data.condition == "auto" else data.condition
    )


def headline(config: TaskConfig, result: Result) -> str:
    """What a task has found, in half a line."""
    figures = {name: UNDEFINED if value is None else value for name, value in result.figures.items()}
    line = HEADLINES[config.task]
    beside = [name for name in BESIDE.get(config.task, ()) if name in figures]
    return line.format(**figures) + "".join(f", {name} {figures[name]:.4g}" for name in beside)


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
