"""Records of any known form become conversations.

Recognised without configuration, by the fields a record has:

    messages                          [{"role", "content", ...}]
    conversations                     ShareGPT, [{"from", "value"}]; with `chosen` and `rejected` a preference pair
    chosen, rejected [, prompt]       a preference pair; without `prompt` the common beginning is the prompt
    prompt, completion                strings or lists of messages
    instruction, output [, input, history, system]    Alpaca
    text                              plain text, no turns

Any form may carry `source`, `task_type`, `weight`, `tools`; a message may carry its own `weight`.
"""

import dataclasses
import json
from collections.abc import Mapping, Sequence
from typing import Any

from jaxsft.errors import UserError
from jaxsft.validation import did_you_mean

ROLES = {
    "system": "system", "developer": "system",
    "user": "user", "human": "user",
    "assistant": "assistant", "gpt": "assistant", "chatgpt": "assistant", "bing": "assistant", "bard": "assistant",
    "model": "assistant", "bot": "assistant", "function_call": "assistant", "tool_call": "assistant",
    "tool": "tool", "observation": "tool", "function": "tool", "function_response": "tool", "tool_response": "tool",
    "ipython": "tool",
}  # fmt: skip
CALL_ROLES = ("function_call", "tool_call")
ROLE_KEYS, CONTENT_KEYS, WEIGHT_KEYS = ("role", "from"), ("content", "value"), ("weight", "loss_weight")
FORMS = (
    ("messages",),
    ("conversations",),
    ("chosen", "rejected"),
    ("prompt", "completion"),
    ("instruction", "output"),
    ("text",),
)
KNOWN_FIELDS = sorted({name for form in FORMS for name in form} | {"input", "history", "system", "tools"})


@dataclasses.dataclass
class Message:
    """One turn.

    Attributes:
      role: "system", "user", "assistant" or "tool".
      content: its text; None where only tools are called.
      weight: loss weight of its tokens; None is 1 for the assistant.
      fields: what else templates may read: `tool_calls`, `reasoning_content`, `name`, `tool_call_id`.
    """

    role: str
    content: str | None
    weight: float | None = None
    fields: dict[str, Any] = dataclasses.field(default_factory=dict)

    def for_template(self) -> dict[str, Any]:
        """The message as chat templates read it."""
        content = {} if self.content is None else {"content": self.content}
        return {"role": self.role, **content, **self.fields}


@dataclasses.dataclass
class Conversation:
    """One record.

    Attributes:
      messages: the turns; of a preference pair those that end in the preferred answer; empty for plain text.
      rejected: the turns that end in the rejected answer, or None.
      text: plain text, or None.
      tools: descriptions of the functions that may be called, or None.
      source: where it is from, "" if the record does not say.
      task_type: what it asks for, "" if the record does not say.
      weight: multiplies the loss weights of all its messages.
      condition: what the template's variable `condition` is; None is what it is for all.
      extras: the record's other fields.
    """

    messages: list[Message]
    rejected: list[Message] | None = None
    text: str | None = None
    tools: list[Any] | None = None
    source: str = ""
    task_type: str = ""
    weight: float = 1.0
    condition: str | None = None
    extras: dict[str, Any] = dataclasses.field(default_factory=dict)


def parse(record: Any, where: str, fields: Mapping[str, str] | None = None) -> Conversation:
    """Reads a record of any known form.

    Args:
      record: one JSON object.
      where: the record's place ("file.jsonl, line 3"), for messages.
      fields: field map from the record's names to those of the known forms.

    Raises:
      UserError: for an unknown form or role, a missing field or a wrong type; names the place.
    """
    if not isinstance(record, Mapping):
        raise UserError(f"{where}: the record is a {type(record).__name__}; it must be an object with named fields.")
    fields = fields or {}
    if missing := [name for name in fields if name not in record]:
        hint = did_you_mean(missing[0], record) or "."
        raise UserError(f"{where}: the record has no field {missing[0]!r}, which the field map names{hint}")
    values = rename(record, fields)
    form = next((form for form in FORMS if all(name in values for name in form)), None)
    if form is None:
        raise UserError(
            f"{where}: a record of no known form; it has the fields {', '.join(sorted(record)) or '(none)'}. Known are "
            f"{'; '.join('+'.join(form) for form in FORMS)}. Map yours with `fields`, e.g. "
            "{'question': 'prompt', 'answer': 'completion'}."
        )
    conversation = _READERS[form](_Reader(values, where))
    conversation.tools = _tools(values.pop("tools", None), where)
    conversation.source = str(values.pop("source", ""))
    conversation.task_type = str(values.pop("task_type", ""))
    conversation.weight = _weight(values, where, 1.0)
    conversation.extras = {name: value for name, value in values.items() if name not in KNOWN_FIELDS}
    return conversation


def rename(record: Mapping[str, Any], fields: Mapping[str, str]) -> dict[str, Any]:
    """The record's fields that are not null under their mapped names; a mapped field wins over one of that name."""
    held = {name: value for name, value in record.items() if value is not None}
    own = {name: value for name, value in held.items() if name not in fields}
    return own | {fields[name]: value for name, value in held.items() if name in fields}


class _Reader:
    """Typed access to one record's fields."""

    def __init__(self, values: dict[str, Any], where: str):
        self.values, self.where = values, where

    def text(self, name: str, default: str | None = None) -> str:
        value = self.values.get(name, default)
        if not isinstance(value, str):
            raise UserError(f"{self.where}: {name!r} is a {type(value).__name__}; it must be a string.")
        return value

    def turns(self, name: str, role: str) -> list[Message]:
        """A string (one message of `role`), one message, or a list of messages."""
        value = self.values[name]
        if isinstance(value, str):
            return [Message(role, value)]
        return read_messages([value] if isinstance(value, Mapping) else value, f"{self.where}: {name!r}")


def read_messages(values: Any, where: str) -> list[Message]:
    """Reads a list of messages, with role/content or ShareGPT's from/value.

    Raises:
      UserError: for an unknown role, naming it and the place.
    """
    if not isinstance(values, Sequence) or isinstance(values, str | bytes):
        raise UserError(f"{where} is a {type(values).__name__}; it must be a string or a list of messages.")
    return [_message(value, f"{where}, message {i + 1}") for i, value in enumerate(values)]


def _message(value: Any, where: str) -> Message:
    if not isinstance(value, Mapping):
        raise UserError(f"{where} is a {type(value).__name__}; it must be an object with a role and a content.")
    value = {name: field for name, field in value.items() if field is not None}
    given = next((value.pop(key) for key in ROLE_KEYS if key in value), None)
    if not isinstance(given, str) or given not in ROLES:
        raise UserError(f"{where}: unknown role {given!r}; known are {', '.join(ROLES)}.")
    content = next((value.pop(key) for key in CONTENT_KEYS if key in value), None)
    weight = _weight(value, where, None)
    message = Message(ROLES[given], None, weight, value)
    if given in CALL_ROLES:
        _add_tool_calls(message, content, where)
    elif isinstance(content, str | None):
        message.content = content
    else:
        _add_parts(message, content, where)
    if message.role != "assistant" and weight:
        raise UserError(
            f"{where}: weight {weight} on a {message.role!r} message; only assistant messages are supervised."
        )
    if message.content is None and not message.fields.get("tool_calls"):
        raise UserError(f"{where}: the message has no content; its fields are {', '.join(value) or '(none)'}.")
    return message


def _add_parts(message: Message, parts: Any, where: str) -> None:
    """Content given as a list of typed parts: text, reasoning, tool calls."""
    if not isinstance(parts, Sequence):
        raise UserError(f"{where}: the content is a {type(parts).__name__}; it must be a string or a list of parts.")
    texts: dict[str, list[str]] = {"text": [], "reasoning": []}
    for part in parts:
        kind = part.get("type") if isinstance(part, Mapping) else None
        value = part.get("value", part.get("text")) if isinstance(part, Mapping) else None
        if kind in texts and isinstance(value, str):
            texts[kind].append(value)
        elif kind == "tool_call":
            _add_tool_calls(message, value, where)
        else:
            raise UserError(f"{where}: a part of type {kind!r}; parts are text, reasoning and tool_call.")
    if texts["reasoning"]:
        message.fields["reasoning_content"] = "".join(texts["reasoning"])
    message.content = "".join(texts["text"]) if texts["text"] or not message.fields.get("tool_calls") else None


def _add_tool_calls(message: Message, content: Any, where: str) -> None:
    calls = _json(content, f"{where}: the tool call")
    for call in calls if isinstance(calls, list) else [calls]:
        if not isinstance(call, Mapping) or "name" not in call:
            raise UserError(f"{where}: the tool call is {call!r}; it must be an object with 'name' and 'arguments'.")
        arguments = _json(call.get("arguments", {}), f"{where}: the tool call's arguments")
        function = {"name": call["name"], "arguments": arguments}
        message.fields.setdefault("tool_calls", []).append({"type": "function", "function": function})


def _tools(value: Any, where: str) -> list[Any] | None:
    if value is None or value == "":
        return None
    tools = _json(value, f"{where}: 'tools'")
    if not isinstance(tools, list):
        raise UserError(f"{where}: 'tools' is a {type(tools).__name__}; it must be a list of function descriptions.")
    return tools or None


def _json(value: Any, what: str) -> Any:
    """Objects arrive as they are or as JSON text."""
    if not isinstance(value, str):
        return value
    try:
        return json.loads(value)
    except json.JSONDecodeError as error:
        raise UserError(f"{what} is no JSON ({error}).") from error


def _weight(values: dict[str, Any], where: str, default: float | None) -> float | None:
    """Takes the weight out of `values`."""
    weights = [values.pop(key) for key in WEIGHT_KEYS if key in values]
    if not weights:
        return default
    weight = weights[0]
    if isinstance(weight, str) or not isinstance(weight, int | float) or not 0 <= weight < float("inf"):
        raise UserError(f"{where}: the weight is {weight!r}; it must be a number that is not negative.")
    return float(weight)


def _read_messages(record: _Reader) -> Conversation:
    return Conversation(_with_system(record, record.turns("messages", "user")))


def _read_sharegpt(record: _Reader) -> Conversation:
    prompt = _with_system(record, record.turns("conversations", "user"))
    if "chosen" in record.values and "rejected" in record.values:
        return Conversation(
            prompt + record.turns("chosen", "assistant"), rejected=prompt + record.turns("rejected", "assistant")
        )
    return Conversation(prompt)


def _read_preference(record: _Reader) -> Conversation:
    chosen, rejected = record.turns("chosen", "assistant"), record.turns("rejected", "assistant")
    if "prompt" not in record.values:
        if not chosen or not rejected or chosen[0] != rejected[0]:
            raise UserError(f"{record.where}: 'chosen' and 'rejected' have no common beginning; add a field 'prompt'.")
        return Conversation(_with_system(record, chosen), rejected=_with_system(record, rejected))
    prompt = record.turns("prompt", "user")
    sides = [
        _with_system(record, side if side[: len(prompt)] == prompt else prompt + side) for side in (chosen, rejected)
    ]
    return Conversation(sides[0], rejected=sides[1])


def _read_completion(record: _Reader) -> Conversation:
    return Conversation(_with_system(record, record.turns("prompt", "user") + record.turns("completion", "assistant")))


def _read_alpaca(record: _Reader) -> Conversation:
    instruction, extra = record.text("instruction"), record.text("input", "")
    messages = []
    history = record.values.get("history", [])
    for pair in history if isinstance(history, Sequence) else [history]:
        if not isinstance(pair, Sequence) or len(pair) != 2 or not all(isinstance(text, str) for text in pair):
            raise UserError(f"{record.where}: 'history' must be a list of [question, answer] pairs of strings.")
        messages += [Message("user", pair[0]), Message("assistant", pair[1])]
    prompt = "\n\n".join(part for part in (instruction, extra) if part)
    messages += [Message("user", prompt), Message("assistant", record.text("output"))]
    return Conversation(_with_system(record, messages))


def _read_text(record: _Reader) -> Conversation:
    return Conversation([], text=record.text("text"))


def _with_system(record: _Reader, messages: list[Message]) -> list[Message]:
    system = record.text("system", "")
    return [Message("system", system), *messages] if system else messages


_READERS = dict(
    zip(FORMS, (_read_messages, _read_sharegpt, _read_preference, _read_completion, _read_alpaca, _read_text))
)
