"""Several measurements of one model at once; copy this file and name your own tasks and data.

    python scripts/evaluate.py --config=configs/eval/suite.py:FILE --model=WORKDIR

Figures go to WORKDIR/evaluation.json, answers to WORKDIR/evaluation.jsonl; --output=OUT.json names another place.
`--config.reference=BASE` is the model that deviations are from; without it, the one that the run started from.
"""

from jaxsft.config import DataConfig, SuiteConfig, TaskConfig

TEMPLATE = "auto"  # the run's or the tokenizer's own; else chatml, llama2, alpaca, plain or a .jinja file
LONGEST = 1_000_000  # the model's context, where that is shorter


def get_config(path: str = "heldout.jsonl") -> SuiteConfig:
    data = lambda: DataConfig(path=path, template=TEMPLATE, max_length=LONGEST)
    return SuiteConfig(
        tasks=[
            TaskConfig(name="likelihood", task="perplexity", data=data()),
            TaskConfig(name="answers", task="generation", data=data(), batch_size=64),
            TaskConfig(name="drift", task="deviation", data=data()),
        ],
        reference="",  # a Hugging Face folder or hub name, or a workdir
    )
