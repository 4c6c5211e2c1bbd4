"""Multiple choice: the answer to which the model gives the highest log-likelihood, given the question.

Records hold a question, its choices, and which of them is right, by one of these names and forms:

    question    `question` or `prompt`: a string
    choices     `choices` or `options`: a list of strings, or {"text": [...], "label": [...]};
                `mc1_targets`: {choice: 1 if it is right else 0}
    answer      `answer`, `label`, `answerKey` or `completion`: the right choice's place (from 0), its text, its label
                or its letter

`config.data.fields` maps other names to these; `source` or `subject`, and `task_type`, name the parts that figures are
also given for.

The question is the user's turn and the choice the assistant's, in the chat template; what is summed is the choice's own
tokens, without the end-of-turn mark. With `config.data.template=none` the text is the question, a space and the choice,
as for a model that knows no turns. Scores may be divided by the number of tokens or of UTF-8 bytes of the choice.
"""

import functools
import math
from collections.abc import Mapping
from typing import Any, NamedTuple

import numpy as np

from jaxsft.config import DataConfig, TaskConfig
from jaxsft.data.conversation import Conversation, Message, rename
from jaxsft.data.render import Renderer
from jaxsft.data.sources import open_source, row_range
from jaxsft.data.templates import NO_TEMPLATE, load_template
from jaxsft.data.tokenizer import Encoding, Tokenizer
from jaxsft.errors import UserError
from jaxsft.evaluation.perplexity import make_nll
from jaxsft.evaluation.rows import InMemory, batches
from jaxsft.evaluation.scoring import example_sums
from jaxsft.evaluation.task import Result, Subject, Task, by_part, digest, question_ids
from jaxsft.validation import did_you_mean

NAMES = {
    "question": ("question", "prompt"),
    "choices": ("choices", "options", "mc1_targets"),
    "answer": ("answer", "label", "answerKey", "completion"),
    "source": ("source", "subject"),
}


class Question(NamedTuple):
    """A question, its choices, the places of the right ones, and the parts of the data it belongs to."""

    text: str
    choices: list[str]
    right: set[int]
    source: str
    task_type: str = ""


def prepare(config: TaskConfig, subject: Subject) -> Task:
    """The accuracy on the questions that `config` names.

    Returns:
      A task whose figures are `accuracy`, its `standard_error`, `chance` (the accuracy of guessing), `questions`, `cut`
      (choices whose question lost its beginning because it was longer than the model's context), and tables where
      there are several sources or task types; and whose records hold the text of the choice that won as `answer`, and
      as `reference` that of the right one, or a list of the right ones.
    """
    questions = read_questions(config.data)
    choices, cut = encode_choices(questions, config.data, subject)
    name = config.name or config.task
    count = f"{len(questions)} questions with {len(choices)} choices"
    sources, types = [q.source for q in questions], [q.task_type for q in questions]
    ids = question_ids([[q.text, q.choices, sorted(q.right)] for q in questions])

    def measure(params: Any, adapters: Any) -> Result:
        chosen = choose(questions, *score(choices, config, subject, params, adapters), config.normalize)
        right = np.array([place in question.right for question, place in zip(questions, chosen)])
        parts = by_part(
            {"by_source": sources, "by_task_type": types},
            lambda at: summarize([questions[i] for i in at], right[at]),
        )
        records = [_record(name, i, *each) for i, each in enumerate(zip(ids, questions, chosen.tolist()))]
        return Result(summarize(questions, right) | {"cut": cut} | parts, records)

    fingerprint = digest([[q.text, q.choices, sorted(q.right), q.source, q.task_type] for q in questions])
    return Task(name, f"{count}; {config.normalize}-normalised log-likelihood", fingerprint, measure)


def encode_choices(questions: list[Question], data: DataConfig, subject: Subject) -> tuple[InMemory, int]:
    """Every choice behind its question, question after question, and how many were cut on the left."""
    encode = encoder(data.template, subject.tokenizer, data.condition, data.system)
    longest = min(data.max_length, subject.decoder.arch.max_positions + 1)  # the last token is only predicted
    whole = [encode(question.text, choice) for question in questions for choice in question.choices]
    cut = sum(len(ids) > longest for ids, _ in whole)
    return InMemory([(ids[-longest:], weights[-longest:]) for ids, weights in whole]), cut


def score(
    choices: InMemory, config: TaskConfig, subject: Subject, params: Any, adapters: Any
) -> tuple[np.ndarray, np.ndarray]:
    """Log-likelihood (nats) and number of tokens of every choice."""
    fn = functools.partial(make_nll(subject.decoder), params, adapters)
    rows = batches(choices, config.data, config.batch_size, subject.mesh, config.name or config.task)
    sums = example_sums(fn, rows, subject.mesh)
    return -sums["nll_sum"], sums["tokens"]


def choose(questions: list[Question], log_likelihoods: np.ndarray, tokens: np.ndarray, normalize: str) -> np.ndarray:
    """int [questions], the place of each question's likeliest choice.

    Args:
      questions: see `Question`.
      log_likelihoods: float64 of every choice, question after question.
      tokens: their numbers of tokens.
      normalize: "none", "tokens" or "bytes", what scores are divided by.
    """
    size = {
        "none": np.ones(len(tokens)),
        "tokens": tokens,
        "bytes": np.array([len(choice.encode()) for question in questions for choice in question.choices]),
    }[normalize]
    bounds = np.cumsum([len(question.choices) for question in questions])[:-1]
    return np.array([int(scores.argmax()) for scores in np.split(log_likelihoods / size, bounds)])


def summarize(questions: list[Question], right: np.ndarray) -> dict[str, float]:
    """Accuracy, its standard error, that of guessing, and the number of questions."""
    accuracy = float(right.mean())
    return {
        "accuracy": accuracy,
        "standard_error": math.sqrt(accuracy * (1 - accuracy) / len(right)),
        "chance": float(np.mean([len(question.right) / len(question.choices) for question in questions])),
        "questions": len(right),
    }


def encoder(template: str, tokenizer: Tokenizer, condition: str = "auto", system: str = "") -> Any:
    """A function from (question, choice) to ids int32 [n] and weights float32 [n], 1 at the choice's own tokens.

    Raises:
      UserError: for a system prompt without a template; by the function, if no token begins inside the choice.
    """
    if template == NO_TEMPLATE:
        if system:
            raise UserError("config.data.system needs a chat template; set config.data.template, or leave it empty.")
        return functools.partial(_encode_plain, tokenizer)
    before = [Message("system", system)] if system else []
    renderer = Renderer(load_template(template, tokenizer, condition), tokenizer)
    return functools.partial(_encode_turns, renderer, before)


def read_questions(config: DataConfig) -> list[Question]:
    """The questions of all sources.

    Raises:
      UserError: for a record without question, choices or answer, naming the record and the field.
    """
    found = []
    for source in config.all_sources():
        opened = open_source(source)
        for record, where in opened.records(*row_range(source.rows, len(opened))):
            found.append(parse_question(record, where, source.fields, opened.name))
    return found


def parse_question(record: Any, where: str, fields: Mapping[str, str], source: str = "") -> Question:
    """Reads one record; see the module's docstring for its forms.

    Raises:
      UserError: saying what is missing or does not fit.
    """
    if not isinstance(record, Mapping):
        raise UserError(f"{where}: the record is a {type(record).__name__}; it must be an object with named fields.")
    values = rename(record, fields)

    def field(name: str) -> Any:
        for alias in NAMES[name]:
            if alias in values:
                return values[alias]
        hint = did_you_mean(name, record) or "."
        raise UserError(f"{where}: the record has no field {' or '.join(NAMES[name])}{hint} Map yours by `fields`.")

    text, given = field("question"), field("choices")
    labels: list[str] = []
    if isinstance(given, Mapping) and {"text", "label"} <= given.keys():
        choices, labels = given["text"], given["label"]
    elif isinstance(given, Mapping):
        choices = list(given)
        right = {i for i, choice in enumerate(choices) if given[choice] == 1}
    else:
        choices = given
    if (
        not isinstance(text, str)
        or not isinstance(choices, list)
        or not isinstance(labels, list)
        or len(choices) < 2
        or not all(isinstance(choice, str) and choice for choice in choices)
    ):
        raise UserError(
            f"{where}: a question is a string and has two or more choices, which are strings that hold text."
        )
    if labels or not isinstance(given, Mapping):
        right = {_place(field("answer"), choices, labels, where)}
    if not right:
        raise UserError(f"{where}: none of the choices is marked as right.")
    source = next((str(values[alias]) for alias in NAMES["source"] if alias in values), source)
    return Question(text, choices, right, source, str(values.get("task_type", "")))


def _place(answer: Any, choices: list[str], labels: list[str], where: str) -> int:
    """Which choice an answer names."""
    if isinstance(answer, int) and not isinstance(answer, bool) and 0 <= answer < len(choices):
        return answer
    letters = [chr(ord("A") + i) for i in range(len(choices))]
    for names in (labels, choices, letters):
        if answer in names:
            return names.index(answer)
    raise UserError(
        f"{where}: the answer {answer!r} is none of the choices; name one by its place from 0, text or letter."
    )


def _encode_turns(
    renderer: Renderer, before: list[Message], question: str, choice: str
) -> tuple[np.ndarray, np.ndarray]:
    """In the chat template, as training renders it."""
    layout = renderer.layout(
        Conversation([*before, Message("user", question), Message("assistant", choice)]), repr(question[:60])
    )
    begin, end, _ = layout.spans[-1]
    content = choice.strip()  # templates may trim
    end = layout.text.index(content, begin, end) + len(content)
    (encoding,) = renderer.encode([layout])
    return _marked(encoding, begin, end, question, choice)


def _encode_plain(tokenizer: Tokenizer, question: str, choice: str) -> tuple[np.ndarray, np.ndarray]:
    """The question, a space and the choice, behind BOS if the tokenizer defines one."""
    begin = len(question.rstrip())
    text = f"{question[:begin]} {choice.strip()}"
    ids, weights = _marked(tokenizer.encode_guarded(text, [(0, len(text))]), begin, len(text), question, choice)
    if tokenizer.bos_id is None:
        return ids, weights
    return np.concatenate([[tokenizer.bos_id], ids]).astype(np.int32), np.concatenate([[0], weights]).astype(np.float32)


def _marked(encoding: Encoding, begin: int, end: int, question: str, choice: str) -> tuple[np.ndarray, np.ndarray]:
    """Ids and weights: 1 for tokens that begin inside the characters `begin` to `end`."""
    weights = np.array([begin <= start < end for start, _ in encoding.offsets], np.float32)
    weights[:1] = 0
    if not weights.any():
        raise UserError(f"the choice {choice!r} of the question {question[:60]!r} has no token of its own.")
    return np.array(encoding.ids, np.int32), weights


def _record(name: str, index: int, identity: str, question: Question, chosen: int) -> dict[str, Any]:
    right = [question.choices[i] for i in sorted(question.right)]
    return {
        "task": name,
        "index": index,
        "id": identity,
        "prompt": question.text,
        "reference": right[0] if len(right) == 1 else right,
        "answer": question.choices[chosen],
        "correct": chosen in question.right,
        "source": question.source,
        "task_type": question.task_type,
    }
