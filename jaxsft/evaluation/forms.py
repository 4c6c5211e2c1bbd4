"""Records of benchmarks become questions: those with choices here, those with answers to be written below.

A question with choices, by one of these names and forms:

    question    `question`, `prompt` or `input`: a string; `passage`, where there is one, stands before it
    choices     `choices` or `options`: a list of strings, or {"text": [...], "label": [...]}; or which are right, as
                `mc1_targets`: {choice: 1 or 0} or {"choices": [...], "labels": [1 or 0, ...]}
    answer      `answer`, `label`, `answerKey`, `target` or `completion`: the right choice's place (from 0), its text,
                its label or its letter, with or without brackets

Labels in brackets before all choices ("(A) red") are no part of them. Where the choices are such labels alone, or there
are none, they are read from the end of the question ("(A) red (B) blue"; of BBH "Options:" and a line for each).

A question whose answer is written: what `jaxsft.data.conversation.parse` reads, or

    question    `question`, `problem` or `input`
    answers     `answers`, `answer`, `target` or `solution`: a text or number, a list of them of which each is right, or
                {"value": ..., "aliases": [...]} as in TriviaQA

`config.data.fields` maps other names to these, "a.b" being the field b of the field a; `source` or `subject`, and
`task_type`, name the parts that figures are also given for.
"""

import re
from collections.abc import Iterator, Mapping
from typing import Any, NamedTuple

from jaxsft.config import DataConfig, SourceConfig
from jaxsft.data.conversation import FORMS, Conversation, Message, parse, rename
from jaxsft.data.sources import open_source, row_range
from jaxsft.errors import UserError
from jaxsft.validation import did_you_mean

NAMES = {
    "question": ("question", "prompt", "input"),
    "choices": ("choices", "options", "mc1_targets"),
    "answer": ("answer", "label", "answerKey", "target", "completion"),
    "source": ("source", "subject"),
}
WRITTEN = {"question": ("question", "problem", "input"), "answer": ("answers", "answer", "target", "solution")}
LABEL = re.compile(r"\(([A-Z])\)\s*")
ASKED_TO_THINK = re.compile(r"\s*\nA: Let's think step by step\.\s*$")
OPTIONS = re.compile(r"\n?Options:\s*\n")


class Question(NamedTuple):
    """A question, its choices, the places of the right ones, and the parts of the data it belongs to."""

    text: str
    choices: list[str]
    right: set[int]
    source: str
    task_type: str = ""


class Written(NamedTuple):
    """A question whose answer is written.

    Attributes:
      conversation: the prompt's messages and the reference, its last.
      answers: texts that are right.
      source: the part of the data that it belongs to.
    """

    conversation: Conversation
    answers: list[str]
    source: str


def records(sources: list[SourceConfig]) -> Iterator[tuple[Any, str, Mapping[str, str], str]]:
    """(record, its place, field map, name of the source) of all records."""
    for source in sources:
        opened = open_source(source)
        for record, where in opened.records(*row_range(source.rows, len(opened))):
            yield record, where, source.fields, opened.name


def read_questions(config: DataConfig) -> list[Question]:
    """The questions with choices of all sources.

    Raises:
      UserError: for a record without question, choices or answer, naming the record and the field.
    """
    return [parse_question(*each) for each in records(config.all_sources())]


def parse_question(record: Any, where: str, fields: Mapping[str, str], source: str = "") -> Question:
    """Reads a question with choices; see the module's docstring for its forms.

    Raises:
      UserError: saying what is missing or does not fit.
    """
    record = _flat(record, where, fields)
    values = rename(record, fields)
    text = _field(values, "question", NAMES["question"], record, where)
    given = next((values[name] for name in NAMES["choices"] if name in values), None)
    labels, right = [], None
    if isinstance(given, Mapping) and {"text", "label"} <= given.keys():
        choices, labels = given["text"], given["label"]
        _check_as_many(choices, labels, "labels", where)
    elif isinstance(given, Mapping):
        columns = {"choices", "labels"} <= given.keys()
        choices, marks = (given["choices"], given["labels"]) if columns else (list(given), list(given.values()))
        _check_as_many(choices, marks, "marks", where)
        right = {i for i, mark in enumerate(marks) if mark == 1}
    else:
        choices = given
    if isinstance(text, str) and (choices is None or _are_labels(choices)):
        text, choices, labels = _listed(text, labels if choices is None else choices, record, where)
    if (
        not isinstance(text, str)
        or not isinstance(choices, list)
        or not isinstance(labels, list)
        or len(choices) < 2
        or not all(isinstance(choice, str) and choice.strip() for choice in choices)
    ):
        raise UserError(
            f"{where}: a question is a string and has two or more choices, which are strings that hold text."
        )
    choices = _without_labels(choices)
    if right is None:
        right = {_place(_field(values, "answer", NAMES["answer"], record, where), choices, labels, where)}
    if not right:
        raise UserError(f"{where}: none of the choices is marked as right.")
    if passage := values.get("passage"):
        text = f"{passage}\n{text}"
    return Question(text, choices, right, _source(values, source), str(values.get("task_type", "")))


def parse_written(record: Any, where: str, fields: Mapping[str, str], source: str = "", separator: str = "") -> Written:
    """Reads a question whose answer is written; see the module's docstring for its forms.

    Args:
      record: one JSON object.
      where: its place, for messages.
      fields: field map.
      source: the name of its source, where it does not say one itself.
      separator: what stands between several answers in one text; "" is one answer.

    Raises:
      UserError: for a record that asks nothing, or has no answer.
    """
    record = _flat(record, where, fields)
    values = rename(record, fields)
    known = any(all(name in values for name in form) for form in FORMS)
    if known or not _has_answer(values):
        conversation = parse(record, where, fields)
        check_asked(conversation, where)
        given = conversation.extras.get("answers", conversation.messages[-1].content)
    else:
        text = _field(values, "question", WRITTEN["question"], record, where)
        given = _field(values, "answer", WRITTEN["answer"], record, where)
        if not isinstance(text, str) or not text.strip():
            raise UserError(f"{where}: the question is {text!r}; it must be text.")
        if passage := values.get("passage"):
            text = f"{passage}\n{text}"
        conversation = Conversation([Message("user", text)], task_type=str(values.get("task_type", "")))
        conversation.extras = {"watch": values["watch"]} if "watch" in values else {}
    answers = _answers(given, separator, where)
    if conversation.messages[-1].role == "user":
        conversation.messages.append(Message("assistant", answers[0]))
    return Written(conversation, answers, conversation.source or _source(values, source))


def check_asked(conversation: Conversation, where: str) -> None:
    """Refuses a conversation that asks nothing.

    Raises:
      UserError: likewise for a watched answer that is no text.
    """
    messages, watch = conversation.messages, conversation.extras.get("watch")
    if len(messages) < 2 or messages[-1].role != "assistant" or not (messages[-1].content or "").strip():
        raise UserError(f"{where}: nothing is asked; a question's last message is the assistant's, with text.")
    if watch is not None and not (isinstance(watch, str) and watch.strip()):
        raise UserError(f"{where}: 'watch' is {watch!r}; it must be the text of an answer.")


def _flat(record: Any, where: str, fields: Mapping[str, str]) -> Mapping[str, Any]:
    """The record, with the inner fields that the field map names as "a.b" beside the others."""
    if not isinstance(record, Mapping):
        raise UserError(f"{where}: the record is a {type(record).__name__}; it must be an object with named fields.")
    found = {}
    for name in fields:
        outer, dot, inner = name.partition(".")
        if dot and isinstance(record.get(outer), Mapping) and inner in record[outer]:
            found[name] = record[outer][inner]
    return {**record, **found}


def _check_as_many(choices: Any, others: Any, name: str, where: str) -> None:
    if not (isinstance(choices, list) and isinstance(others, list) and len(choices) == len(others)):
        raise UserError(f"{where}: the record's choices and their {name} are not two lists of the same length.")


def _field(values: Mapping[str, Any], name: str, aliases: tuple[str, ...], record: Any, where: str) -> Any:
    for alias in aliases:
        if alias in values:
            return values[alias]
    hint = did_you_mean(name, record) or "."
    raise UserError(f"{where}: the record has no field {' or '.join(aliases)}{hint} Map yours by `fields`.")


def _source(values: Mapping[str, Any], default: str) -> str:
    return next((str(values[name]) for name in NAMES["source"] if isinstance(values.get(name), str | int)), default)


def _has_answer(values: Mapping[str, Any]) -> bool:
    return all(any(name in values for name in names) for names in WRITTEN.values())


def _answers(given: Any, separator: str, where: str) -> list[str]:
    """The texts of an answer's aliases, the first being the one that stands in examples."""
    if isinstance(given, Mapping):
        aliases = given.get("aliases") or []
        if not isinstance(aliases, list):
            raise UserError(
                f"{where}: the answer's aliases are a {type(aliases).__name__}; they must be a list of texts."
            )
        given = [given[name] for name in ("value",) if name in given] + aliases
    if isinstance(given, str) and separator:
        given = given.split(separator)
    found = [given] if isinstance(given, str | int | float) else given
    if not isinstance(found, list) or any(
        isinstance(one, bool) or not isinstance(one, str | int | float) or one != one for one in found
    ):
        raise UserError(f"{where}: the answer is {given!r:.60}; it must be text or a number, or a list of such.")
    texts = [str(int(one) if isinstance(one, float) and one.is_integer() else one) for one in found]
    texts = [text for text in dict.fromkeys(texts) if text.strip()]
    if not texts:
        raise UserError(f"{where}: nothing is asked; there is no answer that holds text.")
    return texts


def _are_labels(choices: Any) -> bool:
    """Whether the choices are "(A)", "(B)", ... and nothing else."""
    return (
        isinstance(choices, list) and len(choices) > 1 and choices == [f"({_letter(i)})" for i in range(len(choices))]
    )


def _listed(text: str, labels: list[str], record: Any, where: str) -> tuple[str, list[str], list[str]]:
    """Takes the choices that a question lists out of its text.

    Returns:
      question, choices, labels.
    """
    body = ASKED_TO_THINK.sub("", text)
    stem, found, listed = body.rpartition(match.group()) if (match := OPTIONS.search(body)) else (body, "", "")
    lines = [line.strip() for line in listed.strip().split("\n")] if found else []
    if found and all(line.startswith("- ") for line in lines):
        return stem, [line[2:] for line in lines], []
    at = (body.rfind("\n(A) ") if not found else len(stem) + len(found) - 1) + 1
    begins, choices = [], []
    if at > 0 and body.startswith("(A) ", at):
        begins, place = [at], at
        while (place := _next(body, f"({_letter(len(begins))}) ", place)) > 0:
            begins.append(place)
            if len(begins) == len(labels):
                break
        ends = [*begins[1:], len(body)]
        choices = [body[begin + 4 : end].strip() for begin, end in zip(begins, ends)]
    if len(choices) < 2 or (labels and len(choices) != len(labels)):
        raise UserError(
            f"{where}: the record has no field {' or '.join(NAMES['choices'])} with texts, and its question lists "
            "none, as in '(A) red (B) blue'; map yours by `fields`, or measure written answers (task 'generation')."
        )
    return body[: len(stem) if found else at - 1].rstrip(), choices, [f"({_letter(i)})" for i in range(len(choices))]


def _next(text: str, mark: str, after: int) -> int:
    """Where a mark next stands behind a blank or a new line; -1 if nowhere."""
    places = [place + 1 for place in (text.find(f" {mark}", after), text.find(f"\n{mark}", after)) if place >= 0]
    return min(places, default=-1)


def _without_labels(choices: list[str]) -> list[str]:
    """The choices without "(A)", "(B)", ..., if each begins with its own."""
    matches = [LABEL.match(choice) for choice in choices]
    own = all(
        match and match[1] == _letter(i) and match.end() < len(c) for i, (match, c) in enumerate(zip(matches, choices))
    )
    return [choice[match.end() :] for match, choice in zip(matches, choices)] if own else choices


def _place(answer: Any, choices: list[str], labels: list[str], where: str) -> int:
    """Which choice an answer names."""
    if isinstance(answer, list) and len(answer) == 1:
        answer = answer[0]
    if isinstance(answer, int) and not isinstance(answer, bool) and 0 <= answer < len(choices):
        return answer
    letters = [_letter(i) for i in range(len(choices))]
    for names in (labels, choices, letters, [f"({letter})" for letter in letters]):
        if answer in names:
            return names.index(answer)
    raise UserError(
        f"{where}: the answer {answer!r} is none of the choices; name one by its place from 0, text or letter."
    )


def _letter(place: int) -> str:
    return chr(ord("A") + place)
