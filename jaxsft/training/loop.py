"""The loop over steps: metrics, evaluation, checkpoints, maintenance, preemption.

Order of events at step s, which makes a resumed run's metrics those of an undisturbed one: the step, its evaluation,
its lines on disk, its checkpoint. A checkpoint is therefore never ahead of the metrics, and on resume the metrics are
cut back to the checkpoint.
"""

import math
import signal
import sys
import time
from collections.abc import Iterator
from typing import Any

import jax
import numpy as np
from tqdm import tqdm

from jaxsft.adapters.method import Maintenance
from jaxsft.data.batch import Batch
from jaxsft.data.loader import Loader
from jaxsft.errors import UserError
from jaxsft.evaluation.likelihood.perplexity import evaluate, make_nll
from jaxsft.evaluation.scoring import to_devices
from jaxsft.sharding import SUBMODEL, replicated
from jaxsft.training import submodels
from jaxsft.training.checkpoint import Checkpoints
from jaxsft.training.distributed import say
from jaxsft.training.members import Member, batches
from jaxsft.training.program import Program
from jaxsft.training.reduction import reduction_ratio
from jaxsft.training.setup import Run
from jaxsft.training.state import Frozen, TrainState
from jaxsft.training.throughput import memory_gib, peak_flops
from jaxsft.training.workdir import Metrics

PREEMPTED = 143  # exit status after SIGTERM: 128 + 15


class Loop:
    """The loop over steps. Metrics are read one step late, so that the device never waits for the host."""

    def __init__(
        self,
        run: Run,
        checkpoints: Checkpoints,
        metrics: Metrics,
        frozen: Frozen,
        snapshots: frozenset[int],
    ):
        self._run, self._checkpoints, self._metrics, self._frozen = run, checkpoints, metrics, frozen
        self._snapshots = snapshots  # steps that are saved whatever else is
        self._maintain = jit_maintenance(run.program)
        self._nll = make_nll(run.program.decoder, run.config.objective.chunk_size)
        self._pending: tuple[int, dict[str, jax.Array], bool] | None = None  # step, metrics, whether they are written
        self._evaluated, self._eval_loss = -1, math.nan  # the step last evaluated, and its loss

    def run(self, state: TrainState) -> TrainState:
        """From the state's step to the last; returns the last state, which is saved."""
        run, mesh = self._run, self._run.program.mesh
        start = run.step_of(state)
        with _Preemption() as preemption, jax.set_mesh(mesh), _bar(run.steps, start) as bar:
            if start == 0:
                self._evaluate(0, state)
            stream = self._batches(start)
            self._clock = time.monotonic()
            for step in range(start + 1, run.steps + 1):
                batch = next(stream)
                state, metrics = run.compiled[run.program.method.stage(step)](state, self._frozen, batch)
                written = step % run.config.log.every == 0
                if self._maintain and self._maintain.due(step):
                    state, figures = self._maintain.apply(state, self._frozen.method)
                    metrics, written = metrics | figures, written or bool(figures)
                self._read(bar)
                self._pending = (step, metrics, written)
                every = run.config.eval.every
                ends = any(step == member.steps for member in run.members)
                if ends or (every and step % every == 0):
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
                    say(f"stopped by SIGTERM after step {step}, which is saved; the same command resumes it")
                    sys.exit(PREEMPTED)
            self._checkpoints.wait()
        return state

    def _batches(self, start: int) -> Iterator[Batch]:
        """The batches on the devices, from step `start` on, counted from 0."""
        run, mesh = self._run, self._run.program.mesh
        if run.program.lengths:
            return (submodels.on_devices(batch, mesh) for batch in batches(run.members, start))
        return (to_devices(batch, mesh) for batch in run.members[0].loader.iterate(start, run.steps))

    def _read(self, bar: tqdm) -> None:
        """Takes in the metrics of the step before: the check for NaN, the lines, the bar."""
        if self._pending is None:
            return
        (step, metrics, written), self._pending = self._pending, None
        found, losses = jax.device_get(metrics), []
        now = time.monotonic()
        seconds, self._clock = now - self._clock, now
        running = [member for member in self._run.members if step <= member.steps]
        for member in running:
            values = {name: float(value) for name, value in member.of(found).items()}
            self._check(step, member, values)
            member.counters["num_tokens"] += int(values.pop("tokens"))
            values["num_tokens"] = member.counters["num_tokens"]
            losses.append(values["loss"])
            if written or step == member.steps:
                times = self._timing(step, seconds, running) if member.index is None else {}
                member.metrics.write(step, "train", values | times)
        if self._run.program.lengths and (written or step == self._run.steps):
            mean = {"loss": float(np.mean(losses)), "running": float(len(running))}
            self._metrics.write(step, "train", mean | self._timing(step, seconds, running))
        bar.update(step - bar.n)
        bar.set_postfix_str(f"loss {np.mean(losses):.4f}")

    def _check(self, step: int, member: Member, values: dict[str, float]) -> None:
        """Stops the run where a number is none."""
        bad = [name for name, value in values.items() if not math.isfinite(value)]
        if not bad:
            return
        self._sync()
        kept = self._checkpoints.latest
        raise UserError(
            f"{member.name}{bad[0]} is {values[bad[0]]} at step {step}; the run is stopped, "
            + (f"and checkpoint {kept} is kept" if kept is not None else "and there is no checkpoint yet")
            + ". Lower config.optimizer.learning_rate, or look at the data with scripts/inspect_data.py."
        )

    def _timing(self, step: int, seconds: float, running: list[Member]) -> dict[str, float]:
        """Wall-clock figures of a step, which differ from run to run."""
        run = self._run
        each = [member.loader.counts(step - 1) for member in running]
        counts = {kind: sum(count[kind] for count in each) for kind in each[0]}
        devices = run.program.mesh.devices
        times = {f"time/{kind}_tokens_per_second": count / seconds for kind, count in counts.items()}
        times["time/step_seconds"] = seconds
        if peak := peak_flops(devices.flat[0]):
            times["time/mfu"] = counts["real"] * run.flops_per_token / seconds / (peak * devices.size)
        if (memory := memory_gib()) is not None:
            times["time/peak_memory_gib"] = memory
        return times

    def _evaluate(self, step: int, state: TrainState) -> None:
        """Measures the models that are still trained, and one for the last time at its last step."""
        run, every = self._run, self._run.config.eval.every
        if run.held_out is None and not run.tasks:
            return
        due = step == 0 or (every and step % every == 0)
        for member in run.members:
            if step > member.steps or not (due or step == member.steps):
                continue
            params, aux = member.of((state.aux.get("ema", state.params), state.aux["method"]))
            model, adapters = run.program.method.compose(self._frozen.parts(params, aux), {})
            if run.held_out is not None:
                self._evaluate_held_out(step, member, run.held_out, model, adapters)
            results = {task.name: task.measure(model, adapters) for task in run.tasks}
            for name, result in results.items():
                member.metrics.write(step, name, result.numbers)
            if results and step == member.steps:  # the lines hold no tables
                tables = {"tasks": {name: result.figures for name, result in results.items()}}
                member.folder.write_json("tasks.json", tables)
        self._clock = time.monotonic()

    def _evaluate_held_out(self, step: int, member: Member, held_out: Loader, model: Any, adapters: Any) -> None:
        result = evaluate(self._nll, model, adapters, held_out.evaluation_batches(), self._run.program.mesh)
        loss = result.pop("nll_per_token")
        if not math.isfinite(loss):
            raise UserError(
                f"{member.name}the evaluation loss is {loss} at step {step}; see scripts/inspect_data.py for the data."
            )
        self._evaluated, self._eval_loss = step, loss
        before = member.metrics.nll
        ratio = reduction_ratio(before.get("train", ()), [*before.get("eval", ()), (step, loss)])
        told = {} if ratio is None else {"reduction_ratio": ratio}
        member.metrics.write(step, "eval", {"loss": loss, **result, **told})

    def _save(self, step: int, state: TrainState) -> None:
        self._sync()
        loss = self._eval_loss if self._evaluated == step else None
        counters = {"num_tokens": [member.counters["num_tokens"] for member in self._run.members]}
        self._checkpoints.save(step, state, counters, loss)

    def _sync(self) -> None:
        for metrics in (self._metrics, *(member.metrics for member in self._run.members)):
            metrics.sync()


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


def jit_maintenance(program: Program) -> Maintenance | None:
    """The method's maintenance, compiled for the program's state; None without any."""
    maintenance = program.method.maintenance()
    if maintenance is None:
        return None
    shardings = jax.tree.map(lambda s: s.sharding, program.state)
    out = (shardings, replicated(program.mesh))
    apply = maintenance.apply
    if program.lengths:  # of equal length, see `check_submodels`
        apply = jax.vmap(apply, in_axes=(0, None), spmd_axis_name=SUBMODEL)
    return Maintenance(maintenance.due, jax.jit(apply, out_shardings=out, donate_argnums=0))


def _bar(steps: int, start: int) -> tqdm:
    return tqdm(total=steps, initial=start, desc="train", unit="step", disable=jax.process_index() != 0, smoothing=0.1)
