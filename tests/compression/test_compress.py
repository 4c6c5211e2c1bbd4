"""Whole models: what a folder of changes takes, that it opens as the model it stands for, and what is refused."""

import json
import os
import shutil
import signal
import sys
import textwrap

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

from jaxsft.adapters.peft import save_factors
from jaxsft.compression.plan import make_plan
from jaxsft.compression.run import compress, compress_or_find
from jaxsft.config import (
    CompressConfig,
    DataConfig,
    MeshConfig,
    ModelConfig,
    RecipeConfig,
    StageConfig,
    SuiteConfig,
    TaskConfig,
    TrainConfig,
)
from jaxsft.errors import UserError
from jaxsft.merging.sources import open_source
from jaxsft.models.checkpoint import fingerprint, load_architecture, save_hf
from jaxsft.recipes.run import run as run_recipe
from jaxsft.sharding import make_mesh
from jaxsft.training.export import export_hf
from jaxsft.training.restore import open_model
from jaxsft.training.train import train
from tests.conftest import REPOSITORY
from tests.evaluation.folders import make_folder
from tests.training.conftest import data_file, model_folder, run

__all__ = ["data_file", "model_folder"]  # fixtures

NAME = "model.layers.1.mlp.up_proj.weight"


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    """A start, and a model tuned from it in every tensor."""
    here = tmp_path_factory.mktemp("models")
    decoder, params = make_folder(here / "start")
    tuned = jax.tree.map(lambda p: p + 0.02 * jax.random.normal(jax.random.key(p.size), p.shape), params)
    save_hf(here / "tuned", decoder, tuned, tokenizer_from=here / "start")
    (here / "tuned" / "chat_template.jinja").write_text("{{ messages[0].content }}")
    return here


def config_of(folders, **fields):
    return CompressConfig(**{"model": str(folders / "tuned"), "base": str(folders / "start")} | fields)


def opened(path, **fields):
    return open_model(str(path), ModelConfig(param_dtype="float32", **fields), make_mesh(MeshConfig()))


def restored(path, tmp_path):
    """The tensors of the folder that scripts/export.py would make."""
    shutil.rmtree(tmp_path / "whole", ignore_errors=True)
    export_hf(opened(path), tmp_path / "whole", make_mesh(MeshConfig()))
    return load_file(tmp_path / "whole" / "model.safetensors")


def edited(folders, tmp_path, change, name="tuned"):
    """A copy of a model whose tensors `change` has changed."""
    shutil.copytree(folders / name, tmp_path / "edited")
    file = tmp_path / "edited" / "model.safetensors"
    tensors = load_file(file)
    change(tensors)
    save_file(tensors, file, metadata={"format": "pt"})
    return tmp_path / "edited"


def manifest(folder):
    return json.loads((folder / "compression.json").read_text())


def truncated(change, columns):
    left, values, right = np.linalg.svd(change.astype(np.float64), full_matrices=False)
    return (left[:, :columns] * values[:columns]) @ right[:columns]


def test_a_restored_model_is_its_base_and_the_truncated_changes(folders, tmp_path):
    """At 16 bits, against NumPy in float64; what is not compressed is the tuned model's to the bit."""
    compress(config_of(folders, bits=(16,), columns=(5,)), tmp_path / "out")
    start, tuned = (load_file(folders / name / "model.safetensors") for name in ("start", "tuned"))
    found = restored(tmp_path / "out", tmp_path)
    assert found.keys() == tuned.keys()
    for name, tensor in found.items():
        if "_proj" in name:
            wanted = start[name] + truncated(tuned[name] - start[name], 5)
            np.testing.assert_allclose(tensor, wanted, atol=1e-5)
            record = manifest(tmp_path / "out")["tensors"][name]
            error = np.linalg.norm(tensor - tuned[name]) / np.linalg.norm(tuned[name] - start[name])
            assert abs(record["error"] - error) < 1e-3 and abs(record["energy"] - (1 - error**2)) < 1e-3
        else:
            np.testing.assert_array_equal(tensor, tuned[name])
    assert (tmp_path / "whole" / "chat_template.jinja").read_text() == "{{ messages[0].content }}"


def test_the_bytes_are_those_on_the_disk(folders, tmp_path):
    """Of the plan, of the manifest, and of each tensor; and what the lines are of."""
    config = config_of(folders, targets=("layers.*.attn", "layers.[12].mlp", "embed", "head"), size_ratio=12.0)
    plan = make_plan(config)
    out = compress(config, tmp_path / "out").splitlines()
    held = {file.name: file.stat().st_size for file in (tmp_path / "out").glob("*.safetensors")}
    said, tensors = manifest(tmp_path / "out")["bytes"], {}
    assert sum(held.values()) == said["files"] == plan.file_bytes
    assert f"writes {plan.file_bytes:,} bytes at most" in "\n".join(plan.describe())
    assert f"{plan.file_bytes:,} bytes, 1/" in out[-1]
    for name in held:
        tensors |= load_file(tmp_path / "out" / name)
    records = manifest(tmp_path / "out")["tensors"]
    for name, record in records.items():
        own = sum(array.nbytes for key, array in tensors.items() if key == name or key.startswith(f"{name}."))
        assert record["bytes"] == own
        if record["groups"]:
            shape = load_file(folders / "start" / "model.safetensors")[name].shape
            assert own <= 2 * np.prod(shape) / 12 and record["bits"] == 8 * own / np.prod(shape)
    assert records["model.embed_tokens.weight"]["groups"] and not records["model.layers.0.mlp.up_proj.weight"]["groups"]
    assert said["coded"] + said["plain"] == sum(record["bytes"] for record in records.values())
    assert said["headers"] == said["files"] - said["coded"] - said["plain"]
    assert said["dense"] == sum(t.nbytes for t in load_file(folders / "tuned" / "model.safetensors").values())
    assert [line.split("  ")[0].strip() for line in out[1:-1]] == [
        "embed", "head", "attn.k_proj", "attn.o_proj", "attn.q_proj", "attn.v_proj",
        "mlp.down_proj", "mlp.gate_proj", "mlp.up_proj", "layer 0", "layer 1", "layer 2", "all",
    ]  # fmt: skip


def test_what_is_the_same_costs_nothing(folders, tmp_path):
    shutil.copytree(folders / "start", tmp_path / "same")
    line = compress(config_of(folders, model=str(tmp_path / "same")), tmp_path / "out")
    assert "nothing differs from the base" in line and not list((tmp_path / "out").glob("*.safetensors"))
    start = load_file(folders / "start" / "model.safetensors")
    for name, tensor in restored(tmp_path / "out", tmp_path).items():
        np.testing.assert_array_equal(tensor, start[name])


def test_low_rank_changes_cost_their_rank(folders, tmp_path):
    rng = np.random.default_rng(0)

    def change(tensors):
        rows, columns = tensors[NAME].shape
        update = rng.standard_normal((rows, 3)) @ rng.standard_normal((3, columns))
        tensors[NAME] = (tensors[NAME] + 0.01 * update).astype(np.float32)

    tuned = edited(folders, tmp_path, change, "start")
    compress(config_of(folders, model=str(tuned), bits=(16,), columns=(20,)), tmp_path / "out")
    assert {name: record["groups"] for name, record in manifest(tmp_path / "out")["tensors"].items()} == {
        NAME: [[16, 3]]
    }
    assert [file.name for file in (tmp_path / "out").glob("*.safetensors")] == ["delta-layer-00001.safetensors"]
    found, wanted = restored(tmp_path / "out", tmp_path), load_file(tuned / "model.safetensors")
    for name, tensor in found.items():
        np.testing.assert_allclose(tensor, wanted[name], atol=1e-5 if name == NAME else 0)


@pytest.mark.parametrize("dtype", ["auto", "float32"])
def test_another_dtype(folders, tmp_path, dtype):
    """A bfloat16 model of a bfloat16 base comes back in bfloat16, rounded once, or unrounded where that is asked."""
    for name in ("start", "tuned"):
        export_hf(opened(folders / name), tmp_path / name, make_mesh(MeshConfig()), "bfloat16")
    compress(config_of(tmp_path, bits=(16,), columns=(5,), dtype=dtype), tmp_path / "out")
    start, tuned = (load_file(tmp_path / name / "model.safetensors") for name in ("start", "tuned"))
    wide = lambda array: np.asarray(array, np.float32)
    for name, tensor in restored(tmp_path / "out", tmp_path).items():
        assert tensor.dtype == (np.float32 if dtype == "float32" else jnp.bfloat16)
        wanted = wide(tuned[name])
        if "_proj" in name:
            wanted = wide(start[name]) + truncated(wide(tuned[name]) - wide(start[name]), 5)
        np.testing.assert_allclose(wide(tensor), wanted, rtol=2**-8 if dtype == "auto" else 0, atol=1e-5)


def test_every_way_of_opening_gives_the_same(folders, tmp_path):
    """Read piece by piece over eight devices, quantised on the way, merged: as the folder that was written out."""
    compress(config_of(folders), tmp_path / "out")
    restored(tmp_path / "out", tmp_path)
    for fields in ({}, {"quantization": "int8"}):
        model, whole = (opened(folder, **fields) for folder in (tmp_path / "out", tmp_path / "whole"))
        jax.tree.map(np.testing.assert_array_equal, model.params, whole.params)
        assert model.tokenizer.fingerprint == whole.tokenizer.fingerprint
    mesh = make_mesh(MeshConfig())
    sources = [open_source(str(tmp_path / name), mesh) for name in ("out", "whole")]
    tensor = next(p.tensor for p in make_plan(config_of(folders)).tensors if p.tensor.name == NAME)
    np.testing.assert_array_equal(*(np.asarray(source.read(tensor)) for source in sources))


def test_a_base_that_moved_or_changed(folders, tmp_path):
    shutil.copytree(folders / "start", tmp_path / "base")
    compress(config_of(folders, base=str(tmp_path / "base")), tmp_path / "out")
    before = opened(tmp_path / "out").params
    (tmp_path / "base").rename(tmp_path / "moved")
    with pytest.raises(UserError, match=r"out holds what changed of .*base, which is no folder here .* --base=FOLDER"):
        opened(tmp_path / "out")
    found = opened(tmp_path / "out", base=str(tmp_path / "moved")).params
    jax.tree.map(np.testing.assert_array_equal, found, before)
    shutil.copytree(folders / "tuned", tmp_path / "base")
    with pytest.raises(UserError, match=r"base is not the model whose changes .*out holds; restore it, or name it"):
        opened(tmp_path / "out")


def test_broken_folders(folders, tmp_path):
    def refuse(message):
        with pytest.raises(UserError, match=message):
            opened(tmp_path / "out")
        shutil.rmtree(tmp_path / "out")

    def fresh():
        compress(config_of(folders), tmp_path / "out")
        return tmp_path / "out"

    (fresh() / "delta-norm.safetensors").unlink()
    refuse(r"out holds no delta-norm\.safetensors, which its compression\.json names; copy the folder again")
    file = fresh() / "delta-layer-00001.safetensors"
    file.write_bytes(file.read_bytes()[:-10])
    refuse("delta-layer-00001.safetensors is no whole safetensors file")
    tensors = load_file(fresh() / "delta-layer-00001.safetensors")
    tensors[f"{NAME}.codes"] = tensors[f"{NAME}.codes"][:-1]
    save_file(tensors, tmp_path / "out" / "delta-layer-00001.safetensors")
    refuse(rf"holds {NAME}\.codes in another size; copy the folder again")
    (fresh() / "compression.json").write_text('{"kind": "compression"}')
    refuse(r"compression\.json is no description of a compressed model")
    found = manifest(fresh())
    found["tensors"]["model.layers.9.mlp.up_proj.weight"] = found["tensors"][NAME]
    (tmp_path / "out" / "compression.json").write_text(json.dumps(found))
    refuse(r"names model\.layers\.9\.mlp\.up_proj\.weight, which is no tensor of")


def test_refusals(folders, tmp_path):
    make_folder(tmp_path / "wide", intermediate_size=96)
    huge = edited(folders, tmp_path, lambda tensors: tensors[NAME].fill(3e38)).rename(tmp_path / "huge")
    nan = edited(folders, tmp_path, lambda tensors: tensors[NAME].__setitem__((3, 4), np.nan))
    before = sorted(tmp_path.iterdir())

    def refuse(message, **fields):
        with pytest.raises(UserError, match=message):
            compress(config_of(folders, **fields), tmp_path / "out")
        assert sorted(tmp_path.iterdir()) == before, "something was left behind"

    refuse(r"config\.model is empty", model="")
    refuse(r"tuned does not say what it was tuned from; set config\.base", base="")
    refuse(r"tuned and .*wide are models of different shapes \(mlp_dim\)", base=str(tmp_path / "wide"))
    refuse(rf"edited: {NAME} holds numbers that are not finite", model=str(nan))
    refuse(rf"edited: {NAME} holds numbers that are not finite", base=str(nan))
    refuse(r"what changed of model\.layers\.1\.mlp\.up_proj\.weight leave the range of float32", model=str(huge))
    refuse(r"config\.targets: 'layers\.\*\.atn' names nothing", targets=("layers.*.atn",))
    refuse(r"config\.size_ratio 400 leaves no singular vector of model\.layers\.0", size_ratio=400.0)
    refuse(r"config\.columns is \(2,\)", columns=(2,))
    compress(config_of(folders), tmp_path / "small")
    before = sorted(tmp_path.iterdir())
    refuse(r"config\.base=.*small is no model folder", base=str(tmp_path / "small"))
    with pytest.raises(UserError, match="small exists and is not empty"):
        compress(config_of(folders), tmp_path / "small")


FAULT = """
    import os, resource, signal, sys
    from jaxsft.cli import main
    from jaxsft.compression import run
    from jaxsft.config import CompressConfig
    fault, output, model, base = sys.argv[1:]
    del sys.argv[1:]
    if fault == "full":
        resource.setrlimit(resource.RLIMIT_FSIZE, (3000, 3000))
    decompose, left = run.decompose, [9]
    def killed(change):
        left[0] -= 1
        if not left[0] and fault == "kill":
            os.kill(os.getpid(), signal.SIGKILL)
        return decompose(change)
    run.decompose = killed
    main(lambda: run.compress(CompressConfig(model=model, base=base), output))
"""


def test_a_full_disk_and_a_kill_leave_no_half_folder(folders, tmp_path):
    def compressed(fault):
        models = [str(folders / "tuned"), str(folders / "start")]
        return run([sys.executable, "-c", textwrap.dedent(FAULT), fault, str(tmp_path / "out"), *models])

    full = compressed("full")
    assert full.returncode == 1 and "out cannot be written: " in full.stderr and "Traceback" not in full.stderr
    assert list(tmp_path.iterdir()) == []
    assert compressed("kill").returncode == -signal.SIGKILL
    assert not (tmp_path / "out").exists()
    compress(config_of(folders), tmp_path / "out")  # what the kill left is hidden and in nobody's way
    opened(tmp_path / "out")


def test_a_lora_run_by_the_script(model_folder, data_file, tmp_path):
    """A workdir knows its base, and its changes are of the adapter's rank; a plan writes nothing."""
    config = TrainConfig(batch_size=8, steps=4)
    config.model.path, config.data.path, config.data.template = str(model_folder), str(data_file), "plain"
    config.data.max_length, config.data.cache_dir, config.log.tensorboard = 64, str(tmp_path / "cache"), False
    config.adapter.kind, config.adapter.lora.rank, config.optimizer.learning_rate = "lora", 3, 1e-2
    train(config, str(tmp_path / "run"))
    script = [sys.executable, str(REPOSITORY / "scripts/compress.py")]
    script += [f"--config={REPOSITORY}/configs/compress/delta_come.py", f"--config.model={tmp_path / 'run'}"]
    script += [f"--output={tmp_path / 'out'}", "--config.size_ratio=4"]
    planned = run([*script, "--dry_run"])
    assert planned.returncode == 0, planned.stderr
    assert "nothing written (--dry_run)" in planned.stdout and not (tmp_path / "out").exists()
    done = run(script)
    assert done.returncode == 0, done.stderr
    held = manifest(tmp_path / "out")
    assert held["base"] == {"name": str(model_folder), "fingerprint": fingerprint(model_folder)}
    assert len(held["tensors"]) == 21
    for record in held["tensors"].values():
        assert sum(columns for _, columns in record["groups"]) == 3 and record["energy"] > 1 - 1e-6
    assert opened(tmp_path / "out").template == "plain"
    with pytest.raises(UserError, match=r"out holds what changed of a base, .*scripts/export\.py --model="):
        load_architecture(tmp_path / "out")


def test_an_adapters_folder_knows_its_base(folders, tmp_path):
    """Its changes are of its rank, without the base being named; and it is no base itself."""
    rng = np.random.default_rng(0)
    factors = {"layers.1.mlp.up_proj": {"lora_a": rng.normal(size=(32, 3)), "lora_b": rng.normal(size=(3, 48))}}
    arch = load_architecture(folders / "start")
    save_factors(tmp_path / "adapter", arch, factors, 3, 3.0, str(folders / "start"))
    config = CompressConfig(model=str(tmp_path / "adapter"), bits=(16,), columns=(20,))
    compress(config, tmp_path / "out")
    held = manifest(tmp_path / "out")
    assert held["base"] == {"name": str(folders / "start"), "fingerprint": fingerprint(folders / "start")}
    assert {name: record["groups"] for name, record in held["tensors"].items()} == {NAME: [[16, 3]]}
    start, found = load_file(folders / "start" / "model.safetensors"), restored(tmp_path / "out", tmp_path)
    update = factors["layers.1.mlp.up_proj"]["lora_a"] @ factors["layers.1.mlp.up_proj"]["lora_b"]
    assert np.linalg.norm(found[NAME] - start[NAME] - update.T) < 1e-4 * np.linalg.norm(update)
    with pytest.raises(UserError, match=r"config\.base=.*adapter is no model folder; write it out"):
        compress(config_of(folders, base=str(tmp_path / "adapter")), tmp_path / "other")


def test_a_stage_finds_what_it_left(folders, tmp_path):
    shutil.copytree(folders / "tuned", tmp_path / "tuned")
    config = config_of(folders, model=str(tmp_path / "tuned"))
    line = compress_or_find(config, tmp_path / "out")
    before = os.stat(tmp_path / "out" / "compression.json").st_mtime_ns
    assert compress_or_find(config, tmp_path / "out") == line
    assert os.stat(tmp_path / "out" / "compression.json").st_mtime_ns == before
    with pytest.raises(UserError, match="compressed in another way"):
        compress_or_find(config_of(folders, model=str(tmp_path / "tuned"), size_ratio=8.0), tmp_path / "out")
    shutil.copy(folders / "start" / "model.safetensors", tmp_path / "tuned" / "model.safetensors")
    with pytest.raises(UserError, match="models that are others by now"):
        compress_or_find(config, tmp_path / "out")


def test_a_stage_of_a_recipe(model_folder, data_file, tmp_path):
    """Trained, compressed against where the run started, and measured: at 16 bits as the run itself."""
    data = DataConfig(str(data_file), template="plain", max_length=64, cache_dir=str(tmp_path / "cache"))
    config = TrainConfig(data=data, batch_size=8, steps=3)
    config.model.path, config.log.tensorboard, config.optimizer.learning_rate = str(model_folder), False, 1e-2
    task = TaskConfig("likelihood", "perplexity", data)
    measured = lambda name: SuiteConfig([task], ModelConfig(f"{{{name}}}", dtype="float32"))
    stages = [
        StageConfig("tuned"),
        StageConfig("small", "compress", CompressConfig("{tuned}", bits=(16,), columns=(64,))),
        StageConfig("of_tuned", "evaluate", measured("tuned")),
        StageConfig("of_small", "evaluate", measured("small")),
    ]
    run_recipe(RecipeConfig(config, stages), str(tmp_path / "work"))
    assert manifest(tmp_path / "work" / "small")["base"]["name"] == str(model_folder)
    read = lambda name: json.loads((tmp_path / "work" / name / "evaluation.json").read_text())["tasks"]["likelihood"]
    assert read("of_small")["nll_per_token"] == pytest.approx(read("of_tuned")["nll_per_token"], rel=1e-4)


def test_the_page_of_formats_names_every_field(folders, tmp_path):
    compress(config_of(folders), tmp_path / "out")
    page = (REPOSITORY / "docs" / "formats.md").read_text().split("| field of `compression.json` | |\n|---|---|\n")[1]
    named = [line.split("`")[1] for line in page.split("\n\n")[0].splitlines()]
    assert named == list(manifest(tmp_path / "out"))
