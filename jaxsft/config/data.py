"""What is trained or scored on."""

import dataclasses


@dataclasses.dataclass
class SourceConfig:
    """One source of records.

    Attributes:
      path: a file, folder or glob, local or `gs://`, of `.json`, `.jsonl`, `.csv` or `.parquet`;
        `tfds:NAME[/CONFIG][:SPLIT]`; or `world:SPLIT` of the built-in world.
      name: the source's tag in reports; default: the file's name. A record's own `source` field wins.
      weight: how many times the source is seen in an epoch: 2.0 twice, 0.5 a random half (redrawn each epoch).
      fields: field map for records of no known form, from record field to canonical one, e.g.
        {"question": "prompt", "answer": "completion"}.
      rows: "start:stop" as in Python, negative counts from the end; "" is all. The way to hold out rows.
      data_dir: for `tfds:` the folder with the prepared data; "" is its default.
    """

    path: str = ""
    name: str = ""
    weight: float = 1.0
    fields: dict[str, str] = dataclasses.field(default_factory=dict)
    rows: str = ""
    data_dir: str = ""


@dataclasses.dataclass
class ClassesConfig:
    """C-RLFT: classes of records, by quality or kind, that differ in condition and loss weight; see
    `jaxsft.data.classes`.

    Attributes:
      by: the tag that names a record's class: "source" or "task_type".
      condition: class -> text that the template writes into the prefixes of its turns, as the variable `condition`; ""
        is the template without one. No class of the data may be left out; `DataConfig.condition` stands for the rest.
      inference: the class whose condition is used when the model is asked; needed where there are conditions.
      weight: class -> loss weight of its tokens, over the largest; 0 drops its examples.
      reward: class -> reward r instead, for a weight of exp(r / beta).
      beta: temperature of `reward`.
      balanced: multiply each class's weight by N / N_class, the numbers of examples.
    """

    by: str = "source"
    condition: dict[str, str] = dataclasses.field(default_factory=dict)
    inference: str = ""
    weight: dict[str, float] = dataclasses.field(default_factory=dict)
    reward: dict[str, float] = dataclasses.field(default_factory=dict)
    beta: float = 0.0
    balanced: bool = False


@dataclasses.dataclass
class MixtureConfig:
    """Domains with a system prompt each (Mixture-of-Instructions, see `jaxsft.data.mixture`).

    Attributes:
      by: what of a record names its domain, "task_type" or "source".
      domains: their names in the order that they have inside a chunk, first that of the default prompt. Where they are
        given, every example must be of one of them, and its loss is logged by domain.
      system: domain -> system prompt of its conversations that bring none; others get `DataConfig.system`.
    """

    by: str = "task_type"
    domains: tuple[str, ...] = ()
    system: dict[str, str] = dataclasses.field(default_factory=dict)


@dataclasses.dataclass
class TypesConfig:
    """Types of examples, by which LoRAMoE balances its experts (see `jaxsft.adapters.balance`).

    Attributes:
      by: the tag of a record that decides, "task_type" or "source".
      of: tag -> type, an integer that is not negative, such as {"closed_qa": 1}. Empty: no example has a type.
      other: the type of all other examples; -1 leaves them untyped.
    """

    by: str = "task_type"
    of: dict[str, int] = dataclasses.field(default_factory=dict)
    other: int = -1


@dataclasses.dataclass
class DCoTConfig:
    """Several chains of thought in one response (see `jaxsft.data.dcot`); for the grouping "dcot".

    Attributes:
      draws: how often the chains of a question are drawn; epoch e sees draw e modulo `draws`.
      single: one chain a response, every chain once an epoch: the chain-of-thought baseline.
      seed: of the draws.
    """

    draws: int = 3
    single: bool = False
    seed: int = 0


@dataclasses.dataclass
class DataConfig:
    """What is trained or scored on.

    Attributes:
      path: shorthand for one source; used together with `rows` and `fields` when `sources` is empty.
      rows: see `SourceConfig.rows`.
      fields: see `SourceConfig.fields`.
      sources: a mixture of sources.
      template: "auto" (the tokenizer's own chat template; error if it has none), one of the built-in ones ("chatml",
        "llama2", "alpaca", "plain", "raw", "openchat", "openbezoar"), the path of a `.jinja` file, or "none" (plain
        text alone).
      condition: what the template's variable `condition` is, where `classes` give none: "auto" is none in training, and
        in tasks the condition with which the model is asked (see `ClassesConfig.inference`).
      system: system prompt of conversations that bring none; "" adds none.
      max_length: tokens of a row, and of one example at most.
      packing: several examples in a row (they never see each other); False gives one example a row.
      truncation: what happens to an example longer than `max_length`: "right" cuts its end, "drop" drops it, "error"
        stops the run. An example left without supervised token is dropped and counted under every policy.
      supervise: "assistant" (answers only) or "all" (every token but the first).
      text_eos: plain text ends in EOS, which is supervised: for pretraining on whole documents.
      classes: what records of different quality or kind are conditioned on and weighted by.
      weighting: over what loss weights are spread: every "token" has its own; or each supervised "turn", or each
        "example", has its weights divided by its number of supervised tokens.
      grouping: how examples stand together in a row, which packing never splits: "example" (each by itself),
        "preference" (the chosen and the rejected answer of a pair, each within half of `max_length`), "mixup" (random
        pairs of one from the better half by `score` and one from the other, likewise), "domain" (chunks of one example
        of each of `mixture.domains`), "dcot" (each by itself, made of chains of thought) or "views" (a record and the
        other prompts that its field `views` lists).
      attention_unit: what a token may look back on: its "example", its "group", or the whole "row".
      mixture: domains and their system prompts.
      types: types of examples, for adapters that read them.
      dcot: how chains of thought become responses.
      max_examples_per_row: bound on E, the example slots of a packed row.
      cache_dir: folder of the token cache; "" is `~/.cache/jaxsft`.
      max_dropped: the largest share of examples that may be dropped before the run stops.
      scores: a table of scores of these examples, as `scripts/run.py` makes them; "" is none.
      score: the column of `scores` by which examples are ranked.
      keep: the share of the examples that is trained on, those with the highest score; 1.0 is all.
      parts: a table of the parts that these examples were dispersed into, as `scripts/run.py` makes it; "" is none.
      part: the part of `parts` that is trained on, counted from 0; -1 is all of them.
    """

    path: str = ""
    rows: str = ""
    fields: dict[str, str] = dataclasses.field(default_factory=dict)
    sources: list[SourceConfig] = dataclasses.field(default_factory=list)
    template: str = "auto"
    condition: str = "auto"
    system: str = ""
    max_length: int = 1024
    packing: bool = True
    truncation: str = "right"
    supervise: str = "assistant"
    text_eos: bool = False
    classes: ClassesConfig = dataclasses.field(default_factory=ClassesConfig)
    weighting: str = "token"
    grouping: str = "example"
    attention_unit: str = "example"
    mixture: MixtureConfig = dataclasses.field(default_factory=MixtureConfig)
    types: TypesConfig = dataclasses.field(default_factory=TypesConfig)
    dcot: DCoTConfig = dataclasses.field(default_factory=DCoTConfig)
    max_examples_per_row: int = 64
    cache_dir: str = ""
    max_dropped: float = 0.2
    scores: str = ""
    score: str = "confidence"
    keep: float = 1.0
    parts: str = ""
    part: int = -1

    def all_sources(self) -> list[SourceConfig]:
        """`sources`, or the one that `path`, `rows` and `fields` are short for."""
        return self.sources or [SourceConfig(path=self.path, rows=self.rows, fields=self.fields)]
