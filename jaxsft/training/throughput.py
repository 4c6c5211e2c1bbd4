"""Tokens per second, and model FLOP utilisation (MFU) with its formula."""

import jax
import numpy as np

from jaxsft.models.architecture import Architecture

# Dense bf16 peak of a chip, in FLOP/s: vendors' data sheets (for H100 and H200 the figure without 2:4 sparsity).
PEAK_FLOPS = {
    "TPU v4": 275e12,
    "TPU v5 lite": 197e12,
    "TPU v5e": 197e12,
    "TPU v5": 459e12,
    "TPU v5p": 459e12,
    "TPU v6 lite": 918e12,
    "TPU v6e": 918e12,
    "NVIDIA A100": 312e12,
    "NVIDIA H100": 989e12,
    "NVIDIA H200": 989e12,
}


def flops_per_token(arch: Architecture, row_length: float, trained_share: float) -> float:
    """Useful FLOPs of one training step per token: (4 + 2 f) N + 6 L H d T.

    N: weights of the layers' matrices and of the head (the embedding's lookup multiplies nothing). A product of a token
    with a weight costs 2 FLOPs forward, 2 for the input's gradient and 2 for the weight's; frozen weights do without
    the last. Causal attention over T positions costs 2 H d T forward (two products, half masked), twice that backward.

    Args:
      arch: the sizes.
      row_length: T, mean length of the attention unit a token sits in.
      trained_share: f, the share of N that is trained (1 in full fine-tuning, ~0 with adapters).
    """
    a = arch
    attention = a.embed_dim * a.head_dim * (2 * a.num_heads + 2 * a.num_kv_heads)
    weights = a.num_layers * (attention + 3 * a.embed_dim * a.mlp_dim) + a.vocab_size * a.embed_dim
    return (4 + 2 * trained_share) * weights + 6 * a.num_layers * a.num_heads * a.head_dim * row_length


def peak_flops(device: jax.Device) -> float | None:
    """The chip's dense bf16 peak, or None where it is not known (CPUs)."""
    kind = device.device_kind
    matches = [name for name in PEAK_FLOPS if kind.startswith(name)]
    return PEAK_FLOPS[max(matches, key=len)] if matches else None


def memory_gib() -> float | None:
    """Peak device memory of the fullest local device in GiB, where the backend tells."""
    stats = [d.memory_stats() for d in jax.local_devices()]
    peaks = [s["peak_bytes_in_use"] for s in stats if s and "peak_bytes_in_use" in s]
    return float(np.max(peaks)) / 2**30 if peaks else None
