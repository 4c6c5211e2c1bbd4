"""The TPU kernel, interpreted on the CPU against the reference, and compiled for an absent TPU."""

import contextlib
import subprocess
import sys

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxsft.config import MeshConfig
from jaxsft.models import splash
from jaxsft.models.attention import attention
from jaxsft.sharding import make_mesh
from tests.conftest import REPOSITORY

B, T, H, K, D = 2, 256, 4, 2, 64


@pytest.mark.parametrize(("window", "soft_cap", "sharded"), [(None, None, False), (37, 3.0, False), (130, None, True)])
def test_splash_equals_the_reference_and_its_gradients(window, soft_cap, sharded):
    rng = np.random.default_rng(0)
    q, k, v, weight = (jnp.asarray(rng.normal(size=(B, T, n, D)), jnp.float32) for n in (H, K, K, H))
    segments = np.repeat([[1, 2, 3, 0], [1, 1, 2, 2]], [100, 77, 60, 19], axis=1).astype(np.int32)

    def reference(q, k, v):
        return attention(q, k, v, segments, segments, window, soft_cap, 0.1, implementation="xla")

    def kernel(q, k, v):
        return splash.splash_attention(q, k, v, segments, window, soft_cap, 0.1, interpret=True)

    both = lambda f: jax.jit(lambda q, k, v: (f(q, k, v), jax.vjp(f, q, k, v)[1](weight)))
    expected = both(reference)(q, k, v)
    mesh = jax.set_mesh(make_mesh(MeshConfig(1, 2, 2), jax.devices()[:4])) if sharded else contextlib.nullcontext()
    with mesh:
        found = both(kernel)(q, k, v)
    for a, b in zip(jax.tree.leaves(found), jax.tree.leaves(expected)):
        np.testing.assert_allclose(a, b, atol=2e-5)


def test_the_reference_is_taken_where_the_kernel_does_not_fit():
    q, k = jnp.zeros((B, T, H, D)), jnp.zeros((B, T, K, D))
    assert jax.default_backend() == "cpu" and not splash.fits(q, k)


COMPILE = """
import sys
import jax, jax.numpy as jnp
from jax.experimental import topologies
from jax.sharding import NamedSharding, PartitionSpec
from jaxsft.config import MeshConfig
from jaxsft.models.architecture import Architecture
from jaxsft.models.decoder import Decoder
from jaxsft.sharding import make_mesh, tree_shardings

mesh = make_mesh(MeshConfig(1, 2, 2), topologies.get_topology_desc(platform="tpu", topology_name="v5e:2x2").devices)
for head_dim in map(int, sys.argv[2:]):
    arch = Architecture.from_hf({
        "model_type": sys.argv[1], "vocab_size": 512, "hidden_size": 256, "intermediate_size": 512,
        "num_attention_heads": 4, "num_key_value_heads": 2, "num_hidden_layers": 2, "head_dim": head_dim,
        "sliding_window": 200,
    })
    decoder = Decoder(arch, dtype=jnp.bfloat16)
    shapes = decoder.abstract_params(jnp.float32)
    place = lambda s, sharding: jax.ShapeDtypeStruct(s.shape, s.dtype, sharding=sharding)
    params = jax.tree.map(place, shapes, tree_shardings(decoder.logical_axes(), shapes, mesh))
    rows = NamedSharding(mesh, PartitionSpec(("replica", "fsdp")))
    ids = jax.ShapeDtypeStruct((4, 512), jnp.int32, sharding=rows)
    loss = lambda p, *batch: decoder.forward(p, *batch).hidden.astype(jnp.float32).sum()
    with jax.set_mesh(mesh):
        text = jax.jit(jax.grad(loss)).lower(params, ids, ids, ids).compile().as_text()
    assert "splash" in text, head_dim
print("compiled")
"""


@pytest.mark.parametrize(
    ("family", "head_dims"),
    [("mistral", ["128"]), pytest.param("gemma2", ["64", "256"], marks=pytest.mark.slow)],
)
def test_the_tpu_compiler_accepts_the_kernel_in_the_decoder(family, head_dims):
    pytest.importorskip("libtpu", reason="compiling for absent TPUs needs the extra `tpu`")
    environment = {"PYTHONPATH": str(REPOSITORY), "JAX_PLATFORMS": "cpu", "PATH": ""}
    environment |= {"TPU_SKIP_MDS_QUERY": "1", "ALLOW_MULTIPLE_LIBTPU_LOAD": "1"}  # nothing runs, so nothing is locked
    command = [sys.executable, "-c", COMPILE, family, *head_dims]
    out = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    assert "compiled" in out.stdout, out.stderr[-4000:]
