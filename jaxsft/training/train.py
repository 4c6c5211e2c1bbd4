"""A training run, from config to summary, and the way back into an interrupted one."""

import contextlib
import json

import jax
from etils import epath

from jaxsft.config import TrainConfig
from jaxsft.data.loader import Loader
from jaxsft.evaluation import registry
from jaxsft.sharding import process_share, replicated
from jaxsft.training.checkpoint import Checkpoints, snapshot_steps
from jaxsft.training.distributed import say
from jaxsft.training.export import export_adapter
from jaxsft.training.loop import Loop
from jaxsft.training.members import Member
from jaxsft.training.restore import bound
from jaxsft.training.saved import begin, begin_frozen
from jaxsft.training.setup import Run, set_up
from jaxsft.training.state import Frozen, TrainState
from jaxsft.training.workdir import ADAPTER, SUBMODELS, Metrics, Workdir
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
    datasets = [member.dataset for member in run.members]
    scored = all([run.references.recall(dataset) for dataset in datasets])
    if fresh or not scored or program.asks_base:
        base = program.load_base(run.base_path)
    if not scored:
        rows = process_share(program.mesh, jax.process_index())  # a sub-model's own loader assembles all rows
        loader = Loader(datasets[0], run.config.data, run.config.batch_size, run.config.seed, *rows)
        run.references.score(datasets, loader, program.decoder, program.mesh, base)
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
    path, mesh = member.folder.path / ADAPTER, run.program.mesh
    with jax.set_mesh(mesh):  # all processes take part: none holds the whole of an array that is split over them
        own = jax.jit(member.of, out_shardings=replicated(mesh))
        params, aux = own((state.aux.get("ema", state.params), state.aux["method"]))
        model = bound(run.program, frozen.parts(params, aux), member.config, run.base_path)
        if jax.process_index() == 0 and not (path.exists() and any(path.iterdir())):
            export_adapter(model, path)
    member.folder.write_json("summary.json", {"steps": member.steps} | _last(member.metrics))


def _last(metrics: Metrics) -> dict[str, float]:
    """The last numbers of every split."""
    return {f"{split}_{name}": value for split, last in metrics.last.items() for name, value in last.items()}


def _headline(folder: Workdir, config: TrainConfig) -> str:
    if not config.submodels:
        return _told(folder.path, config)
    told = [_told(folder.path / SUBMODELS / str(k), config) for k in range(config.submodels)]
    return f"{config.submodels} sub-models: " + "; ".join(f"{k}: {line}" for k, line in enumerate(told))


def _told(path: epath.Path, config: TrainConfig) -> str:
    summary = json.loads((path / "summary.json").read_text())
    evaluated = f", held-out loss {summary['eval_loss']:.4f}" if "eval_loss" in summary else ""
    for task in config.eval.tasks:
        figure = registry.KINDS[task.task].figure
        if f"{task.name}_{figure}" in summary:  # what was not defined at the last step is not there
            evaluated += f", {task.name} {figure} {summary[f'{task.name}_{figure}']:.4f}"
    return f"{summary['steps']} steps, training loss {summary['train_loss']:.4f}{evaluated}"
