"""Asks base and models the same questions, and leaves an evaluation of each."""

import dataclasses
import itertools
import re

import jax
from etils import epath

from jaxsft.config import DataConfig, ForgettingConfig, SuiteConfig, TaskConfig
from jaxsft.data.templates import as_trained
from jaxsft.errors import UserError
from jaxsft.evaluation.suite import evaluate
from jaxsft.forgetting.evaluations import Evaluation, read_evaluation, write_examples
from jaxsft.forgetting.prompting import common, prompting
from jaxsft.report.read import unique_names

EVALUATIONS = "evaluations"
DRIFT, PRETRAINING = "drift", "pretraining"
LONGEST = 1_000_000  # tokens; the model's context is shorter


def measure(config: ForgettingConfig, folder: epath.PathLike) -> tuple[list[Evaluation], list[str]]:
    """Evaluates base and models, one after the other.

    Args:
      config: validated.
      folder: evaluations are written to `evaluations/` in it, as scripts/evaluate.py would, and beside them what their
        likelihoods are sums of.

    Returns:
      The evaluations, the base's first; with several processes those of process 0, and none on others. And remarks on
      what was left out.

    Raises:
      UserError: for models or data that cannot be read, and models that no common prompt is for.
    """
    if not config.base or not config.models:
        raise UserError("a base and at least one model are compared; name them as --base=MODEL and --model=MODEL.")
    tasks, paths = all_tasks(config), [config.base, *config.models]
    if double := next((path for path in paths if paths.count(path) > 1), None):
        raise UserError(f"{double} is named twice; name every model once, and the base apart from them.")
    folder, names = epath.Path(folder), unique_names(paths)
    ways = {path: prompting(path) for path in paths}
    template, condition = common(ways[config.base], {path: ways[path] for path in config.models}, folder)
    tasks = [dataclasses.replace(task, data=as_trained(task.data, template, condition)) for task in tasks]
    found, remarks = [], []
    for path, name, stem in zip(paths, names, file_names(names)):
        own = [task for task in tasks if task.task != "deviation" or path != config.base]
        if ways[path].tokenizer != ways[config.base].tokenizer and any(task.task == "deviation" for task in own):
            own = [task for task in own if task.task != "deviation"]
            remarks.append(f"{name} has another tokenizer than the base, so there is no distance between them.")
        model = dataclasses.replace(config.model, path=path)
        result = evaluate(SuiteConfig(tasks=own, model=model, mesh=config.mesh, reference=config.base))
        if jax.process_index() == 0:
            file = folder / EVALUATIONS / f"{stem}.json"
            result.write(file)
            write_examples(file, result.examples)
            found.append(read_evaluation(file, name))
    return found, remarks


def file_names(names: list[str]) -> list[str]:
    """Names without characters that files should not have; a number tells those apart that are then the same."""
    found: list[str] = []
    for name in names:
        plain = re.sub(r"[^A-Za-z0-9_.]+", "-", name)
        numbered = (f"{plain}-{n}" for n in itertools.count(2))
        taken = {other.lower() for other in found}  # some file systems know no case
        found.append(plain if plain.lower() not in taken else next(n for n in numbered if n.lower() not in taken))
    return found


def all_tasks(config: ForgettingConfig) -> list[TaskConfig]:
    """The config's tasks, and the drift and the pretraining sample where they are named.

    Raises:
      UserError: if there is none, or a name is taken.
    """
    added = [
        TaskConfig(name=name, task=kind, data=DataConfig(path=path, max_length=LONGEST))
        for name, kind, path in ((DRIFT, "deviation", config.drift), (PRETRAINING, "perplexity", config.pretraining))
        if path
    ]
    names = [task.name for task in config.tasks]
    if taken := next((task.name for task in added if task.name in names), None):
        raise UserError(
            f"the config has a task named {taken!r} already; leave --{taken} out, or name that task otherwise."
        )
    if not (config.tasks or added):
        raise UserError("config.tasks is empty; there is nothing to measure.")
    return [*config.tasks, *added]
