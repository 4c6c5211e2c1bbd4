"""Generation: the answer that the model writes, token by likeliest token, against the reference.

Which records are understood: `jaxsft.evaluation.forms`. How they are asked: `jaxsft.evaluation.asking`. How an answer
is judged: by `config.answer.match`, see `jaxsft.evaluation.answers.matching`, of which "exact" is described here. A
field `watch` may hold one particular wrong answer, such as the one that a biased source gives: how often the model
gives that one is counted too.

"exact": with a chat template an answer is compared as text, without surrounding blanks, so that other tokens which
spell the same are right too; an answer that meets no end of turn is wrong, and so is one with a control token inside.
The reference is what the tokenizer makes of it: its own words, if it folds case or blanks. With
`config.data.template=none` the prompt is continued as in `jaxsft.evaluation.choices.encoded`. Nothing ends an answer
there, so it is compared as tokens, and right if it begins with those of the reference.

With `chains` the records are those of `jaxsft.data.dcot`: the model is asked for so many chains of thought, and what it
writes behind "[Final answer]", or all if there is no such tag, is compared without regard to case.
"""

import dataclasses
import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from jaxsft.config import SourceConfig, TaskConfig
from jaxsft.data.conversation import Conversation, Message
from jaxsft.data.dcot import ask, final_answer
from jaxsft.data.mixture import add_system
from jaxsft.data.templates import NO_TEMPLATE
from jaxsft.data.tokenizer import Tokenizer
from jaxsft.decoding.engine import Sampler
from jaxsft.decoding.prompts import Prompter, as_json, as_text_or_json, before_any
from jaxsft.errors import UserError
from jaxsft.evaluation.answers import matching
from jaxsft.evaluation.answers.writing import chosen_prompter, fitted
from jaxsft.evaluation.asking import Asker, Shot, fill, in_words
from jaxsft.evaluation.choices.encoded import encoder
from jaxsft.evaluation.forms import Written, check_asked, parse_written, records
from jaxsft.evaluation.task import Result, Subject, Task, by_part, digest, question_ids

CONTEXT_OF_STOPS = 8  # tokens of the prompt that decide how the new ones are spelt


@dataclasses.dataclass(frozen=True)
class Question:
    """A prompt and how its answer is judged.

    Attributes:
      written: the question as its record has it, and its references as texts.
      content: what it is known by: messages and references, as JSON.
      prompt: token ids.
      references: what is right where answers are compared as a whole: texts with a chat template, token ids without.
      watch: a wrong answer to watch for, likewise; None where there is none.
      length: tokens that the reference, or the watched answer, needs with its end of turn.
      reasons: whether it is answered behind chains of thought.
    """

    written: Written
    content: list[Any]
    prompt: list[int]
    references: list[Any]
    watch: Any
    length: int
    reasons: bool = False

    @property
    def conversation(self) -> Conversation:
        """The prompt's messages and the reference, its last."""
        return self.written.conversation


@dataclasses.dataclass(frozen=True)
class Judged:
    """An answer's text; whether it is right, met a stop, is the watched one, and stands where it should; its scores."""

    answer: str
    correct: bool
    ended: bool
    watched: bool
    stated: bool = True
    scores: dict[str, float] = dataclasses.field(default_factory=dict)


def prepare(config: TaskConfig, subject: Subject) -> Task:
    """The share of right answers to the questions that `config` names.

    Returns:
      A task whose figures are `exact_match` and its `standard_error`, the other scores of `config.answer.match`,
      `questions`, `cut` (those whose prompt lost its beginning because prompt and answer are longer than the model's
      context), with a chat template or texts to stop at `ended` (the share of answers that met an end), `unstated` (of
      answers that stand behind something: how many do not), `watched` (of the answers to records with `watch`, the
      share that gives it), `first_prompt` (what the model reads first), and tables where there are several sources or
      task types.

    Raises:
      UserError: for a record that asks nothing, or an answer that leaves no room for a prompt.
    """
    matching.check(config.answer)
    prompter = chosen_prompter(config, subject)
    plain = prompter.template is None
    if config.chains and (plain or not config.max_new_tokens or config.answer.match != "exact"):
        raise UserError(
            f"config.chains is {config.chains}: chains of thought need a chat template (such as 'raw') and "
            "config.max_new_tokens, since no reference says how long they are; their answers are matched as 'exact'."
        )
    questions = read_questions(config, prompter)
    new_tokens = config.max_new_tokens or max(question.length for question in questions)
    prompts, cut = fitted([question.prompt for question in questions], new_tokens, config, subject)
    stops = config.answer.stop
    sampling = prompter.sampling(stops, max_new_tokens=new_tokens)
    new_text = lambda prompt, new: prompter.text(prompt[-CONTEXT_OF_STOPS:], new)
    sampler = Sampler(subject.decoder, sampling, subject.mesh, batch_size=config.batch_size, text=new_text)
    name = config.name or config.task
    identities = question_ids([question.content for question in questions])
    parts = {
        "by_source": [question.written.source for question in questions],
        "by_task_type": [question.conversation.task_type for question in questions],
    }
    first = subject.tokenizer.decode(prompts[0])

    def measure(params: Any, adapters: Any) -> Result:
        new = [sampled.tokens for sampled in sampler.generate(params, prompts, adapters=adapters)]
        judged = [judge(*each, prompter, config) for each in zip(questions, prompts, new)]
        summary = lambda at: summarize([judged[i] for i in at], [questions[i] for i in at], config, plain and not stops)
        figures = summary(np.arange(len(questions))) | {"cut": cut, "first_prompt": first} | by_part(parts, summary)
        return Result(figures, [_record(name, i, *each) for i, each in enumerate(zip(identities, questions, judged))])

    report = f"{len(questions)} questions, {prompter.mode}, answers of up to {new_tokens} tokens"
    asked = [[q.prompt, q.references, q.watch, q.written.source, q.conversation.task_type] for q in questions]
    return Task(name, report, digest(asked), measure)


def judge(
    question: Question, prompt: Sequence[int], new: Sequence[int], prompter: Prompter, config: TaskConfig
) -> Judged:
    """Compares an answer with the references; see the module's docstring.

    Args:
      question: what was asked.
      prompt: the ids that were continued.
      new: the ids that the model wrote, the last of which is the stop token if one was met.
      prompter: the model's.
      config: for `answer`.
    """
    if config.answer.match != "exact":
        return _matched(question, prompt, new, prompter, config)
    text, ended = _read(prompt, new, prompter, config, skip=False)
    if prompter.template is None:
        begins = lambda ids: ids is not None and list(new[: len(ids)]) == list(ids)
        return Judged(text, any(map(begins, question.references)), ended, begins(question.watch))
    said, stated = final_answer(text) if question.reasons else (text, True)
    return Judged(text, ended and said in question.references, ended, ended and said == question.watch, stated)


def summarize(judged: list[Judged], questions: list[Question], config: TaskConfig, endless: bool) -> dict[str, Any]:
    """Figures of some answers; see `prepare`.

    Args:
      judged: the answers.
      questions: what was asked.
      config: for `answer` and `chains`.
      endless: whether nothing ends an answer.
    """
    share, count, match = float(np.mean([one.correct for one in judged])), len(judged), config.answer.match
    figures: dict[str, Any] = {"exact_match": share, "standard_error": math.sqrt(share * (1 - share) / count)}
    for score in judged[0].scores:
        figures.setdefault(score, float(np.mean([one.scores[score] for one in judged])))
    if match in matching.OVER_ALL:
        texts, references = [one.answer for one in judged], [question.written.answers for question in questions]
        figures |= matching.OVER_ALL[match](texts, references)
    figures["questions"] = count
    if not endless:
        figures["ended"] = float(np.mean([one.ended for one in judged]))
    if config.chains or match in ("number", "stated", "boxed", "pattern"):
        figures["unstated"] = sum(not one.stated for one in judged)
    if watched := [one.watched for one, question in zip(judged, questions) if question.watch is not None]:
        figures["watched"] = float(np.mean(watched))
    return figures


def read_questions(config: TaskConfig, prompter: Prompter) -> list[Question]:
    """The questions of all sources.

    Raises:
      UserError: for a record without prompt or reference, naming its place.
    """

    def read(sources: list[SourceConfig]) -> list[tuple[Written, str]]:
        return [(_read_record(*each, config), each[1]) for each in records(sources)]

    asker = Asker(config, lambda sources: [_shot(written, config) for written, _ in read(sources)])
    questions = []
    for written, where in read(config.data.all_sources()):
        content = as_json(written.conversation.messages) + written.answers[1:]  # before a system prompt is added
        conversation = add_system(written.conversation, config.data, written.source, where)
        *earlier, last = conversation.messages[:-1]
        if config.prompt.shots.count and any(message.role != "system" for message in earlier):
            raise UserError(f"{where}: a question of several turns cannot have examples before it; leave it out.")
        messages = [*earlier, last]
        if last.role == "user":
            *examples, asked = asker.put(_shot(written, config))
            messages = [*earlier, *examples, dataclasses.replace(last, content=asked.content)]
        make = _plain_question if prompter.template is None else _chat_question
        questions.append(make(written, content, messages, where, prompter, config))
    return questions


def _read_record(record: Any, where: str, fields: Mapping[str, str], name: str, config: TaskConfig) -> Written:
    if not config.chains:
        return parse_written(record, where, fields, name, config.answer.separator)
    conversation = ask(record, where, fields, config.chains)
    check_asked(conversation, where)
    return Written(conversation, [conversation.messages[-1].content], conversation.source or name)


def _shot(written: Written, config: TaskConfig) -> Shot:
    """The question as it is put, and its first reference."""
    text = written.conversation.messages[-2].content or ""
    values = {"question": text, "choices": "", "subject": in_words(written.source)}
    return Shot(text, fill(config.prompt.question, values), written.answers[0], written.source)


def _chat_question(
    written: Written, content: list[Any], messages: list[Message], where: str, prompter: Prompter, config: TaskConfig
) -> Question:
    conversation, watch = written.conversation, written.conversation.extras.get("watch")

    def length(content: str) -> int:
        """Tokens of an answer with its end of turn, as training renders it."""
        said = dataclasses.replace(conversation.messages[-1], content=content)
        layout = prompter.renderer.layout(dataclasses.replace(conversation, messages=[*messages, said]), where)
        begin, end, _ = layout.spans[-1]
        guarded = [(start - begin, stop - begin) for start, stop in layout.guarded if start >= begin]
        return len(prompter.tokenizer.encode_guarded(layout.text[begin:end], guarded).ids)

    wanted = [] if config.max_new_tokens else written.answers + [watch] * (watch is not None)
    references = [_as_written(answer, prompter.tokenizer) for answer in written.answers]
    return Question(
        written,
        content,
        prompter.encode(messages, conversation.tools),
        [reference.lower() for reference in references] if config.chains else references,
        None if watch is None else _as_written(watch, prompter.tokenizer),
        max(map(length, wanted), default=0),
        config.chains > 0,
    )


def _plain_question(
    written: Written, content: list[Any], messages: list[Message], where: str, prompter: Prompter, config: TaskConfig
) -> Question:
    if [message.role for message in messages] != ["user"]:
        raise UserError(
            f"{where}: without a chat template a prompt is one user message, but this has the roles "
            f"{', '.join(message.role for message in messages)}; set config.data.template."
        )
    watch = written.conversation.extras.get("watch")
    answers = written.answers + [watch] * (watch is not None)
    encoded = encoder(NO_TEMPLATE, prompter.tokenizer)(messages, answers)
    begins = [int(np.argmax(own > 0)) for _, own in encoded]
    (before, _), ids = encoded[0], [ids[begin:].tolist() for (ids, _), begin in zip(encoded, begins)]
    watched = None if watch is None else ids.pop()
    return Question(written, content, before[: begins[0]].tolist(), ids, watched, max(map(len, [*ids, watched or ()])))


def _as_written(text: str, tokenizer: Tokenizer) -> str:
    """A text as the tokenizer gives it back; with a word that it cannot write, the text itself."""
    ids, unknown = tokenizer.encode_text(text.strip()), tokenizer.hf.unk_token_id
    return text.strip() if unknown in ids else tokenizer.decode(ids).strip()


def _read(
    prompt: Sequence[int], new: Sequence[int], prompter: Prompter, config: TaskConfig, skip: bool
) -> tuple[str, bool]:
    """The answer's text up to its end, and whether it met one."""
    text, ended = prompter.read(prompt, new, skip_special_tokens=skip)
    before = before_any(text, config.answer.stop)
    return before.strip(), ended or before != text


def _matched(
    question: Question, prompt: Sequence[int], new: Sequence[int], prompter: Prompter, config: TaskConfig
) -> Judged:
    text, ended = _read(prompt, new, prompter, config, skip=True)
    match = matching.MATCHES[config.answer.match]
    scores, stated = match(text, question.written.answers, config.answer)
    watch = question.conversation.extras.get("watch")
    watched = watch is not None and match(text, [watch], config.answer).scores["exact_match"] == 1
    return Judged(text, scores["exact_match"] == 1, ended, watched, stated, scores)


def _record(name: str, index: int, identity: str, question: Question, judged: Judged) -> dict[str, Any]:
    *prompt, last = question.conversation.messages
    answers = question.written.answers
    return {
        "task": name,
        "index": index,
        "id": identity,
        "prompt": as_text_or_json(prompt),
        "reference": answers if len(answers) > 1 else last.content,
        "answer": judged.answer,
        "correct": judged.correct,
        "source": question.written.source,
        "task_type": question.conversation.task_type,
        "scores": judged.scores,
    }
