"""Input statistics against NumPy on inputs taken out of the model by hand; neither batches nor packing change them."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxsft.adapters.lora import LoRA
from jaxsft.adapters.method import Parts
from jaxsft.config import LoRAConfig, MeshConfig
from jaxsft.models import layout
from jaxsft.models.block import rms_norm
from jaxsft.models.decoder import Decoder
from jaxsft.scoring.statistics import input_statistics, join, moments, observers
from jaxsft.sharding import make_mesh
from tests.tiny import llama, make_batch, packed_rows, random_examples

ARCH = llama()
DECODER = Decoder(ARCH, remat="none")
MAPS = ("layers.*.attn.*_proj", "layers.*.mlp.*_proj", "head")


@pytest.fixture(scope="module")
def params():
    return DECODER.init(jax.random.key(0))


def measured(params, tables, targets=MAPS, gram=False, mesh=None, length=64, slots=12, adapters=None):
    mesh = mesh or make_mesh(MeshConfig(), jax.devices()[:1])
    batches = [make_batch(table, length, slots) for table in tables]
    tree, examples = input_statistics(DECODER, params, adapters, batches, mesh, targets, gram)
    flat = {".".join(path): leaf for path, leaf in layout.leaves(tree)}
    return tree, flat, examples


def test_moments_by_hand():
    rng = np.random.default_rng(0)
    x, valid = rng.normal(size=(3, 9, 5)) + 1e3, rng.random((3, 9)) < 0.6
    rows = x[valid]
    with jax.enable_x64(True):
        one = moments(jnp.asarray(x), jnp.asarray(valid), gram=True)
    np.testing.assert_allclose(one.count, len(rows))
    np.testing.assert_allclose(one.mean, rows.mean(0), rtol=1e-9)
    np.testing.assert_allclose(one.variance, rows.var(0), rtol=1e-9)
    np.testing.assert_allclose(one.sum, rows.sum(0), rtol=1e-9)
    np.testing.assert_allclose(one.energy, (rows**2).sum(0), rtol=1e-9)
    np.testing.assert_allclose(one.gram, rows.T @ rows, rtol=1e-9)


def test_joined_batches_are_one():
    """Also where the mean is a thousand times the deviation, in float32; and an empty batch changes nothing."""
    rng = np.random.default_rng(0)
    x = (rng.normal(size=(40, 5)) + 1e3).astype(np.float32)
    parts = [moments(jnp.asarray(part), None, gram=True) for part in (x[:7], x[7:8], x[8:])]
    empty = moments(jnp.asarray(x[:3]), jnp.zeros(3, bool), gram=True)
    joined = join(join(join(parts[0], parts[1]), empty), parts[2])
    wide = x.astype(np.float64)
    np.testing.assert_allclose(joined.variance, wide.var(0), rtol=1e-3)
    np.testing.assert_allclose(joined.mean, wide.mean(0), rtol=1e-6)
    np.testing.assert_allclose(joined.gram, wide.T @ wide, rtol=1e-5)
    assert joined.count == 40


def test_inputs_of_the_model(params):
    """The first layer reads the normed embedding, the head the last states, of the real tokens alone."""
    examples = random_examples(6, 20)
    tree, _, count = measured(params, [[[e] for e in examples]], gram=True)
    assert count == 6
    tokens = np.concatenate([t for t, _ in examples])
    embedded = jnp.asarray(params["embed"]["embedding"])[tokens]
    first = np.float64(rms_norm(embedded, params["stacks"]["0"]["0"]["input_norm"]["scale"][0], ARCH.norm_eps, False))
    own = tree["stacks"]["0"]["0"]["attn"]["q_proj"].row(0)
    assert own.count == len(tokens)
    np.testing.assert_allclose(own.mean, first.mean(0), atol=1e-5)
    np.testing.assert_allclose(own.variance, first.var(0), rtol=1e-4)
    np.testing.assert_allclose(own.gram, first.T @ first, rtol=1e-3, atol=1e-3)
    batch = make_batch([[e] for e in examples], 64, 12)
    out = jax.jit(DECODER.forward)(params, batch.tokens, batch.positions, batch.segment_ids)
    states = np.float64(out.hidden)[batch.segment_ids > 0]
    np.testing.assert_allclose(tree["head"].energy, (states**2).sum(0), rtol=1e-4)


def test_neither_batches_nor_packing_nor_devices_change_them(params):
    examples = random_examples(16, 20)
    _, whole, count = measured(params, [[[e] for e in examples]])
    cut = [[[e] for e in examples[:8]], [[e] for e in examples[8:]]]
    packed = [packed_rows(examples, 8, 64)]
    for tables, mesh in ((cut, None), (packed, None), (packed, make_mesh(MeshConfig(1, 4, 2)))):
        _, other, other_count = measured(params, tables, mesh=mesh)
        assert other_count == count == 16 and other.keys() == whole.keys()
        assert len(whole) == 8 * 3  # seven stacked maps and the head; count, mean, squares
        for name, values in whole.items():
            np.testing.assert_allclose(other[name], values, rtol=2e-4, atol=1e-4, err_msg=name)


def test_the_model_computes_what_it_did(params):
    """Observed maps work as before, with their own adapters; what is not targeted is not observed."""
    method = LoRA(LoRAConfig(rank=2, targets=("layers.*.attn.q_proj", "layers.*.mlp.up_proj", "embed", "head")), ARCH)
    adapter = method.split(params, jax.random.key(1)).params
    adapter = jax.tree.map(lambda p: p + 0.3 * jax.random.normal(jax.random.key(2), p.shape), adapter)
    _, adapters = method.compose(Parts(adapter, {"base": params}, {}), {})
    targets = ("layers.*.attn.o_proj", "layers.*.mlp.up_proj")
    row = jnp.arange(1, 21, dtype=jnp.int32)[None]
    run = lambda nodes: DECODER.forward(params, row, row - 1, jnp.ones_like(row), adapters=nodes)
    watched = run(observers(DECODER, adapters, targets))
    np.testing.assert_allclose(watched.hidden, run(adapters).hidden, rtol=1e-6, atol=1e-6)
    assert np.abs(watched.hidden - run(None).hidden).max() > 0.01
    block = watched.aux["stacks"]["0"]["0"]
    assert set(block["attn"]) == {"o_proj"} and set(block["mlp"]) == {"up_proj"}
