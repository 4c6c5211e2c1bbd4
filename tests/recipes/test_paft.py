"""PAFT end to end: a sparse adapter beside one by DPO, of one base, and what is merged of them is TIES by hand."""

import json
import runpy

import numpy as np
import pytest

from jaxsft.config import MeshConfig, ModelConfig
from jaxsft.errors import UserError
from jaxsft.models.tensorfiles import TensorFile
from jaxsft.recipes.run import run
from jaxsft.sharding import make_mesh
from jaxsft.training.export import export_hf
from jaxsft.training.restore import open_model
from tests.conftest import REPOSITORY
from tests.training.conftest import WORDS, data_file, lines, model_folder

__all__ = ["data_file", "model_folder"]  # fixtures


@pytest.fixture
def recipe(model_folder, data_file, tmp_path):
    """The shipped recipe at the size of a test."""
    rng = np.random.default_rng(0)
    say = lambda: " ".join(rng.choice(WORDS, rng.integers(2, 7)))
    records = [{"prompt": say(), "chosen": say(), "rejected": say()} for _ in range(16)]
    (tmp_path / "pairs.jsonl").write_text("".join(json.dumps(record) + "\n" for record in records))
    get_config = runpy.run_path(str(REPOSITORY / "configs" / "recipes" / "paft.py"))["get_config"]
    recipe = get_config(f"{tmp_path}/pairs.jsonl,{data_file},5e-3")
    train = recipe.train
    train.model.path, train.data.path, train.data.template = str(model_folder), str(data_file), "plain"
    train.data.max_length, train.data.cache_dir = 128, str(tmp_path / "cache")
    train.batch_size, train.steps, train.log.tensorboard, train.log.every = 8, 3, False, 1
    train.optimizer.learning_rate, train.optimizer.warmup_ratio = 1e-2, 0.0
    train.objective.regularizers.l1 = 0.1
    for stage in recipe.stages[3:]:
        stage.config.tasks[0].data.cache_dir = str(tmp_path / "cache")
    return recipe


def ties(base, models, density):
    """Of NumPy arrays, in float64: each trimmed, the signs elected, the mean of those that agree."""
    taus = np.stack([model.astype(np.float64) - base for model in models]).reshape(len(models), -1)
    for tau in taus:
        tau[np.argsort(np.abs(tau))[: tau.size - int(density * tau.size)]] = 0
    agree = np.sign(taus) == np.where(taus.sum(0) >= 0, 1, -1)
    return base + (np.where(agree, taus, 0).sum(0) / np.maximum(agree.sum(0), 1)).reshape(base.shape)


def test_both_runs_start_from_the_base_and_are_merged(recipe, model_folder, tmp_path):
    work = tmp_path / "work"
    recipe.stages[2].config.dtype = "float32"
    line = run(recipe, str(work))
    assert "6 stages; figures_merged: likelihood: nll_per_token" in line

    configs = {name: json.loads((work / name / "config.json").read_text())["config"] for name in ("sft", "dpo")}
    assert all(config["model"]["path"] == str(model_folder) for config in configs.values())
    assert [config["objective"]["name"] for config in configs.values()] == ["sft", "dpo"]
    assert [config["optimizer"]["learning_rate"] for config in configs.values()] == [1e-2, 5e-3]
    assert [config["objective"]["regularizers"]["l1"] for config in configs.values()] == [0.1, 0.0]
    steps = {name: [step for step in lines(work / name) if "loss" in step] for name in configs}
    assert "l1_sparsity" not in steps["dpo"][-1] and "rewards/margins" in steps["dpo"][-1]
    assert steps["dpo"][0]["rewards/margins"] == pytest.approx(0, abs=1e-5), "held to the base, where it starts"

    mesh, folders = make_mesh(MeshConfig()), [model_folder]
    for name in configs:
        opened = open_model(str(work / name), ModelConfig(dtype="float32", param_dtype="float32"), mesh)
        export_hf(opened, tmp_path / name, mesh, "float32")
        folders.append(tmp_path / name)
    base, *tuned = [TensorFile(folder / "model.safetensors") for folder in folders]
    merged = TensorFile(work / "merged" / "model.safetensors")
    for name in merged.entries:
        want = ties(base.read(name), [file.read(name) for file in tuned], 0.7)
        apart = np.abs(merged.read(name) - want) > 1e-6
        assert apart.sum() <= apart.size // 1000, f"{name}: {apart.sum()} of {apart.size}"  # equal ones at the cut
    up = "model.layers.0.mlp.up_proj.weight"
    assert all(np.abs(file.read(up) - base.read(up)).max() > 1e-4 for file in (*tuned, merged))
    figures = [json.loads((work / f"figures_{n}" / "evaluation.json").read_text()) for n in ("sft", "dpo", "merged")]
    assert len({figure["tasks"]["likelihood"]["nll_per_token"] for figure in figures}) == 3
    assert run(recipe, str(work)) == line, "nothing is left to do"


def test_the_penalty_makes_the_first_adapter_sparse(recipe, tmp_path):
    """Beside the same run without it, whose B is as large after three steps."""
    shares = []
    recipe.stages = recipe.stages[:1]
    for l1 in (1.0, 1e-3):
        recipe.train.objective.regularizers.l1 = l1
        run(recipe, str(tmp_path / str(l1)))
        shares.append([step["l1_sparsity"] for step in lines(tmp_path / str(l1) / "sft") if "loss" in step][-1])
    assert shares[0] > shares[1] + 0.2


@pytest.mark.parametrize("asked", ["pairs.json,heldout.jsonl", "pairs.json,heldout.jsonl,fast", "a,b,1e-6,d"])
def test_a_recipe_that_is_asked_for_otherwise_is_refused(asked):
    get_config = runpy.run_path(str(REPOSITORY / "configs" / "recipes" / "paft.py"))["get_config"]
    with pytest.raises(UserError, match="write PAIRS,HELDOUT,LEARNING_RATE"):
        get_config(asked)
