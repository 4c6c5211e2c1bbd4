"""Each regulariser against its equation, and all of them together against finite differences."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.test_util import check_grads

from jaxsft.adapters.full import Full
from jaxsft.adapters.lora import LoRA
from jaxsft.adapters.method import Parts
from jaxsft.config import LoRAConfig, ObjectiveConfig, RegularizersConfig
from jaxsft.errors import UserError
from jaxsft.models.decoder import Decoder
from jaxsft.objectives import regularizers
from jaxsft.objectives.objective import Base
from jaxsft.objectives.registry import make_objective
from jaxsft.objectives.regularizers import Regularized, kept, neftune_noise, soft_threshold, sparsity
from jaxsft.objectives.sft import SFT
from jaxsft.objectives.terms import total
from jaxsft.training.step import BoundModel
from tests.tiny import llama, make_batch, on_device, packed_rows, random_examples

ARCH = llama(num_hidden_layers=1)
START = {"a": np.array([1.0, -2.0]), "b": {"c": np.array([[0.5]])}}
PARAMS = {"a": np.array([1.5, -2.0]), "b": {"c": np.array([[-0.5]])}}  # changes 0.5, 0, -1
FISHER = {"a": np.array([4.0, 7.0]), "b": {"c": np.array([[3.0]])}}


def penalty(**fields) -> tuple[float, list[float]]:
    """Value and flat gradient of the penalties at PARAMS."""
    objective = Regularized(SFT(), **fields)
    of = lambda params: total(objective.penalties(Parts(params, {}, {}, START, FISHER)))
    value, gradient = jax.value_and_grad(of)(jax.tree.map(jnp.asarray, PARAMS))
    return float(value), np.concatenate([np.ravel(g) for g in jax.tree.leaves(gradient)]).tolist()


def test_penalties_by_hand():
    """Values from the changes 0.5, 0, -1: half of 1.25; half of 4 * 0.25 + 3 * 1; 1.5; and 1.5 + 2 + 0.5."""
    wanted = [
        ({"l2_to_start": 0.1}, 0.0625, [0.05, 0.0, -0.1]),
        ({"ewc": 0.1}, 0.2, [0.2, 0.0, -0.3]),
        ({"l1": 0.1}, 0.15, [0.1, 0.0, -0.1]),
        ({"l1": 0.1, "l1_on": "weights"}, 0.4, [0.1, -0.1, -0.1]),
        ({"l1": 0.1, "l1_proximal": True}, 0.0, [0.0, 0.0, 0.0]),
        ({"l2_to_start": 0.1, "ewc": 0.1}, 0.2625, [0.25, 0.0, -0.4]),
    ]
    for fields, value, gradient in wanted:
        got = penalty(**fields)
        assert got[0] == pytest.approx(value, rel=1e-6), fields
        assert got[1] == pytest.approx(gradient, rel=1e-6), fields


def test_the_proximal_step_minimises_what_it_should():
    """Of x - o a threshold's worth is taken; against a search of 1/2 (y - x)^2 + threshold |y - o|."""
    grid = np.linspace(-3, 3, 60001)
    for x, o, threshold in [(1.0, 0.0, 0.3), (-1.0, 0.5, 0.3), (0.2, 0.0, 0.3), (0.7, 0.5, 0.2), (2.0, 2.5, 1.0)]:
        best = grid[np.argmin(0.5 * (grid - x) ** 2 + threshold * np.abs(grid - o))]
        got = float(soft_threshold(jnp.float32(x), jnp.float32(o), jnp.float32(threshold)))
        assert got == pytest.approx(best, abs=2e-4)
    assert float(soft_threshold(jnp.float32(0.7), jnp.float32(0.6), jnp.float32(0.2))) == np.float32(0.6)


def test_the_proximal_step_follows_the_learning_rate_and_what_it_is_of():
    parts = Parts(jax.tree.map(jnp.asarray, PARAMS), {}, {}, START)
    moved = Regularized(SFT(), l1=2.0, l1_proximal=True).project(parts, jnp.float32(0.3))
    np.testing.assert_allclose(moved["a"], [1.0, -2.0])  # within 0.6 of the start
    np.testing.assert_allclose(moved["b"]["c"], [[0.1]], rtol=1e-6)
    moved = Regularized(SFT(), l1=2.0, l1_proximal=True, l1_on="weights").project(parts, jnp.float32(0.3))
    np.testing.assert_allclose(moved["a"], [0.9, -1.4], rtol=1e-6)
    np.testing.assert_array_equal(moved["b"]["c"], [[0.0]])
    assert Regularized(SFT(), l1=2.0).project(parts, jnp.float32(0.3)) is parts.params
    assert sparsity({"a": jnp.array([0.0, 9e-6, -1.1e-5, 2.0])}) == 0.5


# --- NEFTune


def noise_of(rows, length, key=0, alpha=5.0, dim=16):
    batch = on_device(make_batch(rows, length, 4, EXAMPLES))
    return np.asarray(neftune_noise(jax.random.key(key), batch, dim, alpha)), batch


EXAMPLES = random_examples(6, 12, seed=4)


def test_noise_is_uniform_in_a_cube_of_the_examples_length():
    noise, batch = noise_of([EXAMPLES[:3], EXAMPLES[3:]], 40, alpha=5.0)
    for row in range(2):
        for slot in range(3):
            own = noise[row][np.asarray(batch.example_ids)[row] == slot + 1]
            bound = 5.0 / np.sqrt(len(own) * 16)
            assert np.abs(own).max() <= bound
            scaled = own / bound
            assert abs(scaled.mean()) < 4 / np.sqrt(3 * own.size)  # four standard errors of a uniform's mean
            assert scaled.std() == pytest.approx(1 / np.sqrt(3), rel=0.15)
    assert not noise[np.asarray(batch.example_ids) == 0].any()
    assert np.any(noise != noise_of([EXAMPLES[:3], EXAMPLES[3:]], 40, key=1)[0])
    np.testing.assert_allclose(2 * noise, noise_of([EXAMPLES[:3], EXAMPLES[3:]], 40, alpha=10.0)[0], rtol=1e-6)


def test_noise_goes_with_the_example():
    """Wherever it is packed; every token of it has its own."""
    packed, batch = noise_of([EXAMPLES[:3], EXAMPLES[3:]], 40)
    alone, _ = noise_of([[e] for e in EXAMPLES[::-1]], 12)
    for i in range(6):
        own = packed[i // 3][np.asarray(batch.example_ids)[i // 3] == i % 3 + 1]
        np.testing.assert_array_equal(own, alone[5 - i][: len(own)])
        assert len(np.unique(own)) == own.size


def test_noise_reaches_the_model_in_training_alone():
    """By the step's key; the model that the run started from is asked without."""
    batch = on_device(make_batch([EXAMPLES[:3]], 40, 4))
    seen = []

    class Spy:
        step_key, embed_dim, parts = jax.random.key(3), 16, None

        def __call__(self, batch, adapter=True, embed_noise=None):
            seen.append((adapter, embed_noise))
            return "output"

    class Asks(Base):
        def __call__(self, model, batch, denominators):
            assert model(batch) == "output" == model(batch, adapter=False)
            model(batch, embed_noise=jnp.ones(()))
            return {}, {}

    Regularized(Asks(), neftune_alpha=5.0)(Spy(), batch, {})
    key = jax.random.fold_in(jax.random.key(3), regularizers.NEFTUNE)
    want = neftune_noise(key, batch, 16, 5.0)
    np.testing.assert_array_equal(seen[0][1], want)
    assert seen[1] == (False, None)
    np.testing.assert_array_equal(seen[2][1], want + 1)
    seen.clear()
    Spy.step_key = None
    Regularized(Asks(), neftune_alpha=5.0)(Spy(), batch, {})
    assert seen[0] == (True, None)


# --- the whole loss on a model


def problem(kind: str, dtype=jnp.float32):
    """Method, trained parameters that have left their start, the rest of the parts, and a batch."""
    decoder = Decoder(ARCH, dtype=dtype, remat="none")
    base = jax.tree.map(lambda x: x.astype(dtype), decoder.init(jax.random.key(0)))
    method = Full(ARCH, ("embed",)) if kind == "full" else LoRA(LoRAConfig(2, 4.0, targets=("layers.*.mlp.*",)), ARCH)
    parts = method.split(base, jax.random.key(1))
    parts = parts._replace(params=jax.tree.map(lambda x: x.astype(dtype), parts.params))
    rng = np.random.default_rng(0)
    noise = lambda x: x + jnp.asarray(0.1 * rng.normal(size=x.shape), dtype)
    fisher = jax.tree.map(lambda x: jnp.asarray(rng.random(x.shape), dtype), parts.params)
    parts = parts._replace(start=parts.params, fisher=fisher, params=jax.tree.map(noise, parts.params))
    batch = on_device(make_batch(packed_rows(random_examples(4, 8, seed=2), 2, 20), 20, 3))
    return decoder, method, parts, base, batch


def loss_of(objective, decoder, method, parts, batch):
    """(parameters -> loss), terms and metrics."""

    def function(params):
        own = parts._replace(params=params)
        model = BoundModel(decoder, method, own, {}, (jax.random.key(7), jax.random.key(8)))
        terms, sums = objective(model, batch, objective.denominators(batch))
        terms = terms | objective.penalties(own)
        return total(terms), (terms, objective.metrics(sums))

    return function


@pytest.mark.parametrize("kind", ["full", "lora"])
def test_gradients_by_finite_differences(kind):
    """In float64, NEFTune's draw held fixed."""
    with jax.enable_x64(True):
        decoder, method, parts, _, batch = problem(kind, jnp.float64)
        fields = {"ewc": 0.4} if kind == "full" else {"l1_on": "weights"}
        own = {"neftune_alpha": 5.0, "kl_to_base": 0.6, "l2_to_start": 0.2, "l1": 0.1}
        objective = Regularized(SFT(), **own, **fields)
        function = jax.jit(lambda params: loss_of(objective, decoder, method, parts, batch)(params)[0])
        check_grads(function, (parts.params,), 1, ["rev"], rtol=1e-5, eps=1e-6)


@pytest.mark.parametrize("kind", ["full", "lora"])
def test_kl_is_from_where_the_run_started(kind):
    """A mean over supervised tokens, each counting once, of a sum over the vocabulary, from dense logits."""
    decoder, method, parts, base, batch = problem(kind)
    loss, (terms, metrics) = jax.jit(
        lambda p: loss_of(Regularized(SFT(), kl_to_base=0.5), decoder, method, parts, batch)(p)
    )(parts.params)

    def log_probs(params, adapters):
        hidden = decoder.forward(params, batch.tokens, batch.positions, batch.segment_ids, adapters=adapters).hidden
        return np.asarray(jax.nn.log_softmax(decoder.head(decoder.head_params(params, adapters), hidden)), np.float64)

    log_p, log_q = log_probs(base, None), log_probs(*method.compose(parts, {}))
    want = (np.exp(log_p) * (log_p - log_q)).sum(-1)[np.asarray(batch.weights) != 0].mean()
    assert want > 1e-3
    np.testing.assert_allclose(metrics["kl_to_base"], want, rtol=1e-4)
    nll = terms["cross_entropy"].sum / terms["cross_entropy"].denominator
    np.testing.assert_allclose(loss - nll, want / 2, rtol=1e-3)
    at_start = loss_of(Regularized(SFT(), kl_to_base=1e3), decoder, method, parts, batch)
    plain = loss_of(SFT(), decoder, method, parts, batch)
    got, want = (jax.jit(jax.grad(lambda p, f=f: f(p)[0]))(parts.start) for f in (at_start, plain))
    jax.tree.map(lambda g, w: np.testing.assert_allclose(g, w, atol=2e-4), got, want)


def test_a_term_uses_the_forward_pass_of_the_objective():
    """One forward pass of the model and one of the base, not two and one."""
    calls = []

    class Counting(BoundModel):
        def __call__(self, batch, *, adapter=True, **options):
            calls.append(adapter)
            return super().__call__(batch, adapter=adapter, **options)

    decoder, method, parts, _, batch = problem("lora")
    objective = Regularized(SFT(), kl_to_base=0.5, neftune_alpha=5.0)
    model = Counting(decoder, method, parts, {}, (jax.random.key(7), jax.random.key(8)))
    objective(model, batch, objective.denominators(batch))
    assert calls == [True, False]


def test_without_a_coefficient_nothing_is_added():
    decoder, method, parts, _, batch = problem("full")
    assert make_objective(ObjectiveConfig()) == SFT()
    off = Regularized(SFT())
    (got, (terms, metrics)), (want, (plain_terms, plain_metrics)) = (
        jax.jit(loss_of(objective, decoder, method, parts, batch))(parts.params) for objective in (off, SFT())
    )
    assert got == want and terms.keys() == plain_terms.keys() and metrics.keys() == plain_metrics.keys()
    got, want = (
        jax.jit(jax.grad(lambda p, o=o: loss_of(o, decoder, method, parts, batch)(p)[0]))(parts.params)
        for o in (off, SFT())
    )
    jax.tree.map(np.testing.assert_array_equal, got, want)


def test_it_answers_all_that_an_objective_does():
    class Picky(SFT):
        grouping, needs_reference = "pairs", True

    regularized = Regularized(Picky(), l1=0.1)
    assert (regularized.grouping, regularized.needs_reference) == ("pairs", True)
    for name in (name for name in dir(Base) if not name.startswith("_")):
        assert hasattr(Regularized, name), f"objectives answer {name}, which a regularised one passes on"


def test_what_is_made_of_a_config():
    wanted = RegularizersConfig(neftune_alpha=5.0, l2_to_start=0.1, l1=0.2, l1_on="weights", l1_proximal=True)
    made = make_objective(ObjectiveConfig(regularizers=wanted, chunk_size=32))
    fields = {"neftune_alpha": 5.0, "l2_to_start": 0.1, "l1": 0.2, "l1_on": "weights", "l1_proximal": True}
    assert made == Regularized(SFT(chunk_size=32), **fields, chunk_size=32)
    assert hash(made) == hash(dataclasses.replace(made))
    with pytest.raises(UserError, match=r"l1_proximal is True, but l1 is 0"):
        make_objective(ObjectiveConfig(regularizers=RegularizersConfig(l1_proximal=True)))


@pytest.mark.parametrize(
    ("fields", "full", "lora"),
    [
        ({}, (False, False), (False, False)),
        ({"neftune_alpha": 5.0}, (False, False), (False, False)),
        ({"kl_to_base": 0.1}, (True, False), (False, False)),
        ({"l2_to_start": 0.1}, (True, False), (True, False)),
        ({"ewc": 0.1}, (True, True), (True, True)),
        ({"l1": 0.1}, (True, False), (True, False)),
        ({"l1": 0.1, "l1_on": "weights"}, (False, False), (False, False)),
    ],
)
def test_what_has_to_be_kept(fields, full, lora):
    assert kept(RegularizersConfig(**fields), trains_base=True) == full
    assert kept(RegularizersConfig(**fields), trains_base=False) == lora
