"""Divergent chains of thought: several ways of reasoning in one response, then one answer (arXiv:2407.03181).

A question with the correct chains C gives, in each draw and for every k from 1 to |C|, one response with k of its
chains in random order:

    [Question] q                      the prompt; context and options only where the record has them
    [Context] d
    [Options] o
    [Number of answers] k
    [Answer 1]
     c_1                              the response, which begins with a blank, on the same line
    [Answer 2] c_2
    ...

    [Final answer] a

The baseline (`config.data.dcot.single`) has one response with k = 1 for each chain, so that both have |C| examples a
question and epoch; divergent chains are more tokens.

The blank behind "[Answer 1]" belongs to the response. The text is that of the paper's code, where it ends the prompt;
but tokenizers join a blank to the word behind it, so a prompt that ends in one would be continued as no example was.

Recognised are the fields `question`, `chains` (strings) or `correct_cots` (objects with `cot`), `answer`, and
`context` and `options` where there are any.
"""

import dataclasses
import hashlib
import re
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from jaxsft.config import DataConfig, DCoTConfig
from jaxsft.data.conversation import WEIGHT_KEYS, Conversation, parse, rename
from jaxsft.data.groups import Groups
from jaxsft.errors import UserError
from jaxsft.validation import did_you_mean

if TYPE_CHECKING:
    from jaxsft.data.dataset import Dataset

FINAL = "[Final answer]"
TAG = re.compile(r"\[(?:Question|Context|Options|Number of answers|Answer \d+|Final answer)\]")
RESERVED = ("[Answer", FINAL)
KEPT = ("source", "task_type", *WEIGHT_KEYS, "system")  # what a record may say besides


class Problem(NamedTuple):
    """A question and its answer, `context` and `options` being "" where there are none."""

    question: str
    answer: str
    context: str = ""
    options: str = ""


class FinalAnswer(NamedTuple):
    """What a response answers, in lower case; `found`: whether it says so behind the tag."""

    text: str
    found: bool


def prompt(problem: Problem, k: int) -> str:
    """The prompt that asks for k chains."""
    fields = {
        "Question": problem.question,
        "Context": problem.context,
        "Options": problem.options,
        "Number of answers": str(k),
    }
    return "".join(f"[{name}] {value}\n" for name, value in fields.items() if value) + "[Answer 1]"


def response(chains: list[str], answer: str) -> str:
    """The response with these chains, from behind "[Answer 1]" on."""
    written = [f" {chains[0]}\n", *(f"[Answer {i}] {chain}\n" for i, chain in enumerate(chains[1:], 2))]
    return f"{''.join(written)}\n{FINAL} {answer}"


def final_answer(text: str) -> FinalAnswer:
    """What stands behind the first "[Final answer]", up to the next tag; without one, the whole response."""
    _, found, behind = text.partition(FINAL)
    return FinalAnswer((TAG.split(behind)[0] if found else text).strip().lower(), bool(found))


def read_problem(record: Any, where: str, fields: Mapping[str, str]) -> tuple[Problem, dict[str, Any]]:
    """The question of a record, and all of its fields under their mapped names.

    Raises:
      UserError: for a missing field or a wrong type; names the place.
    """
    if not isinstance(record, Mapping):
        raise UserError(f"{where}: the record is a {type(record).__name__}; it must be an object with named fields.")
    values = rename(record, fields)
    if missing := [name for name in ("question", "answer") if name not in values]:
        raise UserError(f"{where}: the record has no field {missing[0]!r}{did_you_mean(missing[0], record) or '.'}")
    texts = [_text(values.get(name, ""), name, where) for name in Problem._fields]
    return Problem(*texts), values


def read(record: Any, where: str, fields: Mapping[str, str], data: DataConfig) -> list[Conversation]:
    """The conversations of a record: variant v is draw v % draws, with k = v // draws + 1 chains.

    The draws depend on the record's text and `config.data.dcot.seed` alone. A record without chains gives one
    conversation of weight 0.

    Raises:
      UserError: for a missing field or a wrong type, or a chain that holds a tag; names the place.
    """
    problem, values = read_problem(record, where, fields)
    chains = _chains(values, where)
    if not chains:
        # nothing to supervise, so it is counted among the dropped
        return [dataclasses.replace(ask(record, where, fields, 1), weight=0.0)]
    kept = {name: values[name] for name in KEPT if name in values}
    return [
        parse(kept | {"prompt": prompt(problem, len(drawn)), "completion": response(drawn, problem.answer)}, where)
        for drawn in draws(chains, problem.question, data.dcot)
    ]


def ask(record: Any, where: str, fields: Mapping[str, str], k: int) -> Conversation:
    """The question of a record, asked with k chains, and its answer alone as what the assistant says.

    Raises:
      UserError: for a missing field or a wrong type; names the place.
    """
    problem, values = read_problem(record, where, fields)
    kept = {name: values[name] for name in KEPT if name in values}
    return parse(kept | {"prompt": prompt(problem, k), "completion": problem.answer}, where)


def draws(chains: list[str], question: str, config: DCoTConfig) -> list[list[str]]:
    """The chains of each response, in the order of the variants that `read` gives."""
    if config.single:
        return [[chain] for chain in chains]
    words = "\0".join([question, *chains]).encode()
    random = np.random.default_rng([config.seed, *hashlib.sha256(words).digest()])
    return [
        [chains[i] for i in random.permutation(len(chains))[:k]]
        for k in range(1, len(chains) + 1)
        for _ in range(config.draws)
    ]


def groups(dataset: "Dataset", members: np.ndarray, epoch: int) -> Groups:
    """The examples of an epoch's draw, each by itself; see `Grouping.groups`."""
    config = dataset.config.dcot
    count = 1 if config.single else config.draws
    of_draw = np.flatnonzero(dataset.variants % count == epoch % count)
    records = dataset.records[of_draw]
    begins, ends = (np.searchsorted(records, dataset.records[members], side) for side in ("left", "right"))
    return Groups.single(np.concatenate([of_draw[begin:end] for begin, end in zip(begins, ends)]))


def _chains(values: Mapping[str, Any], where: str) -> list[str]:
    given = values.get("chains", values.get("correct_cots"))
    if given is None:
        raise UserError(f"{where}: the record has no field 'chains'; map yours by config.data.fields.")
    if not isinstance(given, list):
        raise UserError(f"{where}: 'chains' is a {type(given).__name__}; it must be a list of strings.")
    chains = [_text(c.get("cot") if isinstance(c, Mapping) else c, "chains", where).strip() for c in given]
    chains = list(dict.fromkeys(chains))
    for chain in chains:
        if not chain:
            raise UserError(f"{where}: a chain of thought is empty; remove it.")
        if held := [tag for tag in RESERVED if tag in chain]:
            raise UserError(f"{where}: a chain of thought holds {held[0]!r}, which marks where one ends; remove it.")
    return chains


def _text(value: Any, name: str, where: str) -> str:
    """A string as it is, a number as people write it."""
    if isinstance(value, float) and value.is_integer():
        value = int(value)
    if isinstance(value, bool) or not isinstance(value, str | int | float):
        raise UserError(f"{where}: {name!r} holds a {type(value).__name__}; it must hold text.")
    return str(value)
