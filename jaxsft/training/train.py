"""A training run, from config to summary, and the way back into an interrupted one."""

import contextlib
import json

import jax
from etils import epath

from jaxsft.config import TrainConfig
from jaxsft.evaluation import registry
from jaxsft.training.checkpoint import Checkpoints, snapshot_steps
from jaxsft.training.export import export_adapter
from jaxsft.training.loop import Loop
from jaxsft.training.members import Member
from jaxsft.training.restore import ADAPTER, FOLDER, bound
from jaxsft.training.saved import begin, begin_frozen
from jaxsft.training.setup import Run, say, set_up
from jaxsft.training.state import Frozen, TrainState
from jaxsft.training.workdir import Metrics, Workdir
from jaxsft.validation import to_dict


def train(config: TrainConfig, workdir: str) -> str:
    """Trains, or resumes, or finds the run finished.

    Args:
      config: validated.
      workdir: the run's folder, local or `gs://`.

    Returns:
      One line on the result.

    Raises:
      UserError: whatever the user can mend.
      SystemExit: with status 143 after SIGTERM, the state being saved.
    """
    writer = jax.process_index() == 0
    folder = Workdir(workdir, writes=writer)
    folder.compare("config", to_dict(config))
    if folder.finished:
        return f"{workdir} is finished already: {_headline(folder, config)}"
    run = set_up(config, folder)
    with contextlib.ExitStack() as stack:
        snapshots = snapshot_steps(config.checkpoint.snapshots, run.steps)
        checkpoints = Checkpoints(folder.path / "checkpoints", config.checkpoint, snapshots=snapshots)
        stack.callback(checkpoints.close)
        state, frozen = _start(run, checkpoints)
        # of a fresh run nothing is kept, not even the evaluation before step 1
        last_step, log = run.step_of(state) or -1, config.log
        metrics = Metrics(folder, last_step, log.tensorboard, log.wandb_project, writer)
        stack.callback(metrics.close)
        for member in run.members:
            member.metrics = metrics
            if member.index is not None:
                member.metrics = Metrics(member.folder, last_step, log.tensorboard, "", writer)
                stack.callback(member.metrics.close)
        state = Loop(run, checkpoints, metrics, frozen, frozenset(snapshots)).run(state)
    for member in run.members:
        if member.index is not None:
            _leave(run, member, state, frozen)
    folder.write_json("summary.json", {"steps": run.steps} | _last(metrics))
    return f"{workdir}: {_headline(folder, config)}" if writer else ""


def _start(run: Run, checkpoints: Checkpoints) -> tuple[TrainState, Frozen]:
    """A fresh state, or the last whole checkpoint's."""
    program, fresh, base = run.program, checkpoints.latest is None, None
    # scores are of all examples, so what one sub-model had scored, the others find
    scored = [run.references.recall(member.dataset) for member in run.members]
    if fresh or not all(scored) or program.asks_base:
        base = program.load_base(run.base_path)
    for member in run.members:
        if not run.references.recall(member.dataset):
            run.references.score(member.dataset, member.loader, program.decoder, program.mesh, base)
    if fresh:
        state, frozen = program.initial(base)
        if run.start is not None:
            state, frozen = begin(program, state, frozen, run.start, run.config.adapter.start)
        return state, run.fisher.add(program, frozen)
    say(f"resuming at step {checkpoints.latest}")
    frozen = program.frozen_only(base) if program.asks_base else program.frozen
    if run.start is not None:
        frozen = begin_frozen(program, frozen, run.start, run.config.adapter.start)
    del base
    frozen = run.fisher.add(program, frozen)
    state, counters = checkpoints.restore(checkpoints.latest, program.state)
    for member in run.members:
        member.counters.update({name: int(values[member.index or 0]) for name, values in counters.items()})
    return state, frozen


def _leave(run: Run, member: Member, state: TrainState, frozen: Frozen) -> None:
    """A sub-model's summary, and its adapter as a folder that `--model` opens."""
    path = member.folder.path / ADAPTER
    if jax.process_index() == 0 and not (path.exists() and any(path.iterdir())):
        params, aux = member.of((state.aux.get("ema", state.params), state.aux["method"]))
        with jax.set_mesh(run.program.mesh):
            export_adapter(bound(run.program, frozen.parts(params, aux), member.config, run.base_path), path)
    member.folder.write_json("summary.json", {"steps": member.steps} | _last(member.metrics))


def _last(metrics: Metrics) -> dict[str, float]:
    """The last numbers of every split."""
    return {f"{split}_{name}": value for split, last in metrics.last.items() for name, value in last.items()}


def _headline(folder: Workdir, config: TrainConfig) -> str:
    if not config.submodels:
        return _told(folder.path, config)
    told = [_told(folder.path / FOLDER / str(k), config) for k in range(config.submodels)]
    return f"{config.submodels} sub-models: " + "; ".join(f"{k}: {line}" for k, line in enumerate(told))


def _told(path: epath.Path, config: TrainConfig) -> str:
    summary = json.loads((path / "summary.json").read_text())
    evaluated = f", held-out loss {summary['eval_loss']:.4f}" if "eval_loss" in summary else ""
    for task in config.eval.tasks:
        figure = registry.FIGURES[task.task]
        evaluated += f", {task.name} {figure} {summary[f'{task.name}_{figure}']:.4f}"
    return f"{summary['steps']} steps, training loss {summary['train_loss']:.4f}{evaluated}"
