"""What is planned for absent devices is the program that a run has, whatever the loss reads of its batches."""

import dataclasses
import json
import runpy
from types import SimpleNamespace

import jax
import pytest

from jaxsft.config import DataConfig, MixtureConfig, ReferenceConfig, TrainConfig
from jaxsft.data.dataset import prepare
from jaxsft.data.loader import Loader
from jaxsft.data.tokenizer import load_tokenizer
from jaxsft.errors import UserError
from jaxsft.sharding import make_mesh
from jaxsft.training import plan
from jaxsft.training.plan import lay_out
from jaxsft.training.program import Program
from tests.conftest import REPOSITORY


def planned(config: TrainConfig, model_folder):
    """The batch that is planned for, and the metrics of a step, traced but not compiled."""
    config.model.path, config.batch_size, config.steps = str(model_folder), 8, 4
    mesh = make_mesh(config.mesh)
    program = lay_out(config, mesh)
    with jax.set_mesh(mesh):
        _, metrics = jax.eval_shape(program.step, program.state, program.frozen, program.batch)
    return program.batch, metrics


def of_file(name: str) -> TrainConfig:
    config = runpy.run_path(str(REPOSITORY / "configs" / f"{name}.py"))["get_config"]()
    config.data.max_length = 64
    return config


@pytest.mark.parametrize(
    ("name", "metric"),
    [("dpo", "rewards/margins"), ("sftmix", "mixture"), ("minor_sft", "sample_weight"), ("moi", None)],
)
def test_what_the_loss_reads_is_planned(model_folder, name, metric):
    config = of_file(name)
    _, metrics = planned(config, model_folder)
    for domain in config.data.mixture.domains:
        assert f"nll/{domain}" in metrics
    assert metric is None or metric in metrics


@pytest.mark.parametrize("packing", [True, False])
@pytest.mark.parametrize("grouping", ["example", "preference", "domain"])
def test_the_planned_batch_is_the_loaders(model_folder, tmp_path, grouping, packing):
    """But for the tags of the data, which no loss reads."""
    records = [
        {"prompt": "the", "chosen": "fox", "rejected": "dogs", "task_type": kind} for kind in ("a", "b", "c") * 4
    ]
    if grouping != "preference":
        records = [{"prompt": r["prompt"], "completion": "fox", "task_type": r["task_type"]} for r in records]
    path = tmp_path / "rows.jsonl"
    path.write_text("".join(json.dumps(record) + "\n" for record in records))
    config = TrainConfig()
    config.data = DataConfig(str(path), template="plain", max_length=128, grouping=grouping, packing=packing)
    config.data.max_examples_per_row, config.data.cache_dir = 7, str(tmp_path / "cache")
    if grouping == "preference":
        config.objective.name, config.objective.beta = "dpo", 0.1
        config.objective.reference_free = True
    if grouping == "domain":
        config.data.mixture = MixtureConfig(domains=("a", "b", "c"))
    batch, _ = planned(config, model_folder)
    dataset = prepare(config.data, load_tokenizer(model_folder))
    shapes = Loader(dataset, config.data, 8).shapes()
    tags = {"source", "task_type"}
    shapes = dataclasses.replace(shapes, extras={k: v for k, v in shapes.extras.items() if k not in tags})
    assert jax.tree.map(lambda x: (x.shape, x.dtype), batch) == jax.tree.map(lambda x: (x.shape, x.dtype), shapes)


def test_every_reference_has_its_number(model_folder):
    config = of_file("dpo")
    config.objective.name, config.reference = "mrpo", ReferenceConfig(("start", "elsewhere"))
    batch, metrics = planned(config, model_folder)
    assert {"reference_0", "reference_1", "member"} <= batch.extras.keys() and "reference_2" not in batch.extras
    assert "deviation" in metrics


def test_what_a_run_refuses_is_not_planned(model_folder):
    config = of_file("dpo")
    config.data.grouping = "example"
    with pytest.raises(UserError, match=r"'dpo' needs config\.data\.grouping = 'preference'"):
        planned(config, model_folder)


def test_of_several_kinds_of_steps_the_largest_counts(model_folder, monkeypatch):
    """SpIEL's search holds a dense gradient, which the first step of a run does not."""
    config = of_file("spiel")
    config.model.path, config.batch_size, config.accumulate, config.steps = str(model_folder), 16, 2, 40
    memory = lambda size: SimpleNamespace(
        argument_size_in_bytes=size, temp_size_in_bytes=0, output_size_in_bytes=0, alias_size_in_bytes=0
    )
    sizes = {"": 1, "gather": 2, "search": 3}
    step = lambda stage: SimpleNamespace(
        memory_analysis=lambda: memory(sizes[stage]), as_text=lambda: "", cost_analysis=lambda: {"flops": sizes[stage]}
    )
    monkeypatch.setattr(plan, "describe", lambda *_: jax.devices())
    monkeypatch.setattr(Program, "compile", lambda _, stage="": step(stage))
    assert plan.plan(config, "v5e:2x4")["peak"] == 3
    config.accumulate = 1
    assert plan.plan(config, "v5e:2x4")["peak"] == 2
