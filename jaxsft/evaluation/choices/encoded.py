"""Choices behind their questions, in tokens, and their log-likelihoods.

In the chat template a choice is the assistant's turn, and what is summed is its own tokens, without the end-of-turn
mark. With the template "none" the text is the question, a blank and the choice. Choices that differ in their last token
alone, as letters do, share one pass over what stands before it (`jaxsft.evaluation.choices.continuations`).
"""

import functools
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from jaxsft.config import DataConfig, TaskConfig
from jaxsft.data.conversation import Conversation, Message
from jaxsft.data.render import Layout, Renderer
from jaxsft.data.templates import NO_TEMPLATE, load_template
from jaxsft.data.tokenizer import Encoding, Tokenizer
from jaxsft.errors import UserError
from jaxsft.evaluation.choices import continuations
from jaxsft.evaluation.choices.continuations import Pair
from jaxsft.evaluation.task import Subject

Encoded = tuple[np.ndarray, np.ndarray]  # ids int32 [n], weights float32 [n], 1 at the choice's own tokens
Encoder = Callable[[str | list[Message], Sequence[str]], list[Encoded]]


def encode_choices(
    prompts: Sequence[str | list[Message]], choices: Sequence[Sequence[str]], config: DataConfig, subject: Subject
) -> list[Pair]:
    """Every choice behind its question, question after question.

    Raises:
      UserError: for a choice that the model's context does not hold.
    """
    encode = encoder(config.template, subject.tokenizer, config.condition, config.system)
    longest = _longest(config, subject)
    pairs = []
    for asked, own in zip(prompts, choices):
        for choice, (ids, weights) in zip(own, encode(asked, own)):
            places = np.flatnonzero(weights)
            pair = Pair(ids[: places[0]], ids[places[0] : places[-1] + 1])
            if len(pair.continuation) > longest:
                raise UserError(
                    f"the choice {choice[:60]!r} has {len(pair.continuation)} tokens, more than the {longest} of a "
                    "passage; leave the question out."
                )
            pairs.append(pair)
    return pairs


def count_cut(pairs: Sequence[Pair], config: DataConfig, subject: Subject) -> int:
    """Choices that lose the beginning of what stands before them, because it is longer than the model's context."""
    longest = _longest(config, subject)
    return sum(len(context) + len(continuation) > longest + 1 for context, continuation in pairs)


def score(pairs: Sequence[Pair], config: TaskConfig, subject: Subject, params: Any, adapters: Any) -> np.ndarray:
    """float64 [choices], the log-likelihood of every choice in nats."""
    found = continuations.score(
        subject.decoder,
        params,
        adapters,
        pairs,
        subject.mesh,
        batch_size=config.batch_size,
        longest=_longest(config.data, subject),
    )
    scores = np.zeros(len(pairs))
    for index, one in found:
        scores[index] = one.log_prob
    return scores


def _longest(config: DataConfig, subject: Subject) -> int:
    """Inputs of a passage at most; the last token is only predicted."""
    return min(config.max_length - 1, subject.decoder.arch.max_positions)


def encoder(template: str, tokenizer: Tokenizer, condition: str = "auto", system: str = "") -> Encoder:
    """A function from (what is asked, choices) to ids and weights of each choice behind it.

    What is asked is a text, or messages of which the last is the user's.

    Raises:
      UserError: for a system prompt without a template; by the function, for several messages without one, and if no
        token begins inside a choice.
    """
    if template == NO_TEMPLATE:
        if system:
            raise UserError("config.data.system needs a chat template; set config.data.template, or leave it empty.")
        return functools.partial(_encode_plain, tokenizer)
    before = [Message("system", system)] if system else []
    renderer = Renderer(load_template(template, tokenizer, condition), tokenizer)
    return functools.partial(_encode_turns, renderer, before)


def _encode_turns(
    renderer: Renderer, before: list[Message], asked: str | list[Message], choices: Sequence[str]
) -> list[Encoded]:
    """In the chat template, as training renders it."""
    messages = [Message("user", asked)] if isinstance(asked, str) else asked
    if before and messages[0].role == "system":
        before = []
    said = lambda choice: Conversation([*before, *messages, Message("assistant", choice)])
    name = repr((messages[-1].content or "")[:60])
    first = renderer.layout(said(choices[0]), name)
    begin, end = _content(first, choices[0])
    layouts = [(first, end)]
    for choice in choices[1:]:
        if any(renderer.has_control(text) or text != text.strip() for text in (choice, choices[0])):
            layout = renderer.layout(said(choice), name)
            layouts.append((layout, _content(layout, choice)[1]))
        else:  # templates write an answer as it is, blanks at its ends apart, so that only it needs to be exchanged
            layouts.append((_exchanged(first, begin, end, choice), begin + len(choice)))
    encodings = renderer.encode([layout for layout, _ in layouts])
    return [
        _marked(encoding, layout.spans[-1][0], stop, name, choice)
        for encoding, (layout, stop), choice in zip(encodings, layouts, choices)
    ]


def _content(layout: Layout, choice: str) -> tuple[int, int]:
    """The first character of the choice in its turn, less blanks, which templates may trim, and the one after it."""
    turn, end, _ = layout.spans[-1]
    content = choice.strip()
    begin = layout.text.index(content, turn, end)
    return begin, begin + len(content)


def _exchanged(layout: Layout, begin: int, end: int, content: str) -> Layout:
    """The layout with another text between two characters of its last turn."""
    shift = len(content) - (end - begin)
    text = layout.text[:begin] + content + layout.text[end:]
    return Layout(
        text,
        layout.spans,
        layout.guarded,
        [bound if bound <= begin else bound + shift for bound in layout.bounds],
    )


def _encode_plain(tokenizer: Tokenizer, asked: str | list[Message], choices: Sequence[str]) -> list[Encoded]:
    """The question, a space and the choice, behind BOS if the tokenizer defines one."""
    if not isinstance(asked, str):
        if [message.role for message in asked] != ["user"]:
            raise UserError(
                "without a chat template a prompt is one user message, but this has the roles "
                f"{', '.join(message.role for message in asked)}; set config.data.template."
            )
        asked = asked[0].content
    begin = len(asked.rstrip())
    texts = [f"{asked[:begin]} {choice.strip()}" for choice in choices]
    encodings = tokenizer.encode_ordinary(texts)
    encoded = [
        _marked(encoding, begin, len(text), repr(asked[-60:]), choice)
        for encoding, text, choice in zip(encodings, texts, choices)
    ]
    if tokenizer.bos_id is None:
        return encoded
    bos, none = np.array([tokenizer.bos_id], np.int32), np.zeros(1, np.float32)
    return [(np.concatenate([bos, ids]), np.concatenate([none, weights])) for ids, weights in encoded]


def _marked(encoding: Encoding, begin: int, end: int, question: str, choice: str) -> Encoded:
    """Ids and weights: 1 for tokens that begin inside the characters `begin` to `end`."""
    starts = np.array([start for start, _ in encoding.offsets])
    weights = ((begin <= starts) & (starts < end)).astype(np.float32)
    weights[:1] = 0
    if not weights.any():
        raise UserError(f"the choice {choice!r} of the question {question} has no token of its own.")
    return np.array(encoding.ids, np.int32), weights
