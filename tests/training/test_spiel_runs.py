"""SpIEL in whole runs: broken off and gone on with across changes of the support, measured, written and exported."""

import shutil

import jax
import numpy as np
import pytest
from safetensors.numpy import load_file

from jaxsft.adapters.spiel.tensors import load_sft, tuned_weights
from jaxsft.config import AdapterConfig, CheckpointConfig, DataConfig, MeshConfig, ModelConfig, SpIELConfig, TrainConfig
from jaxsft.errors import UserError
from jaxsft.models import layout
from jaxsft.sharding import make_mesh
from jaxsft.training.export import export_adapter, export_hf, export_sft
from jaxsft.training.restore import open_model
from jaxsft.training.train import train
from jaxsft.validation import validate
from tests.tiny import llama, logits_of
from tests.training.conftest import lines


def config(model_folder, data_file, tmp_path, **changes: object) -> TrainConfig:
    config = TrainConfig(batch_size=8, steps=8)
    config.data = DataConfig(str(data_file), template="plain", max_length=256, packing=False)
    config.data.cache_dir = str(tmp_path / "cache")
    config.model.path, config.log.tensorboard, config.log.every = str(model_folder), False, 3
    config.adapter = AdapterConfig("spiel", spiel=SpIELConfig(lora_rank=2, reselect_every=3, phase=2, **changes))
    config.optimizer.name = "sm3" if config.adapter.spiel.variant == "ma" else "adamw"
    config.optimizer.learning_rate, config.optimizer.warmup_steps = 1e-2, 0
    config.checkpoint = CheckpointConfig(every=1, keep_latest=9)
    validate(config)
    return config


@pytest.mark.parametrize("variant", ["ag", "ma"])
def test_a_run_that_was_broken_off_writes_the_same_lines(model_folder, data_file, tmp_path, variant):
    """Saved in the middle of a phase (4), at a change (5), and gone on with over two more."""
    settings, whole, broken = config(model_folder, data_file, tmp_path, variant=variant), tmp_path / "a", tmp_path / "b"
    train(settings, str(whole))
    changes = [line["step"] for line in lines(whole) if "support/replaced" in line]
    assert changes == [2, 5, 8] and {3, 6} <= {line["step"] for line in lines(whole)}, "besides those of log.every"
    for last in (4, 5):
        shutil.copytree(whole, broken)
        (broken / "summary.json").unlink()
        for step in range(last + 1, 9):
            shutil.rmtree(broken / "checkpoints" / str(step))
        train(settings, str(broken))
        assert lines(broken) == lines(whole)
        shutil.rmtree(broken)


@pytest.fixture(scope="module")
def opened(model_folder, data_file, tmp_path_factory):
    folder = tmp_path_factory.mktemp("spiel")
    train(config(model_folder, data_file, folder), str(folder / "run"))
    mesh = make_mesh(MeshConfig())
    return folder, mesh, open_model(str(folder / "run"), ModelConfig(dtype="float32", param_dtype="float32"), mesh)


def test_the_checkpoint_holds_nothing_of_the_base(opened):
    folder, _, model = opened
    stored = sum(f.stat().st_size for f in (folder / "run" / "checkpoints" / "8").rglob("*") if f.is_file())
    weights = sum(leaf.size for leaf in jax.tree.leaves(model.parts.params))
    arrays = weights * (4 + 4 + 12 + 12)
    shapes = {leaf.shape for leaf in jax.tree.leaves(model.parts.frozen)}
    assert not shapes & {leaf.shape for leaf in jax.tree.leaves((model.parts.params, model.parts.aux))}
    assert stored < arrays + 200_000


def test_tuned_weights_come_back(opened):
    """From the authors' layout to ours: the same weights, and added to the transposes they are the merged model."""
    folder, _, model = opened
    export_sft(model, folder / "sft")
    tensors = load_file(folder / "sft" / "adapter_model.safetensors")
    assert len(tensors) == 2 * 3 * 7 and all(".sft_delta." in name for name in tensors)
    want = tuned_weights(model.method, model.parts.params, model.parts.aux)
    got = load_sft(folder / "sft", model.decoder.arch)
    assert got.keys() == want.keys()
    for module, (idx, values) in want.items():
        np.testing.assert_array_equal(got[module][0], idx)
        np.testing.assert_array_equal(got[module][1], values)
    assert any(np.any(values) for _, values in want.values())
    name = "base_model.model.model.layers.1.self_attn.k_proj.sft_delta."
    base, merged = (
        np.asarray(layout.unstack(model.decoder.arch, tree)["layers.1.attn.k_proj.kernel"]).T.copy()
        for tree in (model.parts.frozen["base"], model.merged())
    )
    base.reshape(-1)[tensors[name + "indices"]] += tensors[name + "values"]
    np.testing.assert_allclose(base, merged, rtol=1e-6)
    with pytest.raises(UserError, match="is no tuned weight of this model"):
        load_sft(folder / "sft", llama(vocab_size=320, num_hidden_layers=1))


def test_folders_compute_what_the_run_does(opened):
    """Merged and as an adapter."""
    folder, mesh, model = opened
    plain = open_model(str(model.source), ModelConfig(dtype="float32", param_dtype="float32"), mesh)
    export_hf(model, folder / "merged", mesh, "float32")
    export_adapter(model, folder / "adapter")
    with jax.set_mesh(mesh):
        want = logits_of(model)
        for name in ("merged", "adapter"):
            other = open_model(str(folder / name), ModelConfig(dtype="float32", param_dtype="float32"), mesh)
            np.testing.assert_allclose(logits_of(other), want, atol=2e-5)
        assert np.abs(logits_of(plain) - want).max() > 1e-2
