"""jaxsft: supervised fine-tuning of language models in JAX, and the measurement of what it makes them forget."""

__version__ = "0.1.0"
