"""The records that a synthesis is given, and those that it writes."""

import dataclasses
import hashlib
import json
from collections.abc import Sequence
from typing import Any

from jaxsft.config import DataConfig
from jaxsft.data.conversation import Conversation, Message, parse, rename
from jaxsft.data.mixture import add_system
from jaxsft.data.sources import open_source, row_range
from jaxsft.errors import UserError

RECORDS = "records.jsonl"  # in the folder of what writes them


@dataclasses.dataclass(frozen=True)
class Row:
    """A record.

    Attributes:
      index: its place among all records that were named, counted from 0.
      conversation: what it holds.
      source: where it is from.
      where: its place, for messages.
    """

    index: int
    conversation: Conversation
    source: str
    where: str

    @property
    def prompt(self) -> list[Message]:
        """The messages before the last answer."""
        messages = self.conversation.messages
        return messages[:-1] if messages[-1].role == "assistant" else messages

    @property
    def answer(self) -> str:
        """The text of the last answer, "" where there is none."""
        last = self.conversation.messages[-1]
        return (last.content or "") if last.role == "assistant" else ""

    @property
    def question(self) -> str:
        """The text of the last message before the answer."""
        return self.prompt[-1].content or ""

    def record(self, **fields: Any) -> dict[str, Any]:
        """A record of this one's prompt, tags and further fields, as JSON; `fields` replace and add."""
        own = self.conversation
        tags = {"source": self.source, "task_type": own.task_type, "tools": own.tools}
        kept = {name: value for name, value in tags.items() if value}
        weight = {} if own.weight == 1.0 else {"weight": own.weight}
        return {**fields, **own.extras, **kept, **weight, **fields}  # fields first and last: they lead, and win

    def answered(self, answer: str) -> dict[str, Any]:
        """The record with another text as its last answer."""
        messages = self.conversation.messages
        last = messages[-1] if messages[-1].role == "assistant" else Message("assistant", None)
        replaced = Message("assistant", answer, last.weight)
        return self.record(messages=written([*self.prompt, replaced]))

    def reworded(self, question: str, answer: str | None = None) -> dict[str, Any]:
        """The record with another question, and another last answer where one is given."""
        texts = {len(self.prompt) - 1: question} | ({} if answer is None else {len(self.prompt): answer})
        changed = [
            {**message, "content": texts[i]} if i in texts else message
            for i, message in enumerate(written(self.conversation.messages))
        ]
        return self.record(messages=changed)

    def unchanged(self) -> dict[str, Any]:
        """The record as it was given."""
        return self.record(messages=written(self.conversation.messages))


def written(messages: Sequence[Message]) -> list[dict[str, Any]]:
    """Messages as JSON that `jaxsft.data.conversation.read_messages` reads back."""
    weight = lambda message: {} if message.weight is None else {"weight": message.weight}
    return [{**message.for_template(), **weight(message)} for message in messages]


def read_rows(config: DataConfig) -> list[Row]:
    """The records of all sources; those with a `prompt` alone too.

    Raises:
      UserError: for a source that is weighted, or a record that asks nothing, naming its place.
    """
    rows: list[Row] = []
    for source in config.all_sources():
        if source.weight != 1.0:
            raise UserError(
                f"the source {source.path} has weight {source.weight:g}, but a record is answered once; leave the "
                "weight to the training on what is written."
            )
        opened = open_source(source)
        for record, where in opened.records(*row_range(source.rows, len(opened))):
            conversation = _parse(record, where, source.fields)
            add_system(conversation, config, opened.name, where)
            row = Row(len(rows), conversation, conversation.source or opened.name, where)
            if not conversation.messages or not row.prompt or row.prompt[-1].role == "assistant":
                raise UserError(f"{where}: nothing is asked; a message must come before the answer.")
            rows.append(row)
    return rows


def _parse(record: Any, where: str, fields: dict[str, str]) -> Conversation:
    """As `parse`, but a record may hold a prompt alone."""
    if isinstance(record, dict):
        held = rename(record, fields)
        if "prompt" in held and not held.keys() & {"completion", "chosen", "rejected", "messages"}:
            return parse({**held, "messages": held["prompt"]}, where)
    return parse(record, where, fields)


def digest(rows: Sequence[Row]) -> str:
    """A name for what rows hold."""
    return hashlib.sha256(json.dumps([row.unchanged() for row in rows]).encode()).hexdigest()[:16]
