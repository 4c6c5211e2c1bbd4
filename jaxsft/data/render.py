"""Conversations become token ids and loss weights.

A conversation is rendered as a whole and tokenised as a whole; its mask comes from that one tokenisation, by character
spans. A turn's supervised span is what the model has to write: it begins where the template's generation prompt ends
and closes with the end-of-turn mark. Templates with `{% generation %}` tags name the spans themselves. A token that
straddles the beginning belongs to the prompt. A template that is by piece (`jaxsft.data.templates`) is rendered as a
whole too, and its texts are tokenised each by itself.
"""

import dataclasses
import itertools
import re
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np

from jaxsft.data.conversation import Conversation, Message
from jaxsft.data.spans import SpanFinder, no_end
from jaxsft.data.templates import REASONING_FIELDS, Rendered, Template
from jaxsft.data.tokenizer import Encoding, Tokenizer, any_of
from jaxsft.errors import UserError

PLACEHOLDER = chr(0x100000)  # stands for a character of a control string inside a content

Span = tuple[int, int, float]  # first character, one past the last, weight


@dataclasses.dataclass
class Layout:
    """A rendered conversation before tokenisation.

    Attributes:
      text: what the template wrote.
      spans: what is supervised, in order.
      guarded: spans of control strings that are ordinary text.
      bounds: where the texts that are tokenised each by itself begin, and where the last ends.
    """

    text: str
    spans: list[Span]
    guarded: list[tuple[int, int]]
    bounds: list[int]

    def before(self, end: int) -> "Layout":
        """What stands before a character."""
        return Layout(
            self.text[:end],
            [span for span in self.spans if span[1] <= end],
            [(start, stop) for start, stop in self.guarded if stop <= end],
            [bound for bound in self.bounds if bound < end] + [end],
        )


@dataclasses.dataclass
class Example:
    """Tokens of one example.

    Attributes:
      ids: int32 [n].
      weights: float32 [n], loss weight of predicting ids[t] (so the first is 0).
      is_text: plain text, which is read in windows; a conversation is read as a whole.
    """

    ids: np.ndarray
    weights: np.ndarray
    is_text: bool


class Renderer:
    """Renders and tokenises conversations with one template and one tokenizer."""

    def __init__(
        self, template: Template | None, tokenizer: Tokenizer, supervise: str = "assistant", text_eos: bool = False
    ):
        """Keeps them.

        Args:
          template: None where all records are plain text.
          tokenizer: the model's.
          supervise: "assistant" (answers) or "all" (every token but the first).
          text_eos: plain text ends in EOS.

        Raises:
          UserError: if it is to, and the tokenizer defines none.
        """
        if text_eos and tokenizer.eos_id is None:
            raise UserError("config.data.text_eos is set, but the tokenizer defines no EOS; name one in its config.")
        self.template, self.tokenizer, self.supervise, self.text_eos = template, tokenizer, supervise, text_eos
        controls = (
            tokenizer.control_strings("".join((template.source, *_strings(template.variables)))) if template else []
        )
        self._control = any_of(controls)
        specials = [
            t.content for t in tokenizer.hf.added_tokens_decoder.values() if t.special and t.content != tokenizer.bos
        ]
        self._special = any_of(specials)

    def examples(self, conversations: Sequence[tuple[Conversation, str]]) -> Iterator[Example]:
        """Tokenises (conversation, place) pairs; one example each, in order.

        Raises:
          UserError: what is wrong with a conversation, and its place.
        """
        layouts = [None if c.text is not None else self.layout(c, where) for c, where in conversations]
        encodings = iter(self.encode([layout for layout in layouts if layout]))
        for (conversation, where), layout in zip(conversations, layouts):
            if layout is None:
                yield self._text(conversation)
            else:
                yield self._example(next(encodings), layout, where)

    def has_control(self, text: str) -> bool:
        """Whether a content holds a control string, which `layout` has to keep ordinary text."""
        return bool(self._control.search(text))

    def encode(self, layouts: Sequence[Layout]) -> list[Encoding]:
        """Ids and offsets of each layout's text, its texts each by itself where the template is by piece."""
        plain = iter(self.tokenizer.encode_batch([text for x in layouts if not x.guarded for text, _ in _texts(x)]))
        encodings = []
        for layout in layouts:
            ids, offsets = [], []
            for text, first in _texts(layout):
                if layout.guarded:
                    inside = [
                        (a - first, b - first) for a, b in layout.guarded if first <= a and b <= first + len(text)
                    ]
                    encoding = self.tokenizer.encode_guarded(text, inside)
                else:
                    encoding = next(plain)
                ids += encoding.ids
                offsets += [(first + start, first + stop) for start, stop in encoding.offsets]
            encodings.append(Encoding(ids, offsets))
        return encodings

    def layout(self, conversation: Conversation, where: str) -> Layout:
        """Renders a conversation and finds what of it is supervised.

        Raises:
          UserError: for no assistant turn, a template that refuses it, loses part of it or never ends a turn.
        """
        if self.template is None:
            raise UserError(f"{where}: a conversation, but no template was given.")
        if not any(message.role == "assistant" for message in conversation.messages):
            raise UserError(f"{where}: the conversation has no assistant turn, so nothing can be learned; remove it.")
        messages = [message.for_template() for message in conversation.messages]
        self._refuse_loss(conversation, where)
        try:
            template = self.template.given(conversation.condition)
            rendered = template.render(messages, conversation.tools)
            guarded = self._guard(template, messages, conversation.tools, rendered.text)
            spans = self._spans(template, rendered, messages, conversation)
        except UserError as error:
            raise UserError(f"{where}: {error}") from error
        return Layout(rendered.text, spans, guarded, self._bounds(rendered, guarded))

    def _bounds(self, rendered: Rendered, guarded: list[tuple[int, int]]) -> list[int]:
        """Where texts begin that are tokenised by themselves: at the template's cuts, and around control tokens."""
        bounds = {0, len(rendered.text), *rendered.cuts}
        if self.template.by_piece:
            ordinary = {place for start, stop in guarded for place in range(start, stop)}
            found = (match.span() for match in self._control.finditer(rendered.text))
            bounds |= {place for span in found if span[0] not in ordinary for place in span}
        return sorted(bounds)

    def _refuse_loss(self, conversation: Conversation, where: str) -> None:
        """What the template never reads would vanish without a word."""
        source = self.template.source
        if conversation.tools and "tools" not in source:
            raise UserError(
                f"{where}: the record has tools, but {self.template.name} does not write them; use one that does."
            )
        if any(m.fields.get("tool_calls") for m in conversation.messages) and "tool_calls" not in source:
            raise UserError(
                f"{where}: a message calls tools, but {self.template.name} does not write calls; use one that does."
            )
        thinks = any(name in message.fields for message in conversation.messages for name in REASONING_FIELDS)
        if thinks and not any(name in source for name in REASONING_FIELDS):
            raise UserError(
                f"{where}: a message has reasoning, but {self.template.name} does not write it; use one that does."
            )

    def _guard(
        self, template: Template, messages: list[dict[str, Any]], tools: Any, text: str
    ) -> list[tuple[int, int]]:
        """Where in the rendered text the control strings of contents are.

        Rendered again with placeholders of the same length, the text must stay the same elsewhere. It does not where
        the template itself reads a control string of a content (splits at `</think>`): that one is the template's.
        """
        values = [*messages, tools]
        found = [
            (i, s) for i, v in enumerate(values) for s in sorted(set(self._control.findall("\0".join(_strings(v)))))
        ]
        if not found:
            return []
        hidden = self._hide(template, values, found, text)
        if hidden is None:
            kept = [pair for pair in found if self._hide(template, values, [pair], text) is not None]
            read = [s for i, s in found if (i, s) not in kept and self._special.fullmatch(s)]
            hidden = self._hide(template, values, kept, text)
            if read or hidden is None:
                raise UserError(
                    f"the control string {(read or [found[0][1]])[0]!r} inside a content changes what "
                    f"{self.template.name} writes; remove it."
                )
        return [match.span() for match in re.finditer(f"{PLACEHOLDER}+", hidden)]

    def _hide(self, template: Template, values: list[Any], pairs: list[tuple[int, str]], text: str) -> str | None:
        """The text rendered with placeholders for string s of value i, for all (i, s); None if it differs elsewhere."""
        hidden = list(values)
        for i in {i for i, _ in pairs}:
            pattern = any_of(s for j, s in pairs if i == j)
            hidden[i] = _map_strings(
                hidden[i], lambda value, p=pattern: p.sub(lambda m: PLACEHOLDER * len(m.group()), value)
            )
        *messages, tools = hidden
        rendered = template.render(messages, tools).text
        same = len(rendered) == len(text) and all(a in (b, PLACEHOLDER) for a, b in zip(rendered, text))
        return rendered if same else None

    def _spans(
        self, template: Template, rendered: Rendered, messages: list[dict[str, Any]], conversation: Conversation
    ) -> list[Span]:
        """What is supervised, with its weights."""
        if self.supervise == "all":
            if any(message.weight is not None for message in conversation.messages):
                raise UserError(
                    "a message has its own weight, which config.data.supervise 'all' cannot keep; use 'assistant'."
                )
            return [(0, len(rendered.text), conversation.weight)]
        if self.template.has_tags:
            chars = self._tagged(rendered, conversation.messages)
        else:
            chars = SpanFinder(template, messages, conversation.tools, rendered.text).find()
        return self._weighted(chars, conversation)

    def _tagged(self, rendered: Rendered, messages: list[Message]) -> list[tuple[int, int]]:
        """The spans of generation tags, with the end-of-turn token that some templates leave just outside."""
        ends = [self._special.match(rendered.text, stop) for _, stop in rendered.spans]
        spans = [(start, end.end() if end else stop) for (start, stop), end in zip(rendered.spans, ends)]
        last = next(message for message in reversed(messages) if message.role == "assistant")
        content = last.content or ""
        if spans and (core := content.strip()):
            _, _, tail = rendered.text[slice(*spans[-1])].rpartition(core)
            if tail in ("", content[len(content.rstrip()) :]):
                raise UserError(no_end(self.template))
        return spans

    def _weighted(self, chars: list[tuple[int, int]], conversation: Conversation) -> list[Span]:
        weights = [message.weight for message in conversation.messages if message.role == "assistant"]
        if len(weights) != len(chars):
            if any(weight is not None for weight in weights):
                raise UserError(
                    f"{self.template.name} marks {len(chars)} spans for {len(weights)} assistant turns, so the weights "
                    "of messages cannot be told apart; put one generation tag around each turn."
                )
            weights = [None] * len(chars)
        return [(*span, conversation.weight * (1.0 if w is None else w)) for span, w in zip(chars, weights)]

    def _example(self, encoding: Encoding, layout: Layout, where: str) -> Example:
        ids = np.array(encoding.ids, np.int32)
        starts = np.array([start for start, _ in encoding.offsets], np.int64)
        weights = np.zeros(len(ids), np.float32)
        for first, stop, weight in layout.spans:
            weights[np.searchsorted(starts, first) : np.searchsorted(starts, stop)] = weight
        weights[:1] = 0.0
        bos = self.tokenizer.bos_id
        if bos is not None and len(ids) > 1 and ids[0] == bos == ids[1]:
            raise UserError(f"{where}: {self.template.name} writes BOS twice; leave one of them out.")
        return Example(ids, weights, is_text=False)

    def _text(self, conversation: Conversation) -> Example:
        """BOS once if the tokenizer defines one, EOS if it was asked for, every later token supervised."""
        bos = [] if self.tokenizer.bos_id is None else [self.tokenizer.bos_id]
        eos = [self.tokenizer.eos_id] if self.text_eos else []
        ids = np.array(bos + self.tokenizer.encode_text(conversation.text) + eos, np.int32)
        weights = np.full(len(ids), conversation.weight, np.float32)
        weights[:1] = 0.0
        return Example(ids, weights, is_text=True)


def _texts(layout: Layout) -> Iterator[tuple[str, int]]:
    """The texts of a layout that are tokenised each by itself, and where they begin."""
    for start, stop in itertools.pairwise(layout.bounds):
        yield layout.text[start:stop], start


def _strings(value: Any) -> Iterator[str]:
    """Every string inside nested lists and dicts."""
    if isinstance(value, str):
        yield value
    elif isinstance(value, dict):
        yield from _strings(list(value.values()))
    elif isinstance(value, list | tuple):
        for item in value:
            yield from _strings(item)


def _map_strings(value: Any, change: Any) -> Any:
    """The same nesting with every string changed; names of fields stay."""
    if isinstance(value, str):
        return change(value)
    if isinstance(value, dict):
        return {name: _map_strings(item, change) for name, item in value.items()}
    if isinstance(value, list | tuple):
        return [_map_strings(item, change) for item in value]
    return value
