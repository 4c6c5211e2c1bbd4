"""The bijection between logical paths and the stacked tree, and patterns over it."""

import jax
import numpy as np
import pytest

from jaxsft.errors import UserError
from jaxsft.models import layout
from jaxsft.models.decoder import Decoder
from tests.models.test_architecture import read

ARCH = read("gemma3_text", num_hidden_layers=8, sliding_window_pattern=3, head_dim=8)


@pytest.fixture(scope="module")
def params() -> dict:
    return Decoder(ARCH).init(jax.random.key(0))


def test_every_logical_path_has_one_place_and_comes_back(params):
    assert [(len(s.unit), s.repeats) for s in ARCH.stacks] == [(3, 2), (1, 2)]
    paths = [name for path, _ in layout.leaves(params) for name in layout.logical_paths(ARCH, path)]
    assert len(paths) == len(set(paths)) == 2 + 8 * 13
    places = {layout.locate(ARCH, name) for name in paths}
    assert len(places) == len(paths)
    for name in paths:
        place = layout.locate(ARCH, name)
        assert layout.logical_paths(ARCH, place.path)[place.row or 0] == name
    assert layout.locate(ARCH, "layers.4.mlp.up_proj.kernel").path[:3] == ("stacks", "0", "1")
    assert layout.locate(ARCH, "layers.4.mlp.up_proj.kernel").row == 1
    assert layout.locate(ARCH, "layers.7.input_norm.scale") == (("stacks", "1", "0", "input_norm", "scale"), 1)
    with pytest.raises(KeyError, match="8 layers"):
        layout.locate(ARCH, "layers.8.input_norm.scale")


def test_stack_undoes_unstack(params):
    arrays = layout.unstack(ARCH, params)
    np.testing.assert_array_equal(
        arrays["layers.3.attn.q_norm.scale"], params["stacks"]["0"]["0"]["attn"]["q_norm"]["scale"][1]
    )
    again = layout.stack(ARCH, arrays)
    assert jax.tree.structure(again) == jax.tree.structure(params)
    assert jax.tree.all(jax.tree.map(np.array_equal, again, params))
    del arrays["layers.3.attn.q_norm.scale"]
    with pytest.raises(ValueError, match=r"layers\.3\.attn\.q_norm\.scale"):
        layout.stack(ARCH, arrays)


def test_flatten_reaches_into_adapters_of_a_part_of_the_model():
    adapters = {"stacks": {"0": {"1": {"attn": {"q_proj": {"lora_a": np.zeros((2, 32, 4))}}}}}}
    assert list(layout.flatten(ARCH, adapters)) == ["layers.1.attn.q_proj.lora_a", "layers.4.attn.q_proj.lora_a"]


@pytest.mark.parametrize(
    ("pattern", "path", "expected"),
    [
        ("layers.*.attn.*_proj", "layers.11.attn.q_proj.kernel", True),
        ("layers.*.attn.*_proj", "layers.11.attn.q_norm.scale", False),
        ("layers.1", "layers.1.mlp.up_proj.kernel", True),
        ("layers.1", "layers.11.mlp.up_proj.kernel", False),
        ("*norm*", "layers.0.attn.q_norm.scale", True),
        ("norm", "norm.scale", True),
        ("norm", "layers.0.input_norm.scale", False),
        ("*bias", "layers.0.attn.q_proj.bias", True),
        ("embed*", "embed.embedding", True),
        ("layers.[0-3].*", "layers.3.mlp.up_proj.kernel", True),
    ],
)
def test_patterns(pattern, path, expected):
    assert layout.matches([pattern], path) is expected


def test_select_marks_rows(params):
    mask = layout.select(ARCH, params, ["layers.4.mlp", "norm"])
    assert jax.tree.structure(mask) == jax.tree.structure(params)
    np.testing.assert_array_equal(mask["stacks"]["0"]["1"]["mlp"]["up_proj"]["kernel"], [False, True])
    np.testing.assert_array_equal(mask["stacks"]["0"]["0"]["mlp"]["up_proj"]["kernel"], [False, False])
    assert mask["norm"]["scale"] is True and mask["embed"]["embedding"] is False


def test_a_pattern_that_names_nothing_is_refused(params):
    with pytest.raises(UserError, match=r"targets: 'layers\.\*\.attn\.q_porj' names nothing.*layers\.\*\.attn\.q_proj"):
        layout.select(ARCH, params, ["layers.*.attn.q_porj"], "targets")
