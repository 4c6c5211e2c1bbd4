"""Fisher and RegMean merges on disk: what is measured on data, and what becomes of it."""

import json
import tempfile

import jax
import numpy as np
import pytest
from etils import epath

from jaxsft.config import DataConfig, MergeConfig, MeshConfig, ModelConfig
from jaxsft.errors import UserError
from jaxsft.merging.fisher import fisher
from jaxsft.merging.merge import merge
from jaxsft.merging.regmean import regmean
from jaxsft.merging.statistics import measure
from jaxsft.models import layout, weights
from jaxsft.models.checkpoint import save_hf
from jaxsft.sharding import make_mesh
from jaxsft.training.restore import open_model
from tests.evaluation.folders import make_folder


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    """Two models and a data file."""
    here = tmp_path_factory.mktemp("measured")
    decoder, params = make_folder(here / "one")
    other = jax.tree.map(lambda p: p + 0.1 * jax.random.normal(jax.random.key(p.size), p.shape), params)
    save_hf(here / "two", decoder, other, tokenizer_from=here / "one")
    rows = [{"prompt": f"what is {i}", "completion": "it is " + "ab" * (i % 5 + 1)} for i in range(12)]
    (here / "data.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return here


def config_of(made, method, **fields):
    data = DataConfig(str(made / "data.jsonl"), template="plain", cache_dir=str(made / "cache"))
    return MergeConfig(method, (str(made / "one"), str(made / "two")), data=data, **fields)


@pytest.mark.parametrize("method", ["fisher", "regmean"])
def test_what_is_measured_decides_each_tensor(made, tmp_path, method):
    config = config_of(made, method, weights=(1.0, 2.0), **({"fisher_norm": True} if method == "fisher" else {}))
    merge(config, tmp_path / "merged")
    mesh = make_mesh(MeshConfig())
    opened = [open_model(str(path), ModelConfig(), mesh) for path in (made / "one", made / "two", tmp_path / "merged")]
    one, two, got = (layout.unstack(model.decoder.arch, model.params) for model in opened)
    with tempfile.TemporaryDirectory() as folder:
        kind = "fisher" if method == "fisher" else "gram"
        measured = measure(config, kind, epath.Path(folder), mesh)
        kernels = 0
        for tensor in weights.tensors(opened[0].decoder):
            files = [np.asarray(tree[tensor.logical]) for tree in (one, two)]
            files = [array.T if tensor.transposed else array for array in files]
            found = [m.read(tensor) for m in measured]
            if method == "fisher":
                assert found[0].shape == files[0].shape and (found[0] >= 0).all()
                want = fisher(files, found, (1, 2), [m.norm for m in measured])
            elif found[0] is None:
                want = (files[0] + 2 * files[1]) / 3
            else:
                kernels += 1
                np.testing.assert_allclose(found[0], found[0].T, rtol=1e-4, atol=1e-5)
                want = regmean(files, found, (1, 2), 0.9)
            merged = np.asarray(got[tensor.logical])
            np.testing.assert_allclose(merged.T if tensor.transposed else merged, want, rtol=1e-4, atol=1e-4)
    assert kernels == (0 if method == "fisher" else 7 * 3 + 1)


def test_models_without_data_are_refused(made, tmp_path):
    config = config_of(made, "fisher")
    config.data = DataConfig()
    with pytest.raises(UserError, match=r"one is no run whose data is known; set config\.data\.path"):
        merge(config, tmp_path / "merged")
    config = config_of(made, "regmean", weights=(1.0, -0.5))
    with pytest.raises(UserError, match="weights must be positive"):
        merge(config, tmp_path / "merged")
