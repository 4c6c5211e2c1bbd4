"""Where experts are used: figures by hand, and a whole run's from its steps to the report."""

import json
import types

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxsft.adapters.loramoe import LoRAMoE
from jaxsft.config import (
    DataConfig,
    EvaluateConfig,
    LoRAMoEConfig,
    MergeConfig,
    MeshConfig,
    ModelConfig,
    TaskConfig,
    TrainConfig,
    TypesConfig,
)
from jaxsft.decoding.engine import Sampler
from jaxsft.decoding.sampling import Sampling
from jaxsft.errors import UserError
from jaxsft.evaluation.likelihood.routing import _importances, routed_maps, summarize
from jaxsft.evaluation.suite import evaluate
from jaxsft.merging.merge import merge
from jaxsft.models.decoder import Decoder
from jaxsft.report import page
from jaxsft.report.read import read_run
from jaxsft.report.routing import heats, panels, scale
from jaxsft.sharding import make_mesh
from jaxsft.training.export import export_adapter, export_hf, export_peft
from jaxsft.training.restore import open_model
from jaxsft.training.train import train
from jaxsft.validation import validate
from tests.tiny import llama, make_batch, packed_rows, random_examples
from tests.training.conftest import lines


def tagged(names: list[str], ids: list[int]):
    return types.SimpleNamespace(
        task_types=names, task_type_ids=np.array(ids), sources=["s"], source_ids=0 * np.array(ids)
    )


def test_figures_by_hand():
    """Three examples of 10, 20 and 10 tokens, two linear maps, experts of types 1 and 0."""
    dataset = tagged(["fact", "other", "sum"], [0, 0, 2])
    shares = np.array([[[0.5, 0.5], [0.2, 0.8]], [[0.8, 0.2], [0.5, 0.5]], [[0.1, 0.9], [0.5, 0.5]]])
    importance = shares * np.array([10, 20, 10])[:, None, None]
    figures = summarize(importance, dataset, TypesConfig(of={"fact": 1, "absent": 0}), (1, 0))
    kinds = figures["kinds"]
    assert kinds.keys() == {"fact", "sum"}, "only the tags that examples have"
    np.testing.assert_allclose(kinds["fact"]["weights"], [[0.7, 0.3], [0.4, 0.6]])
    assert (kinds["fact"]["type"], kinds["sum"]["type"]) == (1, -1)
    assert (kinds["fact"]["tokens"], kinds["fact"]["examples"], figures["tokens"], figures["examples"]) == (
        30,
        2,
        40,
        3,
    )
    load = np.array([[22, 18], [17, 23]]) / 40
    assert figures["cv"] == pytest.approx(np.mean(np.std(load, axis=1) / 0.5))
    assert figures["own_type"] == pytest.approx((0.7 + 0.4) / 2)
    assert "own_type" not in summarize(importance, dataset, TypesConfig(), (1, 0))
    assert summarize(importance, dataset, TypesConfig(by="source"), (1, 0))["kinds"].keys() == {"s"}
    lonely = np.zeros((3, 1, 8)) + np.eye(8)[3]
    assert summarize(lonely, dataset, TypesConfig(), (0,) * 8)["cv"] == pytest.approx(7**0.5)


def test_importances_of_a_model():
    """Of every token once, layer by layer, of targeted maps alone, however the examples are packed."""
    arch = llama()
    decoder, targets = Decoder(arch, remat="none"), ("embed", "layers.1.mlp.*_proj", "layers.*.attn.q_proj")
    method = LoRAMoE(LoRAMoEConfig(experts=4, targets=targets), arch)
    parts = method.split(decoder.init(jax.random.key(0)), jax.random.key(1))
    model = method.compose(parts, {})
    maps = routed_maps(arch, model[1], targets)
    mlp = [f"layers.1.mlp.{name}_proj" for name in ("down", "gate", "up")]
    assert maps == ["embed", "layers.0.attn.q_proj", "layers.1.attn.q_proj", *mlp, "layers.2.attn.q_proj"]
    examples = random_examples(6, 9)

    def of(rows, length, slots):
        batch = jax.tree.map(jnp.asarray, make_batch(rows, length, slots, examples))
        sums = jax.tree.map(np.asarray, _importances(decoder, targets, *model, batch))
        filled = sums["example_index"] >= 0
        return sums["importance"][filled][np.argsort(sums["example_index"][filled])]

    packed, single = of(packed_rows(examples, 2, 40), 40, 5), of([[e] for e in examples], 9, 1)
    assert packed.shape == (6, 7, 4)
    np.testing.assert_allclose(packed, single, rtol=1e-4)
    lengths = np.array([len(tokens) for tokens, _ in examples])
    np.testing.assert_allclose(packed.sum(-1), np.broadcast_to(lengths[:, None], (6, 7)), rtol=1e-5)
    logits = np.asarray(parts.params["embed"]["router"])[examples[0][0]]
    weights = np.exp(logits) / np.exp(logits).sum(-1, keepdims=True)
    np.testing.assert_allclose(packed[0, 0], weights.sum(0), rtol=1e-5)


@pytest.fixture(scope="module")
def workdir(model_folder, tmp_path_factory):
    """Four steps on examples of two kinds, one of them with a type."""
    folder = tmp_path_factory.mktemp("routing")
    kinds = {"prompt": "the quick", "task_type": "fact"}, {"prompt": "seven wizards", "task_type": "sum"}
    rows = [kinds[i % 2] | {"completion": "brown fox"} for i in range(16)]
    (folder / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    data = DataConfig(str(folder / "rows.jsonl"), template="plain", max_length=64, cache_dir=str(folder / "cache"))
    config = TrainConfig(batch_size=8, steps=4, data=data)
    config.data.types = TypesConfig(of={"fact": 1})
    config.adapter.kind, config.adapter.loramoe = "loramoe", LoRAMoEConfig(experts=4, rank=2)
    config.model.path, config.log.tensorboard = str(model_folder), False
    plain = DataConfig(data.path, rows=":5", max_length=64, cache_dir=data.cache_dir)
    config.eval.tasks = [TaskConfig("routes", "routing", plain), TaskConfig("moved", "deviation", plain)]
    validate(config)
    train(config, str(folder / "run"))
    return folder / "run"


def test_a_run_logs_scalars_and_leaves_the_tables(workdir, capsys):
    logged = [line for line in lines(workdir) if line["split"] == "routes"]
    assert [line["step"] for line in logged] == [0, 4]
    assert all(line.keys() == {"step", "split", "cv", "own_type", "tokens", "examples"} for line in logged)
    tables = json.loads((workdir / "tasks.json").read_text())["tasks"]
    assert tables.keys() == {"routes", "moved"}
    assert tables["routes"]["kinds"].keys() == {"fact", "sum"} and tables["routes"]["cv"] == logged[-1]["cv"]
    assert tables["routes"]["kinds"]["fact"]["type"] == 1 and tables["routes"]["kinds"]["sum"]["type"] == -1
    trained = [line for line in lines(workdir) if line["split"] == "train"]
    assert all(0 < line["loss/balance"] < 0.1 for line in trained)
    assert all(line["loss"] == pytest.approx(line["nll"] + line["loss/balance"], rel=1e-5) for line in trained)


def test_the_checkpoint_holds_no_base(workdir):
    (folder,) = (workdir / "checkpoints").iterdir()
    leaves = json.loads((folder / "state" / "_METADATA").read_text())["tree_metadata"]
    params = [name for name in leaves if name.startswith("('params'")]
    assert len(params) == 9 and all("lora_" in name or "router" in name for name in params)
    assert not any("kernel" in name or "embedding" in name for name in leaves)


def test_an_evaluation_of_the_workdir(workdir):
    """Types are those of the run; the figures are those of the run's last step."""
    config = EvaluateConfig(task="routing", data=DataConfig(f"{workdir.parent}/rows.jsonl", rows=":5", max_length=64))
    config.model.path, config.data.cache_dir = str(workdir), str(workdir.parent / "cache")
    found = evaluate(config)
    tables = json.loads((workdir / "tasks.json").read_text())["tasks"]["routes"]
    assert found.figures["maps"] == tables["maps"] and found.figures["experts"] == [1, 1, 0, 0]
    for name, kind in tables["kinds"].items():
        np.testing.assert_allclose(found.figures["kinds"][name]["weights"], kind["weights"], rtol=1e-5)
    assert found.headlines["routing"].startswith("cv 0.")


def test_an_evaluation_of_the_exported_adapter(workdir, tmp_path):
    """It keeps the types too."""
    model = open_model(str(workdir), ModelConfig(dtype="float32"), make_mesh(MeshConfig()))
    export_adapter(model, tmp_path / "adapter")
    config = EvaluateConfig(task="routing", data=DataConfig(f"{workdir.parent}/rows.jsonl", rows=":5", max_length=64))
    config.model.path, config.data.cache_dir = str(tmp_path / "adapter"), str(workdir.parent / "cache")
    found = evaluate(config).figures
    tables = json.loads((workdir / "tasks.json").read_text())["tasks"]["routes"]
    assert found["own_type"] == pytest.approx(tables["own_type"], rel=1e-5)
    assert {name: kind["type"] for name, kind in found["kinds"].items()} == {"fact": 1, "sum": -1}


def test_a_model_without_experts_is_refused(model_folder, workdir):
    config = EvaluateConfig(task="routing", data=DataConfig(f"{workdir.parent}/rows.jsonl", template="plain"))
    config.model.path, config.data.cache_dir = str(model_folder), str(workdir.parent / "cache")
    with pytest.raises(UserError, match="no routed experts"):
        evaluate(config)


def test_it_has_no_merged_form(workdir, tmp_path):
    """Wherever merging is asked for; nothing is left behind."""
    model = ModelConfig(path=str(workdir))
    mesh = make_mesh(MeshConfig())
    with pytest.raises(UserError, match="no merged form"):
        export_hf(open_model(str(workdir), model, mesh), tmp_path / "exported", mesh)
    with pytest.raises(UserError, match="no merged form"):
        merge(MergeConfig(models=[str(workdir)] * 2, weights=[0.5, 0.5]), tmp_path / "merged")
    with pytest.raises(UserError, match=r"not a LoRA run.*use --format=adapter"):
        export_peft(open_model(str(workdir), model, mesh), tmp_path / "peft")
    assert not list(tmp_path.iterdir())


def test_generation_is_that_of_the_whole_forward_pass(workdir):
    """With a cache, token by token, against forward passes over everything so far."""
    model = open_model(str(workdir), ModelConfig(path=str(workdir)), make_mesh(MeshConfig()))
    prompt = model.tokenizer.encode("the quick brown").ids
    sampler = Sampler(model.decoder, Sampling(max_new_tokens=5))
    written = [one.tokens for one in sampler.generate(model.params, [prompt], adapters=model.adapters)]

    def last(ids, adapters):
        row = jnp.array([ids])
        hidden = model.decoder.forward(
            model.params, row, jnp.arange(len(ids))[None], jnp.ones_like(row), adapters=adapters
        )
        return model.decoder.head(model.decoder.head_params(model.params, adapters), hidden.hidden)[0, -1]

    expected = list(prompt)
    for _ in range(5):
        expected.append(int(jnp.argmax(last(expected, model.adapters))))
    assert written[0] == expected[len(prompt) :]
    assert np.abs(np.asarray(last(prompt, model.adapters) - last(prompt, None))).max() > 1e-4


def test_the_report_draws_it(workdir):
    run = read_run(str(workdir), "run")
    assert [(heat.name, heat.kind, heat.examples) for heat in heats(run)] == [("fact", 1, 3), ("sum", -1, 2)]
    layers, experts = np.shape(heats(run)[0].weights)
    assert experts == 4 and layers == len({name.split(".")[1] for name in run.routing["maps"]})
    drawn = panels(run)
    assert len(drawn) == 2 and all(svg.count("<rect") == 4 * layers for svg in drawn)
    low, even, high = scale(run)
    assert low < even == 0.25 < high
    first = heats(run)[0].weights[0][0]
    assert f"layer 0, expert 1: {100 * first:.1f} %" in drawn[0]
    weights = np.array([heat.weights for heat in heats(run)])
    assert all(f"{100 * extreme:.1f} %" in "".join(drawn) for extreme in (weights.min(), weights.max()))
    assert sum(svg.count("--v:1.000") for svg in drawn) == 2, "the ends of the scale are the extremes"
    html = page.build([str(workdir)])
    assert 'id="routing"' in html and html.count("Weights of experts on") == 2
    made = page.tell([read_run(str(workdir), "run")])
    made.runs[0].routing = {}
    assert 'id="routing"' not in page.render(made)
