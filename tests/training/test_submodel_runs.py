"""A run of several sub-models leaves what single runs on the parts leave."""

import dataclasses
import json
import shutil

import jax
import numpy as np
import pytest

from jaxsft.adapters.method import Base
from jaxsft.config import CheckpointConfig, DataConfig, DisperseConfig, MeshConfig, ModelConfig, TaskConfig, TrainConfig
from jaxsft.data.tokenizer import load_tokenizer
from jaxsft.dispersal.run import disperse
from jaxsft.errors import UserError
from jaxsft.sharding import make_mesh
from jaxsft.training.members import batches, make_members
from jaxsft.training.program import check_submodels
from jaxsft.training.reduction import reduction_ratio
from jaxsft.training.restore import open_model
from jaxsft.training.train import train
from jaxsft.training.workdir import Workdir
from jaxsft.validation import validate
from tests.training.conftest import WORDS, lines

COUNT, PARTS = 50, 3


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    """Fifty conversations."""
    rng, path = np.random.default_rng(0), tmp_path_factory.mktemp("records") / "records.jsonl"
    say = lambda: " ".join(rng.choice(WORDS, rng.integers(2, 6)))
    path.write_text("".join(json.dumps({"prompt": say(), "completion": say()}) + "\n" for _ in range(COUNT)))
    return DataConfig(str(path), template="plain", max_length=128, packing=False, cache_dir=str(path.parent / "cache"))


@pytest.fixture(scope="module")
def config(model_folder, data, tmp_path_factory):
    """Sub-models on independent draws, so on parts of unequal size."""
    folder = tmp_path_factory.mktemp("dispersed")
    disperse(DisperseConfig(ModelConfig(str(model_folder)), data, method="iid", parts=PARTS, seed=1), folder)
    config = TrainConfig(batch_size=8, epochs=2.0, submodels=PARTS)
    config.data = DataConfig(**{**vars(data), "parts": str(folder / "parts.parquet")})
    config.model.path, config.log.tensorboard = str(model_folder), False
    config.adapter.kind, config.adapter.lora.rank, config.adapter.lora.dropout = "lora", 2, 0.1
    config.optimizer.learning_rate, config.optimizer.warmup_steps = 1e-2, 1
    config.checkpoint = CheckpointConfig(every=2, keep_latest=99)
    config.eval.path, config.eval.rows, config.eval.every, config.eval.batch_size = data.path, ":8", 3, 8
    config.eval.tasks = [TaskConfig("held", "perplexity", data=data)]
    validate(config)
    return config


@pytest.fixture(scope="module")
def together(config, tmp_path_factory):
    folder = tmp_path_factory.mktemp("together")
    line = train(config, str(folder))
    assert line.startswith(f"{folder}: {PARTS} sub-models: 0: ")
    return folder


def numbers(folder, split):
    """The lines of a split, less wall-clock figures."""
    kept = [line for line in lines(folder) if line["split"] == split]
    return [{name: value for name, value in line.items() if not name.startswith("time/")} for line in kept]


@pytest.mark.parametrize("part", range(PARTS))
def test_each_is_the_run_on_its_part(config, together, part, tmp_path):
    alone = TrainConfig(**{**vars(config), "submodels": 0})
    alone.data = DataConfig(**{**vars(config.data), "part": part})
    train(alone, str(tmp_path))
    own = together / "submodels" / str(part)
    for split in ("train", "eval", "held"):
        found, wanted = numbers(own, split), numbers(tmp_path, split)
        assert [line["step"] for line in found] == [line["step"] for line in wanted]
        for line, want in zip(found, wanted):
            assert line.keys() == want.keys()
            for name, value in want.items():
                if name != "split":
                    assert line[name] == pytest.approx(value, rel=1e-4, abs=1e-5), (split, want["step"], name)
    record, single = (json.loads((folder / "config.json").read_text()) for folder in (own, tmp_path))
    assert record["config"] == single["config"] and record["fingerprints"] == single["fingerprints"]
    left = {path.name for path in own.iterdir()} - {".lock"}
    assert left == {"config.json", "metrics.jsonl", "summary.json", "tasks.json", "adapter"}
    mesh = make_mesh(config.mesh)
    models = [open_model(str(path), ModelConfig(), mesh) for path in (own / "adapter", tmp_path)]
    for leaf, want in zip(*(jax.tree.leaves(model.adapter_params) for model in models)):
        np.testing.assert_allclose(leaf, want, rtol=1e-3, atol=1e-5)


def test_parts_are_of_unequal_length_and_all_is_told(together):
    steps = [json.loads((together / "submodels" / str(k) / "summary.json").read_text())["steps"] for k in range(PARTS)]
    assert len(set(steps)) > 1
    of_all = numbers(together, "train")
    assert [line["running"] for line in of_all] == [sum(n >= s for n in steps) for s in range(1, max(steps) + 1)]
    first = np.mean([numbers(together / "submodels" / str(k), "train")[0]["loss"] for k in range(PARTS)])
    assert of_all[0]["loss"] == pytest.approx(first, rel=1e-6)


def test_the_reduction_ratio_is_that_of_the_lines(together):
    own = together / "submodels" / "0"
    held_out = [(line["step"], line["loss"]) for line in numbers(own, "eval")]
    training = [(line["step"], line["nll"]) for line in numbers(own, "train")]
    ratios = [line.get("reduction_ratio") for line in numbers(own, "eval")]
    assert ratios[:2] == [None, None] and len(ratios) > 2
    for i, ratio in enumerate(ratios):
        assert ratio == reduction_ratio(training, held_out[: i + 1])


@pytest.mark.parametrize("kept", [2, 4], ids=["all-run", "one-is-done"])
def test_broken_off_in_the_middle_it_writes_the_same(config, together, tmp_path, kept):
    steps = [json.loads((folder / "summary.json").read_text())["steps"] for folder in together.glob("submodels/*")]
    assert (kept >= min(steps)) == (kept == 4) and kept < max(steps)
    broken = tmp_path / "broken"
    shutil.copytree(together, broken)
    last = max(int(path.name) for path in (broken / "checkpoints").iterdir())
    for path in (broken / "summary.json", *broken.glob("submodels/*/summary.json")):
        path.unlink()
    for path in broken.glob("submodels/*/adapter"):
        shutil.rmtree(path)
    for step in range(kept + 1, last + 1):
        shutil.rmtree(broken / "checkpoints" / str(step), ignore_errors=True)
    train(config, str(broken))
    assert lines(broken) == lines(together)
    for part in range(PARTS):
        own = f"submodels/{part}"
        assert lines(broken / own) == lines(together / own)
        weights = [(folder / own / "adapter" / "adapter.safetensors").read_bytes() for folder in (broken, together)]
        assert weights[0] == weights[1]


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"submodels": 2}, r"config\.submodels is 2, but .*parts\.parquet has 3 parts"),
        ({"data.parts": ""}, r"config\.submodels is 3, which trains one on each part of config\.data\.parts"),
        ({"data.part": 1}, r"leave config\.data\.part at -1"),
        ({"checkpoint.keep_best": 1}, r"config\.checkpoint\.keep_best compares one model's losses"),
        ({"model.init": "random"}, r"config\.submodels leaves adapters .* their base would be in no folder"),
        ({"adapter.kind": "none"}, r"config\.submodels trains adapters over a base that all share"),
    ],
)
def test_what_is_refused(config, changes, message, tmp_path):
    from jaxsft.validation import from_dict, to_dict

    changed = from_dict(TrainConfig, to_dict(config))
    for path, value in changes.items():
        *nodes, name = path.split(".")
        node = changed
        for part in nodes:
            node = getattr(node, part)
        setattr(node, name, value)
        if value == "none":
            changed.adapter.lora = TrainConfig().adapter.lora
    with pytest.raises(UserError, match=message):
        train(changed, str(tmp_path / "run"))


def test_what_is_recorded_of_each_can_be_trained(config, model_folder, tmp_path):
    """Also of a run whose mesh splits the sub-models: alone, it has none to split."""
    split = TrainConfig(**{**vars(config), "mesh": MeshConfig(submodel=PARTS)})
    folder = Workdir(tmp_path)
    for index, member in enumerate(make_members(split, folder, load_tokenizer(str(model_folder)), (0, 1))):
        assert (member.config.submodels, member.config.data.part) == (0, index)
        check_submodels((), Base(), make_mesh(member.config.mesh))


def test_a_number_that_is_none_stops_all_and_says_whose(config, monkeypatch, tmp_path):
    def spoilt(members, start):
        for step, batch in enumerate(batches(members, start), start + 1):
            weights = batch.weights.copy()
            weights[1] *= np.nan if step == 3 else 1
            yield dataclasses.replace(batch, weights=weights)

    monkeypatch.setattr("jaxsft.training.loop.batches", spoilt)
    with pytest.raises(UserError, match=r"^sub-model 1: \w+ is nan at step 3; .* checkpoint 2 is kept"):
        train(config, str(tmp_path))
    assert [lines(tmp_path / "submodels" / str(k))[-1]["step"] for k in (0, 1)] == [3, 2]


def test_the_run_itself_is_no_model(together):
    mesh = make_mesh(TrainConfig().mesh)
    with pytest.raises(UserError, match=r"holds 3 sub-models; name one's adapter, such as .*submodels/0/adapter"):
        open_model(str(together), ModelConfig(), mesh)
    with pytest.raises(UserError, match=r"1 holds the records of a sub-model; its adapter is .*/1/adapter"):
        open_model(str(together / "submodels" / "1"), ModelConfig(), mesh)
