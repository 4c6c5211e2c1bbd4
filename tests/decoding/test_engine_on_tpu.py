"""The real TPU compiler on both programs of generation, on a machine without a TPU."""

import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.experimental import topologies

from jaxsft.config import MeshConfig
from jaxsft.decoding import slots as state
from jaxsft.decoding.engine import _admit, _advance
from jaxsft.decoding.sampling import Sampling
from jaxsft.models.decoder import Decoder
from jaxsft.sharding import make_mesh, tree_shardings
from tests.tiny import llama

pytest.importorskip("libtpu", reason="the TPU compiler is in the extra `tpu`")

ROWS, LENGTH, ROOM = 32, 1024, 512
SIZES = {
    "hidden_size": 512, "intermediate_size": 1408, "num_hidden_layers": 4, "num_attention_heads": 4,
    "num_key_value_heads": 2, "head_dim": 128, "vocab_size": 32000, "max_position_embeddings": 4096,
}  # fmt: skip


@pytest.mark.slow
def test_the_cache_stays_split_and_in_place_on_a_tpu():
    """Over rows and heads, of four devices; and each program hands on what the other takes."""
    decoder = Decoder(llama(**SIZES), dtype=jnp.bfloat16)
    mesh = make_mesh(MeshConfig(fsdp=2, tensor=2), topologies.get_topology_desc("v5e:2x2", "tpu").devices)
    split = lambda tree, shardings: jax.tree.map(
        lambda x, s: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=s), tree, shardings
    )
    params = decoder.abstract_params(jnp.bfloat16)
    params = split(params, tree_shardings(decoder.logical_axes(), params, mesh))
    arrivals = state.Arrivals(np.zeros((8, 256), np.int32), *np.zeros((4, 8), np.int32))
    static = {"decoder": decoder, "sampling": Sampling(temperature=0.7, top_p=0.9, max_new_tokens=ROOM)}
    with jax.set_mesh(mesh):
        empty = lambda: state.empty(decoder, ROWS, LENGTH, ROOM, 0)
        shardings = jax.jit(empty).lower().compile().output_shardings
        slots = split(jax.eval_shape(empty), shardings)
        given = (slots, params, None, None, np.zeros(2, np.uint32))
        advanced = _advance.lower(*given, np.ones(ROWS, bool), 8, ROOM, reach=LENGTH // 2, **static).compile()
        admitted = _admit.lower(*given, arrivals, **static).compile()
    cache = ROWS * LENGTH * 2 * 128 * 4 * 2 * 2 // 4  # bytes a device: keys and values of four layers, in bfloat16
    for program, after in ((advanced, advanced.output_shardings[0]), (admitted, admitted.output_shardings)):
        assert jax.tree.leaves(after) == jax.tree.leaves(shardings)
        memory = program.memory_analysis()
        assert memory.alias_size_in_bytes >= cache
        assert memory.temp_size_in_bytes < cache / 2
        text = program.as_text()
        assert re.search(rf"\[4,\d+,\d+,{LENGTH},128\]", text)  # the cache of four layers, of which none is moved
        assert re.findall(rf",{LENGTH},128\]\S* (?:all-gather|all-to-all|copy)\(", text) == []
