"""A model's own words: answers to prompts whose right answer is not a text to compare with."""

from collections.abc import Sequence
from typing import Any, NamedTuple

from jaxsft.config import TaskConfig
from jaxsft.data.conversation import Message
from jaxsft.data.templates import NO_TEMPLATE
from jaxsft.decoding.engine import Sampler
from jaxsft.decoding.prompts import Prompt, Prompter, make_prompter
from jaxsft.errors import UserError
from jaxsft.evaluation.task import Subject


class Answer(NamedTuple):
    """An answer's text, and whether it met an end of turn."""

    text: str
    ended: bool


class Writer:
    """Answers prompts, as often as one likes, with the parameters of the moment.

    Attributes:
      cut: prompts that lost their beginning, because prompt and answer are longer than the model's context.
      mode: how the model is prompted, in words.
    """

    def __init__(self, prompts: Sequence[Prompt], config: TaskConfig, subject: Subject, **sampling: Any):
        """Encodes the prompts.

        Args:
          prompts: texts, which get the system prompt `config.data.system`, or messages.
          config: for the template, the system prompt, `max_new_tokens` and `batch_size`.
          subject: the model.
          **sampling: how answers are drawn, as `Prompter.sampling`; without it greedily.

        Raises:
          UserError: without `max_new_tokens`, without a chat template where one is needed, and for prompts that it
            cannot render.
        """
        if not config.max_new_tokens:
            raise UserError(
                f"config.max_new_tokens is 0, but no reference says how long answers of the task {config.task!r} are; "
                "set it, such as to 256."
            )
        prompter = chosen_prompter(config, subject)
        system = [Message("system", config.data.system)] if config.data.system else []
        asked = [[*system, Message("user", p)] if system and isinstance(p, str) else p for p in prompts]
        whole = [prompter.encode(prompt) for prompt in asked]
        self._prompter = prompter
        self._prompts, self.cut = fitted(whole, config.max_new_tokens, config, subject)
        self.mode = prompter.mode
        chosen = prompter.sampling(max_new_tokens=config.max_new_tokens, **sampling)
        batch = {"batch_size": config.batch_size, "text": prompter.text}
        self._sampler = Sampler(subject.decoder, chosen, subject.mesh, **batch)

    def write(self, params: Any, adapters: Any, strip: bool = True) -> list[Answer]:
        """An answer to every prompt; with `strip` without surrounding blanks."""
        sampled = self._sampler.generate(params, self._prompts, adapters=adapters)
        read = [self._prompter.read(prompt, one.tokens) for prompt, one in zip(self._prompts, sampled)]
        return [Answer(text.strip() if strip else text, ended) for text, ended in read]


def chosen_prompter(config: TaskConfig, subject: Subject, chat: bool = False) -> Prompter:
    """How the model is prompted: in the template that `config.data.template` names, "none" being plain continuation.

    Args:
      config: the task.
      subject: the model.
      chat: whether the task has no meaning without a chat template.

    Raises:
      UserError: if the tokenizer has no chat template, and none is named.
    """
    prompter = make_prompter(subject.tokenizer, config.data.template, subject.source, condition=config.data.condition)
    if prompter.template is None and (chat or config.data.template != NO_TEMPLATE):
        why = f"the task {config.task!r} needs a chat template" if chat else "the tokenizer has no chat template"
        plain = "" if chat else ", or to 'none' for plain continuation"
        raise UserError(f"{why}; set config.data.template to a built-in one or a .jinja file{plain}.")
    return prompter


def fitted(
    prompts: Sequence[list[int]], new_tokens: int, config: TaskConfig, subject: Subject
) -> tuple[list[list[int]], int]:
    """The prompts, without their beginnings where the context does not hold them and the answer; how many lost theirs.

    Raises:
      UserError: if the answers alone fill it.
    """
    context = min(config.data.max_length, subject.decoder.arch.max_positions)
    if new_tokens >= context:
        raise UserError(
            f"answers of {new_tokens} tokens leave no room for a prompt in a context of {context}; lower "
            "config.max_new_tokens, or leave out records with such long answers."
        )
    room = context - new_tokens
    return [prompt[-room:] for prompt in prompts], sum(len(prompt) > room for prompt in prompts)
