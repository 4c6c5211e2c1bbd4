"""Weights by search: known optima, what is written, and a search that was broken off."""

import dataclasses
import json
import math
import os
import pickle
import signal
import sys
import textwrap

import jax
import numpy as np
import pytest

from jaxsft.config import DataConfig, MergeConfig, ModelConfig, SearchConfig, SuiteConfig, TaskConfig
from jaxsft.errors import UserError
from jaxsft.evaluation.suite import evaluate
from jaxsft.merging import search as searching
from jaxsft.merging.merge import merge
from jaxsft.merging.search import search
from jaxsft.merging.weighing import Space, minimise
from jaxsft.models.checkpoint import save_hf
from tests.evaluation.folders import make_folder
from tests.training.conftest import run
from tests.training.test_formats import table


def asked(kind, space, function, cells=4, budget=60):
    """The weights that were tried, in order, without repetitions."""
    tried = {}
    minimise(kind, space, lambda weights: tried.setdefault(weights, function(weights)), cells, budget)
    assert len(tried) <= budget and all(space.holds(weights) for weights in tried)
    return tried


def bowl(*centre):
    return lambda weights: sum((w - c) ** 2 for w, c in zip(weights, centre))


@pytest.mark.parametrize("count", [1, 2, 3, 4])
@pytest.mark.parametrize("cells", [1, 3, 4])
def test_the_grid_is_every_multiple(count, cells):
    tried = asked("grid", Space((2.0,) * count, True), bowl(*[0.0] * count), cells)
    points = {w for w in tried if all(abs(x * cells - round(x * cells)) < 1e-4 for x in w)}
    assert len(points) == math.comb(cells + count - 1, count - 1)
    assert next(iter(tried)) == pytest.approx((1 / count,) * count, abs=1e-6)
    assert all(sum(w) == pytest.approx(1, abs=1e-5) for w in tried) and len(tried) <= len(points) + 1
    assert len(asked("grid", Space((0.0,) * count, False, most=0.5), bowl(*[0.0] * count), 2, 81)) == 3**count
    positive = asked("grid", Space((1.0,) * count, True, positive=True), bowl(*[0.0] * count), cells)
    assert set(positive) == {w for w in tried if min(w) > 0}


@pytest.mark.parametrize(
    ("space", "centre"),
    [
        (Space((1.0, 1.0), True), (0.83, 0.17)),
        (Space((1.0, 1.0, 1.0), True), (0.2, 0.7, 0.1)),
        (Space((1.0, 1.0, 1.0), True), (1.0, 0.0, 0.0)),  # in a corner
        (Space((1.0, 1.0), False, most=2.0), (0.31, 1.62)),
        (Space((0.5,), False), (0.0,)),
        (Space((1.0,), True), (1.0,)),
    ],
)
def test_the_simplex_finds_the_least_value_of_a_bowl(space, centre):
    tried = asked("nelder_mead", space, bowl(*centre), budget=100)
    assert next(iter(tried)) == space.first
    assert min(tried, key=tried.get) == pytest.approx(centre, abs=0.01)
    assert asked("nelder_mead", space, bowl(*centre), budget=3) == dict(list(tried.items())[:3])


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    """A model, one that is far from it, and two files of conversations."""
    here = tmp_path_factory.mktemp("searched")
    decoder, params = make_folder(here / "good")
    noise = jax.tree.map(lambda p: p + jax.random.normal(jax.random.key(p.size), p.shape), params)
    save_hf(here / "bad", decoder, noise, tokenizer_from=here / "good")
    for name in ("first", "second"):
        rows = [{"prompt": f"{name} {i}", "completion": "it is " + name * (i % 3 + 1)} for i in range(12)]
        (here / f"{name}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return here


def config_of(made, **fields):
    data = lambda name: DataConfig(str(made / f"{name}.jsonl"), template="plain", cache_dir=str(made / "cache"))
    tasks = [TaskConfig(name, data=data(name)) for name in ("first", "second")]
    models = (str(made / "bad"), str(made / "good"))
    return SearchConfig(**{"merge": MergeConfig("linear", models), "tasks": tasks, "factors": (1.0, 0.5)} | fields)


@pytest.fixture(scope="module")
def finished(made, tmp_path_factory):
    folder = tmp_path_factory.mktemp("search") / "output"
    return folder, search(config_of(made), folder)


def trials(folder):
    return [json.loads(line) for line in (folder / "trials.jsonl").read_text().splitlines()]


def test_the_best_is_merged_and_its_value_is_what_it_measures(made, finished, tmp_path):
    """The good model alone is best, and every trial is what a merge by hand, opened and evaluated, gives."""
    folder, line = finished
    assert f"{folder}/merged: weights (0, 1), " in line and "(0.5, 0.5) have" in line and "5 trials" in line
    found = {tuple(trial["weights"]): trial for trial in trials(folder)}
    assert list(found) == [(0.5, 0.5), (0.0, 1.0), (0.25, 0.75), (0.75, 0.25), (1.0, 0.0)]
    config, record = config_of(made), json.loads((folder / "search.json").read_text())
    for weights in ((0.5, 0.5), (0.0, 1.0), (0.75, 0.25)):
        if weights != (0.0, 1.0):
            merge(dataclasses.replace(config.merge, weights=weights), tmp_path / str(weights))
        path = folder / "merged" if weights == (0.0, 1.0) else tmp_path / str(weights)
        figures = evaluate(SuiteConfig(config.tasks, ModelConfig(str(path)))).figures["tasks"]
        nlls = [figures[name]["nll_per_token"] for name in ("first", "second")]
        np.testing.assert_allclose(found[weights]["figures"], nlls, rtol=1e-6)
        assert found[weights]["value"] == pytest.approx(nlls[0] + 0.5 * nlls[1], rel=1e-6)
    assert record["best"] == found[0.0, 1.0] == min(found.values(), key=lambda trial: trial["value"])
    assert record["best"]["value"] < record["start"]["value"] and record["start"] == found[0.5, 0.5]
    assert json.loads((folder / "merged" / "merge.json").read_text())["config"]["weights"] == [0.0, 1.0]
    assert set(record) == set(table("### Searches"))
    assert len(set(record["data"])) == 2 and record["models"].keys() == set(config.merge.models)


@pytest.mark.parametrize("left", [0, 2, 5])
def test_a_search_that_was_broken_off_goes_on_to_the_same_result(made, finished, tmp_path, monkeypatch, left):
    merged, count = searching._Trials._merged, []

    def broken(self, weights):
        count.append(weights)
        if len(count) > left:
            raise KeyboardInterrupt
        return merged(self, weights)

    monkeypatch.setattr(searching._Trials, "_merged", broken)
    if left < 5:
        with pytest.raises(KeyboardInterrupt):
            search(config_of(made), tmp_path / "output")
        if left:
            with open(tmp_path / "output" / "trials.jsonl", "a") as file:
                file.write('{"weights": [0.5, 0')  # what a kill in the middle of a line leaves
    else:
        search(config_of(made), tmp_path / "output")
    count.clear()
    monkeypatch.setattr(
        searching._Trials, "_merged", lambda self, weights: count.append(weights) or merged(self, weights)
    )
    search(config_of(made), tmp_path / "output")
    assert len(count) == 5 - left, "what was measured is not measured again"
    assert (tmp_path / "output" / "trials.jsonl").read_bytes() == (finished[0] / "trials.jsonl").read_bytes()
    records = [json.loads((f / "search.json").read_text()) for f in (finished[0], tmp_path / "output")]
    for record in records:
        record.pop("result"), record.pop("merge")  # which name the folder
    assert records[0] == records[1]


KILLED = """
    import os, pickle, signal, sys
    import jaxsft.cli
    from jaxsft.merging import search
    left, merged = [3], search._Trials._merged
    def killed(self, weights):
        left[0] -= 1
        if not left[0]:
            os.kill(os.getpid(), signal.SIGKILL)
        return merged(self, weights)
    search._Trials._merged = killed
    search.search(pickle.load(open(sys.argv[1], "rb")), sys.argv[2])
"""


def test_a_killed_search_goes_on_to_the_same_trials(made, finished, tmp_path):
    """By SIGKILL, while the third trial is merged: the lock does not outlive the process, nor does a trial get lost."""
    (tmp_path / "config").write_bytes(pickle.dumps(config_of(made)))
    script = [sys.executable, "-c", textwrap.dedent(KILLED), str(tmp_path / "config"), str(tmp_path / "output")]
    done = run(script, XLA_FLAGS=os.environ["XLA_FLAGS"])  # the same devices, and so the same bits
    assert done.returncode == -signal.SIGKILL, done.stderr
    assert len(trials(tmp_path / "output")) == 2 and not (tmp_path / "output" / "merged").exists()
    search(config_of(made), tmp_path / "output")
    assert (tmp_path / "output" / "trials.jsonl").read_bytes() == (finished[0] / "trials.jsonl").read_bytes()
    merged = [(folder / "merged" / "model.safetensors").read_bytes() for folder in (finished[0], tmp_path / "output")]
    assert merged[0] == merged[1]


def test_a_method_with_a_base_and_the_simplex(made, tmp_path):
    """Nothing is better than nothing of what leads away: the weight goes to 0, where the base is."""
    config = MergeConfig("task_arithmetic", (str(made / "bad"),), base=str(made / "good"))
    search(config_of(made, merge=config, kind="nelder_mead", budget=8), tmp_path / "output")
    found = trials(tmp_path / "output")
    best = min(found, key=lambda trial: trial["value"])
    assert found[0]["weights"] == [1.0] and best["weights"][0] < 0.2 and len(found) <= 8


def test_refusals(made, finished, tmp_path):
    def refuse(message, folder=tmp_path / "output", **fields):
        with pytest.raises(UserError, match=message):
            search(config_of(made, **fields), folder)
        assert folder == finished[0] or not folder.exists() or [path.name for path in folder.iterdir()] == [".lock"]

    models = (str(made / "bad"), str(made / "good"))
    with_merge = lambda *arguments, **fields: {"merge": MergeConfig(*arguments, **fields)}
    refuse(r"method is 'model_stock'; weights are searched for: linear, .*", **with_merge("model_stock", models))
    refuse(r"method is 'lora_concat'; weights are", **with_merge("lora_concat", models))
    refuse(r"gradient is set", **with_merge("linear", models, gradient=((1.0, 0.0), (0.0, 1.0))))
    refuse(r"weights \(1\.5, -0\.5\) is where the search starts", **with_merge("linear", models, weights=(1.5, -0.5)))
    refuse(r"config\.tasks must be", tasks=[])
    refuse(r"config\.tasks must be", tasks=[TaskConfig("a", "generation")], factors=())
    refuse(r"config\.factors has 1 numbers for 2 tasks", factors=(1.0,))
    refuse(r"config\.cells = 60 makes a grid of 61 points for 2 models, and config\.budget is 50", cells=60)
    refuse("holds a search of another config; choose another", finished[0], cells=2)
