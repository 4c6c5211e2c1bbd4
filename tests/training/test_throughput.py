"""The FLOP formula against a count by hand, and the table of peaks."""

import types

import jax
import pytest

from jaxsft.models.architecture import Architecture
from jaxsft.models.decoder import Decoder
from jaxsft.training.throughput import PEAK_FLOPS, flops_per_token, memory_gib, peak_flops
from tests.tiny import LLAMA, llama

LLAMA_2_7B = LLAMA | {
    "hidden_size": 4096,
    "intermediate_size": 11008,
    "num_hidden_layers": 32,
    "num_attention_heads": 32,
    "num_key_value_heads": 32,
    "head_dim": 128,
    "vocab_size": 32000,
}


def test_llama_2_7b_by_hand():
    """6,738,415,616 parameters as published, less the embedding's 131,072,000: N = 6.607e9, norms included."""
    arch = Architecture.from_hf(LLAMA_2_7B)
    weights = 6_738_415_616 - 32_000 * 4_096
    assert flops_per_token(arch, 0, 1.0) == pytest.approx(6 * weights, rel=0.01)
    assert flops_per_token(arch, 0, 0.0) == pytest.approx(4 * weights, rel=0.01)
    # Each of 4096 positions sees 2048 others on average: scores and mixing, 2 FLOPs a product, 4096 wide, 32 layers.
    forward = 2 * 2 * 2048 * 4096 * 32
    assert flops_per_token(arch, 4096, 1.0) == pytest.approx(6 * weights + 3 * forward, rel=0.01)


def test_weights_are_those_of_the_kernels():
    """Grouped heads, a head size of its own and an odd MLP; the shares are linear."""
    arch = llama(head_dim=16, num_key_value_heads=1, intermediate_size=40, vocab_size=50)
    shapes = Decoder(arch).abstract_params()
    kernels = sum(s.size for path, s in jax.tree_util.tree_leaves_with_path(shapes) if "kernel" in str(path[-1]))
    assert flops_per_token(arch, 0, 1.0) == 6 * kernels
    assert flops_per_token(arch, 0, 0.5) == 5 * kernels
    assert flops_per_token(arch, 10, 0.5) - 5 * kernels == 6 * 3 * (4 * 16) * 10


@pytest.mark.parametrize(
    ("kind", "peak"),
    [
        ("TPU v4", 275e12),
        ("TPU v5 lite", 197e12),
        ("TPU v5", 459e12),
        ("TPU v5p", 459e12),
        ("TPU v6 lite", 918e12),
        ("NVIDIA H100 80GB HBM3", 989e12),
        ("NVIDIA H200", 989e12),
        ("NVIDIA A100-SXM4-40GB", 312e12),
        ("cpu", None),
        ("NVIDIA GeForce RTX 4090", None),
    ],
)
def test_peak_is_that_of_the_longest_name(kind, peak):
    assert peak_flops(types.SimpleNamespace(device_kind=kind)) == peak


def test_every_entry_finds_itself():
    for kind, peak in PEAK_FLOPS.items():
        assert peak_flops(types.SimpleNamespace(device_kind=kind)) == peak


def test_memory_is_the_fullest_devices(monkeypatch):
    assert memory_gib() is None  # CPUs do not tell
    stats = [{"peak_bytes_in_use": 2**30}, {"peak_bytes_in_use": 3 * 2**30}, None]
    devices = [types.SimpleNamespace(memory_stats=lambda s=s: s) for s in stats]
    monkeypatch.setattr(jax, "local_devices", lambda: devices)
    assert memory_gib() == 3.0
