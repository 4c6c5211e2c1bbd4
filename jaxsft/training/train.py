"""A training run, from config to summary: set-up, the loop, and the way back into an interrupted run.

Order of events at step s, which makes a resumed run's metrics those of an undisturbed one: the step, its evaluation,
its lines on disk, its checkpoint. A checkpoint is therefore never ahead of the metrics, and on resume the metrics are
cut back to the checkpoint.
"""

import contextlib
import dataclasses
import json
import math
import signal
import sys
import time
from collections.abc import Callable
from typing import Any

import jax
from etils import epath
from tqdm import tqdm

from jaxsft.adapters.folder import Saved, is_adapter
from jaxsft.adapters.method import Maintenance
from jaxsft.config import DataConfig, MixtureConfig, TrainConfig, TypesConfig
from jaxsft.data.classes import for_held_out, inference_condition
from jaxsft.data.dataset import Dataset, prepare
from jaxsft.data.loader import Loader
from jaxsft.data.tokenizer import Tokenizer, load_tokenizer
from jaxsft.errors import UserError
from jaxsft.evaluation import registry
from jaxsft.evaluation.perplexity import evaluate, make_nll
from jaxsft.evaluation.scoring import to_devices
from jaxsft.evaluation.task import Subject, Task
from jaxsft.models.checkpoint import fingerprint, resolve
from jaxsft.objectives.registry import make_objective
from jaxsft.sharding import data_shards, make_mesh, process_share, replicated
from jaxsft.training.checkpoint import Checkpoints, snapshot_steps
from jaxsft.training.fisher import Fisher
from jaxsft.training.program import Program, architecture, build, check_grouping, check_rows, parameter_count
from jaxsft.training.references import References
from jaxsft.training.restore import check_start_base, open_start
from jaxsft.training.saved import begin, begin_frozen
from jaxsft.training.state import Frozen, TrainState
from jaxsft.training.throughput import flops_per_token, memory_gib, peak_flops
from jaxsft.training.workdir import Metrics, Workdir
from jaxsft.validation import to_dict

PREEMPTED = 143  # exit status after SIGTERM: 128 + 15


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
    run = _set_up(config, folder)
    with contextlib.ExitStack() as stack:
        snapshots = snapshot_steps(config.checkpoint.snapshots, run.steps)
        checkpoints = Checkpoints(folder.path / "checkpoints", config.checkpoint, snapshots=snapshots)
        stack.callback(checkpoints.close)
        state, frozen, counters = _start(run, checkpoints)
        log = config.log
        last_step = int(state.step) or -1  # of a fresh run nothing is kept, not even the evaluation before step 1
        metrics = Metrics(folder, last_step, log.tensorboard, log.wandb_project, writer)
        stack.callback(metrics.close)
        loop = Loop(run, checkpoints, metrics, frozen, counters, frozenset(snapshots))
        state = loop.run(state)
    summary = {f"{split}_{name}": value for split, last in metrics.last.items() for name, value in last.items()}
    folder.write_json("summary.json", {"steps": int(state.step), **summary})
    return f"{workdir}: {_headline(folder, config)}" if writer else ""


@dataclasses.dataclass
class Run:
    """What set-up leaves for the loop; `compiled` has the steps by their kind (`Method.stage`)."""

    config: TrainConfig
    folder: Workdir
    program: Program
    compiled: dict[str, Callable[..., Any]]
    dataset: Dataset
    loader: Loader
    references: References
    fisher: Fisher
    held_out: Loader | None
    tasks: list[Task]
    base_path: epath.Path
    steps: int
    flops_per_token: float
    start: Saved | None


def _set_up(config: TrainConfig, folder: Workdir) -> Run:
    """Data, program and record; says what it is about to do before it does it."""
    mesh = make_mesh(config.mesh)
    check_rows(config, mesh)
    path = resolve(config.model.path)
    if (path / "checkpoints").exists():
        raise UserError(f"config.model.path={path} is a run's workdir; name an export of it (scripts/export.py).")
    if is_adapter(path):
        raise UserError(
            f"config.model.path={path} is an adapter; name its base there, and the adapter in config.adapter.start."
        )
    if config.model.base:
        raise UserError("config.model.base is for adapters that are opened; training names the base as its path.")
    arch = architecture(config.model, path)
    tokenizer = load_tokenizer(path)
    objective = make_objective(config.objective)
    check_grouping(config, objective)
    references = References(config, objective, folder.path / "scores")
    references.check_tokens(tokenizer)
    fisher = Fisher(config, tokenizer, folder.path / "fisher")
    dataset = prepare(config.data, tokenizer, config.seed)
    _say(dataset.report)
    dataset.check_vocabulary(arch.vocab_size)
    references.reserve(dataset)
    rows = process_share(mesh, jax.process_index())
    loader = Loader(dataset, config.data, config.batch_size, config.seed, *rows)
    held_out, fingerprints = None, {"data": dataset.fingerprint, "model": fingerprint(path)}
    start, own = open_start(config, arch, mesh)
    fingerprints |= own
    if start is not None and (notice := check_start_base(config)):
        _say(f"note: {notice}")
    fingerprints |= references.fingerprints() | fisher.fingerprints()
    if config.eval.path:
        data = held_out_data(config)
        held_out_set = prepare(data, tokenizer, config.seed)
        _say(held_out_set.report)
        held_out_set.check_vocabulary(arch.vocab_size)
        fingerprints["eval_data"] = held_out_set.fingerprint
        held_out = Loader(held_out_set, data, _eval_rows(config, data_shards(mesh)), config.seed, *rows)
    steps = config.steps or loader.steps(config.epochs)
    if steps < 1:
        raise UserError(
            f"config.epochs is {config.epochs}, which is no step at {config.batch_size} rows a step; raise it."
        )

    program = build(config, arch, mesh, steps, loader.shapes())
    for notice in program.method.notices(loader.shapes()):
        _say(f"note: {notice}")
    tasks = _prepare_tasks(config, program, tokenizer, path, references)
    fingerprints |= {f"{task.name}_data": task.fingerprint for task in tasks}
    folder.record(type(config).__name__, to_dict(config), fingerprints)  # now that nothing is left to refuse
    trained, frozen = parameter_count(program.state.params), parameter_count(program.frozen.method)
    layers = f"{arch.num_layers} layers"
    if arch.n_post_layers:
        layers += f" ({arch.n_post_layers} Post-LN, then {arch.num_layers - arch.n_post_layers} Pre-LN)"
    _say(
        f"model: {path.name}, {layers}, {trained:,} trained and {frozen:,} frozen parameters; "
        f"mesh: {dict(zip(mesh.axis_names, mesh.axis_sizes))}; "
        f"{steps} step{'s' if steps > 1 else ''} of {config.batch_size} rows, of which an epoch has {loader.rows()}"
    )
    began = time.monotonic()
    stages = dict.fromkeys(program.method.stage(step) for step in range(1, steps + 1))
    compiled = {stage: program.compile(stage) for stage in stages}
    memories = [memory for step in compiled.values() if (memory := step.memory_analysis()) is not None]
    if memories:
        needed = max(
            m.argument_size_in_bytes + m.temp_size_in_bytes + m.output_size_in_bytes - m.alias_size_in_bytes
            for m in memories
        )
        _say(f"step compiled in {time.monotonic() - began:.1f} s; it needs {needed / 2**30:.3f} GiB a device")
    share = trained / (trained + frozen) if frozen else 1.0
    flops = flops_per_token(arch, loader.mean_unit_length, share if program.method.trains_base else 0.0)
    data = dataset, loader, references, fisher, held_out, tasks
    return Run(config, folder, program, compiled, *data, path, steps, flops, start)


def held_out_data(config: TrainConfig) -> DataConfig:
    """The data of the held-out loss: each example by itself, and asked with the default prompt."""
    classes, condition, weighting = for_held_out(config.data)
    return dataclasses.replace(
        config.data,
        path=config.eval.path,
        rows=config.eval.rows,
        fields=config.eval.fields,
        sources=[],
        condition=condition,
        classes=classes,
        weighting=weighting,
        grouping="dcot" if config.data.grouping == "dcot" else "example",  # records of a form of its own
        attention_unit="example",
        mixture=MixtureConfig(),
        types=TypesConfig(),
        scores="",
        keep=1.0,
        parts="",
        part=-1,
    )


def _prepare_tasks(
    config: TrainConfig, program: Program, tokenizer: Tokenizer, path: epath.Path, references: References
) -> list[Task]:
    """What is measured besides the held-out loss, ready to be asked as often as evaluations come."""
    adapted = not program.method.trains_base
    subject = Subject(program.decoder, tokenizer, path, program.mesh, adapted, program.method, config.data.types)
    condition = inference_condition(config.data)
    tasks = []
    for task in config.eval.tasks:
        if task.task == "deviation" and not adapted:
            prepared, kept = registry.prepare_kept(task, subject, config.data.template, condition)
            references.watch(kept)
        else:
            prepared = registry.prepare(task, subject, config.data.template, condition=condition)
        tasks.append(prepared)
        _say(f"{task.name}: {prepared.report}")
    return tasks


def _start(run: Run, checkpoints: Checkpoints) -> tuple[TrainState, Frozen, dict[str, Any]]:
    """A fresh state, or the last whole checkpoint's."""
    program, fresh = run.program, checkpoints.latest is None
    scored, base = run.references.recall(run.dataset), None
    if fresh or not scored or program.asks_base:
        base = program.load_base(run.base_path)
    if not scored:
        run.references.score(run.dataset, run.loader, program.decoder, program.mesh, base)
    if fresh:
        state, frozen = program.initial(base)
        if run.start is not None:
            state, frozen = begin(program, state, frozen, run.start, run.config.adapter.start)
        return state, run.fisher.add(program, frozen), {"num_tokens": 0}
    _say(f"resuming at step {checkpoints.latest}")
    frozen = program.frozen_only(base) if program.asks_base else program.frozen
    if run.start is not None:
        frozen = begin_frozen(program, frozen, run.start, run.config.adapter.start)
    del base
    frozen = run.fisher.add(program, frozen)
    state, counters = checkpoints.restore(checkpoints.latest, program.state)
    return state, frozen, counters


class Loop:
    """The loop over steps. Metrics are read one step late, so that the device never waits for the host."""

    def __init__(
        self,
        run: Run,
        checkpoints: Checkpoints,
        metrics: Metrics,
        frozen: Frozen,
        counters: dict[str, Any],
        snapshots: frozenset[int],
    ):
        self._run, self._checkpoints, self._metrics, self._frozen = run, checkpoints, metrics, frozen
        self._snapshots = snapshots  # steps that are saved whatever else is
        self._counters = counters
        self._maintain = _jit_maintenance(run.program)
        self._nll = make_nll(run.program.decoder, run.config.objective.chunk_size)
        self._pending: tuple[int, dict[str, jax.Array], bool] | None = None  # step, metrics, whether they are written
        self._evaluated, self._eval_loss = -1, math.nan  # the step last evaluated, and its loss

    def run(self, state: TrainState) -> TrainState:
        """From the state's step to the last; returns the last state, which is saved."""
        run, mesh = self._run, self._run.program.mesh
        start = int(state.step)
        with _Preemption() as preemption, jax.set_mesh(mesh), _bar(run.steps, start) as bar:
            if start == 0:
                self._evaluate(0, state)
            batches = run.loader.iterate(start, run.steps)
            self._clock = time.monotonic()
            for step in range(start + 1, run.steps + 1):
                batch = to_devices(next(batches), mesh)
                state, metrics = run.compiled[run.program.method.stage(step)](state, self._frozen, batch)
                written = step % run.config.log.every == 0 or step == run.steps
                if self._maintain and self._maintain.due(step):
                    state, figures = self._maintain.apply(state, self._frozen.method)
                    metrics, written = metrics | figures, written or bool(figures)
                self._read(bar)
                self._pending = (step, metrics, written)
                every = run.config.eval.every
                if step == run.steps or (every and step % every == 0):
                    self._read(bar)
                    self._evaluate(step, state)
                every, stop = run.config.checkpoint.every, preemption.reached(step)
                best = run.config.checkpoint.keep_best and self._evaluated == step
                due = step in self._snapshots or (every and step % every == 0)
                if step == run.steps or stop or best or due:
                    self._read(bar)
                    self._save(step, state)
                if stop and step < run.steps:
                    self._checkpoints.wait()
                    _say(f"stopped by SIGTERM after step {step}, which is saved; the same command resumes it")
                    sys.exit(PREEMPTED)
            self._checkpoints.wait()
        return state

    def _read(self, bar: tqdm) -> None:
        """Takes in the metrics of the step before: the check for NaN, the line, the bar."""
        if self._pending is None:
            return
        (step, metrics, written), self._pending = self._pending, None
        values = {name: float(value) for name, value in jax.device_get(metrics).items()}
        bad = [name for name, value in values.items() if not math.isfinite(value)]
        if bad:
            self._metrics.sync()
            kept = self._checkpoints.latest
            raise UserError(
                f"{bad[0]} is {values[bad[0]]} at step {step}; the run is stopped, "
                + (f"and checkpoint {kept} is kept" if kept is not None else "and there is no checkpoint yet")
                + ". Lower config.optimizer.learning_rate, or look at the data with scripts/inspect_data.py."
            )
        now = time.monotonic()
        seconds, self._clock = now - self._clock, now
        self._counters["num_tokens"] += int(values.pop("tokens"))
        values["num_tokens"] = self._counters["num_tokens"]
        if written:
            self._metrics.write(step, "train", values | self._timing(step, seconds))
        bar.update(step - bar.n)
        bar.set_postfix_str(f"loss {values['loss']:.4f}")

    def _timing(self, step: int, seconds: float) -> dict[str, float]:
        """Wall-clock figures of a step, which differ from run to run."""
        run = self._run
        counts = run.loader.counts(step - 1)
        devices = run.program.mesh.devices
        times = {f"time/{kind}_tokens_per_second": count / seconds for kind, count in counts.items()}
        times["time/step_seconds"] = seconds
        if peak := peak_flops(devices.flat[0]):
            times["time/mfu"] = counts["real"] * run.flops_per_token / seconds / (peak * devices.size)
        if (memory := memory_gib()) is not None:
            times["time/peak_memory_gib"] = memory
        return times

    def _evaluate(self, step: int, state: TrainState) -> None:
        run = self._run
        if run.held_out is None and not run.tasks:
            return
        params = state.aux.get("ema", state.params)
        parts = self._frozen.parts(params, state.aux["method"])
        model, adapters = run.program.method.compose(parts, {})
        if run.held_out is not None:
            self._evaluate_held_out(step, run.held_out, model, adapters)
        results = {task.name: task.measure(model, adapters) for task in run.tasks}
        for name, result in results.items():
            self._metrics.write(step, name, result.numbers)
        if results and step == run.steps:  # the lines hold no tables
            run.folder.write_json("tasks.json", {"tasks": {name: r.figures for name, r in results.items()}})
        self._clock = time.monotonic()

    def _evaluate_held_out(self, step: int, held_out: Loader, model: Any, adapters: Any) -> None:
        result = evaluate(self._nll, model, adapters, held_out.evaluation_batches(), self._run.program.mesh)
        loss = result.pop("nll_per_token")
        if not math.isfinite(loss):
            raise UserError(f"the evaluation loss is {loss} at step {step}; see scripts/inspect_data.py for the data.")
        self._evaluated, self._eval_loss = step, loss
        self._metrics.write(step, "eval", {"loss": loss, **result})

    def _save(self, step: int, state: TrainState) -> None:
        self._metrics.sync()
        loss = self._eval_loss if self._evaluated == step else None
        self._checkpoints.save(step, state, dict(self._counters), loss)


class _Preemption:
    """SIGTERM asks for a save at the next step; with several processes, all agree on which step that is."""

    def __init__(self):
        self._asked = False

    def __enter__(self) -> "_Preemption":
        if jax.process_count() == 1:
            self._before = signal.signal(signal.SIGTERM, self._ask)
        return self

    def __exit__(self, *_: Any) -> None:
        if jax.process_count() == 1:
            signal.signal(signal.SIGTERM, self._before)

    def _ask(self, *_: Any) -> None:
        self._asked = True

    def reached(self, step: int) -> bool:
        if jax.process_count() == 1:
            return self._asked
        from jax.experimental import multihost_utils

        return multihost_utils.reached_preemption_sync_point(step)


def _jit_maintenance(program: Program) -> Maintenance | None:
    maintenance = program.method.maintenance()
    if maintenance is None:
        return None
    shardings = jax.tree.map(lambda s: s.sharding, program.state)
    out = (shardings, replicated(program.mesh))
    return Maintenance(maintenance.due, jax.jit(maintenance.apply, out_shardings=out, donate_argnums=0))


def _eval_rows(config: TrainConfig, shards: int) -> int:
    """Rows of an evaluation batch, rounded up to a multiple of the data-parallel devices."""
    return -(-config.eval.batch_size // shards) * shards


def _bar(steps: int, start: int) -> tqdm:
    return tqdm(total=steps, initial=start, desc="train", unit="step", disable=jax.process_index() != 0, smoothing=0.1)


def _headline(folder: Workdir, config: TrainConfig) -> str:
    summary = json.loads((folder.path / "summary.json").read_text())
    evaluated = f", held-out loss {summary['eval_loss']:.4f}" if "eval_loss" in summary else ""
    for task in config.eval.tasks:
        figure = registry.FIGURES[task.task]
        evaluated += f", {task.name} {figure} {summary[f'{task.name}_{figure}']:.4f}"
    return f"{summary['steps']} steps, training loss {summary['train_loss']:.4f}{evaluated}"


def _say(text: Any) -> None:
    if jax.process_index() == 0:
        print(text, flush=True)
