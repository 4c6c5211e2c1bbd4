"""LoRA adapters made into one, on disk: what is written computes the weighted sum of what was read."""

import json
import shutil

import numpy as np
import pytest

from jaxsft.adapters.folder import Card, Saved, Stored, load_adapter, read_card, save_adapter, save_stored
from jaxsft.adapters.peft import save_factors
from jaxsft.config import LoRAConfig, MergeConfig, MeshConfig, ModelConfig
from jaxsft.errors import UserError
from jaxsft.merging.merge import merge, plan
from jaxsft.merging.sources import open_source
from jaxsft.models import layout, weights
from jaxsft.models.checkpoint import fingerprint
from jaxsft.models.decoder import Decoder
from jaxsft.sharding import make_mesh
from jaxsft.training.restore import open_model
from tests import tiny
from tests.evaluation.folders import make_folder


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    """A base and three adapters: two alike, one of another rank for other maps too."""
    here = tmp_path_factory.mktemp("adapters")
    decoder, _ = make_folder(here / "base")
    for i, (name, rank, maps) in enumerate(
        [("a", 4, ("q_proj",)), ("b", 4, ("q_proj",)), ("c", 2, ("q_proj", "o_proj"))]
    ):
        rng = np.random.default_rng(i)
        draw = lambda *shape: rng.standard_normal(shape).astype(np.float32)  # noqa: B023
        factors = {
            f"layers.{layer}.attn.{m}": {"lora_a": draw(32, rank), "lora_b": draw(rank, 32)}
            for layer in range(3)
            for m in maps
        }
        save_factors(here / name, decoder.arch, factors, rank, 8.0, str(here / "base"))
    return here


def update(folder):
    """What an adapter adds to the kernels of its base, by logical path."""
    mesh = make_mesh(MeshConfig())
    model = open_model(str(folder), ModelConfig(dtype="float32", param_dtype="float32"), mesh)
    arch = model.decoder.arch
    before, after = layout.unstack(arch, model.params), layout.unstack(arch, model.merged())
    return {
        name: np.asarray(after[name] - before[name])
        for name in before
        if name.endswith("o_proj.kernel") or "q_proj" in name
    }


@pytest.mark.parametrize("method", ["lora_concat", "lora_svd"])
def test_the_update_is_the_weighted_sum(folders, tmp_path, method):
    config = MergeConfig(method, tuple(str(folders / n) for n in "abc"), weights=(0.5, 0.3, -0.2))
    line = merge(config, tmp_path / "merged")
    assert "rank 10" in line  # 16 are allowed, 10 there are
    parts = [update(folders / n) for n in "abc"]
    for name, found in update(tmp_path / "merged").items():
        np.testing.assert_allclose(found, sum(w * p[name] for w, p in zip(config.weights, parts)), atol=2e-4)
    manifest = json.loads((tmp_path / "merged" / "merge.json").read_text())
    assert manifest["method"] == method and len(manifest["models"]) == 3


def test_the_mean_of_factors(folders, tmp_path):
    pair = (str(folders / "a"), str(folders / "b"))
    config = MergeConfig("lora_factor", pair, weights=(3.0, 1.0))
    assert any("rank 4 for 3 maps" in text for text in plan(config).describe())
    merge(config, tmp_path / "merged")
    merge(MergeConfig("lora_factor", pair, weights=(0.0, 1.0)), tmp_path / "second")
    for name, found in update(tmp_path / "second").items():
        np.testing.assert_allclose(found, update(folders / "b")[name], atol=1e-4)
    with pytest.raises(UserError, match="differ in rank"):
        merge(MergeConfig("lora_factor", (pair[0], str(folders / "c"))), tmp_path / "no")


def test_how_the_base_was_stored(folders, tmp_path):
    """It is that of the result; adapters that differ in it are refused."""
    for name, stored in (("a", Stored("nf4")), ("b", Stored("nf4")), ("c", Stored("int8"))):
        shutil.copytree(folders / name, tmp_path / name)
        save_stored(tmp_path / name, stored)
    pair = lambda second: (str(tmp_path / "a"), str(second))
    merge(MergeConfig("lora_concat", pair(tmp_path / "b")), tmp_path / "merged")
    assert read_card(tmp_path / "merged").stored == Stored("nf4")
    for other, words in ((tmp_path / "c", "as int8"), (folders / "b", "unquantised")):
        with pytest.raises(UserError, match=f"over a base stored {words}, .*/a over one stored as nf4"):
            merge(MergeConfig("lora_concat", pair(other)), tmp_path / "no")


def test_the_plan_says_which_models_are_opened_whole(folders, tmp_path):
    shutil.copytree(folders / "a", tmp_path / "quantised")
    save_stored(tmp_path / "quantised", Stored("int8"))
    lines = plan(MergeConfig("linear", (str(folders / "a"), str(tmp_path / "quantised")))).describe()
    (besides,) = [line for line in lines if "opened whole" in line]
    assert str(tmp_path / "quantised") in besides and besides.endswith(" GB") and str(folders / "a") not in besides


def test_a_folder_of_factors_is_merged_kernel_by_kernel(folders, tmp_path):
    """As opening it whole does; where a method wants a base it is the adapters'."""
    mesh = make_mesh(MeshConfig())
    source = open_source(str(folders / "c"), mesh)
    model = open_model(str(folders / "c"), ModelConfig(dtype="float32", param_dtype="float32"), mesh)
    whole = layout.unstack(source.arch, model.merged())
    assert not source.whole
    for tensor in weights.tensors(Decoder(source.arch)):
        got = np.asarray(source.read(tensor), np.float32)
        np.testing.assert_allclose(got.T if tensor.transposed else got, whole[tensor.logical], rtol=1e-6, atol=1e-7)
    merge(MergeConfig("task_arithmetic", (str(folders / "a"), str(folders / "c"))), tmp_path / "sum")
    got = layout.unstack(source.arch, open_model(str(tmp_path / "sum"), ModelConfig(dtype="float32"), mesh).params)
    added, base = [update(folders / name) for name in "ac"], layout.unstack(source.arch, model.params)
    for name in added[0]:
        np.testing.assert_allclose(got[name], base[name] + added[0][name] + added[1][name], rtol=1e-5, atol=1e-5)


def test_a_broken_adapter_is_named(folders, tmp_path):
    from safetensors.numpy import load_file, save_file

    shutil.copytree(folders / "b", tmp_path / "broken")
    file = tmp_path / "broken" / "adapter_model.safetensors"
    factors = load_file(file)
    name = "base_model.model.model.layers.1.self_attn.q_proj.lora_B.weight"
    factors[name][2, 3] = np.nan
    save_file(factors, file)
    config = MergeConfig("lora_concat", (str(folders / "a"), str(tmp_path / "broken")))
    with pytest.raises(UserError, match=r"broken: layers\.1\.attn\.q_proj holds numbers that are not finite"):
        merge(config, tmp_path / "merged")
    config = MergeConfig("lora_concat", (str(folders / "a"), str(folders / "b")), weights=(1e300, 1.0))
    with pytest.raises(UserError, match=r"layers\.0\.attn\.q_proj leaves the range of float32"):
        merge(config, tmp_path / "merged")
    assert [path.name for path in tmp_path.iterdir()] == ["broken"]


def test_factors_that_are_not_the_models_are_refused(folders, tmp_path):
    """In the words in which opening the adapter whole refuses them."""
    draw = lambda *shape: np.ones(shape, np.float32)
    module, mesh = "layers.1.attn.q_proj", make_mesh(MeshConfig())
    good = {f"{module}.lora_a": draw(32, 2), f"{module}.lora_b": draw(2, 32)}

    def refuse(message, factors):
        shutil.rmtree(tmp_path / "adapter", ignore_errors=True)
        (tmp_path / "adapter").mkdir()
        saved = Saved("lora", LoRAConfig(rank=2, targets=(module,)), factors, {})
        save_adapter(tmp_path / "adapter", saved, Card(str(folders / "base"), fingerprint(folders / "base")))
        config = ModelConfig(dtype="float32", param_dtype="float32")
        for opened in (lambda path: open_source(path, mesh), lambda path: open_model(path, config, mesh)):
            with pytest.raises(UserError, match=message):
                opened(str(tmp_path / "adapter"))

    refuse(rf"adapter lacks {module}\.lora_b", {f"{module}.lora_a": draw(32, 2)})
    refuse(rf"{module}\.lora_b is float32\[2, 16\]", good | {f"{module}.lora_b": draw(2, 16)})
    refuse(r"layers\.9\.attn\.q_proj\.lora_a is no array", good | {"layers.9.attn.q_proj.lora_a": draw(32, 2)})


@pytest.fixture(scope="module")
def tied(tmp_path_factory):
    """A base whose head is its embedding, and an adapter of that: the base's folder and the adapter's."""
    base, adapter = (tmp_path_factory.mktemp("tied") / name for name in ("base", "adapter"))
    make_folder(base, tie_word_embeddings=True)
    rng, shapes = np.random.default_rng(5), {"lora_a": (258, 2), "lora_b": (2, 32)}
    factors = {f"embed.{leaf}": rng.standard_normal(s).astype(np.float32) for leaf, s in shapes.items()}
    adapter.mkdir()
    saved = Saved("lora", LoRAConfig(rank=2, alpha=4.0, targets=("embed",)), factors, {})
    save_adapter(adapter, saved, Card(str(base), fingerprint(base)))
    return base, adapter


def test_an_adapter_of_a_tied_embedding_is_a_source(tied):
    """The embedding and the head that it is read as are W + s A B, which is what the model opened whole is."""
    base, adapter = tied
    source = open_source(str(adapter), make_mesh(MeshConfig()))
    config = ModelConfig(dtype="float32", param_dtype="float32")
    model = open_model(str(adapter), config, make_mesh(MeshConfig()))
    a, b = (load_adapter(adapter, source.arch).params[f"embed.{leaf}"] for leaf in ("lora_a", "lora_b"))
    (table,) = [t for t in weights.tensors(Decoder(source.arch)) if t.logical == "embed.embedding"]
    head = table._replace(name="lm_head.weight", logical="head.kernel", transposed=True)  # as an untied base asks
    expected = open_source(str(base), make_mesh(MeshConfig())).read(table) + 2.0 * a @ b
    merged = model.merged()
    for found in (source.read(table), source.read(head), merged["embed"]["embedding"]):
        np.testing.assert_allclose(np.asarray(found), expected, rtol=1e-5, atol=1e-5)
    np.testing.assert_array_equal(source.read(head, (slice(7, 9),)), np.asarray(source.read(table))[7:9])
    tokens = np.array([[3, 40, 200, 7]])
    unmerged = tiny.logits(model.decoder, tokens, model.params, model.adapters)
    np.testing.assert_allclose(tiny.logits(model.decoder, tokens, merged), unmerged, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("method", ["lora_concat", "lora_svd", "lora_factor"])
def test_adapters_of_a_tied_embedding_are_refused_ahead(tied, tmp_path, method):
    """What they would become has no place in the format that these methods write."""
    config = MergeConfig(method, (str(tied[1]), str(tied[1])))
    with pytest.raises(UserError, match=r"/adapter adapts the embedding .* tied.*'linear'"):
        plan(config)


def test_what_cannot_be(folders, tmp_path):
    def refuse(message, method="lora_concat", models=("a", "b"), **fields):
        with pytest.raises(UserError, match=message):
            merge(MergeConfig(method, tuple(str(folders / n) for n in models), **fields), tmp_path / "merged")
        assert not (tmp_path / "merged").exists()

    refuse("base is neither a LoRA run's workdir nor an adapter's folder", models=("a", "base"))
    refuse(r"config\.density is set, but", density=(0.5,))
    refuse(r"has 1 numbers for 2 models", weights=(1.0,))
    refuse("nearly cancel", "lora_factor", weights=(1.0, -1.0))
    refuse("config.models is empty", models=())
