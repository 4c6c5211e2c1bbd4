"""Context reliance: whether a model believes the text before it, where that contradicts what it knows by heart.

Goyal et al., ICLR 2025, arXiv:2410.10796. An item is a context c, a question q, the answer a_c that c gives, and the
answer a_m from memory. Fine-tuning on instructions first teaches a model to read contexts and then, while benchmarks go
on rising, to fall back on its memory.

    counterfactual = share of answers to (c, q) that give a_c,   parametric = share that give a_m

An answer gives at most one of them, that which occurs first (`jaxsft.evaluation.papers.first_hit`), so both add up to 1
at most. Nothing need be written for the score, in nats:

    score = log p(a_c | c, q) / |a_c| - log p(a_m | c, q) / |a_m|,   |a| tokens; prefers_context = share above 0

Every question is asked without its context too: `recalled` is the share that is answered from memory, by a_m. Only
items that the base answers so are a conflict, and only these should count: `known` names the answers of the base in an
evaluation of the same task, and leaves out all others. `jaxsft.forgetting` does that by itself.

Records have `context`, `question`, `answer` (a_c) and `memory_answer` or `parametric_answer` (a_m), each a text or a
list of texts that count as the same, the first of which is scored.
"""

import functools
import math
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
from etils import epath

from jaxsft.config import DataConfig, TaskConfig
from jaxsft.data.conversation import rename
from jaxsft.errors import UserError
from jaxsft.evaluation.answers.writing import Writer
from jaxsft.evaluation.choices.encoded import encoder
from jaxsft.evaluation.forms import records
from jaxsft.evaluation.likelihood.perplexity import make_nll
from jaxsft.evaluation.papers.first_hit import first_hit, normalize
from jaxsft.evaluation.rows import InMemory, batches
from jaxsft.evaluation.scoring import example_sums
from jaxsft.evaluation.task import Result, Subject, Task, by_part, digest, question_ids
from jaxsft.files import json_lines

CONTEXT, MEMORY = 0, 1


class Item(NamedTuple):
    """A context, a question, the forms of the context's answer and of memory's, and the parts of the data."""

    context: str
    question: str
    answer: list[str]
    memory: list[str]
    source: str
    task_type: str = ""

    @property
    def prompt(self) -> str:
        """Context and question as the model is asked."""
        return f"{self.context}\n\n{self.question}"


def rates(outcomes: Sequence[int | None]) -> dict[str, float]:
    """`counterfactual` and `parametric` accuracy of outcomes of `first_hit` (0 context, 1 memory), the former's
    `standard_error`, and `questions`; nan without any."""
    count = len(outcomes)
    share = lambda kind: sum(outcome == kind for outcome in outcomes) / count if count else math.nan
    context = share(CONTEXT)
    error = math.sqrt(context * (1 - context) / count) if count else math.nan
    return {
        "counterfactual": context,
        "parametric": share(MEMORY),
        "standard_error": error,
        "questions": count,
    }


def preferences(log_likelihoods: np.ndarray, tokens: np.ndarray) -> np.ndarray:
    """float64 [items], the score of the module's docstring.

    Args:
      log_likelihoods: float64 [items, 2], of the context's answer and of memory's, in nats.
      tokens: [items, 2], how many each has.
    """
    means = np.asarray(log_likelihoods, np.float64) / np.asarray(tokens, np.float64)
    return means[:, CONTEXT] - means[:, MEMORY]


def prepare(config: TaskConfig, subject: Subject) -> Task:
    """The context reliance on the items that `config` names.

    Returns:
      A task whose figures are those of `rates`, `score` (mean), `prefers_context`, `recalled`, `unknown` (items left
      out, as `config.known` does not answer them from memory), `cut`, and tables by part. A record is `correct` where
      the answer is the context's.

    Raises:
      UserError: for records that are no items, and where no item is known.
    """
    items, name = read_items(config.data), config.name or config.task
    ids = question_ids([[item.context, item.question, item.answer, item.memory] for item in items])
    kept = list(range(len(items)))
    if config.known:
        known = read_known(config.known, name)
        kept = [i for i in kept if ids[i] in known]
        if not kept:
            raise UserError(
                f"config.known={config.known} answers none of the {len(items)} items of {name!r} from memory."
            )
    unknown, items, ids = len(items) - len(kept), [items[i] for i in kept], [ids[i] for i in kept]
    writer = Writer([item.prompt for item in items] + [item.question for item in items], config, subject)
    answers = _encoded(items, config, subject)
    parts = {"by_source": [i.source for i in items], "by_task_type": [i.task_type for i in items]}

    def measure(params: Any, adapters: Any) -> Result:
        texts = [written.text for written in writer.write(params, adapters)]
        hits = lambda texts: [first_hit(text, (item.answer, item.memory)) for text, item in zip(texts, items)]
        outcomes, alone = hits(texts[: len(items)]), hits(texts[len(items) :])
        scores = _score(answers, config, subject, params, adapters)
        recalled = np.array([outcome == MEMORY for outcome in alone])

        def summary(at: np.ndarray) -> dict[str, float]:
            return rates([outcomes[i] for i in at]) | {
                "score": float(scores[at].mean()),
                "prefers_context": float((scores[at] > 0).mean()),
                "recalled": float(recalled[at].mean()),
            }

        figures = summary(np.arange(len(items))) | {"unknown": unknown, "cut": writer.cut} | by_part(parts, summary)
        rows = [
            {
                "task": name,
                "index": i,
                "id": ids[i],
                "prompt": item.prompt,
                "reference": item.answer[0],
                "memory": item.memory[0],
                "answer": texts[i],
                "correct": outcomes[i] == CONTEXT,
                "recalled": bool(recalled[i]),
                "score": float(scores[i]),
                "scores": {
                    "counterfactual": float(outcomes[i] == CONTEXT),
                    "parametric": float(outcomes[i] == MEMORY),
                    "prefers_context": float(scores[i] > 0),
                },
                "source": item.source,
                "task_type": item.task_type,
            }
            for i, item in enumerate(items)
        ]
        return Result(figures, rows)

    report = f"{len(items)} items, {unknown} left out as unknown, {writer.mode}, up to {config.max_new_tokens} tokens"
    return Task(name, report, digest([list(item) for item in items]), measure)


def _encoded(items: list[Item], config: TaskConfig, subject: Subject) -> InMemory:
    """Both answers behind context and question, item after item."""
    encode = encoder(config.data.template, subject.tokenizer, config.data.condition, config.data.system)
    longest = min(config.data.max_length, subject.decoder.arch.max_positions + 1)
    both = [one for item in items for one in encode(item.prompt, [item.answer[0], item.memory[0]])]
    return InMemory([(ids[-longest:], weights[-longest:]) for ids, weights in both])


def _score(answers: InMemory, config: TaskConfig, subject: Subject, params: Any, adapters: Any) -> np.ndarray:
    score = functools.partial(make_nll(subject.decoder), params, adapters)
    rows = batches(answers, config.data, config.batch_size, subject.mesh, config.name or config.task)
    sums = example_sums(score, rows, subject.mesh)
    return preferences(-sums["nll_sum"].reshape(-1, 2), sums["tokens"].reshape(-1, 2))


def read_items(config: DataConfig) -> list[Item]:
    """The items of all sources.

    Raises:
      UserError: for a record that is none, naming it, and one whose answers are the same.
    """
    found = []
    for record, where, fields, source in records(config.all_sources()):
        if not isinstance(record, Mapping):
            raise UserError(f"{where}: the record is a {type(record).__name__}; it must be an object.")
        found.append(parse_item(rename(record, fields), where, source))
    return found


def parse_item(record: Mapping[str, Any], where: str, source: str = "") -> Item:
    """Reads a record; see the module's docstring."""
    for name in ("context", "question"):
        if not isinstance(record.get(name), str) or not record[name].strip():
            raise UserError(f"{where}: `{name}` is {record.get(name)!r}; an item has a context and a question.")
    answer = _forms(record, ("answer",), where)
    memory = _forms(record, ("memory_answer", "parametric_answer"), where)
    if {normalize(form) for form in answer} & {normalize(form) for form in memory}:
        raise UserError(
            f"{where}: the context's answer and memory's are the same, {answer[0]!r}; there is no conflict."
        )
    return Item(
        record["context"], record["question"], answer, memory, str(record.get("source", source)),
        str(record.get("task_type", "")),
    )  # fmt: skip


def _forms(record: Mapping[str, Any], names: tuple[str, ...], where: str) -> list[str]:
    value = next((record[name] for name in names if name in record), None)
    forms = [value] if isinstance(value, str) else value
    if not isinstance(forms, list) or not forms or not all(isinstance(f, str) and normalize(f) for f in forms):
        raise UserError(f"{where}: `{names[0]}` is {value!r}; it must be a text with a word in it, or a list of such.")
    return forms


def read_known(path: epath.PathLike, task: str) -> set[str]:
    """The ids of the items of a task that the answers in a file recall.

    Args:
      path: answers, as scripts/evaluate.py writes them (`.jsonl`).
      task: the task's name.

    Raises:
      UserError: if there is no such file, or it has no answers of that task.
    """
    path = epath.Path(path)
    if not path.exists():
        raise UserError(f"config.known: no file {path}; write it by scripts/evaluate.py, of the base.")
    try:
        held = json_lines(path.read_text())
    except (OSError, ValueError) as error:
        raise UserError(f"config.known={path} is no JSON Lines file ({error}); name the answers, OUT.jsonl.") from error
    answers = [record for record in held if isinstance(record, dict) and {"task", "id", "recalled"} <= record.keys()]
    own = [record for record in answers if record["task"] == task]
    if not own:
        raise UserError(f"config.known={path} has no answers of a task {task!r} on context and memory.")
    return {record["id"] for record in own if record["recalled"]}
