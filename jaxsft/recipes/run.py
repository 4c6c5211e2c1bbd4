"""Does the stages of a recipe, one after the other, and goes on where it was broken off.

Each stage has a folder of its own, in which `stage.json` is written last: its kind, its config with the placeholders as
they were written, the fingerprints of the stages that it read and of what it left, and its result. A stage that has one
is never done again. What a stage does inside its folder it resumes by itself.
"""

import json
from typing import Any

import jax
from etils import epath

from jaxsft import __version__
from jaxsft.config import RecipeConfig
from jaxsft.errors import UserError
from jaxsft.files import write_json
from jaxsft.recipes.plan import Stage, plan
from jaxsft.recipes.stages import KINDS
from jaxsft.training.distributed import say, wait_for_all
from jaxsft.training.workdir import Workdir, may_change
from jaxsft.validation import flatten, from_dict, to_dict

RECORD = "stage.json"


def run(recipe: RecipeConfig, workdir: str) -> str:
    """Does what is not done yet.

    Args:
      recipe: validated.
      workdir: the folder of the stages' folders, local or `gs://`.

    Returns:
      One line on the result of the last stage.

    Raises:
      UserError: for a recipe that cannot be, and where a finished stage was made with another config or other inputs.
      SystemExit: with status 143 after SIGTERM in a training run, its state being saved.
    """
    stages = plan(recipe, workdir)
    if (epath.Path(workdir) / "config.json").exists():
        raise UserError(f"workdir {workdir} holds a run or a model; choose another --workdir for the recipe.")
    lock = Workdir(workdir, writes=jax.process_index() == 0)
    records = {stage.name: _read(stage) for stage in stages}
    for i, stage in enumerate(stages):
        state = "done" if records[stage.name] else "begun" if stage.folder.exists() else "to do"
        reads = f", reads {', '.join(stage.inputs)}" if stage.inputs else ""
        say(f"{i + 1}/{len(stages)} {stage.name}: {stage.kind}{reads} ({state})")
    for stage in stages:
        inputs = {name: records[name]["fingerprint"] for name in stage.inputs}
        if records[stage.name]:
            _check_inputs(stage, records[stage.name]["inputs"], inputs)
        else:
            say(f"-- {stage.name}: {stage.kind} in {stage.folder}")
            records[stage.name] = _do(stage, inputs)
    del lock
    last = stages[-1]
    return (
        f"{workdir}: {len(stages)} stage{'s' if len(stages) > 1 else ''}; {last.name}: {records[last.name]['result']}"
    )


def _do(stage: Stage, inputs: dict[str, str]) -> dict[str, Any]:
    """Does a stage, and records that it is done."""
    kind = KINDS[stage.kind]
    result = kind.run(stage.resolved(), stage.folder)
    say(result)
    wait_for_all(stage.name)
    record = {
        "kind": stage.kind,
        "config": to_dict(stage.config),
        "inputs": inputs,
        "fingerprint": kind.fingerprint(stage.folder),
        "result": result,
        "version": __version__,
    }
    if jax.process_index() == 0:
        write_json(stage.folder / RECORD, record)
    wait_for_all(f"{stage.name} recorded")
    return record


def _read(stage: Stage) -> dict[str, Any] | None:
    """The record of a finished stage, whose config must be the stage's."""
    file = stage.folder / RECORD
    if not file.exists():
        return None
    record = json.loads(file.read_text())
    if record["kind"] != stage.kind:
        raise UserError(
            f"{stage.folder} holds a stage of the kind {record['kind']!r}, now it is {stage.kind!r}; {_ADVICE}"
        )
    # a field that the older version did not have has its default
    before = to_dict(from_dict(KINDS[stage.kind].config, record["config"], f"{file}: config"))
    old, new = flatten(before), flatten(to_dict(stage.config))
    for name in sorted(old.keys() | new.keys()):
        if old.get(name) != new.get(name) and not may_change(name):
            raise UserError(
                f"the stage {stage.name!r} in {stage.folder} had config.{name} = {old.get(name)!r}, now it is "
                f"{new.get(name)!r}; {_ADVICE}"
            )
    return record


def _check_inputs(stage: Stage, before: dict[str, str], now: dict[str, str]) -> None:
    """Refuses a finished stage that was made from something else."""
    for name in sorted(before.keys() | now.keys()):
        if before.get(name) != now.get(name):
            raise UserError(
                f"the stage {stage.name!r} in {stage.folder} read another {name!r} ({before.get(name)}, now it "
                f"is {now.get(name)}); {_ADVICE}"
            )


_ADVICE = "choose another --workdir, or remove that folder to do the stage again."
