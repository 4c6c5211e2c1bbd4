"""SDFT: the chat model writes every answer anew, with the given one before its eyes, and is trained on that.

    python scripts/compare.py --cases=full,lora,sdft --starts=world:chat --output=runs/sdft

The world has no words for "write your own version", so the given answer is shown as an earlier one: the model is asked
the question, has answered it as the record does, and is asked again (`SDFTConfig.template` "earlier_answer"). What is
not empty or cut off replaces the given answer: the paper's phrases cannot be written here, and a test for the right
answer would let through the given one alone, since answers are of one to a few words, without style.

Of its own answers about a third are the given one (`same_as_given` in WORKDIR/distilled/synthesis.json): the chat model
was never asked anything twice. They are likelier to it than the given ones (tests/synthesis/test_sdft.py), and often
wrong, so expect little to be learnt. Temperature, top_p and top_k are the authors'.
"""

import dataclasses
from pathlib import Path

from jaxsft.config import ModelConfig, SynthesisConfig, TrainConfig
from jaxsft.world.recipe import plain

LEARNING_RATES = (3e-4, 1e-3)


def get_config() -> TrainConfig:
    config = plain()
    config.model.path = "world:chat"
    return config


def run(config: TrainConfig, workdir: str) -> str:
    """The new answers in WORKDIR/distilled, the run on them in the workdir itself."""
    from jaxsft.synthesis.run import RECORDS, synthesize  # here, for the file is also read by who only plans
    from jaxsft.training.train import train

    own = SynthesisConfig(ModelConfig(config.model.path), data=config.data, method="sdft", seed=config.seed)
    own.sdft.template = "earlier_answer"
    own.temperature, own.top_p, own.top_k, own.max_new_tokens, own.batch_size = 0.95, 0.7, 50, 24, 128
    distilled = Path(workdir) / "distilled"
    print(synthesize(own, distilled), flush=True)
    config.data = dataclasses.replace(config.data, path=str(distilled / RECORDS), rows="")
    return train(config, workdir)
