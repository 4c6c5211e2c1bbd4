"""The rule table, meshes and constraints, on eight fake devices."""

import types

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import NamedSharding, PartitionSpec

from jaxsft.config import MeshConfig
from jaxsft.errors import UserError
from jaxsft.sharding import (
    FREE,
    batch_sharding,
    constrain,
    data_shards,
    make_mesh,
    process_share,
    replicated,
    spec,
    tree_shardings,
)

P = PartitionSpec


@pytest.fixture(scope="module")
def mesh():
    return make_mesh(MeshConfig(2, 2, 2))


def abstract(replica=1, fsdp=1, tensor=1):
    return types.SimpleNamespace(axis_names=("replica", "fsdp", "tensor"), axis_sizes=(replica, fsdp, tensor))


@pytest.mark.parametrize(
    ("axes", "shape", "expected"),
    [
        (("layers", "embed", "heads"), (3, 32, 32), P(None, "fsdp", "tensor")),
        (("layers", "mlp", "embed"), (3, 48, 32), P(None, "tensor", "fsdp")),
        (("vocab", "embed"), (64, 32), P("tensor", "fsdp")),
        (("embed", "rank"), (32, 4), P("fsdp", None)),
        (("batch", "length", "act_embed"), (8, 16, 32), P(("replica", "fsdp"), None, None)),
        (("norm",), (32,), P(None)),
        ((None, "embed"), (7, 32), P(None, "fsdp")),
        ((), (), P()),
        (("embed", "embed"), (32, 32), P("fsdp", None)),  # a mesh axis is used once
        (("vocab", "embed"), (65, 32), P(None, "fsdp")),  # odd vocabularies stay whole
        (("vocab", "mlp"), (65, 48), P(None, "tensor")),  # and leave their mesh axis to others
    ],
)
def test_spec(axes, shape, expected):
    assert spec(axes, shape, abstract(2, 2, 2)) == expected


def test_spec_leaves_out_mesh_axes_of_size_one():
    assert spec(("batch", "embed", "heads"), (8, 32, 32), abstract(1, 4, 1)) == P("fsdp", None, None)
    assert spec(("embed", "heads"), (31, 33), abstract()) == P(None, None)


def test_spec_refuses():
    with pytest.raises(UserError, match=r"layers\.q has heads=33, which does not divide by the mesh's tensor=2"):
        spec(("embed", "heads"), (32, 33), abstract(1, 1, 2), "layers.q")
    with pytest.raises(UserError, match=r"batch=6, .* replica\*fsdp=4"):
        spec(("batch",), (6,), abstract(2, 2, 1))
    with pytest.raises(ValueError, match="unknown logical axis 'colour' of w"):
        spec(("colour",), (4,), abstract(), "w")
    with pytest.raises(ValueError):
        spec(("embed",), (4, 4), abstract())


def test_tree_shardings_name_the_array_in_the_error(mesh):
    shapes = {"a": {"w": jax.ShapeDtypeStruct((32, 48), jnp.float32)}, "step": jax.ShapeDtypeStruct((), jnp.int32)}
    shardings = tree_shardings({"a": {"w": ("embed", "mlp")}, "step": ()}, shapes, mesh)
    assert shardings == {"a": {"w": NamedSharding(mesh, P("fsdp", "tensor"))}, "step": NamedSharding(mesh, P())}
    shapes["a"]["w"] = jax.ShapeDtypeStruct((32, 49), jnp.float32)
    with pytest.raises(UserError, match=r"a\.w has mlp=49"):
        tree_shardings({"a": {"w": ("embed", "mlp")}, "step": ()}, shapes, mesh)


@pytest.mark.parametrize(
    ("config", "expected"),
    [
        (MeshConfig(), (1, 1, 8, 1)),
        (MeshConfig(-1, 2, 2), (1, 2, 2, 2)),
        (MeshConfig(2, 1, -1), (1, 2, 1, 4)),
        (MeshConfig(1, 8, -1), (1, 1, 8, 1)),
        (MeshConfig(2, 2, 2), (1, 2, 2, 2)),
        (MeshConfig(1, -1, 2, submodel=2), (2, 1, 2, 2)),
    ],
)
def test_make_mesh(config, expected):
    mesh = make_mesh(config)
    assert mesh.axis_names == ("submodel", "replica", "fsdp", "tensor")
    assert mesh.axis_sizes == expected
    assert len(set(mesh.devices.flat)) == 8


@pytest.mark.parametrize(
    ("config", "message"),
    [
        (MeshConfig(-1, -1, 1), "at most one is -1"),
        (MeshConfig(0, -1, 1), "sizes are positive"),
        (MeshConfig(1, -2, 1), "sizes are positive"),
        (MeshConfig(3, -1, 1), "3 does not divide the 8 devices"),
        (MeshConfig(1, 2, 2), "4 devices in all, but there are 8"),
        (MeshConfig(2, 4, 2), "16 devices in all, but there are 8"),
    ],
)
def test_make_mesh_refuses(config, message):
    with pytest.raises(UserError, match=message):
        make_mesh(config)


def test_make_mesh_of_given_devices():
    assert make_mesh(MeshConfig(), jax.devices()[:3]).axis_sizes == (1, 1, 3, 1)


def test_constrain_without_mesh_is_the_identity():
    x = jnp.ones((3, 5))
    assert constrain(x, "batch", "no such axis") is x
    with jax.set_mesh(make_mesh(MeshConfig(), jax.devices()[:1])):
        assert constrain(x, "batch", "vocab") is x


def test_constrain_pins_what_divides(mesh):
    x = jnp.arange(8 * 6 * 4.0).reshape(8, 6, 4)
    with jax.set_mesh(mesh):
        pinned = jax.jit(lambda x: constrain(2 * x, "batch", "length", "vocab"))(x)
        assert pinned.sharding.spec == P(("replica", "fsdp"), None, "tensor")
        odd = jax.jit(lambda x: constrain(2 * x[:7], "batch", "length", "vocab"))(x)
        assert odd.shape == (7, 6, 4)
        assert odd.sharding.spec[2:] == ("tensor",)
        free = jax.device_put(x, NamedSharding(mesh, P(None, "tensor")))
        free = jax.jit(lambda x: constrain(2 * x, "batch", FREE, "act_embed"))(free)
        assert free.sharding.spec[:2] == (("replica", "fsdp"), "tensor")
    for got, want in ((pinned, x), (odd, x[:7]), (free, x)):
        np.testing.assert_array_equal(got, 2 * want)


def test_rows_of_a_batch(mesh):
    assert data_shards(mesh) == 4
    assert data_shards(jax.sharding.get_abstract_mesh()) == 1
    rows = jax.device_put(np.arange(8), batch_sharding(mesh))
    held = {tuple(np.asarray(shard.data)) for shard in rows.addressable_shards}
    assert held == {(0, 1), (2, 3), (4, 5), (6, 7)}
    assert jax.device_put(np.arange(8), replicated(mesh)).addressable_shards[5].data.shape == (8,)


def processes(grid):
    """A mesh whose devices belong to the processes of `grid`."""
    devices = np.vectorize(lambda p: types.SimpleNamespace(process_index=p), otypes=[object])(np.array(grid))
    devices = devices[None]
    return types.SimpleNamespace(
        devices=devices, axis_names=("submodel", "replica", "fsdp", "tensor"), axis_sizes=devices.shape
    )


@pytest.mark.parametrize(
    ("grid", "expected"),
    [
        ([[[0, 0], [1, 1]], [[2, 2], [3, 3]]], [((0,), 4), ((1,), 4), ((2,), 4), ((3,), 4)]),
        ([[[0], [0]], [[1], [1]]], [((0, 1), 4), ((2, 3), 4)]),
        ([[[0, 1], [2, 3]]], [((0,), 2), ((0,), 2), ((1,), 2), ((1,), 2)]),  # a tensor group holds the same rows
        ([[[0, 1, 2, 3]]], [((0,), 1)] * 4),
        ([[[0], [1], [0], [1]]], [((0, 2), 4), ((1, 3), 4)]),  # blocks of a torus do not follow each other
    ],
)
def test_process_share(grid, expected):
    mesh = processes(grid)
    assert [process_share(mesh, p) for p in range(len(expected))] == expected
