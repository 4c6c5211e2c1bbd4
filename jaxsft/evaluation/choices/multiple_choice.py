"""Multiple choice: the answer to which the model gives the highest log-likelihood, given the question.

Which records are understood: `jaxsft.evaluation.forms`. How they are asked: `jaxsft.evaluation.asking`. A choice is
scored by its text, or, after a question that lists its choices, by its letter (`config.choices`). With l_i the
log-likelihood of choice i and c_i its text, the likeliest is that of the largest

    none            l_i
    tokens          l_i / its number of tokens
    characters      l_i / its number of characters              (`acc_norm` of lm-evaluation-harness)
    bytes           l_i / its number of bytes in UTF-8          (`acc_bytes`)
    unconditional   l_i - log p(c_i | premise)                  (Holtzman et al. 2021, arXiv:2104.08315)

and with p_i = exp(l_i) / sum_j exp(l_j)

    right_mass      mean over questions of the sum of p_i over the right choices: of questions with `mc2_targets`, MC2
                    (Lin et al. 2022, arXiv:2109.07958)
    ece             the calibration error of the likeliest choice (`none`) and its p_i
"""

import math
from typing import Any

import numpy as np

from jaxsft.config import TaskConfig
from jaxsft.data.conversation import Message
from jaxsft.decoding.prompts import as_json
from jaxsft.errors import UserError
from jaxsft.evaluation.asking import Asker, Shot, fill, in_words
from jaxsft.evaluation.choices.calibration import calibration_error
from jaxsft.evaluation.choices.continuations import Pair
from jaxsft.evaluation.choices.encoded import count_cut, encode_choices, score
from jaxsft.evaluation.forms import Question, parse_question, read_questions, records
from jaxsft.evaluation.task import Result, Subject, Task, by_part, digest, question_ids

SIZES = ("none", "tokens", "characters", "bytes")  # normalizations that need nothing but the choices
LETTERS = "ABCDEFGHIJKLMNOPQRSTUVWXYZ"


def prepare(config: TaskConfig, subject: Subject) -> Task:
    """The accuracy on the questions that `config` names.

    Returns:
      A task whose figures are `accuracy`, its `standard_error`, `chance` (the accuracy of guessing, and the expected
      `right_mass` of equal likelihoods), `questions`, `right_mass` and its standard error, `ece` and `ece_equal_mass`,
      `normalized` (the accuracy by each normalization), with several sources `macro_accuracy` (the mean of theirs),
      `cut` (choices whose question lost its beginning because it was longer than the model's context), `first_prompt`
      (what the model reads before the first choice), and tables where there are several sources or task types. Its
      records hold the text of the choice that won as `answer`, and as `reference` that of the right one, or a list of
      the right ones.

    Raises:
      UserError: for letters that no list of choices explains.
    """
    if config.choices == "letters" and "{choices}" not in config.prompt.question:
        raise UserError(
            "config.choices is 'letters', but config.prompt.question has no '{choices}', so nobody is told what the "
            "letters stand for; add it, as in '{question}\\n{choices}\\nAnswer:'."
        )
    questions = read_questions(config.data)
    asker = Asker(config, lambda sources: [_shot(parse_question(*each), config) for each in records(sources)])
    prompts = [asker.put(_shot(question, config)) for question in questions]
    choices = encode_choices(prompts, [said(q, config) for q in questions], config.data, subject)
    alone = _alone(questions, config, subject) if config.normalize == "unconditional" else None
    name = config.name or config.task
    identities = question_ids([[q.text, q.choices, sorted(q.right)] for q in questions])
    parts = {"by_source": [q.source for q in questions], "by_task_type": [q.task_type for q in questions]}
    bounds = np.cumsum([len(question.choices) for question in questions])[:-1]
    right = [np.isin(np.arange(len(q.choices)), list(q.right)) for q in questions]
    cut, first = count_cut(choices, config.data, subject), subject.tokenizer.decode(choices[0].context)
    tokens = np.array([len(choice.continuation) for choice in choices])

    def measure(params: Any, adapters: Any) -> Result:
        found = score(choices, config, subject, params, adapters)
        premise = None if alone is None else score(alone[0], config, subject, params, adapters)[alone[1]]
        texts = [choice for question in questions for choice in said(question, config)]
        chosen = {
            kind: choose(normalized(found, tokens, texts, kind, premise), bounds)
            for kind in dict.fromkeys((*SIZES, config.normalize))
        }
        by_question = np.split(found, bounds)
        summary = lambda at: summarize(
            [by_question[i] for i in at],
            [right[i] for i in at],
            {kind: places[at] for kind, places in chosen.items()},
            config.normalize,
        )
        tables = by_part(parts, summary)
        figures = summary(np.arange(len(questions)))
        if "by_source" in tables:
            figures["macro_accuracy"] = float(np.mean([part["accuracy"] for part in tables["by_source"].values()]))
        rows = zip(identities, questions, chosen[config.normalize].tolist(), by_question)
        return Result(
            figures | {"cut": cut, "first_prompt": first} | tables,
            [_record(name, i, *each) for i, each in enumerate(rows)],
        )

    report = (
        f"{len(questions)} questions with {len(choices)} choices, scored by {config.choices}; "
        f"{config.normalize}-normalised log-likelihood"
    )
    whole = zip(map(as_json, prompts), questions)
    asked = [[prompt, said(q, config), sorted(q.right), q.source, q.task_type] for prompt, q in whole]
    fingerprint = digest(asked)
    return Task(name, report, fingerprint, measure)


def normalized(
    log_likelihoods: np.ndarray,
    tokens: np.ndarray,
    texts: list[str],
    kind: str,
    premise: np.ndarray | None = None,
) -> np.ndarray:
    """What choices are compared by; see the module.

    Args:
      log_likelihoods: float64 [choices].
      tokens: their numbers of tokens.
      texts: what was scored of them.
      kind: one of `SIZES`, or "unconditional".
      premise: for the latter their log-likelihoods behind the premise.
    """
    if kind == "unconditional":
        return log_likelihoods - premise
    size = {
        "none": np.ones(len(tokens)),
        "tokens": tokens,
        "characters": np.array([len(text) for text in texts]),
        "bytes": np.array([len(text.encode()) for text in texts]),
    }[kind]
    return log_likelihoods / size


def choose(scores: np.ndarray, bounds: np.ndarray) -> np.ndarray:
    """int [questions], the place of each question's largest score, question after question up to each of `bounds`."""
    return np.array([int(of.argmax()) for of in np.split(scores, bounds)])


def summarize(
    log_likelihoods: list[np.ndarray], right: list[np.ndarray], chosen: dict[str, np.ndarray], kind: str
) -> dict[str, Any]:
    """Figures of some questions; see `prepare`.

    Args:
      log_likelihoods: of each question's choices.
      right: which of them are.
      chosen: normalization -> the place that wins by it.
      kind: the normalization that `accuracy` is by.
    """
    hits = {name: np.array([own[i] for own, i in zip(right, places)]) for name, places in chosen.items()}
    probabilities = [np.exp(own - np.logaddexp.reduce(own)) for own in log_likelihoods]
    confidence = np.array([own.max() for own in probabilities])
    mass = np.array([own[is_right].sum() for own, is_right in zip(probabilities, right)])
    accuracy, count = float(hits[kind].mean()), len(right)
    return {
        "accuracy": accuracy,
        "standard_error": math.sqrt(accuracy * (1 - accuracy) / count),
        "chance": float(np.mean([own.mean() for own in right])),
        "questions": count,
        "right_mass": float(mass.mean()),
        "right_mass_standard_error": float(mass.std()) / math.sqrt(count),
        "ece": calibration_error(confidence, hits["none"]),
        "ece_equal_mass": calibration_error(confidence, hits["none"], equal_mass=True),
        "normalized": {name: float(own.mean()) for name, own in hits.items()},
    }


def _shot(question: Question, config: TaskConfig) -> Shot:
    """The question as it is put, and its first right choice."""
    listed = "\n".join(f"{letter}. {choice.strip()}" for letter, choice in zip(LETTERS, question.choices))
    values = {"question": question.text.rstrip(), "choices": listed, "subject": in_words(question.source)}
    known_by = "\n".join([question.text, *sorted(question.choices)])  # in whatever order another file lists them
    answer = said(question, config)[min(question.right)]
    return Shot(known_by, fill(config.prompt.question, values), answer, question.source)


def said(question: Question, config: TaskConfig) -> list[str]:
    """What is scored of each choice: its text, or its letter.

    Raises:
      UserError: for more choices than there are letters.
    """
    if config.choices == "text":
        return question.choices
    if len(question.choices) > len(LETTERS):
        raise UserError(f"{question.text[:60]!r} has {len(question.choices)} choices, more than there are letters.")
    return list(LETTERS[: len(question.choices)])


def _alone(questions: list[Question], config: TaskConfig, subject: Subject) -> tuple[list[Pair], np.ndarray]:
    """The choices behind the premise, each text once; and of every choice the place of its text."""
    texts = [text for question in questions for text in said(question, config)]
    distinct = {text: place for place, text in enumerate(dict.fromkeys(texts))}
    if not config.premise and subject.tokenizer.bos_id is None:
        raise UserError(
            "config.normalize is 'unconditional', and config.premise is empty, but the tokenizer defines no BOS, so "
            "nothing would stand before a choice; set config.premise, such as to 'Answer:'."
        )
    prompts = [[Message("user", config.premise)]]
    return encode_choices(prompts, [list(distinct)], config.data, subject), np.array([distinct[text] for text in texts])


def _record(
    name: str, index: int, identity: str, question: Question, chosen: int, log_likelihoods: np.ndarray
) -> dict[str, Any]:
    right = [question.choices[i] for i in sorted(question.right)]
    return {
        "task": name,
        "index": index,
        "id": identity,
        "prompt": question.text,
        "reference": right[0] if len(right) == 1 else right,
        "answer": question.choices[chosen],
        "correct": chosen in question.right,
        "source": question.source,
        "task_type": question.task_type,
        "choices": question.choices,
        "log_likelihoods": [round(float(value), 6) for value in log_likelihoods],
    }
