"""OpenBezoar from the shipped recipe: sets that are written and judged, and every run over what the one before left.

A teacher small enough for a test writes no lists and no judgements, so its answers are given here.
"""

import json
import runpy

import numpy as np
import pytest

from jaxsft.config import ModelConfig
from jaxsft.errors import UserError
from jaxsft.models.tensorfiles import TensorFile
from jaxsft.recipes.run import run
from jaxsft.sharding import make_mesh
from jaxsft.synthesis.method import Answer
from jaxsft.synthesis.run import Teacher
from jaxsft.training.export import export_hf
from jaxsft.training.restore import open_model
from tests.conftest import REPOSITORY
from tests.training.conftest import WORDS, data_file, lines, model_folder

__all__ = ["data_file", "model_folder"]  # fixtures
RECIPE = REPOSITORY / "configs" / "recipes" / "openbezoar.py"
SETS = ("lamini", "evol_instruct", "orca")


def say(name, prompt):
    """What a good teacher and judge would."""
    if name == "instructions":
        return f"1. over dogs {prompt.id}\n2. jumps seven {prompt.id}"
    if name == "judgements":
        return f"Status: accepted\nRating: {5 - prompt.id % 3}\nReason: fine"
    return "different" if name.startswith("compared") else f"quick fox {prompt.id}"


@pytest.fixture
def recipe(model_folder, data_file, tmp_path, monkeypatch):
    """At the size of a test, with rates at which fine-tuning changes nothing, so that DPO alone does."""
    rng = np.random.default_rng(0)
    words = lambda: " ".join(rng.choice(WORDS, rng.integers(2, 7)))
    pairs = [{"prompt": words(), "chosen": words(), "rejected": words()} for _ in range(16)]
    (tmp_path / "pairs.jsonl").write_text("".join(json.dumps(pair) + "\n" for pair in pairs))
    asked = f"{model_folder},{model_folder},{data_file},{data_file},{tmp_path}/pairs.jsonl"
    recipe = runpy.run_path(str(RECIPE))["get_config"](asked)
    train = recipe.train
    train.model.path, train.model.remat, train.model.double_quantization = str(model_folder), "none", False
    train.data.max_length, train.data.cache_dir = 512, str(tmp_path / "cache")
    train.data.max_examples_per_row, train.batch_size, train.steps = 4, 8, 1
    train.log.tensorboard, train.optimizer.warmup_ratio = False, 0.0
    train.optimizer.learning_rate = 1e-30
    for stage in recipe.stages:
        if stage.kind == "synthesize":
            stage.config.data.template, stage.config.data.rows = "plain", "" if stage.config.method == "judge" else ":8"
            stage.config.lamini.lists, stage.config.lamini.wanted, stage.config.evol_instruct.rounds = 8, 2, 2
    recipe.stages[-1].config.dtype = "float32"
    left_out = [f"{kind}_{name}" for kind in ("sft", "after") for name in SETS[1:]]  # to save time
    recipe.stages = [stage for stage in recipe.stages if stage.name not in left_out]
    next(stage for stage in recipe.stages if stage.name == "sft_chosen").changes["model.path"] = "{after_lamini}"
    return recipe


@pytest.fixture
def spoken(monkeypatch):
    """Passes that were asked, in order."""
    asked = []

    def ask(self, name, prompts):
        asked.append(name)
        return [Answer(say(name, prompt), "token") for prompt in prompts]

    monkeypatch.setattr(Teacher, "ask", ask)
    return asked


def weights(folder):
    file = TensorFile(folder / "model.safetensors")
    return {name: np.asarray(file.read(name)) for name in file.entries}


def test_every_run_starts_from_what_the_one_before_left(recipe, spoken, model_folder, tmp_path):
    work = tmp_path / "work"
    line = run(recipe, str(work))
    report = lambda name: json.loads((work / name / "synthesis.json").read_text())
    assert [report(name)["kept"] for name in SETS] == [16, 16, 8]
    for name in SETS:
        judged = report(f"{name}_kept")
        assert judged["kept"] + judged["dropped"]["rated below 4"] == report(name)["kept"]
    assert spoken == [
        *("instructions", "answers", "judgements"),
        *("evolved_1", "compared_1", "answers_1", "evolved_2", "compared_2", "answers_2", "judgements"),
        *("answers", "judgements"),
    ]
    bases = {"sft_lamini": model_folder, "sft_chosen": work / "after_lamini", "dpo": work / "after_chosen"}
    for name, base in bases.items():
        trained = json.loads((work / name / "config.json").read_text())["config"]
        assert (trained["model"]["path"], trained["model"]["quantization"]) == (str(base), "nf4")
        assert trained["data"]["template"] == "openbezoar"
    begun = next(step for step in lines(work / "dpo") if "loss" in step)
    assert begun["loss"] == pytest.approx(0.6931472, abs=1e-5), "held to the merged model that it starts from"
    assert lines(work / "sft_chosen")[0]["loss"] != begun["loss"]

    # Runs that change nothing are the identity: the quantised base, through two merges. (Scales in 8 bits are rounded
    # anew each time, so without these.)
    mesh = make_mesh(recipe.train.mesh)
    exact = ModelConfig(dtype="float32", param_dtype="float32", quantization="nf4", double_quantization=False)
    export_hf(open_model(str(model_folder), exact, mesh), tmp_path / "rounded", mesh, "float32")
    want, original = weights(tmp_path / "rounded"), weights(model_folder)
    for name in ("lamini", "chosen"):
        got = weights(work / f"after_{name}")
        assert max(np.abs(got[key] - want[key]).max() for key in want) < 1e-28, name  # the steps, where it is 0
    assert any(not np.array_equal(original[key], want[key]) for key in want)
    tuned = weights(work / "model")
    changed = {key.split(".")[-2] for key in want if np.abs(tuned[key] - want[key]).max() > 1e-7}
    assert changed == {"q_proj", "k_proj", "v_proj"}, "what DPO's adapter is on"
    assert run(recipe, str(work)) == line, "nothing is left to do"

    (work / "after_lamini" / "stage.json").unlink()  # as if killed just before it was written
    assert run(recipe, str(work)) == line
    (work / "after_lamini" / "stage.json").unlink()
    (work / "after_lamini" / "export.json").unlink()  # and before the export was whole
    assert run(recipe, str(work)) == line
    export = json.loads((work / "after_lamini" / "export.json").read_text())
    assert export["config"]["merge_base"] == "dequantised" and "quantising the result again" in export["result"]


def test_merged_into_the_weights_before_quantising(recipe, spoken, model_folder, tmp_path):
    """A run that changes nothing gives back the base itself."""
    wanted = ("lamini", "lamini_kept", "sft_lamini", "after_lamini")
    recipe.stages = [stage for stage in recipe.stages if stage.name in wanted]
    recipe.stages[-1].config.merge_base = "full_precision"
    run(recipe, str(tmp_path / "work"))
    got, want = weights(tmp_path / "work" / "after_lamini"), weights(model_folder)
    assert all(np.array_equal(got[key], want[key]) for key in want)


def test_a_judge_that_lets_nothing_through_stops_it_with_a_sentence(recipe, spoken, tmp_path):
    recipe.stages[1].config.judge.scale, recipe.stages[1].config.judge.threshold = 10, 9.0
    said = r"judge leaves no record of 16: 0 kept, 16 dropped \(rated below 9 16\), rating 4"
    with pytest.raises(UserError, match=said):
        run(recipe, str(tmp_path / "work"))
    assert (tmp_path / "work" / "lamini" / "stage.json").exists()
    assert not (tmp_path / "work" / "sft_lamini").exists()


@pytest.mark.parametrize("asked", ["", "a,b,c,d", "a,b,c,d,e,f", "a,,c,d,e"])
def test_a_recipe_that_is_asked_for_otherwise_is_refused(asked):
    with pytest.raises(UserError, match="write TEACHER,JUDGE,SEEDS,TASKS,PAIRS"):
        runpy.run_path(str(RECIPE))["get_config"](asked)


def test_the_settings_of_the_cards():
    """What is known of them: section 4d of the specification."""
    recipe = runpy.run_path(str(RECIPE))["get_config"]("t,j,s,f,p")
    lora = recipe.train.adapter.lora
    assert (lora.rank, lora.alpha, lora.dropout) == (16, 16.0, 0.05)
    assert lora.targets == ("layers.*.attn.q_proj", "layers.*.attn.k_proj", "layers.*.attn.v_proj")
    assert recipe.train.model.quantization == "nf4" and recipe.train.model.double_quantization
    dpo = next(stage for stage in recipe.stages if stage.name == "dpo")
    assert (dpo.changes["data.rows"], dpo.changes["objective.beta"]) == (":100000", 0.1)
    runs = [stage for stage in recipe.stages if stage.kind == "train"]
    assert [stage.name for stage in runs] == [*(f"sft_{name}" for name in SETS), "sft_chosen", "dpo"]
    starts = [stage.changes.get("model.path", "") for stage in runs]
    assert starts == ["", *(f"{{after_{name}}}" for name in (*SETS, "chosen"))]
    merged = {stage.name: stage.config.model for stage in recipe.stages if stage.kind == "export"}
    assert merged == {f"after_{name}": f"{{sft_{name}}}" for name in (*SETS, "chosen")} | {"model": "{dpo}"}
