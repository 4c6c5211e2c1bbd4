"""Disperse-Then-Merge end to end: what is merged is the mean of runs, each on the part of the data that is its own."""

import copy
import json
import runpy

import numpy as np
import pytest

from jaxsft.config import DataConfig, DisperseConfig, MergeConfig, MeshConfig, ModelConfig, StageConfig
from jaxsft.errors import UserError
from jaxsft.merging.merge import merge
from jaxsft.models.tensorfiles import TensorFile
from jaxsft.recipes.plan import plan
from jaxsft.recipes.run import run
from jaxsft.scoring.table import read_scores
from jaxsft.sharding import make_mesh
from jaxsft.training.export import export_hf
from jaxsft.training.restore import open_model
from jaxsft.training.train import train
from tests.conftest import REPOSITORY
from tests.training.conftest import data_file, lines, model_folder
from tests.training.test_formats import table

__all__ = ["data_file", "model_folder"]  # fixtures
RECIPE = REPOSITORY / "configs" / "recipes" / "disperse_then_merge.py"


@pytest.fixture(params=["lora", "full"])
def recipe(model_folder, data_file, tmp_path, request):
    return made(f"{data_file},4,{request.param}", model_folder, data_file, tmp_path)


def made(asked, model_folder, data_file, tmp_path):
    """The shipped recipe at the size of a test."""
    recipe = runpy.run_path(str(RECIPE))["get_config"](asked)
    train = recipe.train
    train.model.path, train.data.path, train.data.template = str(model_folder), str(data_file), "plain"
    train.data.max_length, train.data.cache_dir = 128, str(tmp_path / "cache")
    train.batch_size, train.steps, train.log.tensorboard = 8, 2, False
    train.optimizer.learning_rate, train.optimizer.warmup_steps = 1e-2, 0
    train.eval.batch_size, train.eval.rows = 8, ":8"
    recipe.stages[-1].config.tasks[0].data.cache_dir = str(tmp_path / "cache")
    return recipe


def test_the_merged_model_is_the_mean_of_runs_on_disjoint_parts(recipe, tmp_path):
    work = tmp_path / "work"
    recipe.stages[-2].config.dtype = "float32"
    line = run(recipe, str(work))
    at_once = recipe.train.adapter.kind == "lora"
    assert f"{4 if at_once else 7} stages; figures: likelihood: nll_per_token" in line

    parts = read_scores(work / "parts" / "parts.parquet")[1]["part"]
    assert np.bincount(parts.astype(int)).tolist() == [15, 15, 15, 15]
    folders = [work / "models" / "submodels" / str(k) if at_once else work / f"model_{k}" for k in range(4)]
    records = [json.loads((folder / "config.json").read_text()) for folder in folders]
    assert [record["config"]["data"]["part"] for record in records] == [0, 1, 2, 3]
    assert len({record["fingerprints"]["data"] for record in records}) == 4
    assert len({lines(folder)[-1]["loss"] for folder in folders}) == 4
    assert all("eval_loss" in json.loads((folder / "summary.json").read_text()) for folder in folders)

    assert list(json.loads((work / "parts" / "dispersal.json").read_text())) == table("## Dispersals")
    manifest = json.loads((work / "merged" / "merge.json").read_text())
    assert set(manifest) == set(table("## Merged models")) - {"cut_off"}

    models = tuple(str(folder / "adapter" if at_once else folder) for folder in folders)
    if at_once:
        merge(MergeConfig("lora_factor", models), tmp_path / "factor")  # they have one seed, and so one A
        templates = [(folder / "chat_template.jinja").read_text() for folder in (tmp_path / "factor", work / "merged")]
        assert templates[0] == templates[1], "prompted as the models were trained"

    mesh = make_mesh(MeshConfig())
    for k, model in enumerate(models):
        opened = open_model(model, ModelConfig(dtype="float32", param_dtype="float32"), mesh)
        export_hf(opened, tmp_path / str(k), mesh, "float32")
    merged, *own = [
        TensorFile(f / "model.safetensors") for f in (work / "merged", *(tmp_path / str(k) for k in range(4)))
    ]
    for name in merged.entries:
        np.testing.assert_allclose(merged.read(name), np.mean([f.read(name) for f in own], axis=0), atol=1e-6)
    down = "model.layers.0.mlp.down_proj.weight"
    assert np.abs(own[0].read(down) - own[1].read(down)).max() > 1e-4, "the parts taught different things"
    assert run(recipe, str(work)) == line, "nothing is left to do"


def test_one_part_is_plain_fine_tuning(model_folder, data_file, tmp_path):
    """Bit for bit: the same steps, and a mean of one."""
    recipe = made(f"{data_file},1,full", model_folder, data_file, tmp_path)
    recipe.stages[-2].config.dtype = "float32"
    run(recipe, str(tmp_path / "work"))
    plain = copy.deepcopy(recipe.train)
    train(plain, str(tmp_path / "plain"))
    figures = lambda line: {name: value for name, value in line.items() if not name.startswith("time/")}
    dispersed, alone = (list(map(figures, lines(tmp_path / name))) for name in ("work/model_0", "plain"))
    assert dispersed == alone
    mesh = make_mesh(MeshConfig())
    opened = open_model(str(tmp_path / "plain"), ModelConfig(dtype="float32", param_dtype="float32"), mesh)
    export_hf(opened, tmp_path / "exported", mesh, "float32")
    merged, own = (TensorFile(tmp_path / name / "model.safetensors") for name in ("work/merged", "exported"))
    for name in own.entries:
        np.testing.assert_array_equal(merged.read(name), own.read(name))


@pytest.mark.parametrize("asked", ["heldout.jsonl,four", "heldout.jsonl,4,loro", "heldout.jsonl,4,lora,more"])
def test_a_recipe_that_is_asked_for_otherwise_is_refused(asked):
    with pytest.raises(UserError, match=r"write HELDOUT,PARTS,lora"):
        runpy.run_path(str(RECIPE))["get_config"](asked)


def test_a_dispersal_without_data_is_of_what_the_recipe_trains_on(recipe, tmp_path):
    first = plan(recipe, tmp_path)[0].config
    assert first.data == recipe.train.data and first.model.path == recipe.train.model.path
    other = DisperseConfig(ModelConfig("model"), DataConfig("other.jsonl"))
    recipe.stages[0] = StageConfig("parts", "disperse", other)
    assert plan(recipe, tmp_path)[0].config == other
