"""Training the rows of new tokens alone: held to the rows of the whole matrix's gradient, and bit for bit elsewhere."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxsft.adapters.lora import LoRA
from jaxsft.adapters.method import Parts
from jaxsft.adapters.peft import load_peft, save_peft
from jaxsft.adapters.registry import make_method
from jaxsft.adapters.rows import Rows, make
from jaxsft.config import AdapterConfig, LoRAConfig, MeshConfig, RowsConfig, TrainConfig
from jaxsft.errors import UserError
from jaxsft.models import layout
from jaxsft.models.architecture import NEW_IDS
from jaxsft.models.decoder import Decoder
from jaxsft.sharding import make_mesh
from jaxsft.training.program import build
from tests import tiny
from tests.tiny import llama, make_batch

IDS = (9, 60)
ROWS = RowsConfig(IDS)


def made(tied: bool, targets: tuple[str, ...]) -> tuple[Rows, Decoder, dict]:
    arch = llama(tie_word_embeddings=tied)
    decoder = Decoder(arch, remat="none")
    return make(RowsConfig(IDS, targets), arch), decoder, decoder.init(jax.random.key(0))


FORMS = [(True, ("embed",)), (False, ("embed",)), (False, ("embed", "head"))]


@pytest.mark.parametrize(("tied", "targets"), FORMS)
def test_fresh_rows_are_the_base_and_merged_ones_the_model(tied, targets):
    """In float64, where what is left of a difference is an error and not rounding."""
    method, decoder, base = made(tied, targets)
    tokens = np.random.default_rng(0).integers(1, 64, (3, 20))
    assert np.isin(tokens, IDS).any()
    with jax.enable_x64(True):
        base = jax.tree.map(lambda x: jnp.asarray(x, jnp.float64), base)
        parts = method.split(base, jax.random.key(1))
        plain = tiny.logits(decoder, tokens, base)
        np.testing.assert_allclose(tiny.logits(decoder, tokens, *method.compose(parts, {})), plain, rtol=0, atol=1e-5)
        parts = parts._replace(params=jax.tree.map(lambda p: p.astype(jnp.float64) + 0.3, parts.params))
        unmerged = tiny.logits(decoder, tokens, *method.compose(parts, {}))
        merged = tiny.logits(decoder, tokens, method.merge(parts), None)
    assert merged.dtype == np.float64
    np.testing.assert_allclose(merged, unmerged, rtol=0, atol=1e-11)
    assert np.abs(unmerged - plain).max() > 0.1


@pytest.mark.parametrize(("tied", "targets"), FORMS)
def test_the_gradient_is_that_of_the_whole_matrix_at_these_rows(tied, targets):
    method, decoder, base = made(tied, targets)
    tokens = np.random.default_rng(1).integers(1, 64, (4, 24))

    def loss(params, adapters=None):
        chances = jax.nn.log_softmax(tiny.logits(decoder, tokens[:, :-1], params, adapters))
        return -jnp.mean(jnp.take_along_axis(chances, jnp.asarray(tokens)[:, 1:, None], -1))

    with jax.enable_x64(True):
        base = jax.tree.map(lambda x: jnp.asarray(x, jnp.float64), base)
        parts = method.split(base, jax.random.key(1))
        of_rows = lambda params: loss(*method.compose(parts._replace(params=params), {}))
        wide = jax.tree.map(lambda p: jnp.asarray(p, jnp.float64), parts.params)
        own, whole = jax.grad(of_rows)(wide), jax.grad(loss)(base)
    wanted = {"embed": whole["embed"]["embedding"][np.array(IDS)]}
    if "head" in targets:
        wanted["head"] = whole["head"]["kernel"][:, np.array(IDS)].T
    assert own.keys() == wanted.keys()
    for name, rows in wanted.items():
        assert np.abs(rows).max() > 1e-3
        np.testing.assert_allclose(own[name]["rows"], rows, rtol=0, atol=1e-8)  # the base is rounded to float32 rows


def config(**changes) -> TrainConfig:
    config = TrainConfig(batch_size=8, adapter=AdapterConfig(**changes))
    config.model.dtype = config.model.param_dtype = "float32"
    config.optimizer.learning_rate, config.optimizer.warmup_steps = 1e-2, 0
    config.optimizer.weight_decay, config.optimizer.no_decay = 0.1, ()
    return config


def only_in_prompts(token: int):
    """Eight rows whose prompts hold the token, which no target with a weight is."""
    rng = np.random.default_rng(2)
    rows = []
    for _ in range(8):
        ids, weights = rng.integers(1, 9, 16), np.zeros(16, np.float32)
        ids[rng.integers(1, 6)], weights[8:] = token, 1.0
        rows.append([(ids, weights)])
    return make_batch(rows, 16, 1)


@pytest.mark.parametrize("tied", [True, False])
def test_after_steps_all_other_rows_are_what_they_were(tied):
    """With momentum and weight decay; and the token is no target, so what moves its row comes through the prompt."""
    arch = llama(tie_word_embeddings=tied)
    batch = only_in_prompts(IDS[0])
    program = build(config(kind="rows", rows=ROWS), arch, make_mesh(MeshConfig(), jax.devices()[:1]), 10, batch)
    base = jax.tree.map(np.asarray, program.decoder.init(jax.random.key(0)))
    state, frozen = program.initial(jax.tree.map(jnp.asarray, base))
    first = np.asarray(state.params["embed"]["rows"])
    with jax.set_mesh(program.mesh):
        for _ in range(3):
            state, _ = program.step(state, frozen, jax.tree.map(jnp.asarray, batch))
    merged = program.method.merge(frozen.parts(state.params, state.aux["method"]))
    for path, leaf in layout.leaves(merged):
        before = layout.get(base, path)
        changed = np.flatnonzero((np.asarray(leaf) != before).reshape(len(before), -1).any(axis=1))
        assert changed.tolist() == (list(IDS) if path[0] == "embed" else []), path
    moved = np.abs(np.asarray(state.params["embed"]["rows"]) - first).max(axis=1)
    assert moved[0] > 1e-3
    if not tied:  # what nothing reads only decays
        assert 0 < moved[1] <= 3 * 1e-2 * 0.1 * np.abs(first[1]).max()


def test_the_gradient_reaches_a_token_that_no_prompt_predicts():
    """Full fine-tuning: the embedding of a token that is only read has a gradient, and its column of the head is only
    pushed down: its probability falls wherever anything else is a target."""
    arch = llama()
    batch = only_in_prompts(9)
    program = build(config(), arch, make_mesh(MeshConfig(), jax.devices()[:1]), 10, batch)
    base = program.decoder.init(jax.random.key(0))

    def loss(params):
        hidden = program.decoder.forward(params, batch.tokens, batch.positions, batch.segment_ids).hidden
        chances = jax.nn.log_softmax(program.decoder.head(params, hidden))
        return -jnp.sum(batch.weights * jnp.take_along_axis(chances, batch.targets[..., None], -1)[..., 0])

    gradient = jax.grad(loss)(base)
    assert np.abs(gradient["embed"]["embedding"][9]).max() > 1e-2
    assert not np.any(gradient["embed"]["embedding"][60])
    hidden = program.decoder.forward(base, batch.tokens, batch.positions, batch.segment_ids).hidden
    chances = jax.nn.softmax(program.decoder.head(base, hidden))[..., 9]
    pushed = jnp.einsum("bt,btd->d", batch.weights * chances, hidden)  # sum of p(token) h: no target takes from it
    np.testing.assert_allclose(gradient["head"]["kernel"][:, 9], pushed, rtol=1e-4, atol=1e-5)


def test_ids_come_from_the_model():
    arch = llama(**{NEW_IDS: {"<b>": 61, "<a>": 60}})
    assert make(RowsConfig(), arch).ids == (60, 61)
    assert make(RowsConfig((5, 3)), arch).ids == (3, 5)


@pytest.mark.parametrize(
    ("settings", "tied", "message"),
    [
        (RowsConfig(), False, "names no new tokens"),
        (RowsConfig((64,)), False, "from 0 to 63"),
        (RowsConfig((1, 1)), False, "name each id once"),
        (RowsConfig(IDS, ("layers.*",)), False, "name any of embed, head"),
        (RowsConfig(IDS, ("embed", "head")), True, "the head is the embedding here"),
        (RowsConfig(IDS, ()), False, "name any of"),
    ],
)
def test_what_cannot_be_is_refused(settings, tied, message):
    with pytest.raises(UserError, match=message):
        make_method(config(kind="rows", rows=settings), llama(tie_word_embeddings=tied), 1)


@pytest.mark.parametrize("tied", [True, False])
def test_lora_on_the_embedding_is_its_definition(tied):
    """Row i is W[i] + s (A B)[i], in the lookup and, where it is tied, in the head."""
    arch = llama(tie_word_embeddings=tied)
    decoder = Decoder(arch, remat="none")
    settings = config(kind="lora", lora=LoRAConfig(4, 8.0, targets=("embed", "layers.*.attn.[qkvo]_proj")))
    method = make_method(settings, arch, 1)
    rng, tokens = np.random.default_rng(0), np.random.default_rng(0).integers(1, 64, (2, 20))
    with jax.enable_x64(True):
        base = jax.tree.map(lambda x: jnp.asarray(x, jnp.float64), decoder.init(jax.random.key(0)))
        parts = method.split(base, jax.random.key(1))
        noise = jax.tree.map(lambda p: jnp.asarray(0.2 * rng.normal(size=p.shape)), parts.params)
        parts = parts._replace(params=noise)
        own = tiny.logits(decoder, tokens, *method.compose(parts, {}))
        table = np.asarray(base["embed"]["embedding"]) + 2.0 * np.asarray(noise["embed"]["lora_a"]) @ np.asarray(
            noise["embed"]["lora_b"]
        )
        rest = {name: tree for name, tree in noise.items() if name != "embed"}
        narrow = LoRA(dataclasses.replace(settings.adapter.lora, targets=("layers.*.attn.[qkvo]_proj",)), arch)
        params, adapters = narrow.compose(Parts(rest, {"base": base | {"embed": {"embedding": table}}}, {}), {})
        wanted = tiny.logits(decoder, tokens, params, adapters)
        merged = method.merge(parts)
        of_merged = tiny.logits(decoder, tokens, merged)
    np.testing.assert_allclose(own, wanted, rtol=0, atol=1e-11)
    np.testing.assert_allclose(merged["embed"]["embedding"], table, rtol=0, atol=1e-12)
    np.testing.assert_allclose(of_merged, own, rtol=0, atol=1e-11)


def test_an_adapter_of_a_tied_embedding_is_not_pefts(tmp_path):
    """There the head keeps the base's embedding until a merge."""
    settings = LoRAConfig(2, targets=("embed", "layers.*.attn.q_proj"))
    free, tied = llama(), llama(tie_word_embeddings=True)
    params = LoRA(settings, free).split(Decoder(free).init(jax.random.key(0)), jax.random.key(1)).params
    save_peft(tmp_path / "free", free, params, settings, "base")
    assert "embed" in load_peft(tmp_path / "free", free)[0]
    for go in (
        lambda: save_peft(tmp_path / "tied", tied, params, settings, "base"),
        lambda: load_peft(tmp_path / "free", tied),
    ):
        with pytest.raises(UserError, match="PEFT would adapt the lookup alone"):
            go()
