"""Whether a model writes in the form that it is told to, and in another where it is told not to.

DELIA (Zeng et al. 2024, arXiv:2408.10841) teaches a new token as the name of a form: told to follow the token, the
model is to write in that form, and told not to, it is not to. A record is a prompt; a field `follows` that is false
says that it asks for anything but the form. What the reference says, if there is one, is not read.

Of a token it is also said how far its embedding e is from the mean m of those of some words, |e - m|: of the words that
describe the form, and of all tokens.
"""

import math
from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from jaxsft.config import TaskConfig
from jaxsft.decoding.engine import Sampler
from jaxsft.decoding.prompts import as_text_or_json
from jaxsft.errors import UserError
from jaxsft.evaluation.answers.formats import Format
from jaxsft.evaluation.answers.writing import chosen_prompter, fitted
from jaxsft.evaluation.scoring import replicate
from jaxsft.evaluation.task import Result, Subject, Task, by_part, digest, question_ids
from jaxsft.models.projection import Context, project
from jaxsft.synthesis.rows import Row, read_rows

BLOCK = 4096  # embeddings that are looked up at once


def prepare(config: TaskConfig, subject: Subject) -> Task:
    """How often the model's answers to the prompts that `config` names have the form that they ask for.

    Returns:
      A task whose figures are `format_accuracy` (the share of right answers) and its `standard_error`, `questions`,
      `followed` (of the prompts that ask for the form, the share of answers in it), `avoided` (of those that ask for
      another, the share of answers not in it), `ended` (the share of answers that met an end of turn), `cut` (prompts
      that lost their beginning), with `config.format.token` `to_mean` and, with a description, `to_description`; and
      tables where there are several sources or task types.

    Raises:
      UserError: for settings that are missing, a token that is none, and a record that asks nothing.
    """
    form, token = Format(config.format), _token(config, subject)
    if not config.max_new_tokens:
        raise UserError("config.max_new_tokens is 0; say where an answer ends at the latest.")
    prompter = chosen_prompter(config, subject, chat=True)
    rows = read_rows(config.data)
    follows = np.array([_follows(row) for row in rows])
    whole = [prompter.encode(row.prompt, row.conversation.tools) for row in rows]
    prompts, cut = fitted(whole, config.max_new_tokens, config, subject)
    sampling = prompter.sampling(max_new_tokens=config.max_new_tokens)
    sampler = Sampler(subject.decoder, sampling, subject.mesh, batch_size=config.batch_size, text=prompter.text)
    name, asked = config.name or config.task, [as_text_or_json(row.prompt) for row in rows]
    ids = question_ids([[question, bool(follow)] for question, follow in zip(asked, follows)])
    parts = {"by_source": [row.source for row in rows], "by_task_type": [row.conversation.task_type for row in rows]}

    def measure(params: Any, adapters: Any) -> Result:
        new = [sampled.tokens for sampled in sampler.generate(params, prompts, adapters=adapters)]
        answers, ended = zip(*(prompter.read(*each, skip_special_tokens=False) for each in zip(prompts, new)))
        has = np.array([form.fits(answer) for answer in answers])
        summary = lambda at: summarize(has[at], follows[at], np.array(ended)[at])
        figures = summary(np.arange(len(rows))) | {"cut": cut} | token(params, adapters) | by_part(parts, summary)
        each = zip(ids, asked, answers, follows.tolist(), has.tolist())
        records = [
            {"task": name, "index": i, "id": own, "prompt": question, "answer": answer.strip(), "follows": follow}
            | {"format": fits, "correct": fits == follow}
            for i, (own, question, answer, follow, fits) in enumerate(each)
        ]
        return Result(figures, records)

    report = f"{len(rows)} prompts, {int((~follows).sum())} of them against the form, {prompter.mode}"
    return Task(name, report, digest([prompts, follows.tolist()]), measure)


def summarize(has: np.ndarray, follows: np.ndarray, ended: np.ndarray) -> dict[str, float]:
    """Figures of some answers, all bool [answers]: which have the form, which are asked for it, which met a stop."""
    share = float((has == follows).mean())
    figures = {"format_accuracy": share, "standard_error": math.sqrt(share * (1 - share) / len(has))}
    figures["questions"] = len(has)
    if follows.any():
        figures["followed"] = float(has[follows].mean())
    if not follows.all():
        figures["avoided"] = float((~has[~follows]).mean())
    return figures | {"ended": float(ended.mean())}


def mean_embedding(params: Any, adapters: Any, ids: Sequence[int]) -> np.ndarray:
    """float64 [embed], the mean of the rows that a model looks up for some ids, its adapter's update included."""
    total = np.zeros(params["embed"]["embedding"].shape[-1])
    for start in range(0, len(ids), BLOCK):
        block = np.asarray(ids[start : start + BLOCK], np.int32)
        padding = BLOCK - len(block) if len(ids) > BLOCK else 0  # then one program serves all blocks
        mask = np.arange(len(block) + padding) < len(block)
        total += np.asarray(_sum(params, adapters, np.pad(block, (0, padding)), mask), np.float64)
    return total / len(ids)


@jax.jit
def _sum(params: Any, adapters: Any, ids: jax.Array, mask: jax.Array) -> jax.Array:
    rows, _ = project(ids, params["embed"]["embedding"], (adapters or {}).get("embed"), Context())
    wide = jnp.promote_types(rows.dtype, jnp.float32)
    return replicate(jnp.sum(rows.astype(wide) * mask[:, None], axis=0))


def _token(config: TaskConfig, subject: Subject) -> Any:
    """`fn(params, adapters)` -> the figures of the token's embedding, {} without a token."""
    asked, tokenizer = config.format, subject.tokenizer
    if not asked.token:
        if asked.description:
            raise UserError("config.format.description is set, but config.format.token is not; name the token.")
        return lambda params, adapters: {}
    own, described = tokenizer.encode(asked.token).ids, tokenizer.encode_text(asked.description)
    if len(own) != 1:
        raise UserError(
            f"config.format.token is {asked.token!r}, which is {len(own)} tokens of this model; add it first "
            "(scripts/add_tokens.py), or name one that is there."
        )
    against = {"to_mean": list(range(min(tokenizer.num_ids, subject.decoder.arch.vocab_size)))}
    against |= {"to_description": described} if described else {}

    def figures(params: Any, adapters: Any) -> dict[str, float]:
        with jax.set_mesh(subject.mesh):
            embedding = mean_embedding(params, adapters, own)
            means = {name: mean_embedding(params, adapters, ids) for name, ids in against.items()}
        return {name: float(np.linalg.norm(embedding - mean)) for name, mean in means.items()}

    return figures


def _follows(row: Row) -> bool:
    follows = row.conversation.extras.get("follows", True)
    if not isinstance(follows, bool):
        raise UserError(f"{row.where}: 'follows' is {follows!r}; it must be true or false.")
    return follows
