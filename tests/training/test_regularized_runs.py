"""Runs whose loss draws them back to their start: exact resumption, what they keep, and what is refused."""

import json
import shutil

import jax
import numpy as np
import pytest

from jaxsft.config import CheckpointConfig, DataConfig, ModelConfig, RegularizersConfig, TrainConfig
from jaxsft.errors import UserError
from jaxsft.sharding import make_mesh
from jaxsft.training.restore import open_model
from jaxsft.training.train import train
from tests.training.conftest import lines


def config_of(kind, model_folder, data_file, cache, **regularizers):
    config = TrainConfig(data=DataConfig(str(data_file), template="plain", max_length=64, cache_dir=str(cache)))
    config.model.path, config.adapter.kind = str(model_folder), kind
    config.batch_size, config.steps, config.optimizer.learning_rate = 8, 6, 1e-2
    config.checkpoint, config.log.tensorboard = CheckpointConfig(every=2, keep_latest=9), False
    config.objective.regularizers = RegularizersConfig(**regularizers)
    return config


def knowledge(data_file, cache):
    """What the Fisher information is of."""
    return DataConfig(str(data_file), rows=":20", template="plain", max_length=64, cache_dir=str(cache))


@pytest.mark.parametrize("kind", ["none", "lora"])
def test_a_resumed_run_writes_the_same_lines(model_folder, data_file, tmp_path, kind):
    """From step 2 on; the start is loaded again and the Fisher information read, or made again where it is gone."""
    cache = tmp_path / "cache"
    terms = {"neftune_alpha": 5.0, "kl_to_base": 0.5, "l2_to_start": 0.1, "l1": 1e-4}
    if kind == "none":
        terms |= {"ewc": 10.0, "ewc_data": knowledge(data_file, cache), "ewc_examples": 12}
    config = config_of(kind, model_folder, data_file, cache, **terms)
    whole = tmp_path / "whole"
    train(config, str(whole))
    found = lines(whole)
    first, last = found[0], found[-1]
    names = ["loss/kl_to_base", "loss/l2_to_start", "loss/l1", *(["loss/ewc"] if kind == "none" else [])]
    for name in names:
        assert first[name] < 1e-6 < last[name], name
    assert last["loss"] == pytest.approx(last["loss/cross_entropy"] + sum(last[name] for name in names))
    assert first["l1_sparsity"] == 1 > last["l1_sparsity"]

    for name in ("read", "made"):
        broken = tmp_path / name
        shutil.copytree(whole, broken)
        (broken / "summary.json").unlink()
        for step in (4, 6):
            shutil.rmtree(broken / "checkpoints" / str(step))
        if name == "made":
            if kind == "lora":
                continue
            shutil.rmtree(broken / "fisher")
        elif kind == "none":
            assert (broken / "fisher" / "key.json").exists()
        train(config, str(broken))
        assert lines(broken) == found


def test_a_checkpoint_holds_neither_start_nor_fisher(model_folder, data_file, tmp_path):
    """It is as large as a plain run's, and opening the run loads no start."""
    cache = tmp_path / "cache"
    plain, kept = (config_of("none", model_folder, data_file, cache) for _ in range(2))
    kept.objective.regularizers = RegularizersConfig(
        l2_to_start=0.1, ewc=1.0, ewc_data=knowledge(data_file, cache), ewc_examples=4
    )
    names = {}
    for name, config in (("plain", plain), ("kept", kept)):
        config.steps = 1
        train(config, str(tmp_path / name))
        metadata = tmp_path / name / "checkpoints" / "1"
        (file,) = [p for p in metadata.rglob("_METADATA") if "tree_metadata" in p.read_text()]
        names[name] = set(json.loads(file.read_text())["tree_metadata"])
    assert names["plain"] == names["kept"]
    opened = open_model(str(tmp_path / "kept"), ModelConfig(), make_mesh(kept.mesh))
    assert opened.parts.start is None and opened.parts.fisher is None


def test_the_proximal_step_makes_exact_zeros(model_folder, data_file, tmp_path):
    """Of the change in full fine-tuning, of the factors under LoRA; the gradient alone makes none."""
    cache, share = tmp_path / "cache", {}
    for kind, on, proximal in (("none", "change", True), ("none", "change", False), ("lora", "weights", True)):
        terms = {"l1": 0.8, "l1_on": on, "l1_proximal": proximal}
        config = config_of(kind, model_folder, data_file, cache, **terms)
        workdir = tmp_path / f"{kind}-{proximal}"
        train(config, str(workdir))
        params = open_model(str(workdir), ModelConfig(), make_mesh(config.mesh)).parts.params
        if kind == "none":
            start = open_model(str(model_folder), ModelConfig(), make_mesh(config.mesh)).params
            params = jax.tree.map(lambda p, s: p - s, params, start)
        for name in ("embed", "head"):
            params.pop(name, None)  # of which most rows are of words that do not occur
        zeros = [np.asarray(leaf) == 0 for leaf in jax.tree.leaves(params)]
        share[kind, proximal] = np.concatenate([np.ravel(z) for z in zeros]).mean()
    assert share["none", True] > 0.3 and share["lora", True] > 0.2
    assert share["none", False] < 0.01


def test_refusals(model_folder, data_file, tmp_path):
    cache = tmp_path / "cache"

    def refuse(message, kind="none", **terms):
        with pytest.raises(UserError, match=message):
            train(config_of(kind, model_folder, data_file, cache, **terms), str(tmp_path / "run"))
        assert not (tmp_path / "run" / "config.json").exists()

    data = knowledge(data_file, cache)
    refuse(r"ewc weighs the weights of full fine-tuning, but config\.adapter\.kind is 'lora'", "lora", ewc=1.0)
    refuse(r"ewc needs data that the start should not forget; set .*ewc_data\.path", ewc=1.0)
    refuse(r"ewc_data is set, but .*ewc is 0", ewc_data=data)
    refuse(r"no file or folder", ewc=1.0, ewc_data=DataConfig(str(tmp_path / "nowhere.jsonl")))
