"""Fisher and RegMean merges on disk: what is measured on data, and what becomes of it."""

import dataclasses
import json
import resource
import tempfile

import jax
import numpy as np
import pytest
from etils import epath

from jaxsft.config import DataConfig, DisperseConfig, MergeConfig, MeshConfig, ModelConfig
from jaxsft.dispersal.run import disperse
from jaxsft.errors import UserError
from jaxsft.merging.fisher import fisher
from jaxsft.merging.merge import merge
from jaxsft.merging.regmean import regmean
from jaxsft.merging.sources import open_source
from jaxsft.merging.statistics import measure
from jaxsft.models import layout, weights
from jaxsft.models.checkpoint import save_hf
from jaxsft.models.decoder import Decoder
from jaxsft.scoring.table import read_scores
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


def test_a_run_on_a_part_is_measured_on_that_part(made, tmp_path):
    """Held to the inputs of those rows alone, by name of rows."""
    base = DataConfig(str(made / "data.jsonl"), template="plain", cache_dir=str(made / "cache"))
    dispersal = DisperseConfig(ModelConfig(str(made / "one")), base, parts=2)
    disperse(dispersal, tmp_path)
    part = read_scores(tmp_path / "parts.parquet")[1]["part"]
    lines = (made / "data.jsonl").read_text().splitlines(keepends=True)
    (tmp_path / "own.jsonl").write_text("".join(line for line, k in zip(lines, part) if k == 1))
    mesh = make_mesh(MeshConfig())

    def found(kind, data, examples=256):
        config = MergeConfig("regmean", (str(made / "one"),), data=data, examples=examples)
        (tmp_path / "at").mkdir(exist_ok=True)
        (measured,) = measure(config, kind, epath.Path(tmp_path / "at"), mesh)
        return {name: measured._file.read(name, mapped=False) for name in measured._file.entries}

    selected = dataclasses.replace(base, parts=str(tmp_path / "parts.parquet"), part=1)
    for kind in ("gram", "fisher"):
        got, want = (
            found(kind, data) for data in (selected, dataclasses.replace(base, path=str(tmp_path / "own.jsonl")))
        )
        for name, array in want.items():
            np.testing.assert_allclose(got[name], array, rtol=1e-3, atol=1e-6 * np.abs(array).max())
        all_of_it = found(kind, base)
        assert any(np.abs(all_of_it[name] - got[name]).max() > 1e-2 * np.abs(got[name]).max() for name in got)
        few = [found(kind, base, examples=3)[name] for name in list(got)[:2]]
        assert any(np.abs(array - all_of_it[name]).max() > 0 for name, array in zip(got, few)), "so many and no more"


def test_models_whose_statistics_do_not_line_up_are_refused(made, tmp_path):
    decoder = Decoder(dataclasses.replace(open_source(str(made / "one"), make_mesh(MeshConfig())).arch, tied=True))
    save_hf(tmp_path / "tied", decoder, decoder.init(jax.random.key(0)), tokenizer_from=made / "one")
    config = config_of(made, "fisher")
    config.models = (config.models[0], str(tmp_path / "tied"))
    with pytest.raises(UserError, match="differ in their tokenizer or in tying"):
        merge(config, tmp_path / "merged")


def test_a_disk_that_is_full_of_statistics_is_said(made, tmp_path, monkeypatch):
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    config = config_of(made, "fisher")
    merge(config, tmp_path / "first")  # prepares the data
    try:
        resource.setrlimit(resource.RLIMIT_FSIZE, (30_000, limits[1]))  # of a file, in bytes
        with pytest.raises(UserError, match=rf"measured of {made}/one cannot be written to .*; set TMPDIR to a folder"):
            merge(config, tmp_path / "merged")
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert [path.name for path in tmp_path.iterdir()] == ["first"]
