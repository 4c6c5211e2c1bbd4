"""Where the assistant speaks in a rendered conversation whose template has no `{% generation %}` tags."""

import bisect
import re
from typing import Any

from jaxsft.data.templates import Template
from jaxsft.errors import UserError

MARK = 0x100100  # the first of the characters that mark where contents begin and end


class SpanFinder:
    """Finds the assistant's spans in a rendered conversation whose template has no generation tags.

    Contents are found by rendering once more with invisible marks around them, inside surrounding blanks so that
    templates may trim. Beginnings and ends come from renderings of the conversation's beginnings.
    """

    def __init__(self, template: Template, messages: list[dict[str, Any]], tools: Any, text: str):
        self.template, self.messages, self.tools, self.text = template, messages, tools, text
        self.marked = [_mark(m, i) if m["role"] == "assistant" else m for i, m in enumerate(messages)]
        self.places = _places(template.render(self.marked, tools).text, text)

    def find(self) -> list[tuple[int, int]]:
        """The spans, one for each assistant turn.

        Raises:
          UserError: if a turn cannot be found, or the template writes no end-of-turn mark.
        """
        spans, previous = [], 0
        for i, message in enumerate(self.messages):
            if message["role"] == "assistant":
                begin = self._begin(i, previous)
                end = self._end(i)
                if begin is None or end is None or begin >= end:
                    raise UserError(
                        f"{self.template.name} rewrites the conversation so that assistant message {i + 1} cannot be "
                        "found in it; put {% generation %} tags around what the assistant writes."
                    )
                spans.append((begin, end))
                previous = end
        return spans

    def _begin(self, i: int, previous: int) -> int | None:
        """Behind the generation prompt: what the model is given before it writes."""
        opened, closed = self._opened(i), self.places.get(_close(i))
        history, prompt = self._prefix(i, False), self._prefix(i, True)
        if history is None or prompt is None:
            return opened
        if prompt != history and self.text.startswith(prompt):
            return len(prompt)
        # The prompt is not what stands before the answer: the template writes other blanks there, or the answer's own
        # reasoning, or rewrites earlier turns once there are later ones. Then the header itself is looked for.
        header = prompt[len(history) :] if prompt.startswith(history) else ""
        since = max(previous, _agreement(history, self.text))
        before = self.text[since : closed if opened is None else opened]
        search = before.find if opened is None and closed is None else before.rfind  # nothing bounds it: the first one
        core = header.strip()
        shortest = len(core.split(maxsplit=1)[0]) if core else 1
        for length in range(len(core), shortest - 1, -1):
            if (at := search(core[:length])) >= 0:
                begin = since + at + length
                blanks = header[len(header.rstrip()) :] if length == len(core) else ""
                return begin + _agreement(blanks, self.text[begin:])
        if self.text.startswith(history) and (opened is None or not before.strip()):
            return len(history)  # the template has no header
        return opened

    def _end(self, i: int) -> int | None:
        """Behind the end-of-turn mark: what the template writes after the content, without closing blanks."""
        closed = self.places.get(_close(i))
        _, mark, tail = self.template.render(self.marked[: i + 1], self.tools).text.rpartition(_close(i))
        if not mark:  # an empty answer
            whole = self.template.render(self.messages[: i + 1], self.tools).text.rstrip()
            return len(whole) if self.text.startswith(whole) else None
        if closed is None:
            return None
        tail = tail.rstrip() or tail
        if not tail:
            raise UserError(no_end(self.template))
        return closed + len(tail) if self.text.startswith(tail, closed) else closed

    def _opened(self, i: int) -> int | None:
        """Where the content begins, its leading blanks included unless the template trims them."""
        place = self.places.get(_open(i))
        if place is None:
            return None
        content = self.messages[i]["content"]
        lead = content[: len(content) - len(content.lstrip())]
        return place - len(lead) if self.text.endswith(lead, 0, place) else place

    def _prefix(self, i: int, add_generation_prompt: bool) -> str | None:
        """The rendering of the first `i` messages; None where the template refuses so short a conversation."""
        if i == 0:
            return None
        try:
            return self.template.render(self.messages[:i], self.tools, add_generation_prompt).text
        except UserError:
            return None


def no_end(template: Template) -> str:
    """What is said of a template that never ends a turn."""
    return (
        f"{template.name} writes no end-of-turn mark behind the answer, so the model would never learn to stop; "
        "add one to it, such as {{ eos_token }}."
    )


def _agreement(a: str, b: str) -> int:
    """Length of the common beginning, by bisection."""
    return bisect.bisect_left(range(min(len(a), len(b))), True, key=lambda n: a[: n + 1] != b[: n + 1])


def _open(i: int) -> str:
    return chr(MARK + 2 * i)


def _close(i: int) -> str:
    return chr(MARK + 2 * i + 1)


def _mark(message: dict[str, Any], i: int) -> dict[str, Any]:
    """Marks around the content, or behind the name of the last tool called where there is none."""
    content = message.get("content")
    if content and (core := content.strip()):
        lead, _, trail = content.partition(core)
        return {**message, "content": lead + _open(i) + core + _close(i) + trail}
    if calls := message.get("tool_calls"):
        function = {**calls[-1]["function"], "name": calls[-1]["function"]["name"] + _close(i)}
        return {**message, "tool_calls": [*calls[:-1], {**calls[-1], "function": function}]}
    return message


def _places(marked: str, text: str) -> dict[str, int]:
    """Mark -> its place in the text without marks; nothing if marking changed the text."""
    places, pieces = {}, re.split(f"([{chr(MARK)}-{chr(0x10FFFD)}])", marked)
    length = 0
    for piece, mark in zip(pieces[::2], [*pieces[1::2], ""]):
        length += len(piece)
        places[mark] = length
    return places if "".join(pieces[::2]) == text else {}
