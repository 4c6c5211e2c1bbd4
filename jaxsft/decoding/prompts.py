"""Prompts as token ids, and what ends an answer to them."""

import dataclasses
import functools
import json
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from etils import epath

from jaxsft.config import SourceConfig
from jaxsft.data.conversation import Conversation, Message, read_messages
from jaxsft.data.render import Renderer
from jaxsft.data.sources import open_source
from jaxsft.data.templates import NO_TEMPLATE, Template, load_template
from jaxsft.data.tokenizer import Tokenizer
from jaxsft.decoding.sampling import Sampling
from jaxsft.errors import UserError

Prompt = str | list[Message]


@dataclasses.dataclass
class Prompter:
    """Turns prompts into ids and ids into answers, in one way for all prompts of a model.

    Attributes:
      tokenizer: the model's.
      template: the chat template, or None for plain continuation.
      stop_ids: tokens that end an answer.
      stop_text: text that ends an answer where the end-of-turn mark is no single token, or "".
    """

    tokenizer: Tokenizer
    template: Template | None
    stop_ids: tuple[int, ...]
    stop_text: str

    @property
    def mode(self) -> str:
        """How the model is prompted, in words: the template's name, or "plain continuation"."""
        return "plain continuation" if self.template is None else self.template.name

    @functools.cached_property
    def renderer(self) -> Renderer:
        """Renders with the chat template."""
        return Renderer(self.template, self.tokenizer)

    def sampling(self, stop: Iterable[str] = (), **drawn: Any) -> Sampling:
        """How answers are drawn: until one of `stop_ids`, `stop_text` or one of the texts `stop`.

        Args:
          stop: more texts that end an answer.
          **drawn: the other fields of `Sampling`.
        """
        strings = dict.fromkeys(filter(None, (*stop, self.stop_text)))
        return Sampling(**drawn, stop_ids=self.stop_ids, stop_strings=tuple(strings), vocabulary=self.tokenizer.num_ids)

    def encode(self, prompt: Prompt, tools: list[Any] | None = None, prefill: str = "") -> list[int]:
        """The ids that the model continues; `tools` are described to it where the template does that.

        `prefill` is what the answer begins with, as part of the prompt.

        With a chat template they are those that training puts before an assistant's turn. Without one, a string stands
        as it is, control strings being control tokens, behind BOS if the tokenizer defines one.

        Raises:
          UserError: for messages without a template, or that end with the assistant's.
        """
        if self.template is not None:
            return _before_answer(self.renderer, prompt, tools, prefill)
        if not isinstance(prompt, str):
            raise UserError("a prompt of several messages needs a chat template; set --template.")
        ids, bos = self.tokenizer.encode(prompt + prefill).ids, self.tokenizer.bos_id
        return ids if bos is None or ids[:1] == [bos] else [bos, *ids]

    def unknown(self, prompts: Iterable[Sequence[int]]) -> str:
        """A note on the tokens of encoded prompts that stand for what the vocabulary lacks, "" without any."""
        count = sum(i == self.tokenizer.unk_id for ids in prompts for i in ids)
        word = self.tokenizer.hf.unk_token
        return f"note: {count} tokens of what is asked are {word!r}: not in the vocabulary" if count else ""

    def text(self, prompt: Sequence[int], new: Sequence[int], skip_special_tokens: bool = False) -> str:
        """What the new tokens add to the prompt's text."""
        ids = (prompt, [*prompt, *new])
        before, whole = (self.tokenizer.decode(i, skip_special_tokens=skip_special_tokens) for i in ids)
        return whole.removeprefix(before)

    def decode(self, prompt: Sequence[int], new: Sequence[int], skip_special_tokens: bool = True) -> str:
        """The answer's text: what the new tokens add to the prompt's text, up to the stop."""
        return self.read(prompt, new, skip_special_tokens)[0]

    def read(self, prompt: Sequence[int], new: Sequence[int], skip_special_tokens: bool = True) -> tuple[str, bool]:
        """The answer's text, see `decode`, and whether it met a stop."""
        stopped = bool(new) and new[-1] in self.stop_ids
        text = self.text(prompt, new[:-1] if stopped else new, skip_special_tokens)
        if not self.stop_text:
            return text, stopped
        text, stop, _ = text.partition(self.stop_text)
        return text, stopped or bool(stop)


def make_prompter(
    tokenizer: Tokenizer, template: str, folder: epath.PathLike, raw: bool = False, condition: str = "auto"
) -> Prompter:
    """How a model is prompted.

    Args:
      tokenizer: the model's.
      template: as `DataConfig.template`; with "none", or "auto" and a tokenizer without chat template, plain
        continuation.
      folder: the model's, whose `generation_config.json`, if there is one, names tokens that end an answer.
      raw: plain continuation whatever the template.
      condition: as `DataConfig.condition`.

    Raises:
      UserError: for a condition that the template does not read.
    """
    stop_ids = {tokenizer.eos_id, *_eos_of(epath.Path(folder) / "generation_config.json")} - {None}
    if raw or template == NO_TEMPLATE or (template == "auto" and tokenizer.chat_template is None):
        if condition != "auto":
            raise UserError("a prompt that is continued as plain text has no condition; leave it, or set a template.")
        return Prompter(tokenizer, None, tuple(sorted(stop_ids)), "")
    chat = load_template(template, tokenizer, condition)
    layout = Renderer(chat, tokenizer).layout(
        Conversation([Message("user", "?"), Message("assistant", "!")]), "a probe"
    )
    _, stop, _ = layout.spans[-1]
    mark = layout.text[layout.text.rindex("!", 0, stop) + 1 : stop].strip()
    ids = tokenizer.encode(mark).ids
    if len(ids) == 1:
        return Prompter(tokenizer, chat, tuple(sorted({*stop_ids, *ids})), "")
    return Prompter(tokenizer, chat, tuple(sorted(stop_ids)), mark)


def read_prompts(path: str) -> list[Prompt]:
    """The prompts of a JSON, JSON Lines or Parquet file: a string, or a list of messages, in `prompt` or `messages`.

    Raises:
      UserError: for a record with neither, naming it.
    """
    source = open_source(SourceConfig(path=path))
    prompts = []
    for record, where in source.records(0, len(source)):
        held = record if isinstance(record, Mapping) else {}
        value = next((held[name] for name in ("prompt", "messages") if name in held), None)
        if value is None:
            raise UserError(f"{where}: the record has neither `prompt` nor `messages`.")
        prompts.append(value if isinstance(value, str) else read_messages(value, where))
    return prompts


def as_json(prompt: Prompt) -> Any:
    """The prompt as it stood in a file."""
    return prompt if isinstance(prompt, str) else [message.for_template() for message in prompt]


def as_text_or_json(messages: list[Message]) -> Any:
    """The text alone of messages that are one question of the user's; others as JSON."""
    first = messages[0].content or ""
    return first if messages == [Message("user", messages[0].content)] else as_json(messages)


def before_any(text: str, stops: Iterable[str]) -> str:
    """The text up to the first of some others."""
    for stop in stops:
        text = text.partition(stop)[0]
    return text


def _before_answer(renderer: Renderer, prompt: Prompt, tools: list[Any] | None, prefill: str) -> list[int]:
    """Renders a conversation with some answer, and keeps what stands before it, or before what follows `prefill`."""
    messages = [Message("user", prompt)] if isinstance(prompt, str) else prompt
    if not messages or messages[-1].role == "assistant":
        raise UserError("a prompt must end with another's message than the assistant's, who is to answer it.")
    answer = Message("assistant", f"{prefill}!")
    layout = renderer.layout(Conversation([*messages, answer], tools=tools), "the prompt")
    end = layout.spans[-1][0]
    if prefill:
        end = layout.text.index(prefill, end) + len(prefill)
    (encoding,) = renderer.encode([layout.before(end)])
    return encoding.ids


def _eos_of(file: epath.Path) -> list[int]:
    if not file.exists():
        return []
    try:
        ids = json.loads(file.read_text()).get("eos_token_id")
    except json.JSONDecodeError as error:
        raise UserError(f"{file} is no JSON ({error}); copy it again.") from error
    return ids if isinstance(ids, list) else [ids]
