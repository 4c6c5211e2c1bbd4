"""Adapters of every kind as folders: written, opened, measured, gone on from; and what is refused."""

import dataclasses
import json
import shutil

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxsft.adapters.folder import Saved, collect, load_adapter, overlay
from jaxsft.adapters.registry import METHODS
from jaxsft.config import AdapterConfig, DataConfig, ModelConfig, TrainConfig
from jaxsft.errors import UserError
from jaxsft.models import tensorfiles
from jaxsft.training.export import export_adapter, export_hf, export_peft
from jaxsft.training.program import abstract_batch, build
from jaxsft.training.restore import OpenModel, open_model, open_start
from jaxsft.training.train import train
from jaxsft.validation import validate
from tests.conftest import REPOSITORY
from tests.evaluation.folders import make_folder
from tests.tiny import llama, logits_of
from tests.training.conftest import lines

FLOATS = ModelConfig(dtype="float32", param_dtype="float32")
SETTINGS = {"lora": {"rank": 4, "alpha": 8.0}, "spp": {"rank": 4}, "rows": {"targets": ("embed",), "ids": (3, 5)}}
TARGETS = ("layers.*.attn.*_proj", "layers.1.mlp.up_proj")
KINDS = [kind for kind in METHODS if kind != "none"]


def settings(kind: str) -> AdapterConfig:
    config = AdapterConfig(kind)
    for name, value in ({"targets": TARGETS} | SETTINGS.get(kind, {})).items():
        setattr(getattr(config, kind), name, value)
    return config


@pytest.fixture(scope="module")
def opened(source, mesh):
    """kind -> a model with an adapter of that kind, its numbers not those of a fresh one."""

    def make(kind: str) -> OpenModel:
        plain = open_model(str(source), FLOATS, mesh)
        run = TrainConfig(batch_size=1, model=dataclasses.replace(FLOATS, remat="none"), adapter=settings(kind))
        program = build(run, plain.decoder.arch, mesh, 1, abstract_batch(1, 1, 1))
        state, frozen = program.initial(plain.params)
        rng = np.random.default_rng(1)
        noise = jax.tree.map(lambda p: jnp.asarray(0.1 * rng.normal(size=p.shape), p.dtype), state.params)
        mask = program.method.update_mask(state.params)
        noise = noise if mask is None else jax.tree.map(jnp.multiply, noise, mask)
        parts = frozen.parts(jax.tree.map(jnp.add, state.params, noise), state.aux["method"])
        made = program.decoder, *program.method.compose(parts, {}), program.method, parts
        return OpenModel(*made, plain.tokenizer, "plain", plain.source)

    known: dict[str, OpenModel] = {}
    return lambda kind: known.setdefault(kind, make(kind))


@pytest.mark.parametrize("kind", KINDS)
def test_a_folder_of_every_kind(opened, source, mesh, kind, tmp_path):
    """It opens to the same numbers, holds nothing of the base, and says what it is of."""
    model = opened(kind)
    line = export_adapter(model, tmp_path / "out")
    again = open_model(str(tmp_path / "out"), FLOATS, mesh)
    np.testing.assert_array_equal(logits_of(again), logits_of(model))
    assert np.abs(logits_of(model) - logits_of(open_model(str(source), FLOATS, mesh))).max() > 1e-3
    assert (again.template, again.source) == ("plain", source) and again.method.config == model.method.config
    card = json.loads((tmp_path / "out" / "adapter.json").read_text())
    assert (card["kind"], card["base"]["name"]) == (kind, str(source)) and card["version"]
    table = (REPOSITORY / "docs" / "formats.md").read_text().split("| field of `adapter.json` | |\n|---|---|\n")[1]
    assert list(card) == [row.split("`")[1] for row in table.split("\n\n")[0].splitlines()]
    names = tensorfiles.TensorFile(tmp_path / "out" / "adapter.safetensors", integers=True).entries
    assert not {name.rpartition(".")[2] for name in names} & {"kernel", "embedding", "bias"}
    trained = "params.embed" if kind == "rows" else "params.layers.1.mlp.up_proj"
    assert trained in {name.rpartition(".")[0] for name in names}
    assert not [name for name in names if name.startswith("params.layers.0.mlp")], "layer 0 is not targeted there"
    assert f"of the kind {kind}" in line
    export_hf(again, tmp_path / "merged", mesh) if kind in ("lora", "spp") else None


def test_whole_numbers_and_truth_values_survive(tmp_path):
    """A method's indices, in the same file; a model's weights of such types stay refused."""
    arch, rng = llama(), np.random.default_rng(0)
    own = {
        "indices": rng.integers(0, 99, (3, 5), dtype=np.int32),
        "ages": rng.integers(0, 9, (3, 5)).astype(np.uint8),
        "done": rng.random((3, 2)) < 0.5,
        "deltas": rng.normal(size=(3, 5)).astype(np.float32),
    }
    tree = {"stacks": {"0": {"0": {"attn": {"q_proj": own}}}}, "clock": np.int32(7)}
    arrays = collect(arch, tree)
    assert len(arrays) == 3 * 4 + 1 and arrays["layers.2.attn.q_proj.indices"].shape == (5,)
    entries = {name: (array.dtype, array.shape) for name, array in arrays.items()}
    tensorfiles.write(tmp_path / "arrays.safetensors", entries, arrays.__getitem__)
    file = tensorfiles.TensorFile(tmp_path / "arrays.safetensors", integers=True)
    read = {name: file.read(name) for name in file.entries}
    again = overlay(arch, jax.tree.map(np.zeros_like, tree), read, "here", arrays)
    jax.tree.map(np.testing.assert_array_equal, again, tree)
    assert [leaf.dtype for leaf in jax.tree.leaves(again)] == [np.asarray(leaf).dtype for leaf in jax.tree.leaves(tree)]
    strict = tensorfiles.TensorFile(tmp_path / "arrays.safetensors")
    with pytest.raises(UserError, match="clock is stored as I32; only F64"):
        strict.read("clock")


def test_a_folder_that_does_not_fit(opened, source, mesh, tmp_path):
    export_adapter(opened("spp"), tmp_path / "out")
    arch = opened("spp").decoder.arch
    saved = load_adapter(tmp_path / "out", arch)
    tree = opened("spp").parts.params
    name = next(iter(saved.params))
    for params, message in [
        (saved.params | {name: np.zeros((9, 9), np.float32)}, rf"here: {name} is float32\[9, 9\], but"),
        (saved.params | {"layers.0.attn.q_proj.lora_a": np.zeros(1)}, "here: .*lora_a is no array of this adapter"),
        ({k: v for k, v in saved.params.items() if k != name}, f"here lacks {name}"),
    ]:
        with pytest.raises(UserError, match=message):
            overlay(arch, tree, params, "here", saved.params)
    file = tmp_path / "out" / "adapter.json"
    card = json.loads(file.read_text())
    other = tmp_path / "other"
    make_folder(other, intermediate_size=64)
    for changes, flag, message in [
        ({"base": {"name": "/gone/away", "fingerprint": ""}}, "", "adapter for /gone/away, which is no folder here"),
        ({"base": {"name": "", "fingerprint": ""}}, "", "does not say what model it is for; name it with --base"),
        ({}, str(other), "is not the model that .* was trained on"),
        ({"kind": "unheard"}, "", "kind is 'unheard', which this version does not know"),
        ({"config": {"rang": 4}}, "", "config.rang is no field"),
        ({"base": None}, "", "is no description of an adapter"),
    ]:
        file.write_text(json.dumps(card | changes))
        with pytest.raises(UserError, match=message) as caught:
            open_model(str(tmp_path / "out"), dataclasses.replace(FLOATS, base=flag), mesh)
        assert "\n" not in str(caught.value)
    moved = tmp_path / "moved"
    shutil.copytree(source, moved)
    file.write_text(json.dumps(card | {"base": card["base"] | {"name": "/gone/away"}}))
    again = open_model(str(tmp_path / "out"), dataclasses.replace(FLOATS, base=str(moved)), mesh)
    np.testing.assert_array_equal(logits_of(again), logits_of(opened("spp")))
    with pytest.raises(UserError, match=r"is a whole model, so --base .* has no effect"):
        open_model(str(source), dataclasses.replace(FLOATS, base=str(moved)), mesh)
    with pytest.raises(UserError, match="no adapter that could be written"):
        export_adapter(open_model(str(source), FLOATS, mesh), tmp_path / "none")
    with pytest.raises(UserError, match="not empty"):
        export_adapter(opened("lora"), tmp_path / "out")


def test_a_peft_folder_opens(opened, source, mesh, tmp_path):
    model = opened("lora")
    export_peft(model, tmp_path / "out")
    again = open_model(str(tmp_path / "out"), FLOATS, mesh)
    np.testing.assert_allclose(logits_of(again), logits_of(model), atol=1e-6)
    assert again.source == source and again.companions == tmp_path / "out"
    export_hf(again, tmp_path / "merged", mesh)
    np.testing.assert_allclose(
        logits_of(open_model(str(tmp_path / "merged"), FLOATS, mesh)), logits_of(model), atol=2e-5
    )
    assert (tmp_path / "merged" / "chat_template.jinja").read_text() == (
        tmp_path / "out" / "chat_template.jinja"
    ).read_text()


def test_a_hub_name(opened, source, mesh, tmp_path, monkeypatch):
    """What is fetched of a hub's folder includes the adapter's own files, and it opens like a local one."""
    import huggingface_hub

    export_peft(opened("lora"), tmp_path / "remote")
    asked = {}

    def download(name, allow_patterns):
        asked[name] = allow_patterns
        (tmp_path / "fetched").mkdir()
        for file in (tmp_path / "remote").iterdir():
            if any(file.match(pattern) for pattern in allow_patterns):
                shutil.copy(file, tmp_path / "fetched")
        return str(tmp_path / "fetched")

    monkeypatch.setattr(huggingface_hub, "snapshot_download", download)
    again = open_model("someone/adapter", FLOATS, mesh)
    np.testing.assert_allclose(logits_of(again), logits_of(opened("lora")), atol=1e-6)
    assert list(asked) == ["someone/adapter"]


def run(source, records, tmp_path, kind: str, **adapter) -> TrainConfig:
    config = TrainConfig(batch_size=8, steps=2, adapter=settings(kind))
    config.data = DataConfig(str(records), template="plain", max_length=256, packing=False)
    config.data.cache_dir, config.model.path, config.log.tensorboard = str(tmp_path / "cache"), str(source), False
    config.optimizer.learning_rate, config.optimizer.warmup_steps = 1e-2, 0
    config.checkpoint.every, config.checkpoint.keep_latest = 1, 9
    for name, value in adapter.items():
        setattr(config.adapter, name, value)
    validate(config)
    return config


@pytest.fixture(scope="module")
def records(tmp_path_factory):
    path = tmp_path_factory.mktemp("records") / "records.jsonl"
    words = ("blue", "a sea", "grey skies", "green")
    path.write_text("".join(json.dumps({"prompt": words[i % 4], "completion": words[i % 3]}) + "\n" for i in range(16)))
    return path


def test_training_goes_on_from_an_adapter(source, records, mesh, tmp_path):
    """From a workdir, the folder of its export and PEFT's the losses are the same, the first less than a fresh one's; a
    run that was broken off goes on, with what a term of the loss keeps of the start."""
    first = run(source, records, tmp_path, "lora")
    train(first, str(tmp_path / "first"))
    model = open_model(str(tmp_path / "first"), FLOATS, mesh)
    export_adapter(model, tmp_path / "folder")
    export_peft(model, tmp_path / "peft")
    losses = {}
    for name in ("first", "folder", "peft"):
        config = run(source, records, tmp_path, "lora", start=str(tmp_path / name))
        config.objective.regularizers.l2_to_start = 0.1
        train(config, str(tmp_path / f"on-{name}"))
        losses[name] = lines(tmp_path / f"on-{name}")
    assert losses["first"] == losses["folder"] == losses["peft"]
    assert losses["first"][0]["loss/l2_to_start"] == 0 < losses["first"][1]["loss/l2_to_start"]
    assert losses["first"][0]["loss"] < lines(tmp_path / "first")[0]["loss"]
    broken = tmp_path / "broken"
    shutil.copytree(tmp_path / "on-folder", broken)
    (broken / "summary.json").unlink()
    shutil.rmtree(broken / "checkpoints" / "2")
    config = run(source, records, tmp_path, "lora", start=str(tmp_path / "folder"))
    config.objective.regularizers.l2_to_start = 0.1
    train(config, str(broken))
    assert lines(broken) == losses["folder"]


@pytest.mark.parametrize(
    ("kind", "change", "message"),
    [
        ("spp", {}, r"config.adapter.start=.*is of the kind 'lora', but config.adapter.kind is 'spp'"),
        ("lora", {"rank": 8}, r"has rank = 4, but config.adapter.lora.rank is 8; set it to that"),
        ("lora", {"alpha": 9.0}, r"has alpha = 8.0, but config.adapter.lora.alpha is 9.0"),
        ("lora", {"targets": ("layers.*.attn.*_proj",)}, r"has adapter at layers.1.mlp.up_proj, which .* leave out"),
        ("lora", {"targets": (*TARGETS, "head")}, r"has no adapter at head, which .* name; set them to"),
    ],
)
def test_a_start_that_does_not_fit(opened, source, mesh, tmp_path, kind, change, message):
    export_adapter(opened("lora"), tmp_path / "folder")
    config = TrainConfig(adapter=settings(kind))
    config.adapter.start = str(tmp_path / "folder")
    for name, value in change.items():
        setattr(getattr(config.adapter, kind), name, value)
    with pytest.raises(UserError, match=message) as caught:
        open_start(config, opened("lora").decoder.arch, mesh)
    assert "\n" not in str(caught.value)


def test_what_may_differ_at_a_start(opened, source, mesh, tmp_path):
    """Dropout, and how the same targets are written."""
    export_adapter(opened("lora"), tmp_path / "folder")
    config = TrainConfig(adapter=settings("lora"))
    config.adapter.start, config.adapter.lora.dropout = str(tmp_path / "folder"), 0.3
    config.adapter.lora.targets = ("layers.*.attn", "layers.1.mlp.up_proj")
    saved, prints = open_start(config, opened("lora").decoder.arch, mesh)
    assert isinstance(saved, Saved) and set(prints) == {"adapter_start"}
    config.adapter.start = str(source)
    with pytest.raises(UserError, match="is no adapter: it has neither"):
        open_start(config, opened("lora").decoder.arch, mesh)


def test_an_adapter_as_the_model_of_a_run_is_refused(opened, source, records, tmp_path):
    export_adapter(opened("lora"), tmp_path / "folder")
    with pytest.raises(UserError, match=r"is an adapter; name its base there, and the adapter in config.adapter.start"):
        train(run(tmp_path / "folder", records, tmp_path, "lora"), str(tmp_path / "run"))
