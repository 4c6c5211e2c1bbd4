"""Answers for a judge outside: what a model says to a benchmark's questions, in the files that its judge reads.

MT-Bench (Zheng et al. 2023, arXiv:2306.05685): questions `question_id`, `category`, `turns`; answers, a line each,
`question_id`, `answer_id`, `model_id`, `choices` ([{"index": 0, "turns": [...]}]). The second turn is asked behind the
model's own answer to the first.

AlpacaEval (Dubois et al. 2024, arXiv:2404.04475): questions `instruction`; answers, as one list, `instruction`,
`output`, `generator`, and `dataset` where the question has it.

Nothing here is a score: that is the judge's to give.
"""

import json
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import numpy as np

from jaxsft.config import TaskConfig
from jaxsft.data.conversation import Message
from jaxsft.decoding.engine import Sampled, Sampler
from jaxsft.errors import UserError
from jaxsft.evaluation.answers.writing import chosen_prompter, fitted
from jaxsft.evaluation.forms import records
from jaxsft.evaluation.task import Result, Subject, Task, digest
from jaxsft.files import as_json_lines

DEFAULT_TOKENS = 1024  # of FastChat


class Asked(NamedTuple):
    """A benchmark's question: its record, what the user says turn by turn, and its kind."""

    record: Mapping[str, Any]
    turns: list[str]
    category: str


def prepare(config: TaskConfig, subject: Subject) -> Task:
    """A model's answers to the questions that `config` names.

    Returns:
      A task whose figures are `questions`, `turns` (how many were answered), `tokens` (their mean length), `ended`
      (the share that met an end of turn) and `cut` (turns before which the beginning of the conversation was lost);
      and whose files hold the answers.

    Raises:
      UserError: for records of another form, or a model without chat template.
    """
    prompter = chosen_prompter(config, subject, chat=True)
    form = FORMS[config.judge]
    asked = [form.read(record, where) for record, where, *_ in records(config.data.all_sources())]
    new_tokens, name = config.max_new_tokens or DEFAULT_TOKENS, config.name or config.task
    before = [Message("system", config.data.system)] if config.data.system else []

    def continued(params: Any, adapters: Any, prompts: list[list[int]], places: list[int], turn: int) -> list[Sampled]:
        """The answers to one turn of the questions at some places, by the temperature of each."""
        answers: list[Any] = [None] * len(places)
        temperatures = [config.temperatures.get(asked[place].category, 0.0) for place in places]
        for temperature in sorted(set(temperatures)):
            sampling = prompter.sampling(temperature=temperature, max_new_tokens=new_tokens)
            sampler = Sampler(subject.decoder, sampling, subject.mesh, batch_size=config.batch_size, text=prompter.text)
            chosen = [i for i, own in enumerate(temperatures) if own == temperature]
            ids = [turn * len(asked) + places[i] for i in chosen]
            found = sampler.generate(params, [prompts[i] for i in chosen], ids, adapters=adapters)
            for i, one in zip(chosen, found):
                answers[i] = one
        return answers

    def measure(params: Any, adapters: Any) -> Result:
        said: list[list[str]] = [[] for _ in asked]
        lengths, ended, cut = [], [], 0
        for turn in range(max(len(one.turns) for one in asked)):
            places = [i for i, one in enumerate(asked) if len(one.turns) > turn]
            whole = [prompter.encode(before + _history(asked[i].turns, said[i])) for i in places]
            prompts, lost = fitted(whole, new_tokens, config, subject)
            cut += lost
            for i, prompt, one in zip(places, prompts, continued(params, adapters, prompts, places, turn)):
                text, stopped = prompter.read(prompt, one.tokens)
                said[i].append(text.strip())
                lengths.append(len(one.tokens))
                ended.append(stopped)
        figures = {
            "questions": len(asked),
            "turns": len(lengths),
            "tokens": float(np.mean(lengths)),
            "ended": float(np.mean(ended)),
            "cut": cut,
        }
        return Result(figures, [], {config.judge: form.write(asked, said, subject.name)})

    report = f"{len(asked)} questions of {config.judge}, {prompter.mode}, answers of up to {new_tokens} tokens"
    return Task(name, report, digest([one.record for one in asked]), measure)


def mt_bench_file(asked: list[Asked], said: list[list[str]], model: str) -> tuple[str, str]:
    """The suffix of a file of MT-Bench's answers, and what is in it."""
    lines = [
        {
            "question_id": one.record["question_id"],
            "answer_id": digest([model, one.record["question_id"], turns])[:22],
            "model_id": model,
            "choices": [{"index": 0, "turns": turns}],
        }
        for one, turns in zip(asked, said)
    ]
    return ".jsonl", as_json_lines(lines)


def alpaca_eval_file(asked: list[Asked], said: list[list[str]], model: str) -> tuple[str, str]:
    """The suffix of a file of AlpacaEval's answers, and what is in it."""
    kept = lambda record: {"dataset": record["dataset"]} if "dataset" in record else {}
    answers = [
        {**kept(one.record), "instruction": one.turns[0], "output": turns[0], "generator": model}
        for one, turns in zip(asked, said)
    ]
    return ".json", json.dumps(answers, ensure_ascii=False, indent=1) + "\n"


def _history(turns: list[str], said: list[str]) -> list[Message]:
    """The conversation up to the turn that is to be answered."""
    pairs = [(Message("user", asked), Message("assistant", answer)) for asked, answer in zip(turns, said)]
    return [message for pair in pairs for message in pair] + [Message("user", turns[len(said)])]


def _read_mt_bench(record: Any, where: str) -> Asked:
    turns = record.get("turns") if isinstance(record, Mapping) else None
    good = isinstance(turns, list) and turns and all(isinstance(turn, str) and turn.strip() for turn in turns)
    if not good or "question_id" not in record:
        raise UserError(f"{where}: a question of MT-Bench has a 'question_id' and 'turns', which are texts.")
    return Asked(record, turns, str(record.get("category", "")))


def _read_alpaca_eval(record: Any, where: str) -> Asked:
    instruction = record.get("instruction") if isinstance(record, Mapping) else None
    if not isinstance(instruction, str) or not instruction.strip():
        raise UserError(f"{where}: a question of AlpacaEval has an 'instruction', which is text.")
    return Asked(record, [instruction], str(record.get("dataset", "")))


class Form(NamedTuple):
    """A judge's questions and answers: how one is read, and how the others are written."""

    read: Callable[[Any, str], Asked]
    write: Callable[[list[Asked], list[list[str]], str], tuple[str, str]]


FORMS = {"mt_bench": Form(_read_mt_bench, mt_bench_file), "alpaca_eval": Form(_read_alpaca_eval, alpaca_eval_file)}
