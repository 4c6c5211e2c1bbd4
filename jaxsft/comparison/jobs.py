"""Methods x learning rates x seeds on the world: the jobs, and how one is run.

A job's folder is a run's workdir, with the figures of the suite in `evaluation.json`, written last; `job.json` says
which job it is. Its name ends in a hash of the world, the start, the config, the suite, the library's version and the
file of a case that brings its own `run`. So a job that is done is never done again, one that was broken off goes on,
and a changed recipe gets a folder of its own; who changes the library's code without its version takes a new --output.
"""

import contextlib
import dataclasses
import functools
import hashlib
import inspect
import json
import os
import runpy
import sys
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

from jaxsft import __version__
from jaxsft.config import EvalConfig, TaskConfig, TrainConfig
from jaxsft.errors import UserError
from jaxsft.files import write_json
from jaxsft.models.checkpoint import fingerprint, resolve
from jaxsft.validation import did_you_mean, to_dict, validate
from jaxsft.world import recipe, records

EVALUATION, RECORD = "evaluation.json", "job.json"
TRAIN = "world:train"


@dataclasses.dataclass(frozen=True)
class Case:
    """A method: a config file that says which learning rates it is to be tried at.

    Attributes:
      name: the file's, and behind a colon the argument, if there is one.
      file: it has `get_config()`, and `LEARNING_RATES`, peaks to sweep. A method that is more than one training run
        also has `run(config, workdir)`, which leaves a model in the workdir, or returns the
        folder (`pathlib.Path`) in which it left one.
      about: the first line of its docstring.
      learning_rates: see `file`.
      staged: whether it brings its own `run`.
      argument: what the file's functions are called with besides: a variant of the method. "" is none.
    """

    name: str
    file: Path
    about: str
    learning_rates: tuple[float, ...]
    staged: bool = False
    argument: str = ""

    def call(self, name: str, *args: Any, default: Callable[..., Any] | None = None) -> Any:
        """Calls a function of the file."""
        function = runpy.run_path(str(self.file)).get(name, default)
        return function(*args, *([self.argument] if self.argument and function is not default else []))


@dataclasses.dataclass(frozen=True)
class Job:
    """A case at one learning rate from one start with one seed; no case (None) is the start itself.

    Attributes:
      start: model that fine-tuning starts from.
      seed: of the run; it also decides which rows of `world:train` the run takes.
    """

    case: Case | None
    start: str
    learning_rate: float = 0.0
    seed: int = 0

    def config(self) -> TrainConfig:
        """The run's."""
        config = self.case.call("get_config")
        config.model.path, config.seed = self.start, self.seed
        config.optimizer.learning_rate = self.learning_rate
        for source in config.data.sources or [config.data]:
            if source.path == TRAIN:
                source.rows = f"{self.seed * recipe.ROWS}:{(self.seed + 1) * recipe.ROWS}"
        config.eval = EvalConfig()
        config.log.tensorboard = False
        validate(config)
        return config

    def folder(self, output: Path) -> Path:
        """Where it is done, below the comparison's folder."""
        decides = {
            "world": records.fingerprint(),
            "start": _start_digest(self.start),
            "suite": [_changes(to_dict(task), to_dict(TaskConfig())) for task in recipe.suite().tasks],
            "version": __version__,
        }
        if self.case:
            config = to_dict(self.config())
            config["model"]["path"] = ""  # the start is the same wherever it lies
            decides["config"] = _changes(config, to_dict(TrainConfig()))
            decides["run"] = self.case.file.read_text() if self.case.staged else ""
            decides |= {"argument": self.case.argument} if self.case.argument else {}
        digest = hashlib.sha256(json.dumps(decides, sort_keys=True).encode()).hexdigest()[:8]
        start = Path(self.start.replace(":", "-")).name
        case = f"-{self.case.name.replace(':', '-')}-lr{self.learning_rate:g}-seed{self.seed}" if self.case else ""
        return output / f"{start}{case}-{digest}"


def record(job: Job, folder: Path) -> None:
    """Writes what the folder is a job of, by which a report puts seeds of a case together."""
    folder.mkdir(parents=True, exist_ok=True)
    if job.case:
        named = {"case": job.case.name, "start": job.start, "learning_rate": job.learning_rate, "seed": job.seed}
        write_json(folder / RECORD, named)


def find_cases(folder: Path, names: list[str]) -> list[Case]:
    """The cases of a folder of configs, in the order of `names`, each once; `dtm:4-random-ties` is a variant of `dtm`.

    Raises:
      UserError: for a name that is none, a variant of a case that has none, and for no name.
    """
    found = {}
    for file in sorted(folder.glob("*.py")):
        values = runpy.run_path(str(file))
        if "LEARNING_RATES" in values:
            about = (values["__doc__"] or file.stem).strip().splitlines()[0].rstrip(".")
            found[file.stem] = Case(file.stem, file, about, tuple(values["LEARNING_RATES"]), "run" in values)
    if not names:
        raise UserError(f"--cases is empty; {folder} has {', '.join(found)}.")
    cases = []
    for name in dict.fromkeys(names):
        stem, _, argument = name.partition(":")
        if stem not in found:
            hint = did_you_mean(stem, found) or f"; {folder} has {', '.join(found)}."
            raise UserError(f"--cases names {stem!r}, which is no case{hint}")
        get_config = runpy.run_path(str(found[stem].file))["get_config"]
        if argument and not inspect.signature(get_config).parameters:
            raise UserError(f"--cases names {name!r}, but {stem} has no variants; name it without a colon.")
        cases.append(dataclasses.replace(found[stem], name=name, argument=argument))
    return cases


def plan(cases: list[Case], starts: list[str], seeds: int, rates: Sequence[float] = ()) -> list[Job]:
    """All jobs, each once: the starts, then every case, so that a broken-off comparison has whole seeds.

    Args:
      cases: from `find_cases`.
      starts: models.
      seeds: how many.
      rates: those of each case's learning rates that are tried; () is all.

    Raises:
      UserError: for more seeds than there are rows for, for no start, and for a case with none of the rates.
    """
    for case in cases:
        if rates and not set(rates) & set(case.learning_rates):
            raise UserError(f"--learning_rates has none of {case.name}'s {', '.join(map(str, case.learning_rates))}.")
    if not starts:
        raise UserError("--starts is empty; name models, such as world:base.")
    most = records.ROWS["train"] // recipe.ROWS
    if not 1 <= seeds <= most:
        raise UserError(f"--seeds is {seeds}; the world has rows for 1 to {most}.")
    starts = list(dict.fromkeys(starts))
    jobs = [Job(None, start) for start in starts]
    return jobs + [
        Job(case, start, rate, seed)
        for seed in range(seeds)
        for start in starts
        for case in cases
        for rate in case.learning_rates
        if not rates or rate in rates
    ]


def execute(job: Job, folder: Path) -> None:
    """Trains and measures, or what is left of it; what is printed goes to `log.txt` in the folder."""
    if (folder / EVALUATION).exists():
        return
    folder.mkdir(parents=True, exist_ok=True)
    with printing_to(folder / "log.txt"):
        from jaxsft.evaluation.suite import evaluate
        from jaxsft.training.train import train

        suite = recipe.suite(reference=job.start)
        if job.case is None:
            suite.model.path = job.start
        else:
            left = job.case.call("run", job.config(), str(folder), default=train)
            suite.model.path = str(left if isinstance(left, Path) else folder)
        evaluate(suite).write(folder / EVALUATION)


def _changes(values: dict[str, Any], defaults: dict[str, Any]) -> dict[str, Any]:
    """What is not its default, so that a field that a later version adds does not make old jobs new ones."""
    changed = {}
    for name, value in values.items():
        default = defaults.get(name)
        if isinstance(value, dict) and isinstance(default, dict) and default:
            value, default = _changes(value, default), {}
        if value != default:
            changed[name] = value
    return changed


@functools.cache
def _start_digest(start: str) -> str:
    """Of the weights and everything beside them: tokenizer, chat template."""
    digest = hashlib.sha256(fingerprint(start).encode())
    for file in sorted(resolve(start).iterdir(), key=lambda file: file.name):
        if file.suffix in (".json", ".jinja", ".model", ".txt"):
            digest.update(file.name.encode() + file.read_bytes())
    return digest.hexdigest()


@contextlib.contextmanager
def printing_to(path: Path) -> Iterator[None]:
    """Sends what this process prints to a file."""
    with path.open("a") as log:
        kept = [os.dup(stream) for stream in (1, 2)]
        try:
            for stream in (1, 2):
                os.dup2(log.fileno(), stream)
            yield
        finally:
            for stream in (sys.stdout, sys.stderr):
                stream.flush()
            for stream, copy in zip((1, 2), kept):
                os.dup2(copy, stream)
                os.close(copy)
