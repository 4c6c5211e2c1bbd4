"""Merging what lies on disk: the same numbers as in memory, what is refused, and what a fault leaves behind."""

import errno
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

from jaxsft.config import MergeConfig, MergeRule, MeshConfig, ModelConfig
from jaxsft.errors import UserError
from jaxsft.merging.merge import _finite, merge, merge_or_find, plan
from jaxsft.merging.plan import make_plan
from jaxsft.merging.registry import METHODS
from jaxsft.merging.settings import Settings
from jaxsft.merging.sources import open_source
from jaxsft.merging.trees import merge_trees
from jaxsft.models import layout, weights
from jaxsft.models.checkpoint import load_params, save_hf
from jaxsft.models.decoder import Decoder
from jaxsft.models.tensorfiles import TensorFile
from jaxsft.sharding import make_mesh
from jaxsft.training.restore import open_model
from tests.conftest import REPOSITORY
from tests.evaluation.folders import make_folder
from tests.tiny import llama
from tests.training.conftest import command, data_file, model_folder, run

__all__ = ["command", "data_file", "model_folder"]  # fixtures


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    """A start and two models tuned from it, that share shape and tokenizer."""
    here = tmp_path_factory.mktemp("models")
    decoder, params = make_folder(here / "start")
    for i, name in enumerate(("one", "two")):
        other = jax.tree.map(lambda p: p + 0.1 * jax.random.normal(jax.random.key(p.size + i), p.shape), params)  # noqa: B023
        save_hf(here / name, decoder, other, tokenizer_from=here / "start")
    (here / "two" / "chat_template.jinja").write_text("{{ messages[0].content }}")
    return here


def config_of(folders, method="linear", **fields):
    base = {"base": str(folders / "start")} if METHODS[method].needs_base else {}
    return MergeConfig(**{"method": method, "models": (str(folders / "one"), str(folders / "two"))} | base | fields)


def loaded(folder):
    """(decoder, its parameters on one device)."""
    decoder = Decoder(make_plan(MergeConfig(models=(str(folder),))).arch)
    return decoder, load_params(folder, decoder)


def same(one, other, **tolerance):
    jax.tree.map(lambda a, b: np.testing.assert_allclose(np.asarray(a), np.asarray(b), **tolerance), one, other)


def test_the_script_leaves_a_folder_that_every_script_opens(folders, tmp_path):
    config = f"--config={REPOSITORY}/configs/merge/wise_ft.py"
    models = f"--config.models=('{folders / 'start'}', '{folders / 'two'}')"
    command = [sys.executable, str(REPOSITORY / "scripts" / "merge.py"), config, models]
    command += ["--config.weights=(0.75, 0.25)", f"--output={tmp_path / 'merged'}"]
    planned = run([*command, "--dry_run"])
    assert planned.returncode == 0, planned.stderr
    assert "30 tensors: weights (0.75, 0.25)" in planned.stdout and "nothing written" in planned.stdout
    assert "has another chat template" in planned.stdout
    assert not (tmp_path / "merged").exists()
    done = run(command)
    assert done.returncode == 0, done.stderr
    assert "the rounding error is 0.00% of the distance to the first model" in done.stdout.splitlines()[-1]
    mesh = make_mesh(MergeConfig().mesh)
    opened = open_model(str(tmp_path / "merged"), ModelConfig(), mesh)
    start, tuned = (load_params(folders / name, opened.decoder, mesh) for name in ("start", "two"))
    want = jax.tree.map(lambda a, b: 0.75 * np.asarray(a, np.float64) + 0.25 * np.asarray(b, np.float64), start, tuned)
    same(opened.params, want, rtol=1e-5, atol=1e-7)
    assert (tmp_path / "merged" / "chat_template.jinja").exists()
    manifest = json.loads((tmp_path / "merged" / "merge.json").read_text())
    assert [model["path"] for model in manifest["models"]] == [str(folders / "start"), str(folders / "two")]
    assert manifest["models"][0]["fingerprint"] == open_source(str(folders / "start"), mesh).fingerprint
    assert manifest["config"]["weights"] == [0.75, 0.25] and manifest["versions"]["jax"] == jax.__version__


@pytest.mark.parametrize("method", [name for name, method in METHODS.items() if not method.statistics])
def test_on_disk_as_in_memory(folders, tmp_path, method):
    """Streamed over eight devices, layer by layer, with rules and gradients, against trees on one."""
    reads, fields = METHODS[method].reads, {}
    if "weights" in reads:
        fields |= {"gradient": ((0.9, 0.1), (0.2, 0.8)), "rules": [MergeRule(("layers.*.mlp",), (0.3, 0.7))]}
    if "density" in reads:
        fields |= {"density": (0.5,)}
    config = config_of(folders, method, **fields)
    merge(config, tmp_path / "merged")
    decoder, found = loaded(tmp_path / "merged")
    trees = [loaded(folders / name)[1] for name in ("one", "two", "start")]
    want = merge_trees(decoder.arch, config, trees[:2], trees[2] if METHODS[method].needs_base else None)
    same(found, want, rtol=1e-5, atol=2e-6)


def test_a_stack_is_merged_layer_by_layer(folders):
    """Thresholds are of one layer's tensor: each is what it would be by itself."""
    decoder, one = loaded(folders / "one")
    _, two = loaded(folders / "two")
    _, start = loaded(folders / "start")
    scaled = layout.map_leaves(  # the first layer moves most, so a threshold of the whole stack would keep it alone
        lambda path, leaf: leaf * jnp.array([9.0, 1, 1]).reshape(-1, *[1] * (leaf.ndim - 1))
        if path[0] == "stacks" else leaf,
        jax.tree.map(jnp.subtract, one, start),
    )  # fmt: skip
    one = jax.tree.map(jnp.add, start, scaled)
    config = config_of(folders, "ties", density=(0.25,))
    merged = merge_trees(decoder.arch, config, [one, two], start)
    kernel = lambda tree: np.asarray(tree["stacks"]["0"]["0"]["mlp"]["up_proj"]["kernel"])
    moved = kernel(merged) != kernel(start)
    assert (moved.mean((1, 2)) > 0.25).all()


def test_integers_are_left_alone():
    config = MergeConfig(weights=(0.5, 0.5))
    trees = [{"embed": {"embedding": jnp.full((4, 2), x), "count": jnp.array([i])}} for i, x in enumerate((1.0, 3.0))]
    merged = merge_trees(llama(), config, trees)["embed"]
    assert (merged["embedding"] == 2).all() and merged["count"].dtype == jnp.int32 and merged["count"][0] == 0


def test_weights_by_depth_and_by_path():
    arch = llama()  # three layers
    rules = [MergeRule(("layers.*.attn",), gradient=((1, 0), (0, 1))), MergeRule(("layers.0.attn.q_proj",), (5, 6))]
    rules.append(MergeRule(("norm",), density=(0.1, 0.2)))
    gradient = ((1.0, 0.0), (0.0, 1.0), (1.0, 1.0))
    config = MergeConfig(method="task_arithmetic", gradient=gradient, rules=rules[:2])
    at = lambda name: Settings.of(config, 2, True, arch).at(name)[0]
    assert [at(f"layers.{i}.mlp.up_proj.kernel") for i in range(3)] == [(1, 0), (0, 1), (1, 1)]
    assert [at(f"layers.{i}.attn.k_proj.kernel") for i in range(3)] == [(1, 0), (0.5, 0.5), (0, 1)]
    assert at("layers.0.attn.q_proj.kernel") == (5, 6)
    # the embedding is before the first layer, norm and head are behind the last
    assert at("embed.embedding") == (1, 0) and at("norm.scale") == (1, 1) and at("head.kernel") == (1, 1)
    config = MergeConfig(method="ties", rules=rules[2:], density=(0.5,))
    assert Settings.of(config, 2, True, arch).at("norm.scale") == ((1, 1), (0.1, 0.2))
    assert Settings.of(config, 2, True, arch).at("embed.embedding") == ((1, 1), (0.5, 0.5))


def test_the_loss_of_rounding_is_said(folders, tmp_path):
    """Against NumPy; the update's share that bfloat16 loses grows as the update shrinks."""
    _, start = loaded(folders / "start")
    decoder, one = loaded(folders / "one")
    near = jax.tree.map(lambda a, b: a + 1e-3 * (b - a), start, one)
    save_hf(tmp_path / "near", decoder, near, tokenizer_from=folders / "start")
    config = MergeConfig("linear", (str(folders / "start"), str(tmp_path / "near")), weights=(0.5, 0.5))
    config.dtype = "bfloat16"
    line = merge(config, tmp_path / "merged")
    exact = [(np.asarray(a, np.float64) + np.asarray(b, np.float64)) / 2 for a, b in
             zip(jax.tree.leaves(start), jax.tree.leaves(near))]  # fmt: skip
    error = sum(((np.asarray(jnp.asarray(x, jnp.bfloat16), np.float64) - x) ** 2).sum() for x in exact)
    update = sum(((x - np.asarray(a, np.float64)) ** 2).sum() for x, a in zip(exact, jax.tree.leaves(start)))
    share = json.loads((tmp_path / "merged" / "merge.json").read_text())["rounding_error"]
    assert share > 1 and abs(share / (error / update) ** 0.5 - 1) < 1e-2
    assert "config.dtype='float32' keeps it" in line
    assert {e.dtype for e in TensorFile(tmp_path / "merged" / "model.safetensors").entries.values()} == {"BF16"}
    assert json.loads((tmp_path / "merged" / "config.json").read_text())["dtype"] == "bfloat16"


def test_tied_weights_are_merged_once(tmp_path):
    """Tied with tied stays tied; where only one is, the result has a head of its own."""
    decoder, params = make_folder(tmp_path / "tied", tie_word_embeddings=True)
    again = jax.tree.map(lambda p: p * 1.5, params)
    save_hf(tmp_path / "again", decoder, again, tokenizer_from=tmp_path / "tied")
    make_folder(tmp_path / "untied")
    merge(MergeConfig(models=(str(tmp_path / "tied"), str(tmp_path / "again"))), tmp_path / "both")
    assert "lm_head.weight" not in TensorFile(tmp_path / "both" / "model.safetensors").entries
    same(loaded(tmp_path / "both")[1], jax.tree.map(lambda p: p * 1.25, params), rtol=1e-5)
    merge(MergeConfig(models=(str(tmp_path / "untied"), str(tmp_path / "tied"))), tmp_path / "mixed")
    assert not json.loads((tmp_path / "mixed" / "config.json").read_text())["tie_word_embeddings"]
    head = (
        np.asarray(loaded(tmp_path / "untied")[1]["head"]["kernel"]) + np.asarray(params["embed"]["embedding"]).T
    ) / 2
    np.testing.assert_allclose(loaded(tmp_path / "mixed")[1]["head"]["kernel"], head, rtol=1e-5, atol=1e-7)


def test_vocabularies_are_aligned_by_token(folders, tmp_path):
    """Two tokens change places, one is unknown: rows follow their tokens, and the unknown one's is the last model's."""
    shutil.copytree(folders / "one", tmp_path / "other")
    file = tmp_path / "other" / "tokenizer.json"
    spec = json.loads(file.read_text())
    vocab = spec["model"]["vocab"]
    vocab["a"], vocab["b"] = vocab["b"], vocab["a"]
    vocab["new"] = vocab.pop("c")
    file.write_text(json.dumps(spec))
    models = (str(tmp_path / "other"), str(folders / "two"))
    with pytest.raises(UserError, match=r"different tokenizers .* set config\.vocabulary to 'last'"):
        merge(MergeConfig(models=models), tmp_path / "merged")
    merge(MergeConfig(models=models, vocabulary="last"), tmp_path / "merged")
    read = lambda folder: np.asarray(loaded(folder)[1]["embed"]["embedding"])
    one, two, got = read(folders / "one"), read(folders / "two"), read(tmp_path / "merged")
    a, b, c = (json.loads((folders / "two" / "tokenizer.json").read_text())["model"]["vocab"][t] for t in "abc")
    want = one.copy()
    want[[a, b]], want[c] = one[[b, a]], two[c]
    np.testing.assert_allclose(got, (want + two) / 2, rtol=1e-5, atol=1e-7)


@pytest.mark.parametrize("adapter", ["none", "lora"])
def test_workdirs_are_read_row_by_row(command, tmp_path, adapter):
    """A run's checkpoint, without opening the model, is what opening it gives."""
    extra = ["adapter.lora.targets=('layers.*.attn.*_proj', 'layers.1.mlp')"] if adapter == "lora" else []
    extra += ["optimizer.freeze=('embed', 'layers.0.mlp')", "optimizer.ema=0.5"] if adapter == "none" else []
    workdir = tmp_path / "run"
    done = run(command(workdir, f"adapter.kind={adapter}", "steps=4", "eval.every=0", *extra))
    assert done.returncode == 0, done.stderr
    mesh = make_mesh(MeshConfig())
    source = open_source(str(workdir), mesh)
    model = open_model(str(workdir), ModelConfig(dtype="float32", param_dtype="float32"), mesh)
    whole = layout.unstack(source.arch, model.merged())
    for tensor in weights.tensors(Decoder(source.arch)):
        got = np.asarray(source.read(tensor), np.float32)
        want = np.asarray(whole[tensor.logical])
        np.testing.assert_allclose(got.T if tensor.transposed else got, want, rtol=1e-6, atol=1e-7)
    config = MergeConfig("task_arithmetic", (str(workdir), str(workdir)), weights=(0.5, 0.5))
    merge(config, tmp_path / "merged")  # the base is where the runs started
    same(loaded(tmp_path / "merged")[1], model.merged(), rtol=1e-5, atol=1e-6)


def test_large_stacks_are_stored_a_layer_a_chunk(tmp_path):
    from jaxsft.config import CheckpointConfig
    from jaxsft.training.checkpoint import Checkpoints

    stack = jnp.arange(3.0)[:, None, None] + jnp.zeros((3, 1500, 1000))
    checkpoints = Checkpoints(tmp_path, CheckpointConfig())
    checkpoints.save(1, {"params": {"stacks": {"0": {"large": stack, "small": stack[:, :2]}}}}, {})
    checkpoints.wait()
    found = checkpoints.shapes(1)["params"]["stacks"]["0"]
    assert found["large"].storage_metadata.chunk_shape == (1, 1500, 1000)
    assert found["small"].storage_metadata.chunk_shape == (3, 2, 1000)
    for name in ("large", "small"):
        assert (checkpoints.read(1, ("params", "stacks", "0", name), 2) == 2).all()
    checkpoints.close()


def test_refusals(folders, tmp_path):
    start, two = str(folders / "start"), str(folders / "two")

    def refuse(message, **fields):
        with pytest.raises(UserError, match=message):
            merge(MergeConfig(**{"models": (start, two), "weights": (0.5, 0.5)} | fields), tmp_path / "merged")
        assert list(tmp_path.glob("merged*")) == list(tmp_path.glob(".merged*")) == []

    refuse(r"config\.method is 'liner'; .*did you mean 'linear'", method="liner")
    refuse(r"has 0 models; .* takes 1 or more", models=())
    refuse(r"has 1 models; the method 'slerp' takes 2", method="slerp", models=(start,), weights=(1.0,))
    refuse(r"config\.weights has 1 numbers for 2 models", weights=(1.0,))
    refuse(r"nearly cancel", weights=(0.5, -0.5))
    refuse(r"'ties' needs what the models were tuned from; set config\.base", method="ties")
    refuse(r"config\.gamma is set, but the method 'linear' does not read it", gamma=0.2)
    refuse(r"config\.base is set, but the method 'linear'", base=start)
    refuse(r"config\.rules\[0\]\.paths: 'layers\.\*\.atn' names nothing", rules=[MergeRule(("layers.*.atn",), (1, 2))])
    refuse(r"config\.rules\[0\] has no numbers", rules=[MergeRule(("embed",))])
    refuse(r"config\.rules\[0\]\.density is set, but", rules=[MergeRule(("embed",), density=(0.5,))])
    refuse(r"both weights and a gradient", gradient=((1.0, 0.0), (0.0, 1.0)))
    task = {"method": "ties", "base": start}
    refuse(r"config\.density is empty", **task, density=())
    refuse(r"config\.density holds 0; a share", **task, density=(0.0,))
    refuse(r"weights .* have both signs", **task, weights=(1.0, -0.5))
    refuse(r"config\.rescale is 'density', but the method 'ties'", **task, rescale="density")
    refuse(r"probabilities of 0\.85 to 1\.15", method="della", base=start)
    refuse(r"weights must be positive", method="karcher", weights=(1.0, 0.0))
    make_folder(tmp_path / "wide", intermediate_size=96)
    refuse(r"wide are models of different shapes \(mlp_dim\)", models=(start, str(tmp_path / "wide")))


def edited(folders, tmp_path, change):
    """A copy of a model whose tensors `change` has changed."""
    from safetensors.numpy import load_file, save_file

    shutil.copytree(folders / "one", tmp_path / "broken")
    file = tmp_path / "broken" / "model.safetensors"
    tensors = load_file(file)
    change(tensors)
    save_file(tensors, file, metadata={"format": "pt"})
    return str(tmp_path / "broken")


NAME = "model.layers.1.mlp.up_proj.weight"


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda tensors: tensors.pop(NAME), rf"broken has no tensor {NAME}"),
        (lambda tensors: tensors.update({NAME: tensors[NAME][:5]}), rf"broken.*{NAME} has shape \[5, 32\]"),
        (lambda tensors: tensors[NAME].__setitem__((3, 4), np.nan), rf"broken: {NAME} holds numbers that are not f"),
    ],
)  # fmt: skip
def test_a_broken_source_is_named_and_leaves_nothing(folders, tmp_path, change, message):
    broken = edited(folders, tmp_path, change)
    with pytest.raises(UserError, match=message):
        merge(MergeConfig(models=(str(folders / "start"), broken)), tmp_path / "merged")
    assert [path.name for path in tmp_path.iterdir()] == ["broken"]


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
def test_one_number_that_is_none_is_found_wherever_it_is(dtype, bad):
    """In few and in many rows; beside it the largest numbers that there are are finite."""
    for shape in ((7,), (1, 70_000), (900, 33)):
        array = np.asarray(jax.random.normal(jax.random.key(1), shape) * 1e30, dtype)
        for place in (0, array.size // 2, array.size - 1):
            broken = array.copy()
            broken.flat[place] = bad
            assert _finite((jnp.asarray(array), jnp.asarray(broken))).tolist() == [True, False]


def test_a_source_that_shrinks_while_it_is_read_is_named(folders, tmp_path):
    shutil.copytree(folders / "two", tmp_path / "two")
    planned = plan(MergeConfig(models=(str(folders / "one"), str(tmp_path / "two"))))
    os.truncate(tmp_path / "two" / "model.safetensors", 40_000)
    with pytest.raises(UserError, match=r"two/model\.safetensors ended while model\..* was read; download it again"):
        planned.carry_out(tmp_path / "merged")
    with pytest.raises(UserError, match=r"two/model\.safetensors is no whole safetensors file"):
        plan(MergeConfig(models=(str(folders / "one"), str(tmp_path / "two"))))
    assert [path.name for path in tmp_path.iterdir()] == ["two"]


FAULT = """
    import os, resource, signal, sys
    from jaxsft.cli import main
    from jaxsft.config import MergeConfig
    from jaxsft.merging import merge
    fault, output, *models = sys.argv[1:]
    del sys.argv[1:]
    if fault == "full":
        resource.setrlimit(resource.RLIMIT_FSIZE, (30000, 30000))
    rounding, left = merge._round, [9]
    def killed(*arguments):
        left[0] -= 1
        if not left[0] and fault == "kill":
            os.kill(os.getpid(), signal.SIGKILL)
        return rounding(*arguments)
    merge._round = killed
    main(lambda: merge.merge(MergeConfig(models=tuple(models)), output))
"""


def test_a_full_disk_and_a_kill_leave_no_half_model(folders, tmp_path):
    models = [str(folders / "one"), str(folders / "two")]

    def merged(fault):
        return run([sys.executable, "-c", textwrap.dedent(FAULT), fault, str(tmp_path / "merged"), *models])

    full = merged("full")
    assert full.returncode == 1 and "merged cannot be written: " in full.stderr and "Traceback" not in full.stderr
    assert full.stderr.strip().endswith(f"error: {tmp_path / 'merged'} cannot be written: {os.strerror(errno.EFBIG)}.")
    assert list(tmp_path.iterdir()) == []
    assert merged("kill").returncode == -signal.SIGKILL
    assert not (tmp_path / "merged").exists()
    assert merged("none").returncode == 0  # what the kill left is hidden and in nobody's way
    loaded(tmp_path / "merged")


SMALL_DISK = """
    mount -t tmpfs -o size=64k tmpfs "$1" && shift
    "$@" && exit 9
    ls -A "$0"
"""


def test_a_full_disk_is_said(folders, tmp_path):
    """A real one of 64 KiB, in a mount namespace of its own, where the system lets users have them."""
    (tmp_path / "disk").mkdir()
    private = ["unshare", "--user", "--map-root-user", "--mount"]
    if (
        not shutil.which("unshare")
        or run([*private, "mount", "-t", "tmpfs", "tmpfs", str(tmp_path / "disk")]).returncode
    ):
        pytest.skip("needs user namespaces to mount a small disk")
    disk, models = str(tmp_path / "disk"), [str(folders / "one"), str(folders / "two")]
    merging = [sys.executable, "-c", textwrap.dedent(FAULT), "none", f"{disk}/merged", *models]
    done = run([*private, "sh", "-c", textwrap.dedent(SMALL_DISK), disk, disk, *merging])
    assert done.returncode == 0 and done.stdout == "", "nothing is left on it"
    assert done.stderr.strip().endswith(f"error: {disk}/merged cannot be written: {os.strerror(errno.ENOSPC)}.")


def test_a_stage_finds_what_it_left(folders, tmp_path):
    config = config_of(folders, "ties")
    line = merge_or_find(config, tmp_path / "merged")
    before = (tmp_path / "merged" / "model.safetensors").stat().st_mtime_ns
    assert merge_or_find(config, tmp_path / "merged") == line
    assert (tmp_path / "merged" / "model.safetensors").stat().st_mtime_ns == before
    with pytest.raises(UserError, match="merged in another way"):
        merge_or_find(config_of(folders, "ties", density=(0.5,)), tmp_path / "merged")


def test_a_stage_whose_models_were_made_anew_is_refused(folders, tmp_path):
    shutil.copytree(folders / "one", tmp_path / "one")
    config = config_of(folders, models=(str(tmp_path / "one"), str(folders / "two")))
    merge_or_find(config, tmp_path / "merged")
    shutil.copy(folders / "start" / "model.safetensors", tmp_path / "one" / "model.safetensors")
    with pytest.raises(UserError, match="models that are others by now"):
        merge_or_find(config, tmp_path / "merged")
