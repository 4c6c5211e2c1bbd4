"""Generation: the answer that the model writes, token by likeliest token, against the reference.

A record is of any form with turns that `jaxsft.data.conversation.parse` reads. Its last message is the reference, the
messages before it are the prompt. A field `watch` may hold one particular wrong answer, such as the one that a biased
source gives: how often the model gives that one is counted too.

With a chat template an answer is compared as text, without surrounding blanks, so that other tokens which spell the
same are right too; an answer that meets no end of turn is wrong, and so is one with a control token inside. The
reference is what the tokenizer makes of it: its own words, if it folds case or blanks. With
`config.data.template=none` the prompt is continued as in `jaxsft.evaluation.multiple_choice`. Nothing ends an answer
there, so it is compared as tokens, and right if it begins with those of the reference.

With `chains` the records are those of `jaxsft.data.dcot`: the model is asked for so many chains of thought, and what it
writes behind "[Final answer]", or all if there is no such tag, is compared without regard to case.
"""

import dataclasses
import math
from collections.abc import Sequence
from typing import Any

import numpy as np

from jaxsft.config import DataConfig, TaskConfig
from jaxsft.data.conversation import Conversation, Message, parse
from jaxsft.data.dcot import ask, final_answer
from jaxsft.data.mixture import add_system
from jaxsft.data.sources import open_source, row_range
from jaxsft.data.templates import NO_TEMPLATE
from jaxsft.data.tokenizer import Tokenizer
from jaxsft.decoding.engine import Sampler
from jaxsft.decoding.prompts import Prompter, as_json, make_prompter
from jaxsft.decoding.sampling import Sampling
from jaxsft.errors import UserError
from jaxsft.evaluation.multiple_choice import encoder
from jaxsft.evaluation.task import Result, Subject, Task, by_part, digest, question_ids


@dataclasses.dataclass(frozen=True)
class Question:
    """A prompt and how its answer is judged.

    Attributes:
      conversation: the prompt's messages and the reference, its last.
      prompt: token ids.
      reference: what is right: text with a chat template, token ids without.
      watch: a wrong answer to watch for, likewise; None where there is none.
      length: tokens that the reference, or the watched answer, needs with its end of turn.
      source: the part of the data that it belongs to.
      reasons: whether it is answered behind chains of thought.
    """

    conversation: Conversation
    prompt: list[int]
    reference: Any
    watch: Any
    length: int
    source: str
    reasons: bool = False


def prepare(config: TaskConfig, subject: Subject) -> Task:
    """The share of right answers to the questions that `config` names.

    Returns:
      A task whose figures are `exact_match` and its `standard_error`, `questions`, `cut` (those whose prompt lost its
      beginning because prompt and answer are longer than the model's context), with a chat template `ended` (the share
      of answers that met an end of turn), with `chains` `unstated` (how many answers have no "[Final answer]"),
      `watched` (of the answers to records with `watch`, the share that gives it), and tables where there are several
      sources or task types.

    Raises:
      UserError: for a record that asks nothing, or an answer that leaves no room for a prompt.
    """
    plain = config.data.template == NO_TEMPLATE
    prompter = make_prompter(subject.tokenizer, config.data.template, subject.source, plain, config.data.condition)
    if not plain and prompter.template is None:
        raise UserError(
            "the tokenizer has no chat template to ask a question with; set config.data.template to a built-in one or "
            "a .jinja file, or to 'none' for plain continuation."
        )
    if config.chains and (plain or not config.max_new_tokens):
        raise UserError(
            f"config.chains is {config.chains}: chains of thought need a chat template (such as 'raw') and "
            "config.max_new_tokens, since no reference says how long they are."
        )
    questions = read_questions(config.data, prompter, config.chains)
    new_tokens = config.max_new_tokens or max(question.length for question in questions)
    context = min(config.data.max_length, subject.decoder.arch.max_positions)
    if new_tokens >= context:
        raise UserError(
            f"answers of {new_tokens} tokens leave no room for a prompt in a context of {context}; lower "
            "config.max_new_tokens, or leave out records with such long answers."
        )
    prompts = [question.prompt[new_tokens - context :] for question in questions]
    cut = sum(len(question.prompt) > len(prompt) for question, prompt in zip(questions, prompts))
    sampling = Sampling(max_new_tokens=new_tokens, stop_ids=prompter.stop_ids, vocabulary=prompter.vocabulary)
    sampler = Sampler(subject.decoder, sampling, subject.mesh, batch_size=config.batch_size)
    name = config.name or config.task
    ids = question_ids([as_json(question.conversation.messages) for question in questions])

    def measure(params: Any, adapters: Any) -> Result:
        new = [sampled.tokens for sampled in sampler.generate(params, prompts, adapters=adapters)]
        judged = [judge(*each, prompter) for each in zip(questions, prompts, new)]
        table = {
            field: np.array([getattr(one, field) for one in judged])
            for field in ("correct", "ended", "watched", "stated")
        }
        has_watch = np.array([question.watch is not None for question in questions])
        summary = lambda at: summarize(
            {field: values[at] for field, values in table.items()}, has_watch[at], plain, config.chains > 0
        )
        parts = {
            "by_source": [question.source for question in questions],
            "by_task_type": [question.conversation.task_type for question in questions],
        }
        figures = summary(np.arange(len(questions))) | {"cut": cut} | by_part(parts, summary)
        return Result(figures, [_record(name, i, *each) for i, each in enumerate(zip(ids, questions, judged))])

    mode = "plain continuation" if plain else prompter.template.name
    report = f"{len(questions)} questions, {mode}, answers of up to {new_tokens} tokens"
    fingerprint = digest([[q.prompt, q.reference, q.watch, q.source, q.conversation.task_type] for q in questions])
    return Task(name, report, fingerprint, measure)


@dataclasses.dataclass(frozen=True)
class Judged:
    """An answer's text, whether it is right, met a stop, is the watched one, and stands where it should."""

    answer: str
    correct: bool
    ended: bool
    watched: bool
    stated: bool = True


def judge(question: Question, prompt: Sequence[int], new: Sequence[int], prompter: Prompter) -> Judged:
    """Compares an answer with the reference; see the module's docstring.

    Args:
      question: what was asked.
      prompt: the ids that were continued.
      new: the ids that the model wrote, the last of which is the stop token if one was met.
      prompter: the model's.
    """
    text, ended = prompter.read(prompt, new, skip_special_tokens=False)
    if prompter.template is None:
        begins = lambda ids: ids is not None and list(new[: len(ids)]) == list(ids)
        return Judged(text.strip(), begins(question.reference), ended, begins(question.watch))
    text = text.strip()
    said, stated = final_answer(text) if question.reasons else (text, True)
    return Judged(text, ended and said == question.reference, ended, ended and said == question.watch, stated)


def summarize(
    judged: dict[str, np.ndarray], has_watch: np.ndarray, plain: bool, reasons: bool = False
) -> dict[str, float]:
    """Figures of some answers.

    Args:
      judged: `correct`, `ended`, `watched` and `stated`, bool [answers].
      has_watch: bool [answers], for which of them there is an answer to watch for.
      plain: whether nothing ends an answer.
      reasons: whether answers stand behind chains of thought.
    """
    share, count = float(judged["correct"].mean()), len(has_watch)
    figures = {"exact_match": share, "standard_error": math.sqrt(share * (1 - share) / count), "questions": count}
    if not plain:
        figures["ended"] = float(judged["ended"].mean())
    if reasons:
        figures["unstated"] = int((~judged["stated"]).sum())
    if has_watch.any():
        figures["watched"] = float(judged["watched"][has_watch].mean())
    return figures


def read_questions(config: DataConfig, prompter: Prompter, chains: int = 0) -> list[Question]:
    """The questions of all sources, to be answered behind so many chains of thought.

    Raises:
      UserError: for a record without prompt or reference, naming its place.
    """
    read = _plain_question if prompter.template is None else _chat_question
    found = []
    for source in config.all_sources():
        opened = open_source(source)
        for record, where in opened.records(*row_range(source.rows, len(opened))):
            own = (record, where, source.fields)
            conversation = add_system(ask(*own, chains) if chains else parse(*own), config, opened.name, where)
            _check(conversation, where)
            question = read(conversation, where, prompter, conversation.source or opened.name)
            found.append(_behind_chains(question) if chains else question)
    return found


def _behind_chains(question: Question) -> Question:
    """The question, whose answer is compared without regard to case."""
    return dataclasses.replace(question, reference=question.reference.lower(), reasons=True)


def _check(conversation: Conversation, where: str) -> None:
    messages, watch = conversation.messages, conversation.extras.get("watch")
    if len(messages) < 2 or messages[-1].role != "assistant" or not (messages[-1].content or "").strip():
        raise UserError(f"{where}: nothing is asked; a question's last message is the assistant's, with text.")
    if watch is not None and not (isinstance(watch, str) and watch.strip()):
        raise UserError(f"{where}: 'watch' is {watch!r}; it must be the text of an answer.")


def _chat_question(conversation: Conversation, where: str, prompter: Prompter, source: str) -> Question:
    *prompt, last = conversation.messages
    watch = conversation.extras.get("watch")

    def length(content: str) -> int:
        """Tokens of an answer with its end of turn, as training renders it."""
        messages = [*prompt, dataclasses.replace(last, content=content)]
        layout = prompter.renderer.layout(dataclasses.replace(conversation, messages=messages), where)
        begin, end, _ = layout.spans[-1]
        guarded = [(start - begin, stop - begin) for start, stop in layout.guarded if start >= begin]
        return len(prompter.tokenizer.encode_guarded(layout.text[begin:end], guarded).ids)

    answers = [last.content] if watch is None else [last.content, watch]
    return Question(
        conversation,
        prompter.encode(prompt, conversation.tools),
        _as_written(last.content, prompter.tokenizer),
        None if watch is None else _as_written(watch, prompter.tokenizer),
        max(map(length, answers)),
        source,
    )


def _plain_question(conversation: Conversation, where: str, prompter: Prompter, source: str) -> Question:
    *prompt, last = conversation.messages
    if [message.role for message in prompt] != ["user"]:
        raise UserError(
            f"{where}: without a chat template a prompt is one user message, but this has the roles "
            f"{', '.join(message.role for message in prompt)}; set config.data.template."
        )
    encode, watch = encoder(NO_TEMPLATE, prompter.tokenizer), conversation.extras.get("watch")

    def split(answer: str) -> tuple[list[int], list[int]]:
        ids, own = encode(prompt[0].content, answer)
        begin = int(np.argmax(own > 0))
        return ids[:begin].tolist(), ids[begin:].tolist()

    before, reference = split(last.content)
    watched = None if watch is None else split(watch)[1]
    return Question(conversation, before, reference, watched, max(len(reference), len(watched or ())), source)


def _as_written(text: str, tokenizer: Tokenizer) -> str:
    """A text as the tokenizer gives it back; with a word that it cannot write, the text itself."""
    ids, unknown = tokenizer.encode_text(text.strip()), tokenizer.hf.unk_token_id
    return text.strip() if unknown in ids else tokenizer.decode(ids).strip()


def _record(name: str, index: int, identity: str, question: Question, judged: Judged) -> dict[str, Any]:
    *prompt, last = question.conversation.messages
    one = len(prompt) == 1 and prompt[0] == Message("user", prompt[0].content)
    return {
        "task": name,
        "index": index,
        "id": identity,
        "prompt": as_json(prompt[0].content if one else prompt),
        "reference": last.content,
        "answer": judged.answer,
        "correct": judged.correct,
        "source": question.source,
        "task_type": question.conversation.task_type,
    }
