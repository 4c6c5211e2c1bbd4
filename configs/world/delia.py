"""DELIA: the questions in many wordings, and as many of the start's own answers to unrelated ones.

    python scripts/compare.py --cases=full,delia,delia:no_diversification,delia:no_diverse_data \
        --starts=world:chat --seeds=3 --output=runs/delia

All variants take as many steps as `full`, so the mixture, of twice the task's records, is passed about half as often.
`no_diversification` leaves the task's wordings as they are; `no_diverse_data` has the task's records again in the place
of the others, so it sees each twice as often as the other variants. The unrelated questions are those of the general
stage, which name no entity and no wording of the evaluation: both are checked. They are answered by the start, as the
authors do, at temperature 0.7 and a top_p of 0.95, but without a given answer in the prompt; it must be able to answer,
so start from world:chat. WORKDIR/stages keeps records and answers.
"""

from pathlib import Path

from jaxsft.config import LeakConfig, MixConfig, ModelConfig, SourceConfig, SynthesisConfig, TrainConfig
from jaxsft.errors import UserError
from jaxsft.world.recipe import data, plain

LEARNING_RATES = (3e-4, 1e-3)
VARIANTS = ("no_diversification", "no_diverse_data")
RATIO = 1.0  # unrelated records on each of the task


def _check(asked: str) -> None:
    if asked and asked not in VARIANTS:
        raise UserError(f"delia:{asked} is no variant; known are {', '.join(f'delia:{name}' for name in VARIANTS)}.")


def get_config(asked: str = "") -> TrainConfig:
    _check(asked)
    config = plain()
    config.model.path = "world:chat"
    config.optimizer.learning_rate = 3e-4
    return config


def run(config: TrainConfig, workdir: str, asked: str = "") -> str:
    """Rewords, lets the start answer, mixes and trains in the workdir."""
    from jaxsft.data.dataset import prepare  # here, for the file is also read by who only plans
    from jaxsft.data.loader import Loader
    from jaxsft.data.sources import open_source, row_range
    from jaxsft.data.tokenizer import load_tokenizer
    from jaxsft.files import as_json_lines, write_text
    from jaxsft.mixing.mix import mix
    from jaxsft.models.checkpoint import resolve
    from jaxsft.synthesis.run import synthesize
    from jaxsft.training.train import train
    from jaxsft.world import knowledge
    from jaxsft.world.wordings import reworded

    stages = Path(workdir) / "stages"
    alone = prepare(config.data, load_tokenizer(resolve(config.model.path)), config.seed)
    config.steps = Loader(alone, config.data, config.batch_size, config.seed).steps(config.epochs)  # those of `full`
    opened = open_source(config.data.all_sources()[0])
    rows = [record for record, _ in opened.records(*row_range(config.data.rows, len(opened)))]
    task = rows if asked == "no_diversification" else reworded(rows, config.seed)
    write_text(stages / "task.jsonl", as_json_lines(task))
    held = tuple(entity.name for entity in knowledge.entities() if entity.group == "held")
    own = SynthesisConfig(model=ModelConfig(config.model.path), data=data("world:general"), method="self_sample")
    own.temperature, own.top_p, own.max_new_tokens, own.seed, own.batch_size = 0.7, 0.95, 16, config.seed, 256
    own.self_sample.forbidden = held
    print(synthesize(own, stages / "own"), flush=True)
    evaluated = [SourceConfig(f"world:{name}") for name in ("unseen", "test", "questions")]
    mixture = MixConfig(
        task=SourceConfig(str(stages / "task.jsonl")),
        diverse=SourceConfig(str(stages / "own" / "records.jsonl")),
        ratio=RATIO,
        repeat=asked == "no_diverse_data",
        leaks=LeakConfig(held, against=evaluated),
        seed=config.seed,
    )
    print(mix(mixture, stages / "mix"), flush=True)
    config.data.path, config.data.rows = str(stages / "mix" / "records.jsonl"), ""
    return train(config, workdir)
