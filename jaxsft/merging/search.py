"""The weights of a merge, chosen by what the merged model makes of validation data.

Every trial is merged into memory from the models' files, tensor by tensor and rounded as it would be written, and
measured by programs that are compiled once. It leaves in its folder:

    settings.json    written with the first trial: the config, and fingerprints of models and data
    trials.jsonl     a line a trial, in order: weights, value, figures
    merged/          the best as an ordinary merge
    search.json      written last: the best, the start, and all of settings.json

The same command goes on: what is in trials.jsonl is not measured again.
"""

import dataclasses
import json
import math
import os
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from etils import epath

from jaxsft import __version__
from jaxsft.config import MergeConfig, ModelConfig, SearchConfig
from jaxsft.errors import UserError
from jaxsft.evaluation.registry import prepare
from jaxsft.evaluation.task import Subject, Task
from jaxsft.files import write_json, write_text
from jaxsft.merging.merge import merge_or_find, working
from jaxsft.merging.plan import Plan, make_plan
from jaxsft.merging.registry import METHODS, normalizes
from jaxsft.merging.settings import Settings
from jaxsft.merging.weighing import Space, Weights, minimise
from jaxsft.models import layout
from jaxsft.models.decoder import Decoder
from jaxsft.sharding import tree_shardings
from jaxsft.training.program import dtypes
from jaxsft.training.workdir import Workdir
from jaxsft.validation import to_dict

SETTINGS, TRIALS, MERGED, SEARCH = "settings.json", "trials.jsonl", "merged", "search.json"


def search(config: SearchConfig, output: epath.PathLike) -> str:
    """Finds weights, and merges by them into `output`/merged.

    Args:
      config: validated.
      output: a local folder: a new one, or one that the same search was broken off in.

    Returns:
      A line on the result.

    Raises:
      UserError: for a merge that cannot be or has no weights, data that cannot be read, a grid beyond the budget,
        several processes, and a folder of another search.
    """
    output = epath.Path(output)
    _check(config)
    planned = make_plan(config.merge)
    start = config.merge.weights or (1.0,) * len(planned.models)
    space = Space(start, normalizes(config.merge), METHODS[config.merge.method].positive, config.most)
    if not space.holds(space.first):
        raise UserError(f"config.merge.weights {start} is where the search starts, and outside of what it may try.")
    lock = Workdir(output)
    trials = _Trials(config, planned, output)
    minimise(config.kind, space, trials.value, config.cells, config.budget)
    best = min(trials.found, key=lambda weights: trials.found[weights]["value"])
    line = merge_or_find(dataclasses.replace(config.merge, weights=best), output / MERGED)
    value = lambda weights: trials.found[weights]["value"]
    result = (
        f"{output / MERGED}: weights ({', '.join(f'{w:g}' for w in best)}), {value(best):.5f} on the validation data, "
        f"({', '.join(f'{w:g}' for w in space.first)}) have {value(space.first):.5f}; {len(trials.found)} trials"
    )
    record = trials.settings | {"best": trials.found[best], "start": trials.found[space.first]}
    write_json(output / SEARCH, record | {"trials": len(trials.found), "merge": line, "result": result})
    del lock
    return result


def _check(config: SearchConfig) -> None:
    merge = config.merge
    if jax.process_count() > 1:
        raise UserError("a search merges and measures in one process; start it on one host.")
    if merge.method not in METHODS or "weights" not in METHODS[merge.method].reads:
        known = ", ".join(name for name, method in METHODS.items() if "weights" in method.reads)
        raise UserError(f"config.merge.method is {merge.method!r}; weights are searched for: {known}.")
    if merge.gradient:
        raise UserError("config.merge.gradient is set; a search is for one weight a model, so leave it empty.")
    if not config.tasks or any(task.task != "perplexity" for task in config.tasks):
        raise UserError("config.tasks must be one or more tasks of the kind 'perplexity', on validation data.")
    if config.factors and len(config.factors) != len(config.tasks):
        raise UserError(f"config.factors has {len(config.factors)} numbers for {len(config.tasks)} tasks.")


class _Trials:
    """What was measured of which weights, in memory and on disk.

    Attributes:
      settings: what decides the values.
      found: weights -> the line of `trials.jsonl`.
    """

    def __init__(self, config: SearchConfig, plan: Plan, folder: epath.Path):
        self._config, self._plan, self._folder = config, plan, folder
        auto = dtypes(ModelConfig(), plan.mesh)[0]
        self._decoder = Decoder(plan.arch, dtype=auto, remat="none")
        last = plan.last
        subject = Subject(self._decoder, last.tokenizer, last.folder, plan.mesh)
        self._tasks: list[Task] = [
            prepare(task, subject, last.template, condition=last.condition) for task in config.tasks
        ]
        self.settings = {
            "kind": "search",
            "config": to_dict(config),
            "models": {source.path: source.fingerprint for source in plan.sources},
            "data": [task.fingerprint for task in self._tasks],
            "versions": {"jaxsft": __version__, "jax": jax.__version__, "numpy": np.__version__},
        }
        self.found = self._read()

    def _read(self) -> dict[Weights, dict[str, Any]]:
        """Of the trials before, whole lines alone."""
        file = self._folder / TRIALS
        if not file.exists():
            return {}
        before = json.loads((self._folder / SETTINGS).read_text())
        for name in ("kind", "config", "models", "data"):
            if before[name] != self.settings[name]:
                raise UserError(
                    f"{self._folder} holds a search of another {name}; choose another folder, or remove it."
                )
        lines = [line for line in file.read_text().splitlines(keepends=True) if line.endswith("\n")]
        write_text(file, "".join(lines))
        return {tuple(trial["weights"]): trial for trial in map(json.loads, lines)}

    def value(self, weights: Weights) -> float:
        """The weighted sum of the tasks' negative log-likelihoods a token, in nats."""
        if weights not in self.found:
            params = self._merged(weights)
            figures = [task.measure(params, None).figures["nll_per_token"] for task in self._tasks]
            factors = self._config.factors or (1.0,) * len(figures)
            value = math.fsum(factor * figure for factor, figure in zip(factors, figures))
            trial = {"weights": list(weights), "value": value, "figures": figures}
            if not self.found:
                write_json(self._folder / SETTINGS, self.settings)
            self._append(trial)
            self.found[weights] = trial
            print(f"trial {len(self.found)}: weights {weights}, {value:.5f}", flush=True)
        return self.found[weights]["value"]

    def _append(self, trial: dict[str, Any]) -> None:
        try:
            with open(self._folder / TRIALS, "a") as file:
                file.write(json.dumps(trial) + "\n")
                file.flush()
                os.fsync(file.fileno())
        except OSError as error:
            raise UserError(f"{self._folder / TRIALS} cannot be written: {error.strerror}; make room.") from error

    def _merged(self, weights: Weights) -> Any:
        """The parameters, rounded to the dtype of the files and widened again, as they would be opened."""
        config: MergeConfig = dataclasses.replace(self._config.merge, weights=weights)
        plan, arch = self._plan, self._plan.arch
        settings = Settings.of(config, len(plan.models), plan.base is not None, arch)
        abstract = self._decoder.abstract_params(jnp.float32)
        params = jax.tree.map(lambda leaf: np.empty(leaf.shape, leaf.dtype), abstract)
        with working(dataclasses.replace(plan, config=config, settings=settings)) as work:
            for tensor in plan.tensors:
                array = work.produce(tensor)
                path, row = layout.locate(arch, tensor.logical)
                target = layout.get(params, path)
                target[... if row is None else row] = array.T if tensor.transposed else array
        return jax.device_put(params, tree_shardings(self._decoder.logical_axes(), abstract, plan.mesh))
