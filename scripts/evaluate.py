"""Measures a model, e.g. its negative log-likelihood on a file:

python scripts/evaluate.py --config=configs/eval/perplexity.py --model=DIR --config.data.path=FILE --output=OUT.json

A config of several tasks (configs/eval/suite.py) measures them all on one opened model. Tasks that ask questions write
what was answered to OUT.jsonl, beside OUT.json. For a workdir the output is WORKDIR/evaluation.json unless named.
"""

import os

import jax
from absl import flags
from etils import epath

from jaxsft import cli
from jaxsft.config import EvaluateConfig, SuiteConfig
from jaxsft.errors import UserError
from jaxsft.evaluation.suite import evaluate
from jaxsft.training.distributed import initialize
from jaxsft.training.runs import is_workdir

cli.define_config()
MODEL = flags.DEFINE_string("model", None, "Hugging Face folder or hub name, a workdir, or world:base.")
BASE = flags.DEFINE_string("base", "", "Of an adapter: its base, instead of the one that it names.")
OUTPUT = flags.DEFINE_string("output", None, "JSON file to write the figures to; for a workdir: its evaluation.json.")


def main() -> str:
    config = cli.get_config(EvaluateConfig, SuiteConfig)
    config.model.path = MODEL.value or config.model.path
    config.model.base = BASE.value or config.model.base
    if not config.model.path:
        raise UserError("--model is missing; name a Hugging Face folder, a hub name or a workdir.")
    output = _output(config.model.path)
    _check_not_read(config, output)
    initialize()
    found = evaluate(config)
    if jax.process_index() == 0:
        found.write(output)
    if isinstance(config, EvaluateConfig):
        return f"{output}: {next(iter(found.headlines.values()))}"
    if jax.process_index() == 0:
        width = max(map(len, found.headlines))
        print("\n".join(f"{name:<{width}}  {line}" for name, line in found.headlines.items()))
    questions = f", {len(found.records)} answers in {output.with_suffix('.jsonl')}" if found.records else ""
    return f"{output}: {len(found.headlines)} tasks{questions}"


def _output(model: str) -> epath.Path:
    """Where the figures go."""
    if not OUTPUT.value and not is_workdir(model):
        raise UserError(
            f"--output is missing, and --model={model} is no workdir of a run that could hold the figures; mend "
            "--model, or name a JSON file for them."
        )
    output = epath.Path(OUTPUT.value) if OUTPUT.value else epath.Path(model) / "evaluation.json"
    if output.suffix == ".jsonl":
        raise UserError(f"--output is {output}; that name is for the answers, so name a .json file for the figures.")
    return output


def _check_not_read(config: EvaluateConfig | SuiteConfig, output: epath.Path) -> None:
    """Raises where figures or answers would be written over the data."""
    tasks = config.tasks if isinstance(config, SuiteConfig) else [config]
    sources = [source.path for task in tasks for source in task.data.all_sources()]
    others = [path for task in tasks for path in (task.prompt.shots.path, task.known)]
    read = {os.path.abspath(path) for path in [*sources, *others] if path}
    if taken := [file for file in (output, output.with_suffix(".jsonl")) if os.path.abspath(file) in read]:
        raise UserError(f"--output={output} would write over {taken[0]}, which is read as data; choose another name.")


if __name__ == "__main__":
    cli.main(main)
