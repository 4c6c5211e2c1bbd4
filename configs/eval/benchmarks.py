"""Several benchmarks on one model, each as its own file beside this one asks for it.

    python scripts/evaluate.py --config=configs/eval/benchmarks.py:mmlu=FILE,truthfulqa=FILE,gsm8k=FILE --model=DIR \
        --output=OUT.json

A name is that of a file in this folder. Rows, template or batch size of one: --config.tasks[0].data.rows=:1000
"""

import dataclasses
import runpy
from pathlib import Path

from jaxsft.config import SuiteConfig, TaskConfig
from jaxsft.errors import UserError

HERE = Path(__file__).parent


def get_config(files: str = "") -> SuiteConfig:
    pairs = [pair.partition("=")[::2] for pair in files.split(",") if pair]
    return SuiteConfig(tasks=[task for name, path in pairs for task in tasks(name, path)])


def tasks(name: str, path: str) -> list[TaskConfig]:
    if not (HERE / f"{name}.py").exists() or not path:
        raise UserError(f"{name}={path} is no benchmark; write NAME=FILE, NAME being that of a file in {HERE}.")
    config = runpy.run_path(str(HERE / f"{name}.py"))["get_config"](path)
    if isinstance(config, SuiteConfig):
        return [dataclasses.replace(task, name=f"{name}_{task.name}") for task in config.tasks]
    own = {field.name: getattr(config, field.name) for field in dataclasses.fields(TaskConfig)}
    return [TaskConfig(**own | {"name": name})]
