"""What the sweep costs, read from compiled programs: products with the head, memory, communication."""

import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import NamedSharding
from jax.sharding import PartitionSpec as P
from reference import head, problem

from jaxsft.config import MeshConfig
from jaxsft.objectives.cross_entropy import cross_entropies, token_kl, token_log_probs, weighted_cross_entropy
from jaxsft.sharding import BATCH_AXES, make_mesh


def products(function, *args):
    """Matrix products in the optimised program; a loop's body counts once."""
    return len(re.findall(r"= \S+ dot\(", jax.jit(function).lower(*args).compile().as_text()))


def loss(params, hidden, p, **options):
    return weighted_cross_entropy(head, params, hidden, p["targets"], p["weights"], **options)[0]


@pytest.mark.parametrize(("differentiated", "count"), [((), 1), ((0,), 2), ((1,), 2), ((0, 1), 3)])
def test_products_with_the_head(differentiated, count):
    p = problem(width=16, vocab=64)
    function = lambda params, hidden: loss(params, hidden, p)
    if differentiated:
        function = jax.grad(function, differentiated)
    assert products(function, p["params"], p["hidden"]) == count


@pytest.mark.parametrize(("differentiated", "count"), [((), 1), ((0,), 3), ((1,), 2), ((0, 1), 4)])
def test_products_of_losses_that_are_weighed_later(differentiated, count):
    """With a frozen head no more than where the weights are known before; with a trained one a product more."""
    p = problem(width=16, vocab=64)

    def function(params, hidden):
        ce, tokens = cross_entropies(head, params, hidden, p["targets"], p["weights"] != 0, chunk_size=8)
        return jnp.sum(ce * jax.nn.sigmoid(jnp.sum(tokens.log_prob)))

    function = jax.grad(function, differentiated) if differentiated else function
    assert products(function, p["params"], p["hidden"]) == count


def test_flops():
    """XLA's own count agrees: two operations for each of tokens x width x vocabulary, once per product."""
    p = problem(batch=2, length=64, width=128, vocab=512)
    args = p["params"], p["hidden"]
    once = 2 * 128 * 128 * 512
    functions = {
        1: lambda *a: loss(*a, p),
        2: jax.value_and_grad(lambda *a: loss(*a, p), 1),
        3: jax.value_and_grad(lambda *a: loss(*a, p), (0, 1)),
    }
    for count, function in functions.items():
        flops = jax.jit(function).lower(*args).compile().cost_analysis()["flops"]
        assert count * once <= flops < (count + 0.5) * once


def test_a_frozen_head_is_recognised_through_the_step():
    """Under an adapter the head comes through jit, a scan over micro-batches and closures; still it costs nothing."""
    p = problem(width=16, vocab=64)

    def step(scale, params):
        def micro(carry, hidden):
            return carry + jax.grad(lambda s: jax.jit(lambda h: loss(params, h, p))(s * hidden))(scale), None

        return jax.lax.scan(micro, jnp.zeros(()), jnp.stack([p["hidden"]] * 3))[0]

    assert products(step, jnp.ones(()), p["params"]) == 2


def test_an_adapter_over_a_frozen_head():
    """Only the leaves that are trained get a gradient: the frozen kernel's product with tokens x tokens is absent."""
    p = problem(width=16, vocab=64)
    adapter = {"a": jnp.ones((16, 2)), "b": jnp.ones((2, 64))}

    def adapted(params, hidden):
        return hidden @ params["base"]["kernel"] + (hidden @ params["adapter"]["a"]) @ params["adapter"]["b"]

    def adapted_loss(adapter, base):
        params = {"base": base, "adapter": adapter, "none": None}
        return weighted_cross_entropy(adapted, params, p["hidden"], p["targets"], p["weights"])[0]

    assert products(jax.grad(adapted_loss), adapter, p["params"]) == 6  # three forward, da, db, and back through b
    got = jax.grad(adapted_loss)(adapter, p["params"])
    merged = lambda a: loss_of_kernel(p["params"]["kernel"] + a["a"] @ a["b"], p)
    jax.tree.map(lambda g, w: np.testing.assert_allclose(g, w, rtol=1e-4, atol=1e-5), got, jax.grad(merged)(adapter))


def loss_of_kernel(kernel, p):
    log_p = jax.nn.log_softmax(p["hidden"] @ kernel)
    return -jnp.sum(p["weights"] * jnp.take_along_axis(log_p, p["targets"][..., None], -1)[..., 0])


def test_chunks_without_supervision_are_not_computed():
    calls = []

    def counted(params, hidden):
        jax.debug.callback(lambda: calls.append(1))
        return head(params, hidden)

    def run(weights):
        calls.clear()
        p = problem(batch=4, length=32)
        jax.block_until_ready(
            weighted_cross_entropy(counted, p["params"], p["hidden"], p["targets"], weights, chunk_size=16)
        )
        jax.effects_barrier()
        return len(calls)

    everything = jnp.ones((4, 32))
    assert run(everything) == 8
    assert run(everything.at[:, 3:].set(0)) == 1  # 12 tokens, gathered into one chunk
    assert run(everything.at[1:].set(0)) == 2
    assert run(0 * everything) == 0


@pytest.mark.parametrize("kind", ["loss", "log_probs", "kl"])
def test_memory_grows_by_tokens_times_width_only(kind):
    """Vocabulary 128k, 1k and 8k tokens: what is added is a few [tokens, width] arrays, a thousandth of the logits."""
    width, vocab = 32, 131072

    def function(params, hidden, targets, weights):
        if kind == "loss":
            return weighted_cross_entropy(head, params, hidden, targets, weights, chunk_size=256)[0]
        if kind == "log_probs":
            return jnp.sum(token_log_probs(head, params, hidden, targets, chunk_size=256, entropy=True)["log_prob"])
        return jnp.sum(token_kl(head, params, 2 * hidden, head, params, hidden, chunk_size=256))

    def temporary(tokens):
        shape = jax.ShapeDtypeStruct
        batch = shape((tokens // 512, 512, width), jnp.float32), shape((tokens // 512, 512), jnp.int32)
        args = {"kernel": shape((width, vocab), jnp.float32)}, *batch, shape((tokens // 512, 512), jnp.float32)
        return jax.jit(jax.value_and_grad(function, (0, 1))).lower(*args).compile().memory_analysis().temp_size_in_bytes

    small, large = temporary(1024), temporary(8192)
    assert large - small < 7168 * (8 * width * 4 + 64)
    assert small > 256 * vocab * 4  # the figure does count what exists: a chunk's logits


MESHES = {"fsdp": (1, 8, 1), "tensor": (1, 1, 8), "all": (2, 2, 2)}


@pytest.mark.parametrize("name", MESHES)
def test_sharded_head(name):
    """The same numbers as on one device; no gathered logits; the head's gradient is added over devices once."""
    replica, fsdp, tensor = MESHES[name]
    mesh = make_mesh(MeshConfig(replica, fsdp, tensor))
    width, vocab = 8, 1024
    p = problem(batch=8, length=32, width=width, vocab=vocab)

    def function(params, hidden, targets, weights):
        return weighted_cross_entropy(
            head,
            params,
            hidden,
            targets,
            weights,
            chunk_size=16,
            z_loss=0.1,
            label_smoothing=0.1,
            mix=(targets + 1, 0.7),
        )

    args = p["params"], p["hidden"], p["targets"], p["weights"]
    step = jax.value_and_grad(function, (0, 1), has_aux=True)
    want = jax.jit(step)(*args)
    rows, kernel = NamedSharding(mesh, P(BATCH_AXES)), NamedSharding(mesh, P("fsdp", "tensor"))
    shardings = {"kernel": kernel}, rows, rows, rows
    with jax.set_mesh(mesh):
        compiled = jax.jit(step, in_shardings=shardings).lower(*args).compile()
        got = compiled(*jax.device_put(args, shardings))
    jax.tree.map(lambda g, w: np.testing.assert_allclose(g, w, rtol=2e-5, atol=1e-5), got, want)

    logits, kernel_size = 16 * vocab // tensor, width * vocab // tensor
    moved = list(collectives(compiled.as_text()))
    assert moved
    assert all(size < logits for _, size, _ in moved)
    assert all(size < kernel_size for kind, size, looped in moved if looped and "reduce" in kind)


def test_sharded_evaluation():
    """The forward sweep under the mesh: the same figures, no gathered logits."""
    mesh = make_mesh(MeshConfig(2, 2, 2))
    p = problem(batch=8, length=32, width=8, vocab=1024)
    args = p["params"], p["hidden"], p["targets"], p["weights"] != 0

    def function(params, hidden, targets, mask):
        return token_log_probs(head, params, hidden, targets, mask=mask, chunk_size=16, entropy=True)

    want = jax.jit(function)(*args)
    rows = NamedSharding(mesh, P(BATCH_AXES))
    shardings = {"kernel": NamedSharding(mesh, P("fsdp", "tensor"))}, rows, rows, rows
    with jax.set_mesh(mesh):
        compiled = jax.jit(function, in_shardings=shardings).lower(*args).compile()
        got = compiled(*jax.device_put(args, shardings))
    jax.tree.map(lambda g, w: np.testing.assert_allclose(g, w, rtol=2e-5, atol=1e-5), got, want)
    assert all(size < 16 * 512 for _, size, _ in collectives(compiled.as_text()))


def collectives(text):
    """(kind, elements of the largest result, whether in a loop) of every collective of a compiled program."""
    bodies, computation = set(re.findall(r"body=%?([\w.\-]+)", text)), ""
    for line in text.splitlines():
        if header := re.match(r"(?:ENTRY )?%?([\w.\-]+) \(", line):
            computation = header[1]
        found = re.search(
            r"= (.*?) (all-gather|all-reduce|reduce-scatter|all-to-all|collective-permute)(?:-start)?\(", line
        )
        if found:
            shapes = re.findall(r"\w+\[([\d,]*)\]", found[1])
            yield (
                found[2],
                max(int(np.prod([int(d) for d in s.split(",") if d])) for s in shapes),
                computation in bodies,
            )
