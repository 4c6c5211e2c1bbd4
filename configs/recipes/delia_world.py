"""DELIA's token on the embedded world: <sep> learns to stand for "answer : ...", in a few minutes on a CPU.

    python scripts/run.py --config=configs/recipes/delia_world.py --workdir=runs/delia_world

200 questions with the token, answered in the form that it stands for, among ten times as many of the start's own
answers to unrelated questions. The probe asks other questions in other wordings: with the token, without it, and with
"no" before it. `:RATIO` is another ratio, 0 none (and a tenth of the steps); `:RATIO,repeat` has the task's own records
again in the place of the unrelated ones: as many steps without diverse data.
"""

import re
from pathlib import Path
from typing import Any

from jaxsft.config import (
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
)
from jaxsft.errors import UserError
from jaxsft.world import recipe

WORDINGS = Path(__file__).with_name("wordings")
TOKEN = "<sep>"


def _reworded(split: str, rows: str, bank: str, **fields: Any) -> RewordConfig:
    return RewordConfig(SourceConfig(split, rows=rows), str(WORDINGS / f"world_{bank}.json"), fields=fields)


def get_config(asked: str = "10") -> RecipeConfig:
    ratio, _, repeat = asked.partition(",")
    if not re.fullmatch(r"[0-9]+(\.[0-9]+)?", ratio) or repeat not in ("", "repeat"):
        raise UserError(f"{asked!r} is not understood; write RATIO or RATIO,repeat.")
    train = recipe.plain()
    train.model.path = "world:chat"
    train.epochs = 4.0
    train.batch_size = 16
    train.eval.path, train.eval.every, train.eval.tasks = "", 0, []

    own = SynthesisConfig(model=ModelConfig("world:chat"), data=recipe.data("world:general", ":4000"))
    own.temperature, own.top_p, own.max_new_tokens, own.batch_size = 0.7, 0.95, 16, 256
    own.self_sample.forbidden = (TOKEN,)
    mixture = MixConfig(SourceConfig("{task}/records.jsonl"), SourceConfig("{own}/records.jsonl"), float(ratio))
    mixture.repeat, mixture.leaks = bool(repeat), LeakConfig((TOKEN,), words=8)
    probe = TaskConfig("probe", "format", batch_size=64, max_new_tokens=8)
    kinds = ("follow", "without", "against")
    probe.data = recipe.data("")
    probe.data.sources = [SourceConfig(f"{{{kind}}}/records.jsonl") for kind in kinds]
    probe.format = FormatConfig("regex", pattern="answer : .+", token=TOKEN, description="answer :")
    tuned = {"model.path": "{tokens}", "data": recipe.data("{mix}/records.jsonl")}
    tuned |= {"data.packing": False}  # as many records, as many steps
    return RecipeConfig(
        train=train,
        stages=[
            StageConfig("tokens", "tokens", TokensConfig("world:chat", (TOKEN,))),
            StageConfig("task", "reword", _reworded("world:train", ":200", "task")),
            StageConfig("own", "synthesize", own),
            StageConfig("mix", "mix", mixture),
            StageConfig("tuned", "train", changes=tuned),
            *(
                StageConfig(
                    kind, "reword", _reworded("world:test", ":300", kind, source=kind, follows=kind == "follow")
                )
                for kind in kinds
            ),
            StageConfig("before", "evaluate", SuiteConfig([probe], ModelConfig("{tokens}"))),
            StageConfig("probe", "evaluate", SuiteConfig([probe], ModelConfig("{tuned}"))),
        ],
    )
