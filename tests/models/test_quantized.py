"""Quantised kernels: codes, scales, sizes, their matrix product and what its backward pass keeps."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import PartitionSpec as P
from scipy.stats import norm

from jaxsft.config import MeshConfig
from jaxsft.models import filling, layout
from jaxsft.models.architecture import Architecture
from jaxsft.models.checkpoint import load_params, save_hf
from jaxsft.models.decoder import Decoder
from jaxsft.models.projection import Context, dense, project
from jaxsft.models.quantized import (
    NF4_CODES,
    QuantizedKernel,
    block_sizes,
    dequantize_params,
    quantize,
    quantize_params,
)
from jaxsft.sharding import make_mesh, tree_shardings
from tests.tiny import llama

# As printed in the paper's appendix E, to seven digits.
PRINTED = (
    -1.0, -0.6961928, -0.5250731, -0.3949175, -0.2844414, -0.1847734, -0.0910500, 0.0,
    0.0795803, 0.1609302, 0.2461123, 0.3379152, 0.4407098, 0.5626170, 0.7229568, 1.0,
)  # fmt: skip
WIDEST = 0.152  # half of the widest gap between codes, rounded up


def normal(*shape: int, seed: int = 0) -> jax.Array:
    return jax.random.normal(jax.random.key(seed), shape)


def unpacked(kernel: QuantizedKernel) -> np.ndarray:
    """NF4 codes as [..., blocks, size, out]."""
    codes = np.asarray(kernel.codes)
    return np.concatenate([codes & 15, codes >> 4], axis=-2)


def test_codes_are_quantiles_of_a_normal_distribution():
    """Eight steps on the positive side, seven on the negative one, and zero."""
    offset = 0.9677083
    positive = norm.ppf(np.linspace(offset, 0.5, 9)[:-1])
    negative = -norm.ppf(np.linspace(offset, 0.5, 8)[:-1])
    made = np.sort([*positive, 0.0, *negative]) / positive.max()
    np.testing.assert_allclose(made, NF4_CODES, atol=2e-6)
    np.testing.assert_allclose(NF4_CODES, PRINTED, atol=5e-8)
    assert NF4_CODES[0] == -1 and NF4_CODES[-1] == 1 and NF4_CODES[7] == 0


def test_codes_and_scales_are_those_of_bitsandbytes():
    """Its algorithm: flatten torch's [out, in], cut into 64s, divide by the largest magnitude, take the nearest."""
    weights = np.array(normal(192, 40))
    weights[64:128, 3] = 0  # a block of zeros
    kernel = quantize(jnp.asarray(weights), "nf4", double=False)
    flat = weights.T.reshape(-1, 64)
    absmax = np.abs(flat).max(1)
    share = flat / np.where(absmax > 0, absmax, 1)[:, None]
    nearest = np.abs(share[..., None] - np.array(PRINTED, np.float32)).argmin(-1)
    np.testing.assert_array_equal(np.asarray(kernel.scales).T.reshape(-1), absmax)
    np.testing.assert_array_equal(np.moveaxis(unpacked(kernel), -1, 0).reshape(-1, 64), nearest)
    expected = (absmax[:, None] * np.array(PRINTED)[nearest]).reshape(40, 192).T
    np.testing.assert_allclose(kernel.dequantize(jnp.float32), expected, atol=1e-6)


@pytest.mark.parametrize("rows", [64, 172, 256])
@pytest.mark.parametrize("kind", ["nf4", "int8"])
def test_the_error_is_bounded_and_zero_is_exact(kind, rows):
    weights = normal(3, rows, 24).at[:, 5].set(0).at[:, :, 7].set(0)
    kernel = quantize(weights, kind, double=False)
    assert kernel.shape == weights.shape and kernel.ndim == 3 and kernel.size == weights.size
    found = kernel.dequantize(jnp.float32)
    scales = jnp.repeat(kernel.block_scales(), block_sizes(rows)[1], axis=-2)[:, :rows]
    bound = WIDEST if kind == "nf4" else 0.5 / 127
    assert jnp.all(jnp.abs(found - weights) <= scales * bound * (1 + 1e-5))
    assert jnp.max(jnp.abs(found - weights) / jnp.maximum(scales, 1e-9)) > 0.95 * bound
    assert not jnp.any(found[:, 5]) and not jnp.any(found[:, :, 7])
    largest = jnp.max(jnp.abs(weights), axis=-2)
    np.testing.assert_allclose(jnp.max(jnp.abs(found), axis=-2), largest, rtol=1e-6)  # end points are codes


@pytest.mark.parametrize("kind", ["nf4", "int8"])
def test_quantising_again_changes_nothing(kind):
    first = quantize(normal(2, 172, 300), kind, double=False)
    again = quantize(first.dequantize(jnp.float32), kind, double=False)
    np.testing.assert_array_equal(again.codes, first.codes)
    np.testing.assert_allclose(again.scales, first.scales, rtol=1e-6)


def test_double_quantisation_is_eight_bits_of_the_centred_scales():
    weights = normal(2, 128, 600)
    plain, double = (quantize(weights, "nf4", double=d) for d in (False, True))
    np.testing.assert_array_equal(plain.codes, double.codes)
    scales = np.asarray(plain.scales)
    mean = scales.mean((1, 2), keepdims=True)
    np.testing.assert_allclose(double.mean, mean[:, 0, 0], rtol=1e-6)
    for start in (0, 256, 512):  # the last group is smaller
        group = (scales - mean)[:, :, start : start + 256]
        largest = np.abs(group).max(-1, keepdims=True)
        rounded = np.round(group / largest * 127)
        assert np.abs(rounded - np.asarray(double.scales)[:, :, start : start + 256]).max() <= 1  # at ties
        error = np.abs(np.asarray(double.block_scales()) - scales)[:, :, start : start + 256]
        assert np.all(error <= largest * (0.5 / 127) * (1 + 1e-3))
    assert double.scales.dtype == jnp.int8


def nbytes(kernel: QuantizedKernel) -> int:
    return sum(leaf.size * leaf.dtype.itemsize for leaf in jax.tree.leaves(kernel))


@pytest.mark.parametrize(
    ("kind", "double", "bits"),
    [
        ("nf4", False, 4 + 32 / 64),
        ("nf4", True, 4 + 8 / 64 + 32 / (64 * 256)),
        ("int8", False, 8 + 32 / 64),
        ("int8", True, 8 + 8 / 64 + 32 / (64 * 256)),
    ],
)
def test_bits_a_weight(kind, double, bits):
    """Counted in the arrays' bytes; the mean is one number a matrix."""
    kernel = quantize(normal(2, 256, 512), kind, double)
    held = nbytes(kernel) - (4 * 2 if double else 0)
    assert 8 * held / kernel.size == pytest.approx(bits, rel=1e-9)


def test_bytes_where_blocks_do_not_divide():
    """172 inputs are 3 blocks of 58 weights, 29 bytes each."""
    assert [block_sizes(n) for n in (64, 100, 172, 32, 3200, 8640)] == [
        (1, 64), (2, 50), (3, 58), (1, 32), (50, 64), (135, 64),
    ]  # fmt: skip
    assert nbytes(quantize(normal(172, 64), "nf4", False)) == 64 * 3 * (29 + 4)


def abstract(kind: str, **sizes: object) -> tuple[dict, dict]:
    """Shapes of a model's parameters in bfloat16, and quantised."""
    decoder = Decoder(llama(**sizes))
    plain = decoder.abstract_params(jnp.bfloat16)
    return plain, jax.eval_shape(lambda params: quantize_params(params, kind, True), plain)


LLAMA_2_7B = {
    "hidden_size": 4096, "intermediate_size": 11008, "num_hidden_layers": 32, "num_attention_heads": 32,
    "num_key_value_heads": 32, "head_dim": 128, "vocab_size": 32000,
}  # fmt: skip


def test_a_base_of_seven_billion_takes_little_more_than_a_quarter():
    plain, quantized = abstract("nf4", **LLAMA_2_7B)
    assert nbytes(quantized) <= 0.29 * nbytes(plain)
    kernels = lambda tree: [leaf for path, leaf in layout.leaves(tree) if path[0] == "stacks" and path[-1] == "kernel"]
    assert nbytes(kernels(quantized)) <= 0.262 * nbytes(kernels(plain))
    weights = sum(leaf.size for leaf in kernels(quantized))
    assert weights == 32 * (4 * 4096**2 + 3 * 4096 * 11008)
    assert 8 * nbytes(kernels(quantized)) / weights == pytest.approx(4.127, abs=5e-4)
    others = [leaf for path, leaf in layout.leaves(quantized) if path[-1] != "kernel" or path[0] == "head"]
    assert all(leaf.dtype == jnp.bfloat16 for leaf in others)


@pytest.mark.parametrize("kind", ["nf4", "int8"])
@pytest.mark.parametrize("dtype", [jnp.float32, jnp.bfloat16])
def test_the_product_and_its_gradient_are_those_of_the_plain_kernel(kind, dtype):
    kernel, x = quantize(normal(172, 48), kind, True), normal(2, 5, 172, seed=1).astype(dtype)
    plain = kernel.dequantize(dtype)
    through = lambda x, kernel: project(x, kernel, None, Context())[0]
    y, pull = jax.vjp(lambda x: through(x, kernel), x)
    expected, pull_plain = jax.vjp(lambda x: through(x, plain), x)
    np.testing.assert_array_equal(np.asarray(y, np.float32), np.asarray(expected, np.float32))
    (found,), (wanted,) = pull(y), pull_plain(y)
    assert found.dtype == dtype
    np.testing.assert_allclose(np.asarray(found, np.float32), np.asarray(wanted, np.float32), rtol=2e-2, atol=1e-5)
    assert project(x, kernel, None, Context(out_dtype=jnp.float32))[0].dtype == jnp.float32


def test_the_backward_pass_keeps_what_is_stored_and_nothing_else():
    kernel, x = quantize(normal(256, 128), "nf4", True), normal(4, 256)
    _, pull = jax.vjp(lambda x: kernel.matmul(x), x)
    kept = jax.tree.leaves(pull)
    assert sum(leaf.nbytes for leaf in kept) <= nbytes(kernel) + 16
    assert not any(leaf.size >= 256 * 128 for leaf in kept)


DEEP = {"hidden_size": 128, "intermediate_size": 320, "num_hidden_layers": 9, "head_dim": 32, "vocab_size": 64}


def gradient_of_embedding(decoder):
    """(params) -> the gradient of a loss in the embedding, below all layers."""
    row = jnp.ones((1, 4), jnp.int32)

    def loss(embedding, params):
        own = params | {"embed": {"embedding": embedding}}
        return decoder.forward(own, row, jnp.arange(4)[None], row).hidden.sum()

    return loss


@pytest.mark.parametrize("remat", ["none", "dots", "block"])
def test_no_plain_kernel_is_stored_for_the_backward_pass(remat, monkeypatch):
    """Of no layer; plain autodiff of the same product keeps those of all where nothing is recomputed."""
    decoder = Decoder(llama(**DEEP), remat=remat)
    params = quantize_params(decoder.init(jax.random.key(0)), "nf4", True)
    kernels = {leaf.shape[-2:] for _, leaf in layout.leaves(params) if isinstance(leaf, QuantizedKernel)}
    loss = gradient_of_embedding(decoder)

    def kept():
        pull = jax.eval_shape(lambda e: jax.vjp(lambda e: loss(e, params), e)[1], params["embed"]["embedding"])
        return [x for x in jax.tree.leaves(pull) if x.dtype == jnp.float32 and x.shape[-2:] in kernels]

    assert not kept()
    monkeypatch.setattr(QuantizedKernel, "matmul", lambda self, x, out: x @ self.dequantize(x.dtype))
    assert len(kept()) >= 7 or remat != "none"


def test_a_layer_more_needs_no_room_for_its_plain_kernels():
    """Temporary memory of the compiled gradient, where nothing is recomputed but the plain kernels."""

    def temporary(layers, quantization):
        decoder = Decoder(llama(**DEEP | {"num_hidden_layers": layers}), remat="none")
        params = jax.eval_shape(lambda p: quantize_params(p, quantization, True), decoder.abstract_params(jnp.bfloat16))
        gradient = jax.jit(jax.grad(gradient_of_embedding(decoder)))
        compiled = gradient.lower(params["embed"]["embedding"], params).compile()
        return compiled.memory_analysis().temp_size_in_bytes

    layer = 4 * (2 * 128 * 128 + 2 * 128 * 64 + 3 * 128 * 320)
    assert (temporary(18, "nf4") - temporary(9, "nf4")) / 9 < layer / 4
    assert (temporary(18, "none") - temporary(9, "none")) / 9 > layer / 2  # kernels cast to the compute dtype are kept


@pytest.mark.parametrize("kind", ["nf4", "int8"])
@pytest.mark.parametrize("sizes", [(1, 1, 1), (1, 4, 2), (2, 2, 2), (1, 8, 1)])
@pytest.mark.parametrize("double", [True, False])
def test_a_file_is_quantised_on_its_way_to_the_devices(kind, sizes, double, tmp_path, monkeypatch):
    """To what quantising the loaded model gives, in the shardings that the run wants; blocks straddle no shard."""
    monkeypatch.setattr(filling, "PIECE_BYTES", 5000)  # several pieces, the last one ragged
    changes = {"hidden_size": 256, "intermediate_size": 172, "num_attention_heads": 16, "head_dim": 16}
    decoder = Decoder(llama(**changes, num_key_value_heads=8))
    params = decoder.init(jax.random.key(0))
    save_hf(tmp_path / "in", decoder, params, jnp.bfloat16)
    mesh = make_mesh(MeshConfig(*sizes), jax.devices()[: int(np.prod(sizes))])
    loaded = load_params(tmp_path / "in", decoder, mesh, jnp.float32, kind, double)
    rounded = jax.tree.map(lambda p: p.astype(jnp.bfloat16).astype(jnp.float32), params)
    expected = quantize_params(rounded, kind, double)
    assert jax.tree.structure(loaded) == jax.tree.structure(expected)
    for (path, found), wanted in zip(jax.tree_util.tree_leaves_with_path(loaded), jax.tree.leaves(expected)):
        if jnp.issubdtype(found.dtype, jnp.integer) and path[-1].name == "scales":
            assert np.abs(np.asarray(found, int) - np.asarray(wanted)).max() <= 1, path
        else:
            np.testing.assert_allclose(np.asarray(found), np.asarray(wanted), rtol=2e-6, err_msg=str(path))
    wanted = tree_shardings(decoder.logical_axes(), expected, mesh)
    assert jax.tree.all(jax.tree.map(lambda x, s: x.sharding == s, loaded, wanted))
    codes = loaded["stacks"]["0"]["0"]["attn"]["q_proj"]["kernel"].codes
    assert codes.addressable_shards[0].data.size * sizes[1] * sizes[2] == codes.size


def test_codes_are_split_like_the_kernel_and_over_columns_where_blocks_do_not_divide():
    mesh = make_mesh(MeshConfig(1, 4, 2))
    kernel = quantize(jnp.zeros((2, 256, 128)), "nf4", True)
    specs = lambda axes, kernel: jax.tree.map(lambda s: s.spec, tree_shardings({"k": axes}, {"k": kernel}, mesh)["k"])
    found = specs(("layers", "embed", "heads"), kernel)
    assert found.codes == P(None, "fsdp", None, "tensor") and found.scales == P(None, "fsdp", "tensor")
    assert specs(("layers", "heads", "embed"), kernel).codes == P(None, "tensor", None, "fsdp")
    odd = quantize(jnp.zeros((2, 192, 128)), "nf4", True)  # three blocks
    assert specs(("layers", "embed", "heads"), odd).codes == P(None, None, None, ("tensor", "fsdp"))
    assert specs(("layers", "mlp", "embed"), odd).codes == P(None, None, None, ("fsdp", "tensor"))


def test_dense_gives_what_an_adapter_would_multiply_with():
    kernel = quantize(normal(64, 32).astype(jnp.bfloat16), "nf4", True)
    assert kernel.dtype == jnp.bfloat16 and dense(kernel, jnp.float32).dtype == jnp.float32
    np.testing.assert_array_equal(kernel.dequantize(None), dense(kernel, jnp.float32).astype(jnp.bfloat16))
    tree = {"a": kernel, "b": jnp.ones(3)}
    plain = dequantize_params(tree)
    assert plain["a"].shape == (64, 32) and plain["b"] is tree["b"]


def test_sizes_of_openllama():
    """Of 3B: 3200 columns make 13 groups, the last of 128, so the fourth digit is a little more than 256 would give."""
    arch: Architecture = llama(hidden_size=3200, intermediate_size=8640, num_attention_heads=32, head_dim=100)
    kernel = jax.eval_shape(lambda: quantize(jnp.zeros((3200, arch.mlp_dim)), "nf4", True))
    assert 8 * (nbytes(kernel) - 4) / kernel.size == pytest.approx(4.127, abs=1e-3)
