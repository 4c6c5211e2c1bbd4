"""What is measured."""

import dataclasses

from jaxsft.config.data import DataConfig
from jaxsft.config.model import MeshConfig, ModelConfig


@dataclasses.dataclass
class FormatConfig:
    """The form that answers are to have, for the task "format" (see `jaxsft.evaluation.answers.format_following`).

    Attributes:
      kind: "dict" (a Python dict), "json" (a JSON object) or "regex".
      keys: exactly those that a dict or an object has; () is any.
      values: key -> regular expression that fits all of its value as text.
      pattern: regular expression that fits all of an answer.
      token: whose embedding is compared with that of its description and with the mean of all; "" is none.
      description: what the token stands for, in words.
    """

    kind: str = "dict"
    keys: tuple[str, ...] = ()
    values: dict[str, str] = dataclasses.field(default_factory=dict)
    pattern: str = ""
    token: str = ""
    description: str = ""


@dataclasses.dataclass
class CodeConfig:
    """How programs are drawn and run, for the task "code" (see `jaxsft.evaluation.programs.problems`).

    Attributes:
      execute: run what the model wrote, in a sandbox; without it the task is refused.
      samples: programs of each problem.
      temperature: 0 takes the likeliest tokens.
      top_p: see `jaxsft.decoding.sampling.Sampling`.
      seed: of the draws.
      seconds: after which a program is ended.
    """

    execute: bool = False
    samples: int = 1
    temperature: float = 0.0
    top_p: float = 1.0
    seed: int = 0
    seconds: float = 10.0


@dataclasses.dataclass
class ShotsConfig:
    """Worked examples that stand before a question.

    Attributes:
      count: how many; 0 asks without.
      path: the file that they are from, see `DataConfig.path`; "" is the questions' own. No question is its own
        example.
      rows: see `SourceConfig.rows`.
      fields: see `SourceConfig.fields`.
      draw: "first" takes those that stand first, "random" draws them for each question, by its text and `seed`.
      seed: of the draws.
      same_source: only examples of the question's own source, such as its subject.
      turns: in a chat template: each example is a turn of the user and one of the assistant. Otherwise all are text in
        the user's turn, as they are text without a template.
      separator: what stands between examples that are text.
    """

    count: int = 0
    path: str = ""
    rows: str = ""
    fields: dict[str, str] = dataclasses.field(default_factory=dict)
    draw: str = "first"
    seed: int = 0
    same_source: bool = False
    turns: bool = True
    separator: str = "\n\n"


@dataclasses.dataclass
class PromptConfig:
    """What a model is asked, in a chat template (`DataConfig.template`) or, with the template "none", as plain text.

    Attributes:
      question: what a record's question becomes. "{question}" stands for it, "{choices}" for its choices, one a line
        behind "A. " and so on, "{subject}" for its source, with blanks for underscores.
      preamble: what stands before all examples, at the beginning of the text or of the user's first turn; "{subject}"
        likewise.
      shots: worked examples.
    """

    question: str = "{question}"
    preamble: str = ""
    shots: ShotsConfig = dataclasses.field(default_factory=ShotsConfig)


@dataclasses.dataclass
class AnswerConfig:
    """How a written answer is compared with the reference; see `jaxsft.evaluation.answers.matching`.

    Attributes:
      match: "exact" (the whole answer), "alias" (any of several references, without case, articles and punctuation),
        "number" (GSM8K), "stated" (behind "the answer is"), "boxed" (as MATH marks it), "pattern" (what `pattern`
        finds), "label" (one of the references of all questions) or "translation" (BLEU and chrF).
      pattern: for "pattern": a regular expression; its first group, or all that it finds first, is the answer.
      separator: what stands between references that are one text, as in some files of TriviaQA; "" is one reference.
      stop: texts that end an answer.
    """

    match: str = "exact"
    pattern: str = ""
    separator: str = ""
    stop: tuple[str, ...] = ()


@dataclasses.dataclass
class TaskConfig:
    """One thing to measure of a model.

    Attributes:
      name: what its figures are called where several tasks are measured; each then has one of its own.
      task: "perplexity" (negative log-likelihood of conversations or text), "multiple_choice" (the likeliest of the
        given answers), "generation" (the answer that the model writes), "answers" (answers for a judge outside),
        "ifeval" (whether it follows instructions that a program can verify), "code" (whether programs that it writes
        pass their tests), "deviation" (how far the model moved from another on the data), "routing" (which of an
        adapter's experts the data is routed to), "format" (whether answers have the form that is asked for),
        "instruction_following" (how often the model answers instead of continuing the prompt), "separation"
        (whether it keeps instruction and data apart) or "knowledge_conflict" (whether it believes a context that
        contradicts what it knows).
      data: the rows to score; packed or not, the figures do not change. `template` "auto" is the run's own.
      batch_size: rows of a batch, or prompts answered at once.
      normalize: for "multiple_choice": divide a choice's log-likelihood by its "tokens", "characters", "bytes" or
        "none"; or subtract what it is without the question ("unconditional").
      max_new_tokens: where an answer that the model writes ends at the latest; 0 is, for "generation", as many tokens
        as the longest reference and its end of turn need, for "answers" 1024, and for others refused.
      instruction_in: for "separation": where the instruction stands, in the "system" turn, or with the data in the
        "user" turn, there with "labels" before both if asked for; without a chat template all is one text.
      classifier: for "instruction_following": a file that scripts/make_ifs.py made, or "heuristic", a rule of thumb
        for smoke tests.
      known: for "knowledge_conflict": the answers (`.jsonl`) of an evaluation of the base, of whose items only those
        count that it answers from memory; "" is all.
      chains: for "generation": ask for so many chains of thought and judge the answer behind them alone (see
        `jaxsft.data.dcot`); 0 asks as the records stand.
      format: for "format": the form.
      code: for "code": how programs are drawn and run.
      prompt: how questions are put, for "multiple_choice" and "generation".
      choices: for "multiple_choice": what is scored of a choice, its "text" or its letter ("letters").
      premise: for the normalization "unconditional": what stands in the place of the question.
      answer: for "generation": how an answer is judged.
      judge: for "answers": whose format they are written in, "mt_bench" or "alpaca_eval".
      temperatures: for "answers": category of a question -> temperature; others are answered by the likeliest tokens.
    """

    name: str = ""
    task: str = "perplexity"
    data: DataConfig = dataclasses.field(default_factory=DataConfig)
    batch_size: int = 16
    normalize: str = "none"
    max_new_tokens: int = 0
    instruction_in: str = "system"
    classifier: str = ""
    known: str = ""
    chains: int = 0
    format: FormatConfig = dataclasses.field(default_factory=FormatConfig)
    code: CodeConfig = dataclasses.field(default_factory=CodeConfig)
    prompt: PromptConfig = dataclasses.field(default_factory=PromptConfig)
    choices: str = "text"
    premise: str = ""
    answer: AnswerConfig = dataclasses.field(default_factory=AnswerConfig)
    judge: str = "mt_bench"
    temperatures: dict[str, float] = dataclasses.field(default_factory=dict)


@dataclasses.dataclass
class EvalConfig:
    """Evaluation during training: token-weighted negative log-likelihood, and tasks.

    Attributes:
      path: see `DataConfig.path`; "" is none. Template, max_length and supervise follow the training data, and so
        do the conditions of classes; a record of no known class has that of `ClassesConfig.inference`. No weight does
        but those that records and messages have.
      rows: see `SourceConfig.rows`.
      fields: see `SourceConfig.fields`.
      tasks: what is measured besides, each under its name; a "deviation" is that from the base under an adapter.
      every: steps between evaluations; 0 is only before the first step and after the last.
      batch_size: rows of an evaluation batch.
    """

    path: str = ""
    rows: str = ""
    fields: dict[str, str] = dataclasses.field(default_factory=dict)
    tasks: list[TaskConfig] = dataclasses.field(default_factory=list)
    every: int = 0
    batch_size: int = 16


@dataclasses.dataclass
class EvaluateConfig(TaskConfig):
    """One task that `scripts/evaluate.py` measures; see `TaskConfig`.

    Attributes:
      model: dtypes and attention; its path is `--model`.
      reference: for "deviation": the model that is moved away from; "" is the one that a run started from, of an
        adapter its base.
    """

    model: ModelConfig = dataclasses.field(default_factory=ModelConfig)
    mesh: MeshConfig = dataclasses.field(default_factory=MeshConfig)
    reference: str = ""


@dataclasses.dataclass
class SuiteConfig:
    """Several tasks that `scripts/evaluate.py` measures on one model.

    Attributes:
      tasks: see `TaskConfig`.
      model: see `EvaluateConfig`.
      reference: likewise, of every "deviation".
    """

    tasks: list[TaskConfig] = dataclasses.field(default_factory=list)
    model: ModelConfig = dataclasses.field(default_factory=ModelConfig)
    mesh: MeshConfig = dataclasses.field(default_factory=MeshConfig)
    reference: str = ""


@dataclasses.dataclass
class ForgettingConfig:
    """What models have forgotten of a base, as a stage of a recipe; `scripts/forgetting.py` makes one of a suite.

    Attributes:
      tasks: what base and models are asked; see `TaskConfig`. "auto" in their data is what the models were trained
        with, for the base too, so that all see the same prompts.
      model: dtypes and attention of all models.
      base: the model that the others were made from, see `--model` of the scripts; every "deviation" is from it.
      models: the others.
      drift: a file of conversations or text on which the distance from the base is measured besides, as the task
        "drift"; "" is none.
      pretraining: a file of held-out text of the kind that the base was trained on, whose perplexity is measured
        besides, as the task "pretraining"; "" is none.
      draws: of the bootstrap behind each interval.
      confidence: the share of them inside the interval.
      seed: of the draws.
    """

    tasks: list[TaskConfig] = dataclasses.field(default_factory=list)
    model: ModelConfig = dataclasses.field(default_factory=ModelConfig)
    mesh: MeshConfig = dataclasses.field(default_factory=MeshConfig)
    base: str = ""
    models: list[str] = dataclasses.field(default_factory=list)
    drift: str = ""
    pretraining: str = ""
    draws: int = 10_000
    confidence: float = 0.95
    seed: int = 0
