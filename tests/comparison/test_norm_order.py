"""The comparison of orders of norms: jobs that differ in nothing else, and what its tables say of their results."""

import dataclasses
import runpy
import statistics
import sys

import pytest

from jaxsft.comparison.norm_order import ALPHAS, SIZES, Job, gradients, tables
from jaxsft.models.architecture import post_layers_of
from jaxsft.validation import to_dict, validate
from tests.conftest import REPOSITORY


def jobs(seed: int = 0) -> list[Job]:
    published = runpy.run_path(str(REPOSITORY / "configs" / "pretrain" / "mix_ln.py"))["get_config"]()
    return [Job(variant, seed, published, 1.0) for variant in ALPHAS]


def test_jobs_differ_in_the_order_of_norms_alone(tmp_path):
    assert [post_layers_of(alpha, SIZES["num_hidden_layers"]) for alpha in ALPHAS.values()] == [0, 3, 12]
    configs = [job.pretrain_config(tmp_path) for job in jobs()]
    for config, alpha in zip(configs, ALPHAS.values()):
        validate(config)
        assert config.model.new.post_ln_alpha == alpha
        config.model.new = dataclasses.replace(config.model.new, post_ln_alpha=0.0)
    assert to_dict(configs[0]) == to_dict(configs[1]) == to_dict(configs[2])
    assert (configs[0].optimizer.max_grad_norm, configs[0].optimizer.b2, configs[0].data.text_eos) == (0.0, 0.999, True)
    tuned = [job.sft_config(tmp_path) for job in jobs()]
    validate(tuned[0])
    assert to_dict(tuned[0]) == to_dict(tuned[1]) == to_dict(tuned[2])
    assert len({job.folder(tmp_path) for job in [*jobs(), *jobs(1)]}) == 6
    assert jobs(1)[0].sft_config(tmp_path).data.rows == "3000:6000"


def test_gradients_of_the_start_and_of_the_second_half():
    lines = [{"step": s, "loss": 1.0} | {f"grad_norm/layer_{i:02d}": 10.0 * i + s for i in range(12)} for s in range(4)]
    found = gradients(lines)
    assert found["start"] == [10.0 * i for i in range(12)]
    assert found["second half"] == [10.0 * i + 2.5 for i in range(12)]


def test_tables_are_means_over_seeds():
    result = lambda perplexity, first: {
        "perplexity": perplexity,
        "gradients": {"start": [first, 0.5], "second half": [1.0, 4.0]},
        "before": {"cloze": 0.25},
        "after": {"seen": 0.5, "unseen": 0.25, "cloze": 0.1},
    }
    text = tables({"pre_ln": [result(4.0, 1.0), result(5.0, 2.0)], "mix_ln": [result(3.0, 1.0)]})
    deviation = statistics.stdev([4.0, 5.0])
    assert f"| pre_ln | 4.50 ± {deviation:.2f} | 25.0 ± 0.0 | 50.0 ± 0.0 | 25.0 ± 0.0 | 10.0 ± 0.0 |" in text
    assert "| mix_ln | 3.00 | 25.0 | 50.0 | 25.0 | 10.0 |" in text
    assert "| pre_ln | 1.500 | 0.500 | 3.0 |" in text and "| mix_ln | 1.000 | 4.000 | 4.0 |" in text


@pytest.mark.parametrize(
    ("flags", "message"),
    [([], "--output is missing"), (["--output=x", "--variants=pre"], "--variants names 'pre'; known are pre_ln")],
)
def test_what_the_script_refuses(flags, message):
    from tests.training.conftest import run

    done = run([sys.executable, str(REPOSITORY / "scripts" / "compare_norms.py"), *flags])
    assert done.returncode == 1 and message in done.stderr and "Traceback" not in done.stderr
