import jax
import jax.numpy as jnp
import numpy as np
import pytest
import reference
from jax.test_util import check_grads
from reference import head, problem

from jaxsft.objectives.cross_entropy import cross_entropies, token_kl, token_log_probs, weighted_cross_entropy

VARIANTS = {
    "plain": {},
    "z_loss": {"z_loss": 0.1},
    "label_smoothing": {"label_smoothing": 0.2},
    "mix": {"mix": True},
    "all": {"z_loss": 0.1, "label_smoothing": 0.2, "mix": True},
}


def chunked(p, variant, chunk_size=7):
    """The loss under test as a function of (params, hidden)."""
    options = dict(variant, mix=(p["second"], p["lam"])) if "mix" in variant else variant
    return lambda params, hidden: weighted_cross_entropy(
        head, params, hidden, p["targets"], p["weights"], chunk_size=chunk_size, **options
    )


def gradients(p, name, chunk_size=7):
    return jax.jit(jax.value_and_grad(chunked(p, VARIANTS[name], chunk_size), (0, 1), has_aux=True))


def dense(p, variant):
    options = {k: v for k, v in variant.items() if k != "mix"}
    options |= {"second": p["second"], "lam": p["lam"]} if "mix" in variant else {}
    return lambda params, hidden: reference.losses(head(params, hidden), p["targets"], **options)


def assert_close(got, want, rtol=2e-5, atol=1e-5):
    jax.tree.map(lambda g, w: np.testing.assert_allclose(g, w, rtol=rtol, atol=atol), got, want)


@pytest.mark.parametrize("name", VARIANTS)
def test_loss_tokens_and_gradients_equal_the_dense_ones(name):
    p = problem()
    args = p["params"], p["hidden"]

    def dense_sum(params, hidden):
        return jnp.sum(p["weights"] * dense(p, VARIANTS[name])(params, hidden))

    (loss, tokens), grads = gradients(p, name)(*args)
    want, want_grads = jax.jit(jax.value_and_grad(dense_sum, (0, 1)))(*args)
    assert_close((loss, grads), (want, want_grads))
    logits, weighted = head(*args), p["weights"] != 0
    assert_close(tokens.ce, jnp.where(weighted, dense(p, VARIANTS[name])(*args), 0))
    assert_close(tokens.log_prob, jnp.where(weighted, reference.at(jax.nn.log_softmax(logits), p["targets"]), 0))
    assert_close(tokens.lse, jnp.where(weighted, jax.nn.logsumexp(logits, axis=-1), 0))
    np.testing.assert_array_equal(tokens.hit, weighted & (jnp.argmax(logits, -1) == p["targets"]))
    evaluated, evaluated_tokens = jax.jit(chunked(p, VARIANTS[name]))(*args)  # not differentiated: another path
    assert_close((evaluated, evaluated_tokens), (loss, tokens))


def test_uniform_logits_have_loss_log_v():
    p = problem(vocab=11)
    params = jax.tree.map(np.zeros_like, p["params"])
    loss, tokens = jax.jit(chunked(p, {}))(params, p["hidden"])
    np.testing.assert_allclose(loss, np.log(11) * p["weights"].sum(), rtol=1e-6)
    np.testing.assert_array_equal(tokens.hit, (p["weights"] != 0) & (p["targets"] == 0))  # a tie is won by the first


@pytest.mark.parametrize("chunk_size", [1, 8, 30, 1000])
def test_chunk_size_changes_nothing(chunk_size):
    p = problem()
    step = lambda c: gradients(p, "all", c)(p["params"], p["hidden"])
    assert_close(step(chunk_size), step(5))


@pytest.mark.parametrize("name", ["plain", "all"])
def test_finite_differences_in_float64(name):
    with jax.enable_x64(True):
        p = problem(dtype=np.float64)
        function = jax.jit(chunked(p, VARIANTS[name]))
        loss, tokens = function(p["params"], p["hidden"])
        assert loss.dtype == tokens.ce.dtype == jnp.float64
        want = jnp.sum(p["weights"] * dense(p, VARIANTS[name])(p["params"], p["hidden"]))
        np.testing.assert_allclose(loss, want, rtol=1e-13)
        check_grads(lambda *a: function(*a)[0], (p["params"], p["hidden"]), 1, ["rev"], rtol=1e-7)


def test_bfloat16_hidden_states():
    p = problem(width=16)
    hidden = p["hidden"].astype(jnp.bfloat16)
    (loss, tokens), grads = gradients(p, "plain")(p["params"], hidden)
    dense_sum = lambda *a: jnp.sum(p["weights"] * dense(p, {})(*a))
    want, want_grads = jax.jit(jax.value_and_grad(dense_sum, (0, 1)))(p["params"], hidden)
    assert loss.dtype == tokens.ce.dtype == grads[0]["kernel"].dtype == jnp.float32
    assert grads[1].dtype == jnp.bfloat16
    np.testing.assert_allclose(loss, want, rtol=1e-6)
    f32 = lambda tree: jax.tree.map(lambda x: x.astype(jnp.float32), tree)
    assert_close(f32(grads), f32(want_grads), rtol=2e-2, atol=2e-2)


def test_hidden_states_of_skipped_tokens_are_never_read():
    p = problem()
    skipped = p["weights"] == 0
    poisoned = np.where(skipped[..., None], np.float32(np.nan), p["hidden"])
    step = gradients(p, "all")
    got = step(p["params"], poisoned)
    assert_close(got, step(p["params"], p["hidden"]))
    np.testing.assert_array_equal(got[1][1][skipped], 0)


def test_a_batch_without_supervision_is_zero():
    p = problem() | {"weights": jnp.zeros((3, 10))}
    result = gradients(p, "all")(p["params"], p["hidden"])
    assert all(not np.any(x) for x in jax.tree.leaves(result))


def test_differentiated_weights_are_refused():
    p = problem()
    with pytest.raises(ValueError, match="stop_gradient"):
        jax.grad(lambda w: weighted_cross_entropy(head, p["params"], p["hidden"], p["targets"], w)[0])(p["weights"])


def test_per_token_figures_carry_no_gradient():
    p = problem()
    grads = jax.jit(jax.grad(lambda *a: jnp.sum(chunked(p, {})(*a)[1].ce), (0, 1)))(p["params"], p["hidden"])
    assert all(not np.any(g) for g in jax.tree.leaves(grads))


def test_vmap_over_models():
    """Several models trained at once, each with its own weights."""
    ps = [problem(seed=s) for s in range(3)]
    stacked = jax.tree.map(lambda *x: np.stack(x), *ps)
    step = lambda p: jax.value_and_grad(chunked(p, VARIANTS["all"]), (0, 1), has_aux=True)(p["params"], p["hidden"])
    got, one = jax.jit(jax.vmap(step))(stacked), jax.jit(step)
    for i, p in enumerate(ps):
        assert_close(jax.tree.map(lambda x, i=i: x[i], got), one(p))


@pytest.mark.parametrize("masked", [False, True])
def test_token_log_probs_and_their_gradients(masked):
    p = problem()
    mask = p["weights"] != 0 if masked else None
    kept = p["weights"] != 0 if masked else jnp.ones((3, 10), bool)

    def dense_tokens(params, hidden):
        logits = head(params, hidden)
        log_p = jax.nn.log_softmax(logits)
        entropy = -jnp.sum(jnp.exp(log_p) * log_p, axis=-1)
        tokens = {
            "log_prob": reference.at(log_p, p["targets"]),
            "lse": jax.nn.logsumexp(logits, -1),
            "entropy": entropy,
        }
        return {name: jnp.where(kept, x, 0) for name, x in tokens.items()} | {
            "hit": kept & (jnp.argmax(logits, -1) == p["targets"])
        }

    def chunked_tokens(params, hidden):
        return token_log_probs(head, params, hidden, p["targets"], mask=mask, chunk_size=7, entropy=True)

    def results(function):
        def mixed(*args):  # every output, every token with its own cotangent
            tokens, lam = function(*args), p["lam"]
            return jnp.sum(
                lam * tokens["log_prob"] ** 2 - lam**2 * tokens["entropy"] + jnp.sin(lam) * tokens["lse"]
            ), tokens

        return jax.jit(jax.grad(mixed, (0, 1), has_aux=True))(p["params"], p["hidden"])

    assert_close(results(chunked_tokens), results(dense_tokens))


def test_token_log_probs_in_float64():
    with jax.enable_x64(True):
        p = problem(dtype=np.float64)

        @jax.jit
        def tokens(params, hidden):
            result = token_log_probs(head, params, hidden, p["targets"], chunk_size=7, entropy=True)
            return result["log_prob"], result["lse"], result["entropy"]

        check_grads(tokens, (p["params"], p["hidden"]), 1, ["rev"], rtol=1e-7)


def test_token_kl_and_its_gradient():
    p, q = problem(), problem(seed=1, width=6)
    mask = p["weights"] != 0

    def dense_kl(params, hidden, other):
        log_p, log_q = jax.nn.log_softmax(head(other, p["hidden"])), jax.nn.log_softmax(head(params, hidden))
        return jnp.where(mask, jnp.sum(jnp.exp(log_p) * (log_p - log_q), -1), 0)

    def kl(params, hidden, other):
        return token_kl(head, other, p["hidden"], head, params, hidden, mask=mask, chunk_size=7)

    def results(function):
        mixed = lambda *args: (jnp.sum(p["lam"] * function(*args)), function(*args))
        return jax.jit(jax.grad(mixed, (0, 1, 2), has_aux=True))(q["params"], q["hidden"], p["params"])

    (*got, fixed), tokens = results(kl)
    (*want, _), want_tokens = results(dense_kl)
    assert_close((got, tokens), (want, want_tokens))
    assert not np.any(fixed["kernel"])
    np.testing.assert_allclose(kl(p["params"], p["hidden"], p["params"]), 0, atol=1e-6)


def test_forbidden_tokens():
    """A logit of minus infinity, as padding of the vocabulary may have, makes nothing NaN."""
    p = problem(vocab=11)
    targets = np.minimum(p["targets"], 9)
    forbid = lambda params, hidden: head(params, hidden).at[..., 10].set(-jnp.inf)
    rest = lambda params, hidden: head(params, hidden)[..., :10]

    def everything(head):
        def total(params, hidden):
            tokens = token_log_probs(head, params, hidden, targets, entropy=True)
            loss, _ = weighted_cross_entropy(head, params, hidden, targets, p["weights"], z_loss=0.1)
            kl = token_kl(head, p["params"], p["hidden"], head, params, hidden)
            return loss + jnp.sum(tokens["log_prob"] + tokens["entropy"] + kl)

        params = jax.tree.map(lambda x: 0.9 * x, p["params"])
        return jax.jit(jax.value_and_grad(total, (0, 1)))(params, p["hidden"])

    assert_close(everything(forbid), everything(rest))


@pytest.mark.parametrize("options", [{}, {"label_smoothing": 0.1}, {"z_loss": 0.01}, {"mix": True}])
@pytest.mark.parametrize("frozen", [False, True])
def test_losses_weighed_afterwards_are_those_weighed_before(options, frozen):
    with jax.enable_x64(True):
        p = problem(dtype=np.float64, batch=4, length=9)
        if options.get("mix"):
            options = {"mix": (p["second"], p["lam"])}
        factors = jnp.asarray(p["weights"]) * 1.7

        def after(params, hidden):
            ce, tokens = cross_entropies(head, params, hidden, p["targets"], p["weights"] != 0, chunk_size=8, **options)
            return jnp.sum(factors * ce), (ce, tokens)

        def before(params, hidden):
            return weighted_cross_entropy(head, params, hidden, p["targets"], factors, chunk_size=8, **options)

        which = 1 if frozen else (0, 1)
        (value, (ce, tokens)), slopes = jax.value_and_grad(after, which, has_aux=True)(p["params"], p["hidden"])
        (expected, other), expected_slopes = jax.value_and_grad(before, which, has_aux=True)(p["params"], p["hidden"])
        np.testing.assert_allclose(value, expected, rtol=1e-12)
        jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-11, atol=1e-13), slopes, expected_slopes)
        np.testing.assert_allclose(tokens.log_prob, other.log_prob, rtol=1e-12)
        assert (ce[p["weights"] == 0] == 0).all()
