"""From models to the report: the same prompts for all, the tasks that a base cannot have, a stage of a recipe."""

import json

import pytest

from jaxsft.config import DataConfig, ForgettingConfig, RecipeConfig, StageConfig, TaskConfig
from jaxsft.data.templates import CHATML, PLAIN, as_trained
from jaxsft.errors import UserError
from jaxsft.forgetting.measure import all_tasks, file_names
from jaxsft.forgetting.prompting import Prompting, common, prompting
from jaxsft.recipes.run import run
from jaxsft.world.recipe import data, task
from tests.evaluation.folders import make_folder


def way(template="auto", condition="auto", source: str | None = PLAIN, tokenizer="t"):
    return Prompting(template, condition, source, tokenizer)


def test_the_base_is_asked_as_its_models_were_trained(tmp_path):
    assert common(way(), {"a": way(), "b": way()}, tmp_path) == ("auto", "auto")
    assert common(way(source=None), {"a": way("plain")}, tmp_path) == ("plain", "auto")
    assert common(way(), {"a": way("openchat", "GOOD", "o")}, tmp_path) == ("openchat", "GOOD")
    assert common(way(), {"a": way(source=CHATML), "b": way("chatml", source=CHATML)}, tmp_path) == ("chatml", "auto")
    plain = {"a": way("none", source=None), "b": way(source=None)}
    assert common(way(), plain, tmp_path) == ("none", "auto"), "continued as text, as the models were"
    assert not list(tmp_path.iterdir())


def test_a_template_that_only_a_models_tokenizer_has_is_put_into_a_file(tmp_path):
    template, condition = common(way(source=None), {"a": way(source=CHATML)}, tmp_path)
    assert (tmp_path / "chat_template.jinja").read_text() == CHATML
    assert (template, condition) == (str(tmp_path / "chat_template.jinja"), "auto")
    as_named = as_trained(DataConfig(template="none"), template, condition)
    assert as_named.template == "none", "plain prompting beside chat stays what it is"
    assert as_trained(DataConfig(), "openchat", "GOOD").condition == "GOOD"


def test_models_that_share_no_prompt_are_refused(tmp_path):
    with pytest.raises(UserError, match="a and b were trained with different chat templates"):
        common(way(), {"a": way("chatml", source=CHATML), "b": way("plain")}, tmp_path)
    with pytest.raises(UserError, match="different chat templates or conditions"):
        common(way(), {"a": way("openchat", "GOOD"), "b": way("openchat", "POOR")}, tmp_path)


def test_how_a_folder_is_asked(tmp_path):
    make_folder(tmp_path / "model")
    found = prompting(str(tmp_path / "model"))
    assert (found.template, found.condition, found.source) == ("auto", "auto", None)
    assert prompting("world:chat").source == prompting("world:base").source != None  # noqa: E711


def test_names_that_differ_in_odd_characters_alone_have_files_of_their_own():
    assert file_names(["a b", "a-b", "a+b", "a-b-2", "A b"]) == ["a-b", "a-b-2", "a-b-3", "a-b-2-2", "A-b-4"]
    assert file_names(["runs/a", "world:chat"]) == ["runs-a", "world-chat"]


def test_samples_become_tasks():
    config = ForgettingConfig(
        tasks=[task("cloze", "generation", "world:cloze")], drift="a.jsonl", pretraining="b.jsonl"
    )
    kinds = {t.name: (t.task, t.data.path) for t in all_tasks(config)}
    assert kinds == {
        "cloze": ("generation", "world:cloze"),
        "drift": ("deviation", "a.jsonl"),
        "pretraining": ("perplexity", "b.jsonl"),
    }
    config.tasks[0].name = "drift"
    with pytest.raises(UserError, match="has a task named 'drift' already"):
        all_tasks(config)
    with pytest.raises(UserError, match="nothing to measure"):
        all_tasks(ForgettingConfig())


def test_a_stage_of_a_recipe_measures_base_and_model(tmp_path, capsys):
    """What the general stage taught and cost the world's base, on a few questions."""
    (tmp_path / "text.jsonl").write_text(json.dumps({"text": "saga modas was born in 1900 ."}) + "\n")
    config = ForgettingConfig(
        base="world:base",
        models=["world:chat"],
        tasks=[
            task("cloze", "generation", "world:cloze", "none", ":16"),
            task("chat", "generation", "world:questions", "auto", ":16"),
            TaskConfig("moved", "deviation", data("world:test", ":8")),
        ],
        pretraining=str(tmp_path / "text.jsonl"),
        draws=200,
    )
    recipe = RecipeConfig(stages=[StageConfig("told", "forgetting", config)])
    result = run(recipe, str(tmp_path / "work"))
    assert "world:chat" in result and "tasks" in result
    folder = tmp_path / "work" / "told"
    found = json.loads((folder / "report.json").read_text())
    rows = {row["task"]: row for row in found["tasks"]}
    assert rows["cloze"]["base"] == 1.0 and rows["chat"]["base"] == 0.0, "the base knows, and cannot be asked"
    assert rows["chat"]["won"] > 0 and rows["chat"]["lost"] == 0
    figures = {(f["task"], f["name"]): f for f in found["figures"]}
    assert figures["moved", "kl_per_token"]["tuned"] > 0 and figures["moved", "kl_per_token"]["base"] is None
    assert figures["pretraining", "nll_per_token"]["base"] < figures["pretraining", "nll_per_token"]["tuned"]
    moved = figures["moved", "kl_per_token"]
    assert moved["low"] < moved["tuned"] < moved["high"]
    of_text = figures["pretraining", "perplexity"]
    assert of_text["low"] is None and of_text["difference"] > 0, "one example says nothing of another"
    told = json.loads((folder / "evaluations" / "world-chat.json").read_text())
    assert rows["cloze"]["tuned"] == told["tasks"]["cloze"]["exact_match"]
    assert "done" in (run(recipe, str(tmp_path / "work")) and capsys.readouterr().out.split("told: forgetting")[-1])


def test_a_model_that_is_named_twice_is_refused(tmp_path):
    from jaxsft.forgetting.measure import measure

    with pytest.raises(UserError, match="world:chat is named twice"):
        measure(ForgettingConfig(base="world:chat", models=["world:chat"], drift="x"), tmp_path)
    with pytest.raises(UserError, match="--base=MODEL and --model=MODEL"):
        measure(ForgettingConfig(base="world:chat"), tmp_path)
