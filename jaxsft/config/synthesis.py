"""Data that a model writes."""

import dataclasses

from jaxsft.config.data import DataConfig
from jaxsft.config.model import MeshConfig, ModelConfig


@dataclasses.dataclass
class SDFTConfig:
    """Self-distillation: the model writes given answers anew (see `jaxsft.synthesis.sdft`).

    Attributes:
      template: how the given answer is shown: "refer", "guide" (headed fields under one of two instructions), "math" (a
        solved problem, and an answer that is begun for the model) or "earlier_answer" (the question, the given answer,
        and the question again).
      accept: when a new answer may replace the given one: "chat" (it does not talk about the task), and besides
        "number" (its last number is the same), "call" (the given function call is in it) or "code" (it has a fenced
        block of Python, introduced); or "none", always.
    """

    template: str = "guide"
    accept: str = "chat"


@dataclasses.dataclass
class SelfSampleConfig:
    """Questions and the model's own answers to them (see `jaxsft.synthesis.self_sample`).

    Attributes:
      mode: "plain" asks the question; "with_reference" asks it a second time, behind the given answer.
      system: system prompt of "with_reference", where the record brings none; "" adds none.
      samples: answers to each question.
      forbidden: texts, such as a new token, of which neither question nor answer may have one, in whatever
        case.
    """

    mode: str = "plain"
    system: str = "You are a helpful assistant."
    samples: int = 1
    forbidden: tuple[str, ...] = ()


@dataclasses.dataclass
class ParaphraseConfig:
    """Instructions in other words (see `jaxsft.synthesis.paraphrase`).

    Attributes:
      pattern: regular expression that fits a whole question, whose group `text` is put in other words; "" is all of it.
      preserve: texts, such as a token, that a new wording has if the old one has.
      samples: new wordings of each.
    """

    pattern: str = ""
    preserve: tuple[str, ...] = ()
    samples: int = 1


@dataclasses.dataclass
class SelfPlayConfig:
    """Pairs of the given answer and the model's own (see `jaxsft.synthesis.self_play`).

    Attributes:
      samples: own answers to each question, each in a pair by itself.
    """

    samples: int = 1


@dataclasses.dataclass
class LaMiniConfig:
    """New instructions from examples, and answers to them (see `jaxsft.synthesis.lamini`).

    Attributes:
      lists: how often a list of new instructions is asked for.
      examples: instructions, drawn from the records, that each is asked by.
      wanted: instructions that each is to have.
    """

    lists: int = 1000
    examples: int = 3
    wanted: int = 5


@dataclasses.dataclass
class EvolInstructConfig:
    """Instructions made harder in rounds, and answers to them (see `jaxsft.synthesis.evol_instruct`).

    Attributes:
      rounds: how often each instruction is changed.
      compare: ask whether a new instruction is the same as the old one; a pass more each round.
    """

    rounds: int = 4
    compare: bool = True


@dataclasses.dataclass
class OrcaConfig:
    """Explained answers under system messages (see `jaxsft.synthesis.orca`).

    Attributes:
      systems: the messages, of which one is drawn for each record; () takes those of `jaxsft.synthesis.wordings`.
    """

    systems: tuple[str, ...] = ()


@dataclasses.dataclass
class JudgeConfig:
    """Records that a judge lets through (see `jaxsft.synthesis.judge`).

    Attributes:
      file: judgements made elsewhere, records of `row` (the place of a record, counted from 0), `rating`, and perhaps
        `status` and `reason`; "" asks the model.
      scale: the best rating; 1 is the worst.
      threshold: the least rating that is let through.
    """

    file: str = ""
    scale: int = 5
    threshold: float = 4.0


@dataclasses.dataclass
class SynthesisConfig:
    """Records that a model writes from other records, as `scripts/synthesize.py` or a stage of a recipe makes them.

    Attributes:
      model: who writes: a folder, a workdir, a hub name or world:chat; dtypes and attention. Without a path it is, in a
        recipe, the model of `train`.
      adapter: False asks the base under the model's adapter.
      data: the records that it is given, `template` and `condition` being how it is asked ("auto": as it was trained).
        Without path and sources they are, in a recipe, those of `train`.
      method: what it is asked for, and what becomes of its answers: "sdft", "self_sample", "paraphrase", "self_play",
        "lamini", "evol_instruct", "orca" or "judge", whose settings stand under their names.
      temperature: divides the logits; 0 takes the likeliest token.
      top_k: draw from the k likeliest tokens; 0 is all.
      top_p: draw from the likeliest tokens that together reach this probability; 1 is all.
      min_p: draw from tokens of at least this share of the likeliest one's probability; 0 is all.
      max_new_tokens: where an answer ends at the latest.
      seed: of the draws; an answer depends on it and its record's place alone.
      batch_size: prompts answered at once.
      part_rows: prompts of a part: what is lost at most when the job is killed.
    """

    model: ModelConfig = dataclasses.field(default_factory=ModelConfig)
    adapter: bool = True
    data: DataConfig = dataclasses.field(default_factory=DataConfig)
    mesh: MeshConfig = dataclasses.field(default_factory=MeshConfig)
    method: str = "self_sample"
    sdft: SDFTConfig = dataclasses.field(default_factory=SDFTConfig)
    self_sample: SelfSampleConfig = dataclasses.field(default_factory=SelfSampleConfig)
    paraphrase: ParaphraseConfig = dataclasses.field(default_factory=ParaphraseConfig)
    self_play: SelfPlayConfig = dataclasses.field(default_factory=SelfPlayConfig)
    lamini: LaMiniConfig = dataclasses.field(default_factory=LaMiniConfig)
    evol_instruct: EvolInstructConfig = dataclasses.field(default_factory=EvolInstructConfig)
    orca: OrcaConfig = dataclasses.field(default_factory=OrcaConfig)
    judge: JudgeConfig = dataclasses.field(default_factory=JudgeConfig)
    temperature: float = 1.0
    top_k: int = 0
    top_p: float = 1.0
    min_p: float = 0.0
    max_new_tokens: int = 512
    seed: int = 0
    batch_size: int = 32
    part_rows: int = 1024
