"""What comes before the first step: data, program and record; all that can be refused is refused here."""

import dataclasses
import time
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from etils import epath

from jaxsft.adapters.folder import Saved, is_adapter
from jaxsft.config import DataConfig, MixtureConfig, TrainConfig, TypesConfig
from jaxsft.data.classes import for_held_out, inference_condition
from jaxsft.data.dataset import prepare
from jaxsft.data.loader import Loader
from jaxsft.data.tokenizer import Tokenizer, load_tokenizer
from jaxsft.errors import UserError
from jaxsft.evaluation import registry
from jaxsft.evaluation.task import Subject, Task
from jaxsft.models.checkpoint import fingerprint, resolve
from jaxsft.objectives.registry import make_objective
from jaxsft.sharding import data_shards, make_mesh, process_share, replicated
from jaxsft.training.distributed import say
from jaxsft.training.fisher import Fisher
from jaxsft.training.members import Member, make_members
from jaxsft.training.program import Program, architecture, build, check_grouping, check_rows, parameter_count
from jaxsft.training.references import References
from jaxsft.training.restore import check_start_base, open_start
from jaxsft.training.state import TrainState
from jaxsft.training.throughput import flops_per_token
from jaxsft.training.workdir import Workdir
from jaxsft.validation import to_dict


@dataclasses.dataclass
class Run:
    """What set-up leaves for the loop; `compiled` has the steps by their kind (`Method.stage`)."""

    config: TrainConfig
    program: Program
    compiled: dict[str, Callable[..., Any]]
    members: list[Member]
    references: References
    fisher: Fisher
    held_out: Loader | None
    tasks: list[Task]
    base_path: epath.Path
    flops_per_token: float
    start: Saved | None

    @property
    def steps(self) -> int:
        """Of the whole run: those of its longest model."""
        return max(member.steps for member in self.members)

    def step_of(self, state: TrainState) -> int:
        """How many steps of the run are done; all processes ask together, for sub-models may be split over them."""
        return int(jax.jit(jnp.max, out_shardings=replicated(self.program.mesh))(state.step))


def set_up(config: TrainConfig, folder: Workdir) -> Run:
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
    rows = process_share(mesh, jax.process_index())
    members = make_members(config, folder, tokenizer, rows)
    say(members[0].dataset.report)  # sub-models have one data set, of which each takes its part
    for member in members:
        member.dataset.check_vocabulary(arch.vocab_size)
        references.reserve(member.dataset)
    held_out, fingerprints = None, {"model": fingerprint(path)}
    start, own = open_start(config, arch, mesh)
    fingerprints |= own
    if start is not None and (notice := check_start_base(config)):
        say(f"note: {notice}")
    fingerprints |= references.fingerprints() | fisher.fingerprints()
    if config.eval.path:
        data = held_out_data(config)
        held_out_set = prepare(data, tokenizer, config.seed)
        say(held_out_set.report)
        held_out_set.check_vocabulary(arch.vocab_size)
        fingerprints["eval_data"] = held_out_set.fingerprint
        held_out = Loader(held_out_set, data, _eval_rows(config, data_shards(mesh)), config.seed, *rows)
    lengths, shapes = [member.steps for member in members], members[0].loader.shapes()
    program = build(config, arch, mesh, lengths if config.submodels else lengths[0], shapes)
    for notice in program.method.notices(shapes):
        say(f"note: {notice}")
    tasks = _prepare_tasks(config, program, tokenizer, path, references)
    fingerprints |= {f"{task.name}_data": task.fingerprint for task in tasks}
    # now that nothing is left to refuse
    data = {
        f"data_{member.index}" if member.index is not None else "data": member.dataset.fingerprint for member in members
    }
    folder.record(type(config).__name__, to_dict(config), data | fingerprints)
    for member in members:
        if member.index is not None:
            own = {"data": member.dataset.fingerprint} | fingerprints
            member.folder.record(type(config).__name__, to_dict(member.config), own)
    trained, frozen = parameter_count(program.state.params), parameter_count(program.frozen.method)
    layers = f"{arch.num_layers} layers"
    if arch.n_post_layers:
        layers += f" ({arch.n_post_layers} Post-LN, then {arch.num_layers - arch.n_post_layers} Pre-LN)"
    say(
        f"model: {path.name}, {layers}, {trained:,} trained and {frozen:,} frozen parameters; "
        f"mesh: {dict(zip(mesh.axis_names, mesh.axis_sizes))}; "
        + "; ".join(
            f"{m.name}{m.steps} step{'s' if m.steps > 1 else ''} of {config.batch_size} rows, of which an epoch has "
            f"{m.loader.rows()}"
            for m in members
        )
    )
    began = time.monotonic()
    stages = dict.fromkeys(program.method.stage(step) for step in range(1, max(lengths) + 1))
    compiled = {stage: program.compile(stage) for stage in stages}
    memories = [memory for step in compiled.values() if (memory := step.memory_analysis()) is not None]
    if memories:
        needed = max(
            m.argument_size_in_bytes + m.temp_size_in_bytes + m.output_size_in_bytes - m.alias_size_in_bytes
            for m in memories
        )
        say(f"step compiled in {time.monotonic() - began:.1f} s; it needs {needed / 2**30:.3f} GiB a device")
    share = trained / (trained + frozen) if frozen else 1.0
    flops = flops_per_token(arch, members[0].loader.mean_unit_length, share if program.method.trains_base else 0.0)
    return Run(config, program, compiled, members, references, fisher, held_out, tasks, path, flops, start)


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
        say(f"{task.name}: {prepared.report}")
    return tasks


def _eval_rows(config: TrainConfig, shards: int) -> int:
    """Rows of an evaluation batch, rounded up to a multiple of the data-parallel devices."""
    return -(-config.eval.batch_size // shards) * shards
