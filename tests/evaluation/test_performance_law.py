"""The planner's constants, at six models whose values were worked out from its formula by hand."""

import math

import pytest

from jaxsft.evaluation.papers.performance_law import performance_law

MODELS = {  # layers, width, feed-forward width, 10^9 parameters, 10^12 tokens -> MMLU
    "Llama-2-7B": ((32, 4096, 11008, 6.74, 2.0), 58.0),
    "Llama-2-13B": ((40, 5120, 13824, 13.0, 2.0), 61.1),
    "Llama-2-70B": ((80, 8192, 28672, 69.0, 2.0), 70.2),
    "Llama-3-8B": ((32, 4096, 14336, 8.03, 15.0), 65.4),
    "Llama-3-70B": ((80, 8192, 28672, 70.6, 15.0), 81.1),
    "Qwen2-7B": ((28, 3584, 18944, 7.62, 7.0), 62.7),
}


@pytest.mark.parametrize("name", MODELS)
def test_known_models(name):
    shape, value = MODELS[name]
    assert performance_law(*shape) == pytest.approx(value, abs=0.1)


def test_tokens_help_up_to_the_parameters():
    at = [performance_law(32, 4096, 11008, 7.0, tokens) for tokens in (1.0, 2.0, 6.9, 7.0, 30.0)]
    assert at[0] < at[1] < at[2] < at[3] == at[4]
    assert at[1] - at[0] == pytest.approx(5.398017 * math.log(2))


def test_bounds():
    assert performance_law(2, 64, 256, 0.001, 0.001) == 25.0
    best = performance_law(200, 10**6, 4 * 10**6, 5000.0, 5000.0)
    assert 90 < best <= 100
    assert performance_law(32, 4096, 11008, 7.0, 2.0, precision_loss=2.0) < performance_law(32, 4096, 11008, 7.0, 2.0)
    with pytest.raises(ValueError, match="must be positive"):
        performance_law(0, 64, 256, 1.0, 1.0)
