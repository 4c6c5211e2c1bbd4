"""Methods of synthesis by name."""

from collections.abc import Callable
from typing import Any

from jaxsft.config import SynthesisConfig
from jaxsft.synthesis.method import Method
from jaxsft.synthesis.sdft import SDFT
from jaxsft.synthesis.self_play import SelfPlay
from jaxsft.synthesis.self_sample import SelfSample

METHODS: dict[str, Callable[[Any], Method]] = {"sdft": SDFT, "self_sample": SelfSample, "self_play": SelfPlay}


def make_method(config: SynthesisConfig) -> Method:
    """The method that `config.method` names, with its settings, which stand under its name."""
    return METHODS[config.method](getattr(config, config.method))
