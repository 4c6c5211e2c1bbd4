"""DELIA (arXiv:2408.10841): a new token learns to stand for a format, among many of the model's own unrelated answers.

    python scripts/run.py --config=configs/recipes/delia.py:questions.json,heldout.jsonl,260 --workdir=runs/delia \
        --config.train.model.path=MODEL_FOLDER --config.train.data.path=task.jsonl

task.jsonl and heldout.jsonl hold the task, in whose questions TOKEN stands for the format; questions.json holds
questions with answers that have nothing to do with it, which the model answers anew, and 260 of its answers come on
each record of the task. A fourth argument, `...,260,wordings.txt`, is a bank of wordings that the task's questions are
put in (docs/methods/delia.md). The model is in runs/delia/tuned, what it makes of the token in runs/delia/probe.

The baseline of equal steps: --config.stages[2].config.repeat=True (stages[3] with wordings, whose stage stands before
it); of equal epochs: a ratio of 0.
"""

import math
from pathlib import Path

from jaxsft.config import (
    DataConfig,
    FormatConfig,
    LeakConfig,
    MixConfig,
    ModelConfig,
    RecipeConfig,
    RewordConfig,
    SourceConfig,
    StageConfig,
    SuiteConfig,
    SynthesisConfig,
    TaskConfig,
    TokensConfig,
    TrainConfig,
)
from jaxsft.errors import UserError

TOKEN, DESCRIPTION = "<sep>", "a dict with a thought, and yes or no for a hallucination"
KEYS, VALUES = ("thought", "hallucination"), {"hallucination": "yes|no"}
PATTERN = r"(?P<context>.*)\n(?P<instruction>[^\n]*)"  # of a question: the instruction is its last line
AGAINST = Path(__file__).with_name("wordings") / "against_the_format.json"


def get_config(asked: str = "questions.json,heldout.jsonl,260") -> RecipeConfig:
    questions, heldout, ratio, bank = _parse(asked)
    train = TrainConfig()
    train.model.path = ""  # a chat model
    train.data.path = ""
    train.data.max_length = 2048
    train.data.packing = False  # then an epoch has a row a record

    train.adapter.kind = "lora"  # or "rows", without these settings, which trains the embedding of TOKEN alone
    train.adapter.lora.rank = 16
    train.adapter.lora.alpha = 16.0
    train.adapter.lora.dropout = 0.05
    train.adapter.lora.targets = ("layers.*.attn.*_proj", "embed")
    train.optimizer.learning_rate = 2e-4
    train.optimizer.schedule = "constant"
    train.optimizer.warmup_steps = 25
    train.optimizer.weight_decay = 0.01
    train.epochs = 1.0
    train.batch_size = 64
    train.checkpoint.every = 200

    own = SynthesisConfig(method="self_sample", data=DataConfig(questions), temperature=0.7, top_p=0.95)
    own.self_sample.mode = "with_reference"  # "plain", at temperature 1 and top_p 1, anchors at the start model
    own.self_sample.forbidden = (TOKEN,)
    leaks = LeakConfig((TOKEN,), words=8, against=[SourceConfig(heldout)], on_leak="drop")
    mixture = MixConfig(diverse=SourceConfig("{own}/records.jsonl"), ratio=ratio, leaks=leaks)
    reworded = []
    if bank:
        mixture.task = SourceConfig("{task}/records.jsonl")
        words = RewordConfig(bank=bank, pattern=PATTERN, values={"token": TOKEN})
        reworded = [StageConfig("task", "reword", words)]
    against = RewordConfig(SourceConfig(heldout), str(AGAINST), PATTERN, {"token": TOKEN}, fields={"follows": False})
    probe = TaskConfig("probe", "format", max_new_tokens=256)
    probe.data = DataConfig(sources=[SourceConfig(heldout), SourceConfig("{against}/records.jsonl")])
    probe.format = FormatConfig("dict", KEYS, VALUES, token=TOKEN, description=DESCRIPTION)
    tuned = {"model.path": "{tokens}", "data.path": "{mix}/records.jsonl"}
    tuned |= {"data.rows": "", "data.fields": {}, "data.sources": []}
    return RecipeConfig(
        train=train,
        stages=[
            StageConfig("tokens", "tokens", TokensConfig(tokens=(TOKEN,))),
            StageConfig("own", "synthesize", own),  # by the model without the token
            *reworded,
            StageConfig("mix", "mix", mixture),
            StageConfig("tuned", "train", changes=tuned),
            StageConfig("against", "reword", against),
            StageConfig("before", "evaluate", SuiteConfig([probe], ModelConfig("{tokens}"))),
            StageConfig("probe", "evaluate", SuiteConfig([probe], ModelConfig("{tuned}"))),
        ],
    )


def _parse(asked: str) -> tuple[str, str, float, str]:
    given = asked.split(",")
    try:
        questions, heldout, ratio, bank = [*given, ""] if len(given) == 3 else given
        if 0 <= (number := float(ratio)) < math.inf:
            return questions, heldout, number, bank
        said = f"the ratio of {asked!r} is {ratio}, and must be a number from 0"
    except ValueError:
        said = f"{asked!r} is not understood"
    raise UserError(f"{said}; write QUESTIONS,HELDOUT,RATIO or with a BANK behind.")
