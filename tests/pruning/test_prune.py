"""A checkpoint with zeros: which, in what order, written how; then fine-tuned by SPP and merged, the zeros the same."""

import json
import sys

import jax.numpy as jnp
import numpy as np
import pytest

from jaxsft.config import DataConfig, DSnoTConfig, EvaluateConfig, MeshConfig, ModelConfig, PruneConfig, TrainConfig
from jaxsft.errors import UserError
from jaxsft.evaluation.rows import batches, read_examples
from jaxsft.evaluation.suite import evaluate
from jaxsft.models import layout
from jaxsft.models.tensorfiles import TensorFile
from jaxsft.pruning import masks
from jaxsft.pruning.prune import prune
from jaxsft.scoring.statistics import input_statistics
from jaxsft.sharding import make_mesh
from jaxsft.training.export import export_hf
from jaxsft.training.restore import open_model
from jaxsft.training.train import train
from tests.conftest import REPOSITORY
from tests.training.conftest import run

SIX = ("layers.*.attn.*_proj", "layers.*.mlp.*_proj")


@pytest.fixture(scope="module")
def text(tmp_path_factory):
    path, rng = tmp_path_factory.mktemp("text") / "text.jsonl", np.random.default_rng(0)
    letters = list("abcdefghij ")
    path.write_text("".join(json.dumps({"text": "".join(rng.choice(letters, 30))}) + "\n" for _ in range(12)))
    return path


def config(source, text, tmp_path, **fields) -> PruneConfig:
    settings = PruneConfig(batch_size=8, **fields)
    settings.model.path = str(source)
    settings.data = DataConfig(str(text), template="plain", max_length=64, cache_dir=str(tmp_path / "cache"))
    return settings


def weights(folder):
    file = TensorFile(folder / "model.safetensors")
    return {name: np.array(file.read(name)) for name in file.entries}


def is_map(name):
    return "_proj" in name


@pytest.mark.parametrize(
    "fields",
    [
        {"sparsity": "2:4"},
        {"sparsity": "0.6", "targets": ("layers.[01].mlp", "head")},
        {"sparsity": "2:4", "dsnot": DSnoTConfig(SIX, threshold=1e-3)},
        {"sparsity": "0.5", "score": "magnitude"},
    ],
    ids=["wanda 2:4", "wanda some", "dsnot", "magnitude"],
)
def test_zeros_where_they_should_be(source, text, tmp_path, fields):
    """The number of zeros in every output and group; all else to the bit."""
    settings = config(source, text, tmp_path, **fields)
    report = prune(settings, tmp_path / "out")
    before, after = weights(source), weights(tmp_path / "out")
    targeted = lambda n: is_map(n) or n == "lm_head.weight"
    if "targets" in fields:
        targeted = lambda n: n == "lm_head.weight" or (".mlp." in n and not n.startswith("model.layers.2"))
    else:
        targeted = is_map
    for name, tensor in before.items():
        now, zeros = after[name], after[name] == 0
        np.testing.assert_array_equal(now[~zeros], tensor[~zeros])
        if not targeted(name):
            np.testing.assert_array_equal(now, tensor)
        elif settings.sparsity == "2:4":
            np.testing.assert_array_equal(zeros.reshape(len(now), -1, 4).sum(2), 2)
        else:
            np.testing.assert_array_equal(zeros.sum(1), int(now.shape[1] * float(settings.sparsity)))
    assert "% zeros" in report.splitlines()[0] and report.splitlines()[-1].startswith(str(tmp_path / "out"))


def test_a_layer_is_measured_behind_pruned_ones(source, text, tmp_path):
    """By hand: the last layer's mask is Wanda's on the inputs that it has in the written model."""
    settings = config(source, text, tmp_path)
    prune(settings, tmp_path / "out")
    mesh = make_mesh(MeshConfig())
    opened = [open_model(str(f), ModelConfig(dtype="float32"), mesh) for f in (source, tmp_path / "out")]
    dataset = read_examples(settings.data, opened[0].tokenizer, opened[0].decoder.arch)
    kernels = [layout.get(model.params, ("stacks", "0", "0", "attn", "v_proj", "kernel"))[2] for model in opened]
    agreeing = []
    for model in opened:
        rows = batches(dataset, settings.data, 8, mesh)
        moments, examples = input_statistics(model.decoder, model.params, None, rows, mesh, SIX)
        energy = moments["stacks"]["0"]["0"]["attn"]["v_proj"].row(2).energy
        mask = masks.kept(masks.wanda(kernels[0], energy, examples), masks.parse("2:4"))
        agreeing.append(float(jnp.mean(mask == (kernels[1] != 0))))
    assert agreeing[1] == 1.0 > agreeing[0], "the inputs before pruning would have given another mask"


def test_refusals(source, text, tmp_path):
    for fields, message in [
        ({"sparsity": "2:5"}, "which does not divide the 32 inputs"),
        ({"sparsity": "most"}, "config.sparsity is 'most'"),
        ({"targets": ("layers.*.atn",)}, "config.targets: 'layers.*.atn' names nothing"),
        ({"targets": ("norm",)}, "name no linear map"),
        ({"targets": ("embed",)}, "embed, which looks rows up"),
        ({"targets": ("layers.0",), "dsnot": DSnoTConfig(("layers.1.mlp",))}, "config.dsnot.targets name layers.1.mlp"),
    ]:
        with pytest.raises(UserError) as caught:
            prune(config(source, text, tmp_path, **fields), tmp_path / "out")
        assert message in str(caught.value)
        assert not (tmp_path / "out").exists()
    empty = config(source, text, tmp_path)
    empty.data.path = ""
    with pytest.raises(UserError, match=r"config\.data\.path is empty"):
        prune(empty, tmp_path / "out")


def test_the_script(source, text, tmp_path):
    script = [sys.executable, str(REPOSITORY / "scripts/prune.py"), f"--config={REPOSITORY}/configs/prune/wanda.py"]
    fields = {"model.path": source, "data.path": text, "data.template": "plain", "data.cache_dir": tmp_path / "cache"}
    done = run([*script, f"--output={tmp_path / 'out'}", *(f"--config.{k}={v}" for k, v in fields.items())])
    assert done.returncode == 0, done.stderr
    assert "mlp.down_proj  50.00 % zeros" in done.stdout
    assert [path.name for path in tmp_path.iterdir() if path.name.startswith(".")] == []
    again = run([*script, f"--output={tmp_path / 'out'}", *(f"--config.{k}={v}" for k, v in fields.items())])
    assert again.returncode == 1 and "is not empty" in again.stderr and "Traceback" not in again.stderr


def test_the_whole_way_on_real_weights(real_data, tmp_path):
    """stories260K on Dolly: 2:4 by Wanda costs less than by magnitude, SPP wins much of it back, and 2:4 is left."""
    source, dolly = real_data / "models/stories260K", real_data / "instruct/dolly/dolly_3k.json"
    cache = str(tmp_path / "cache")
    data = lambda rows: DataConfig(str(dolly), rows=rows, template="plain", max_length=256, cache_dir=cache)

    def nll(folder):
        task = EvaluateConfig(task="perplexity", data=data("-32:"), model=ModelConfig(path=str(folder)))
        return evaluate(task).figures["nll_per_token"]

    for score in ("wanda", "magnitude"):
        settings = PruneConfig(ModelConfig(path=str(source)), data(":16"), score=score)
        prune(settings, tmp_path / score)
    run = TrainConfig(batch_size=16, steps=12)
    run.model.path, run.data, run.log.tensorboard = str(tmp_path / "wanda"), data(":-100"), False
    run.adapter.kind, run.adapter.spp.rank = "spp", 4
    run.optimizer.learning_rate = 2e-2
    train(run, str(tmp_path / "run"))
    mesh = make_mesh(MeshConfig())
    export_hf(open_model(str(tmp_path / "run"), ModelConfig(dtype="float32"), mesh), tmp_path / "merged", mesh)
    pruned, merged = weights(tmp_path / "wanda"), weights(tmp_path / "merged")
    for name, tensor in pruned.items():
        np.testing.assert_array_equal(merged[name] != 0, tensor != 0)
        if is_map(name):
            assert (merged[name].reshape(len(tensor), -1, 4) != 0).sum(2).max() == 2
            assert np.mean(merged[name] != tensor) > 0.4
    start, wanda, magnitude, tuned = map(nll, (source, *(tmp_path / n for n in ("wanda", "magnitude", "merged"))))
    assert start < wanda < magnitude
    assert tuned < start + 0.5 * (wanda - start)
