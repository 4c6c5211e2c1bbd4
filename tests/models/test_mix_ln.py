"""Mix-LN (arXiv:2412.13795) against values recorded from the authors' own module, and against a reference here."""

import dataclasses
import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import safetensors.numpy

from jaxsft.errors import UserError
from jaxsft.models import layout
from jaxsft.models.architecture import Architecture, post_layers_of
from jaxsft.models.checkpoint import load_architecture, load_params, save_hf
from jaxsft.models.decoder import Decoder
from jaxsft.models.weights import tensor_name
from jaxsft.training.gradients import layer_norms
from tests.models.make_golden import GOLDEN
from tests.models.test_parity import run_cached
from tests.tiny import LLAMA, llama

# The authors' toy: four layers of width 16, weights as they are drawn by their `_init_weights`.
TOY = LLAMA | {
    "hidden_size": 16, "intermediate_size": 24, "num_hidden_layers": 4, "num_attention_heads": 2,
    "num_key_value_heads": 2, "head_dim": 8, "vocab_size": 50, "rms_norm_eps": 1e-6,
}  # fmt: skip
RECORDED = {0: "pre_0", 1: "post_pre_1"}
# Norms of each layer's gradient that the authors' module gives on the toy, rounded to four decimals.
PROFILES = {
    0: [0.0170, 0.0163, 0.0207, 0.0202],
    1: [0.0419, 0.0091, 0.0121, 0.0117],
    4: [0.0419, 0.0416, 0.0424, 0.0424],
}


def toy(count: int) -> Decoder:
    return Decoder(Architecture.from_hf(TOY).with_post_layers(count, "the test"), remat="none")


def recorded(count: int) -> dict[str, np.ndarray]:
    return dict(np.load(GOLDEN / "mix_ln" / f"{RECORDED[count]}.npz"))


def toy_params(decoder: Decoder) -> dict:
    """The recorded matrices; all norms are 1, whatever their names."""
    file = recorded(0)
    arrays = {}
    for logical, (leaf, row) in layout.flatten(decoder.arch, decoder.abstract_params()).items():
        name = f"p.{tensor_name(decoder.arch, logical)}"
        value = np.ones(leaf.shape[row is not None :], np.float32) if "norm" in logical else file[name]
        arrays[logical] = jnp.asarray(value.T if logical.endswith("kernel") else value)
    return layout.stack(decoder.arch, arrays)


def forward(decoder: Decoder, params: dict, ids: np.ndarray):
    positions = np.broadcast_to(np.arange(ids.shape[1], dtype=np.int32), ids.shape)
    return decoder.forward(params, ids, positions, np.ones_like(ids, np.int32))


def hidden_states(decoder: Decoder, params: dict, ids: np.ndarray) -> list[np.ndarray]:
    """What goes into each layer, and what comes out of the last: outputs of the model's first layers alone."""
    arrays, states = layout.unstack(decoder.arch, params), []
    for depth in range(1, decoder.arch.num_layers + 1):
        arch = dataclasses.replace(decoder.arch, layers=decoder.arch.layers[:depth])
        own = {name for name in arrays if not name.startswith("layers.") or int(name.split(".")[1]) < depth}
        shallow = layout.stack(arch, {name: arrays[name] for name in own})
        states.append(np.asarray(forward(Decoder(arch), shallow, ids).unnormed))
    return [np.asarray(params["embed"]["embedding"])[ids], *states]


def loss(decoder: Decoder, params: dict, ids: np.ndarray) -> jax.Array:
    logits = decoder.head(params, forward(decoder, params, ids).hidden)
    return -jnp.mean(jnp.take_along_axis(jax.nn.log_softmax(logits[:, :-1]), ids[:, 1:, None], -1))


def rms(x) -> float:
    return float(np.sqrt(np.mean(np.square(np.asarray(x, np.float64)))))


@pytest.fixture(scope="module", params=[0, 1])
def official(request, tmp_path_factory):
    """The authors' weights as a checkpoint, read by our reader, and all that their module gave for them."""
    count, folder = request.param, tmp_path_factory.mktemp("toy")
    golden = recorded(count)
    tensors = {name[2:]: np.ascontiguousarray(a) for name, a in golden.items() if name.startswith("p.")}
    safetensors.numpy.save_file(tensors, folder / "model.safetensors")
    (folder / "config.json").write_text(json.dumps(toy(count).arch.to_hf()))
    decoder = Decoder(load_architecture(folder), remat="none")
    assert decoder.arch.n_post_layers == count
    return decoder, load_params(folder, decoder), golden


def test_hidden_states_and_logits_are_the_authors(official):
    decoder, params, golden = official
    ids = golden["ids"].astype(np.int32)
    for i, state in enumerate(hidden_states(decoder, params, ids)[:-1]):
        np.testing.assert_allclose(state, golden[f"h{i}"], atol=1e-5)
    out = forward(decoder, params, ids)
    np.testing.assert_allclose(out.hidden, golden["h4"], atol=1e-5)
    np.testing.assert_allclose(decoder.head(params, out.hidden), golden["logits"], atol=1e-5)


def test_loss_and_gradients_are_the_authors(official):
    decoder, params, golden = official
    value, grads = jax.value_and_grad(lambda p: loss(decoder, p, golden["ids"].astype(np.int32)))(params)
    assert float(value) == pytest.approx(float(golden["loss"]), abs=1e-6)
    for logical, grad in layout.unstack(decoder.arch, grads).items():
        theirs = golden[f"g.{tensor_name(decoder.arch, logical)}"]
        ours = np.asarray(grad).T if logical.endswith("kernel") else np.asarray(grad)
        if logical == "embed.embedding":  # the authors' last row is that of padding, and gets no gradient
            assert not theirs[-1].any() and golden["ids"].max() < len(theirs) - 1
        np.testing.assert_allclose(ours, theirs, atol=1e-5, err_msg=logical)
        assert np.abs(ours).max() > 0


def reference(arrays: dict, ids: np.ndarray, post: int, eps: float = 1e-6, heads: int = 2) -> jax.Array:
    """Logits of the authors' equations, layer by layer over checkpoint names, in the dtype of the arrays."""
    norm = lambda h, name: h / jnp.sqrt(jnp.mean(h**2, -1, keepdims=True) + eps) * arrays[f"{name}.weight"]
    linear = lambda h, name: h @ arrays[f"{name}.weight"].T
    length = ids.shape[1]

    def turn(x):  # [B, T, heads, head_dim]
        half = x.shape[-1] // 2
        angles = jnp.arange(length)[:, None, None] * 10000.0 ** -(jnp.arange(half) / half)
        a, b = x[..., :half], x[..., half:]
        return jnp.concatenate(
            [a * jnp.cos(angles) - b * jnp.sin(angles), b * jnp.cos(angles) + a * jnp.sin(angles)], -1
        )

    def attention(h, layer):
        q, k, v = (linear(h, f"{layer}.self_attn.{n}_proj").reshape(*h.shape[:2], heads, -1) for n in "qkv")
        scores = jnp.einsum("bqhd,bkhd->bhqk", turn(q), turn(k)) / q.shape[-1] ** 0.5
        scores = jnp.where(jnp.tril(jnp.ones((length, length), bool)), scores, -jnp.inf)
        mixed = jnp.einsum("bhqk,bkhd->bqhd", jax.nn.softmax(scores), v).reshape(h.shape)
        return linear(mixed, f"{layer}.self_attn.o_proj")

    def mlp(h, layer):
        gate, up = linear(h, f"{layer}.mlp.gate_proj"), linear(h, f"{layer}.mlp.up_proj")
        return linear(gate * jax.nn.sigmoid(gate) * up, f"{layer}.mlp.down_proj")

    h = arrays["model.embed_tokens.weight"][ids]
    for i in range(TOY["num_hidden_layers"]):
        layer = f"model.layers.{i}"
        if i < post:
            h = norm(h + attention(h, layer), f"{layer}.post_attention_layernorm")
            h = norm(h + mlp(h, layer), f"{layer}.post_feedforward_layernorm")
        else:
            h = h + attention(norm(h, f"{layer}.input_layernorm"), layer)
            h = h + mlp(norm(h, f"{layer}.post_attention_layernorm"), layer)
    return linear(norm(h, "model.norm"), "lm_head")


@pytest.mark.parametrize("count", [0, 2, 4])
def test_every_number_of_post_layers_is_the_reference(count):
    """Pre-LN, mixed and Post-LN; norms are drawn, so that one in another's place would show."""
    decoder, rng = toy(count), np.random.default_rng(count)
    params = jax.tree.map(lambda p: p + 0.3 * rng.normal(size=p.shape), toy_params(decoder))
    ids = rng.integers(0, 50, (2, 9)).astype(np.int32)
    arrays = {
        tensor_name(decoder.arch, name): x.T if name.endswith("kernel") else x
        for name, x in layout.unstack(decoder.arch, params).items()
    }
    logits = decoder.head(params, forward(decoder, params, ids).hidden)
    np.testing.assert_allclose(logits, reference(arrays, ids, count), atol=2e-5)


@pytest.mark.parametrize("count", [1, 4])
def test_decoding_with_a_cache(count):
    decoder = toy(count)
    params = jax.tree.map(lambda p: 5 * p, toy_params(decoder))
    ids = np.random.default_rng(0).integers(0, 50, (2, 12)).astype(np.int32)
    whole = decoder.head(params, forward(decoder, params, ids).hidden)
    np.testing.assert_allclose(run_cached(decoder, params, ids, [5, 7]), whole, atol=2e-5)


@pytest.mark.parametrize("family", ["llama", "mistral", "qwen2", "qwen3", "gemma"])
def test_without_post_layers_it_is_the_plain_model(family):
    """Bit for bit: the same architecture, config.json and arrays."""
    plain = Architecture.from_hf(LLAMA | {"model_type": family})
    mixed = plain.with_post_layers(2, "the test").with_post_layers(0, "the test")
    assert mixed == plain and mixed.to_hf() == plain.to_hf()
    key, ids = jax.random.key(3), np.arange(12, dtype=np.int32)[None]
    one, two = (forward(Decoder(arch), Decoder(arch).init(key), ids).hidden for arch in (plain, mixed))
    np.testing.assert_array_equal(one, two)


def test_the_parameters_do_not_depend_on_the_number_of_post_layers():
    """As many, in the same shapes; two stacks, each of one kind, with two norms a layer."""
    shapes = {}
    for count in range(5):
        decoder = toy(count)
        held = layout.flatten(decoder.arch, decoder.abstract_params())
        shapes[count] = sorted(leaf.shape[row is not None :] for leaf, row in held.values())
        assert len(decoder.arch.stacks) == (1 if count in (0, 4) else 2)
        assert [len(stack.unit) for stack in decoder.arch.stacks] == [1] * len(decoder.arch.stacks)
        assert all(sum(f"layers.{i}." in n and "norm" in n for n in held) == 2 for i in range(4))
    assert all(one == shapes[0] for one in shapes.values())
    # the published 71M model: 512 / 1368 / 8 heads / 12 layers / 32000
    big = {"hidden_size": 512, "intermediate_size": 1368, "num_attention_heads": 8, "num_key_value_heads": 8}
    big |= {"num_hidden_layers": 12, "vocab_size": 32000, "head_dim": 64}
    arch = llama(**big).with_post_layers(3, "the test")
    assert sum(leaf.size for leaf in jax.tree.leaves(Decoder(arch).abstract_params())) == 70_578_688


def test_block_identities():
    """With o_proj = down_proj = 0 a Post-LN layer is h / rms(h), a Pre-LN layer is h."""
    decoder = toy(1)
    params = toy_params(decoder)
    for stack in params["stacks"].values():
        stack["0"]["attn"]["o_proj"]["kernel"] *= 0
        stack["0"]["mlp"]["down_proj"]["kernel"] *= 0
    before, post, *pre = hidden_states(decoder, params, np.arange(10, dtype=np.int32).reshape(2, 5))
    np.testing.assert_allclose(post, before / np.sqrt(np.mean(before**2, -1, keepdims=True)), atol=1e-4)
    for state in pre:
        np.testing.assert_array_equal(state, post)


def test_a_post_layer_does_not_see_the_scale_of_its_sum():
    """norm(c (h + Attn(h))) = norm(h + Attn(h)): o_proj and the embedding scaled alike, Attn seeing the same values."""
    decoder = Decoder(dataclasses.replace(toy(1).arch, layers=toy(1).arch.layers[:1]))
    params, scale = decoder.init(jax.random.key(0), embed_std=1.0), 7.0
    ids = np.arange(10, dtype=np.int32).reshape(2, 5)
    before = forward(decoder, params, ids).unnormed
    attn = params["stacks"]["0"]["0"]["attn"]
    params["embed"]["embedding"] *= scale
    for name in ("q_proj", "k_proj", "v_proj"):
        attn[name]["kernel"] /= scale  # what attention reads is scaled, what it gives to o_proj is not
    attn["o_proj"]["kernel"] *= scale
    np.testing.assert_allclose(forward(decoder, params, ids).unnormed, before, atol=1e-5)


def test_the_size_of_hidden_states_at_the_start():
    ids = recorded(0)["ids"].astype(np.int32)
    mixed = toy(1)
    np.testing.assert_allclose(
        [rms(h) for h in hidden_states(mixed, toy_params(mixed), ids)[:4]], [0.5863, 1.0, 0.9997, 1.0], atol=6e-5
    )
    post = toy(4)
    params = toy_params(post)
    for state in hidden_states(post, params, ids)[1:]:
        np.testing.assert_allclose(np.sqrt(np.mean(state**2, -1)), 1.0, atol=1e-4)
    out = forward(post, params, ids)
    np.testing.assert_allclose(out.hidden, out.unnormed, atol=1e-4)
    # Pre-LN at a width and depth where what is added counts: the stream grows with every layer
    pre = Decoder(llama(num_hidden_layers=6))
    sizes = [rms(h) for h in hidden_states(pre, pre.init(jax.random.key(0)), ids)]
    assert sizes == sorted(sizes) and sizes[-1] > 2 * sizes[0]


@pytest.mark.parametrize("count", PROFILES)
def test_the_gradient_of_each_layer_at_the_start(count):
    decoder, ids = toy(count), recorded(0)["ids"].astype(np.int32)
    grads = jax.grad(lambda p: loss(decoder, p, ids))(toy_params(decoder))
    norms = layer_norms(decoder.arch, grads)
    np.testing.assert_allclose([norms[f"grad_norm/layer_{i:02d}"] for i in range(4)], PROFILES[count], atol=6e-5)


@pytest.mark.parametrize(
    ("depth", "alpha", "count"),
    [(12, 0.25, 3), (24, 0.25, 6), (32, 0.0625, 2), (24, 1 / 3, 8), (24, 0.33, 8), (24, 0.167, 4), (24, 0.417, 10),
     (24, 0.5, 12), (10, 0.25, 2), (12, 0.0, 0), (12, 1.0, 12), (3, 0.1, 0)],
)  # fmt: skip
def test_shares_of_the_depth(depth, alpha, count):
    assert post_layers_of(alpha, depth) == count


def test_the_published_initialisation():
    decoder = toy(2)
    arch = decoder.arch
    plain = layout.unstack(arch, decoder.init(jax.random.key(0)))
    chosen = layout.unstack(arch, decoder.init(jax.random.key(0), embed_std=0.4**0.5, scaled=True))
    for name, array in plain.items():
        to_the_stream = layout.matches(["layers.[23].attn.o_proj", "layers.[23].mlp.down_proj"], name)
        factor = 0.4**0.5 / arch.init_std if name == "embed.embedding" else 8**-0.5 if to_the_stream else 1.0
        np.testing.assert_allclose(chosen[name], array * factor, rtol=1e-6, err_msg=name)


@pytest.mark.parametrize("count", [1, 4])
def test_a_checkpoint_comes_back(count, tmp_path):
    decoder = toy(count)
    params = decoder.init(jax.random.key(1))
    save_hf(tmp_path / "out", decoder, params)
    names = set(safetensors.numpy.load_file(tmp_path / "out" / "model.safetensors"))
    for i in range(4):
        norms = {n.split(".")[3] for n in names if n.startswith(f"model.layers.{i}.") and "norm" in n}
        own = "post_feedforward_layernorm" if i < count else "input_layernorm"
        assert norms == {own, "post_attention_layernorm"}
    again = load_architecture(tmp_path / "out")
    assert again == decoder.arch
    assert jax.tree.all(jax.tree.map(np.array_equal, load_params(tmp_path / "out", Decoder(again)), params))
    second = again.to_hf()
    assert second == json.loads((tmp_path / "out" / "config.json").read_text())


def test_transformers_refuses_it(tmp_path):
    """It must not be taken for a Pre-LN Llama."""
    from transformers import AutoConfig, LlamaConfig

    (tmp_path / "config.json").write_text(json.dumps(toy(1).arch.to_hf()))
    with pytest.raises(ValueError, match="jaxsft_mix_ln"):
        AutoConfig.from_pretrained(tmp_path)
    (tmp_path / "config.json").write_text(json.dumps(toy(0).arch.to_hf()))
    assert isinstance(AutoConfig.from_pretrained(tmp_path), LlamaConfig)


def test_layers_keep_the_order_they_were_trained_with(tmp_path):
    save_hf(tmp_path / "pre", toy(0), toy(0).init(jax.random.key(0)))
    save_hf(tmp_path / "mix", toy(1), toy(1).init(jax.random.key(0)))
    with pytest.raises(UserError, match=r"layer was trained as Pre-LN, and config\.json makes it Post-LN"):
        load_params(tmp_path / "pre", toy(1))
    with pytest.raises(UserError, match=r"layer was trained as Post-LN, and config\.json makes it Pre-LN"):
        load_params(tmp_path / "mix", toy(0))
    with pytest.raises(UserError, match="layer was trained as Pre-LN"):
        load_params(tmp_path / "mix", toy(2))


def test_what_no_mix_ln_model_can_be():
    with pytest.raises(UserError, match="asks for 5 Post-LN layers, but the model has 4"):
        toy(5)
    for family in ("gemma2", "gemma3_text"):
        with pytest.raises(UserError, match=f"a {family} model has norms on both sides"):
            Architecture.from_hf(LLAMA | {"model_type": family}).with_post_layers(1, "the test")
    fields = toy(1).arch.to_hf()
    with pytest.raises(UserError, match="n_post_layers is 1, but model_type is 'llama', whose layers are Pre-LN"):
        Architecture.from_hf(fields | {"model_type": "llama"})
    with pytest.raises(UserError, match="n_post_layers is None; a jaxsft_mix_ln model needs"):
        Architecture.from_hf(fields | {"n_post_layers": None})
    with pytest.raises(UserError, match="model_type is None"):
        Architecture.from_hf({k: v for k, v in fields.items() if k != "base_model_type"})
