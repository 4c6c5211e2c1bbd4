"""IFEval (Zhou et al. 2023, arXiv:2311.07911): whether a model does what it is told, where a program can tell.

Records are those of the published file: a `prompt`, the names of its instructions in `instruction_id_list`, and what
each leaves open in `kwargs`, in the same order. An answer is judged strictly, and loosely: without its first line, its
last line and its asterisks, whichever of these helps (`jaxsft.evaluation.ifeval.verifiable`).

Three kinds of instructions ask for a language, which langdetect tells (`pip install 'jaxsft[eval]'`). Without it they
are left undecided where nothing else decides, and count neither as followed nor as not followed; figures say how many.
"""

import dataclasses
import math
from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any

from jaxsft.config import DataConfig, TaskConfig
from jaxsft.data.conversation import rename
from jaxsft.errors import UserError
from jaxsft.evaluation.answers.writing import Answer, Writer
from jaxsft.evaluation.forms import records
from jaxsft.evaluation.ifeval.verifiable import (
    Detect,
    Verdict,
    check_settings,
    follows,
    follows_loosely,
    language_detector,
)
from jaxsft.evaluation.task import Result, Subject, Task, digest, question_ids

Record = dict[str, Any]

BY_LANGUAGE = ("language:response_language", "change_case:english_capital", "change_case:english_lowercase")
NO_DETECTOR = (
    "langdetect is not installed, so instructions on the language of an answer stay undecided and are not counted; "
    "pip install 'jaxsft[eval]'."
)


@dataclasses.dataclass(frozen=True)
class Prompt:
    """A prompt and its instructions, with what each leaves open."""

    text: str
    instructions: list[str]
    settings: list[dict[str, Any]]
    source: str


@dataclasses.dataclass(frozen=True)
class Verdicts:
    """What is made of an answer: one verdict for each instruction of its prompt, strict and loose."""

    strict: list[Verdict]
    loose: list[Verdict]


def prepare(config: TaskConfig, subject: Subject) -> Task:
    """How often a model follows the instructions of the prompts that `config` names.

    Returns:
      A task whose figures are what `summarize` says, `ended` (the share of answers that met an end of turn), and `cut`
      (prompts that lost their beginning because prompt and answer are longer than the model's context). In its records,
      `correct` is whether all instructions are followed strictly, `reference` their names, `verdicts` those of each,
      strict and loose, and `counted` whether the prompt is decided.

    Raises:
      UserError: for a record that is none of IFEval's, or answers that leave no room for a prompt.
    """
    prompts = read_prompts(config.data)
    writer = Writer([prompt.text for prompt in prompts], config, subject)
    name, detect = config.name or config.task, language_detector()
    identities = question_ids([[prompt.text, prompt.instructions, prompt.settings] for prompt in prompts])

    def measure(params: Any, adapters: Any) -> Result:
        answers = writer.write(params, adapters, strip=False)
        verdicts = [judge(prompt, answer.text, detect) for prompt, answer in zip(prompts, answers)]
        each = zip(identities, prompts, answers, verdicts)
        ended = sum(answer.ended for answer in answers) / len(answers)
        figures = summarize(prompts, verdicts) | {"ended": ended, "cut": writer.cut}
        return Result(figures, [_record(name, i, *of) for i, of in enumerate(each)])

    count = sum(len(prompt.instructions) for prompt in prompts)
    longest = f"answers of up to {config.max_new_tokens} tokens"
    report = f"{len(prompts)} prompts with {count} instructions, {writer.mode}, {longest}"
    by_language = sum(instruction in BY_LANGUAGE for prompt in prompts for instruction in prompt.instructions)
    if detect is None and by_language:
        report += f"\nnote: {by_language} of them ask for a language, but {NO_DETECTOR}"
    return Task(name, report, digest([dataclasses.astuple(prompt) for prompt in prompts]), measure)


def judge(prompt: Prompt, answer: str, detect: Detect | None) -> Verdicts:
    """Each instruction's verdict, strict and loose."""
    each = list(zip(prompt.instructions, prompt.settings))
    return Verdicts(
        [follows(*one, answer, detect) for one in each], [follows_loosely(*one, answer, detect) for one in each]
    )


def summarize(prompts: Sequence[Prompt], verdicts: Sequence[Verdicts]) -> dict[str, Any]:
    """Figures of some answers.

    Returns:
      `prompt_strict` and `prompt_loose`, the shares of prompts all of whose instructions are followed;
      `instruction_strict` and `instruction_loose`, of instructions; `standard_error` of the first; `prompts` and
      `instructions`, how many there are; `undecided`, instructions without a strict verdict; `by_instruction`: name ->
      `strict`, `loose`, `instructions`. Undecided instructions, and prompts with one and no other that is not followed,
      count in no share; a share of none is None.
    """
    all_of = lambda of: False if False in of else None if None in of else True
    strict, loose = ([all_of(getattr(one, kind)) for one in verdicts] for kind in ("strict", "loose"))
    flat = {kind: [v for one in verdicts for v in getattr(one, kind)] for kind in ("strict", "loose")}
    names = [name for prompt in prompts for name in prompt.instructions]
    counts = Counter(names)
    shares = [_share(of) for of in (strict, loose, flat["strict"], flat["loose"])]
    share, *others = shares
    decided = len(strict) - strict.count(None)
    return {
        "prompt_strict": share,
        "standard_error": None if share is None else math.sqrt(share * (1 - share) / decided),
        **dict(zip(("prompt_loose", "instruction_strict", "instruction_loose"), others)),
        "prompts": len(prompts),
        "instructions": len(names),
        "undecided": flat["strict"].count(None),
        "by_instruction": {
            name: {kind: _share([v for n, v in zip(names, flat[kind]) if n == name]) for kind in flat}
            | {"instructions": counts[name]}
            for name in sorted(counts)
        },
    }


def read_prompts(config: DataConfig) -> list[Prompt]:
    """The prompts of all sources.

    Raises:
      UserError: for a record without prompt or instructions, or with one that is not known, naming its place.
    """
    return [_parse(*each) for each in records(config.all_sources())]


def _parse(record: Any, where: str, fields: Mapping[str, str], source: str) -> Prompt:
    values = rename(record, fields) if isinstance(record, Mapping) else {}
    text, names, settings = (values.get(field) for field in ("prompt", "instruction_id_list", "kwargs"))
    named = isinstance(names, list) and names and all(isinstance(name, str) for name in names)
    if not (isinstance(text, str) and text.strip() and named):
        raise UserError(
            f"{where}: a record of IFEval has a `prompt`, and a list `instruction_id_list` of names that is not empty."
        )
    objects = isinstance(settings, list) and all(one is None or isinstance(one, Mapping) for one in settings)
    if not objects or len(settings) != len(names):
        raise UserError(f"{where}: `kwargs` must be a list with one object for each of the {len(names)} instructions.")
    # tables with gaps hold whole numbers as floats
    whole = lambda value: int(value) if isinstance(value, float) and value.is_integer() else value
    kept = [{name: whole(value) for name, value in (one or {}).items() if value is not None} for one in settings]
    for name, own in zip(names, kept):
        check_settings(name, own, where)
    return Prompt(text, names, kept, str(values.get("source") or source))


def _share(verdicts: Sequence[Verdict]) -> float | None:
    """Of those that are decided; None where none is."""
    decided = [verdict for verdict in verdicts if verdict is not None]
    return sum(decided) / len(decided) if decided else None


def _record(name: str, index: int, identity: str, prompt: Prompt, answer: Answer, verdicts: Verdicts) -> dict[str, Any]:
    return {
        "task": name,
        "index": index,
        "id": identity,
        "prompt": prompt.text,
        "reference": prompt.instructions,
        "answer": answer.text,
        "correct": all(verdict is True for verdict in verdicts.strict),
        "counted": False in verdicts.strict or None not in verdicts.strict,
        "verdicts": [[strict, loose] for strict, loose in zip(verdicts.strict, verdicts.loose)],
        "source": prompt.source,
        "task_type": "",
    }
