"""Opens a model and measures one task, or several, for `scripts/evaluate.py` and recipes."""

import dataclasses
from typing import Any

import jax
import numpy as np
from etils import epath

from jaxsft import __version__
from jaxsft.config import EvaluateConfig, SuiteConfig, TaskConfig
from jaxsft.data.templates import as_trained
from jaxsft.errors import UserError
from jaxsft.evaluation.registry import headline, prepare
from jaxsft.evaluation.task import Result, Subject
from jaxsft.files import as_json_lines, write_json, write_text
from jaxsft.sharding import make_mesh
from jaxsft.training.distributed import say
from jaxsft.training.restore import OpenModel, open_model
from jaxsft.training.runs import started_from
from jaxsft.validation import to_dict


@dataclasses.dataclass(frozen=True)
class Evaluation:
    """What was measured of a model.

    Attributes:
      figures: as JSON: `model`, the resolved `config` and the `version` that measured it; of one task its `task` and
        figures, of a suite `tasks`: name -> the same.
      records: one for each question of all tasks, as JSON.
      headlines: task's name -> what it found, in half a line.
      files: of tasks that write some, what the name of the file ends in -> its text.
      examples: of tasks that score examples, name -> `Result.examples`; not written.
    """

    figures: dict[str, Any]
    records: list[dict[str, Any]]
    headlines: dict[str, str]
    files: dict[str, str] = dataclasses.field(default_factory=dict)
    examples: dict[str, dict[str, np.ndarray]] = dataclasses.field(default_factory=dict)

    def write(self, output: epath.PathLike) -> epath.Path | None:
        """Writes the figures to `output`; beside it the records, if there are any, as JSON Lines, whose path is
        returned, and the files, OUTPUT less its suffix and a dot standing before their names."""
        output, answers = epath.Path(output), None
        if self.records:
            answers = output.with_suffix(".jsonl")
            write_text(answers, as_json_lines(self.records))
        for name, text in self.files.items():
            write_text(output.with_name(f"{output.stem}.{name}"), text)
        write_json(output, self.figures)  # last: where it is, all is
        return answers


def evaluate(config: EvaluateConfig | SuiteConfig) -> Evaluation:
    """Measures the model that `config.model.path` names, and says what it does.

    Raises:
      UserError: for a model or data that cannot be read or do not fit the task.
    """
    suite = isinstance(config, SuiteConfig)
    tasks: list[TaskConfig] = config.tasks if suite else [config]
    if not tasks:
        raise UserError("config.tasks is empty; there is nothing to measure.")
    path, mesh = config.model.path, make_mesh(config.mesh)
    model = open_model(path, config.model, mesh)
    reference = None
    if any(task.task == "deviation" for task in tasks):
        reference = _open_reference(model, config, mesh)
    run = model.adapters is not None, model.method, model.types
    subject = Subject(model.decoder, model.tokenizer, model.source, mesh, *run, epath.Path(path).name)
    # all is read before work begins
    prepared = [prepare(task, subject, model.template, reference, model.condition) for task in tasks]
    tables, records, headlines, files, examples = {}, [], {}, {}, {}
    for task, ready in zip(tasks, prepared):
        say(f"{ready.name}: {task.task} of {path} on {jax.device_count()} x {jax.devices()[0].device_kind}")
        say(ready.report)
        result: Result = ready.measure(model.params, model.adapters)
        tables[ready.name] = {"task": task.task, **result.figures}
        records += result.records
        examples |= {ready.name: result.examples} if result.examples else {}
        files |= {f"{ready.name}.{of}{suffix}": text for of, (suffix, text) in result.files.items()}
        headlines[ready.name] = headline(task, result)
    named = {"tasks": tables} if suite else tables[prepared[0].name]
    figures = {"model": path, **named, "config": to_dict(_resolved(config, model)), "version": __version__}
    return Evaluation(figures, records, headlines, files, examples)


def _open_reference(model: OpenModel, config: EvaluateConfig | SuiteConfig, mesh: Any) -> OpenModel | None:
    """The model that deviations are taken from; None is the base under an adapter, which is there already."""
    path = config.reference
    if not path and model.method is not None and model.adapters is None:
        path = started_from(config.model.path, "config.reference")
    plain = dataclasses.replace(config.model, quantization="none")  # which is said of the model that is measured
    return open_model(path, plain, mesh) if path else None


def _resolved(config: EvaluateConfig | SuiteConfig, model: OpenModel) -> EvaluateConfig | SuiteConfig:
    """The config with the template and the condition that "auto" stood for."""

    def named(task: TaskConfig) -> TaskConfig:
        return dataclasses.replace(task, data=as_trained(task.data, model.template, model.condition))

    if isinstance(config, SuiteConfig):
        return dataclasses.replace(config, tasks=[named(task) for task in config.tasks])
    return named(config)
