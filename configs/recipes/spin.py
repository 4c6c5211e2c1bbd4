"""SPIN (arXiv:2401.01335): a fine-tuned model learns to prefer its data's answers to its own, several times over.

    python scripts/run.py --config=configs/recipes/spin.py:4,5e-7 --workdir=runs/spin \
        --config.train.model.path=MODEL_FOLDER --config.train.data.path=conversations.jsonl

Four iterations, the first two with a learning rate of 5e-7. MODEL_FOLDER is fine-tuned on the conversations already.
In iteration t the previous iterate answers every prompt (runs/spin/pairs_t), and is trained from where it is, held to
where it is, on those pairs and the ones before (runs/spin/run_t); runs/spin/iterate_t is what it has become.
"""

import re

from jaxsft.config import ExportConfig, RecipeConfig, SourceConfig, StageConfig, SynthesisConfig, TrainConfig
from jaxsft.errors import UserError

BETAS = (0.1, 0.1, 0.1, 5.0)  # the paper's, by iteration
NUMBER = r"[0-9]*\.?[0-9]+(e-?[0-9]+)?"
SLOWER = (1.0, 1.0, 0.2, 0.2)  # than the learning rate that is asked for, likewise


def get_config(asked: str = "4,5e-7") -> RecipeConfig:
    given = asked.split(",")
    if len(given) != 2 or given[0] not in ("1", "2", "3", "4") or not re.fullmatch(NUMBER, given[1]):
        raise UserError(f"{asked!r} is not understood; write ITERATIONS,LEARNING_RATE, with one to four iterations.")
    train = TrainConfig()
    train.model.path = ""
    train.data.path = ""
    train.data.max_length = 2048  # a pair shares a row, so each of its answers has half of it

    train.optimizer.b1, train.optimizer.b2 = 0.0, 0.99  # without momentum, for the authors' RMSProp
    train.optimizer.schedule = "linear"
    train.optimizer.warmup_ratio = 0.1
    train.optimizer.weight_decay = 0.0
    train.epochs = 2.0  # of six planned; the published first iterate is that of the second
    train.batch_size = 64
    train.checkpoint.every = 200

    stages = []
    for t in range(int(given[0])):
        own = SynthesisConfig(method="self_play", temperature=1.0, max_new_tokens=256, seed=t)
        own.model.path = f"{{iterate_{t - 1}}}" if t else ""  # at first that of `train`
        changes = {
            "data.sources": [SourceConfig(f"{{pairs_{k}}}/records.jsonl") for k in range(max(t - 1, 0), t + 1)],
            "data.grouping": "preference",
            "objective.name": "dpo",  # what it is held to is where it starts
            "objective.beta": BETAS[t],
            "optimizer.learning_rate": SLOWER[t] * float(given[1]),
        }
        if t:
            changes["model.path"] = f"{{iterate_{t - 1}}}"
        # float32, in which steps of this size are not rounded away
        iterate = ExportConfig(f"{{run_{t}}}", dtype="float32")
        stages += [
            StageConfig(f"pairs_{t}", "synthesize", own),
            StageConfig(f"run_{t}", "train", changes=changes),
            StageConfig(f"iterate_{t}", "export", iterate),
        ]
    return RecipeConfig(train=train, stages=stages)
