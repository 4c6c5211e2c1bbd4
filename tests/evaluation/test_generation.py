"""Answers of a small model against the argmax of its own teacher-forced scores, and the forms of questions."""

import dataclasses
import json

import jax
import numpy as np
import pytest

from jaxsft.config import DataConfig, MeshConfig, TaskConfig
from jaxsft.data.tokenizer import load_tokenizer
from jaxsft.decoding.engine import _admit, _advance
from jaxsft.decoding.prompts import make_prompter
from jaxsft.errors import UserError
from jaxsft.evaluation.answers.generation import judge, prepare, read_questions
from jaxsft.evaluation.likelihood.perplexity import make_nll
from jaxsft.evaluation.rows import batches, read_examples
from jaxsft.evaluation.scoring import example_sums
from jaxsft.evaluation.task import Subject
from jaxsft.sharding import make_mesh
from tests.evaluation.folders import make_folder


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    """A random model over bytes, and its parameters, with which it writes letters alone."""
    folder = tmp_path_factory.mktemp("models") / "bytes"
    decoder, params = make_folder(folder)
    params = jax.tree.map(lambda p: 2 * p if p.ndim > 1 else p, params)  # far from uniform
    tokenizer = load_tokenizer(str(folder))
    letters = np.array([tokenizer.decode([i]).isalpha() and tokenizer.decode([i]).isascii() for i in range(258)])
    params["head"]["kernel"] = params["head"]["kernel"] * letters
    mesh = make_mesh(MeshConfig(fsdp=1), jax.devices()[:1])
    return Subject(decoder, tokenizer, folder, mesh), params


def write(path, records):
    path.write_text("".join(json.dumps(record) + "\n" for record in records))
    return DataConfig(path=str(path), template="plain", cache_dir=str(path.parent / "cache"), max_length=1_000_000)


PROMPTS = [f"{i} is {'x' * i}?" for i in range(1, 12)]


def exchanged(model, token, other):
    """The model and parameters with which it writes one token where it wrote the other, and the other way round."""
    subject, params = model
    order = np.arange(258)
    order[[token, other]] = other, token
    return subject, {**params, "head": {"kernel": params["head"]["kernel"][:, order]}}


def answers(model, tmp_path, prompts=PROMPTS, **config):
    """What the model answers to prompts, as text."""
    subject, params = model
    data = write(tmp_path / "asked.jsonl", [{"prompt": p, "completion": "?"} for p in prompts])
    return prepare(TaskConfig(data=data, **config), subject).measure(params, None)


def test_right_where_every_token_is_the_argmax(model, tmp_path):
    """With its own answers, spoilt ones and others as references: right is right in the teacher-forced scores too."""
    # A random model ends no answer by itself; with EOS in the place of a letter that it writes, it does.
    own = [record["answer"] for record in answers(model, tmp_path, max_new_tokens=3).records]
    assert len(set(own)) > 1
    tokenizer = model[0].tokenizer
    subject, params = exchanged(model, tokenizer.eos_id, tokenizer.encode(own[0]).ids[-1])
    ended = answers((subject, params), tmp_path, max_new_tokens=12).records
    records = [
        {"prompt": r["prompt"], "completion": r["answer"] if i % 3 else r["answer"] + "z"}
        for i, r in enumerate(ended)
        if r["answer"]
    ]
    data = write(tmp_path / "questions.jsonl", records)
    result, found, *_ = prepare(TaskConfig(data=data, batch_size=4), subject).measure(params, None)
    dataset = read_examples(data, subject.tokenizer, subject.decoder.arch)
    nll = lambda batch: make_nll(subject.decoder)(params, None, batch)
    sums = example_sums(nll, batches(dataset, data, 4, subject.mesh), subject.mesh)
    hits = (sums["hits"] == sums["tokens"]).tolist()
    assert [record["correct"] for record in found] == hits
    assert 0 < sum(hits) < len(hits)
    assert result["exact_match"] == pytest.approx(np.mean(hits))
    assert result["standard_error"] == pytest.approx(np.std(hits) / len(hits) ** 0.5)


def test_without_template_the_beginning_counts(model, tmp_path):
    subject, params = model
    asked = [{"prompt": "How", "completion": "ab"}, {"prompt": "What now", "completion": "abcd"}]
    data = dataclasses.replace(write(tmp_path / "asked.jsonl", asked), template="none")
    result, records, *_ = prepare(TaskConfig(data=data, max_new_tokens=6), subject).measure(params, None)
    assert result["exact_match"] == 0 and "ended" not in result
    prompter = make_prompter(subject.tokenizer, "none", subject.source, raw=True)
    questions = read_questions(TaskConfig(data=data), prompter)
    assert [subject.tokenizer.decode(q.prompt) for q in questions] == ["<s>How", "<s>What now"]
    assert [subject.tokenizer.decode(*q.references) for q in questions] == [" ab", " abcd"]
    assert [q.length for q in questions] == [3, 5]
    new = subject.tokenizer.encode(" abc").ids
    assert [judge(q, q.prompt, new, prompter, TaskConfig()).correct for q in questions] == [True, False]
    # A model's own words, whose first is a blank, are right; the rest of what it writes does not matter.
    blank, first = (subject.tokenizer.encode(text).ids[0] for text in (" ", records[0]["answer"]))
    _, swapped = exchanged(model, blank, first)
    (record, _) = prepare(TaskConfig(data=data, max_new_tokens=6), subject).measure(swapped, None).records
    asked[0]["completion"] = record["answer"][:1]
    data = dataclasses.replace(write(tmp_path / "again.jsonl", asked[:1]), template="none")
    assert prepare(TaskConfig(data=data), subject).measure(swapped, None).figures["exact_match"] == 1


def test_answers_behind_chains_of_thought(model, tmp_path):
    subject, params = model
    asked = [{"question": "How many?", "context": "Two boxes.", "answer": 7.0}, {"question": "Who?", "answer": "Me"}]
    data = dataclasses.replace(write(tmp_path / "asked.jsonl", asked), template="raw", system="Think.\n")
    prompter = make_prompter(subject.tokenizer, "raw", subject.source)
    config = TaskConfig(data=data, chains=2, max_new_tokens=5)
    first, second = read_questions(config, prompter)
    expected = "<s>Think.\n[Question] How many?\n[Context] Two boxes.\n[Number of answers] 2\n[Answer 1]"
    assert subject.tokenizer.decode(first.prompt) == expected
    assert (first.references, second.references) == (["7"], ["me"])

    def judged(text, end=(1,)):
        one = judge(second, second.prompt, [*subject.tokenizer.encode(text).ids, *end], prompter, config)
        return one.correct, one.stated

    assert judged(" you\n[Answer 2] me\n\n[Final answer] ME ") == (True, True)
    assert judged(" me\n[Answer 2] me\n\n[Final answer] you") == (False, True)
    assert judged(" Me") == (True, False)
    assert judged(" x\n\n[Final answer] me", end=()) == (False, True)  # never ended
    task = config
    figures = prepare(task, subject).measure(params, None).figures
    assert (figures["questions"], figures["unstated"]) == (2, 2)
    for bad in (
        dataclasses.replace(task, max_new_tokens=0),
        dataclasses.replace(task, data=dataclasses.replace(data, template="none")),
    ):
        with pytest.raises(UserError, match="chains of thought need a chat template"):
            prepare(bad, subject)


def test_answers_are_compared_as_text(model, tmp_path):
    subject, _ = model
    records = [
        {"prompt": "Q", "completion": " blue ", "watch": "red"},
        {"messages": [{"role": "system", "content": "S"}, {"role": "user", "content": "Q"},
                      {"role": "assistant", "content": "blue"}]},
    ]  # fmt: skip
    data = write(tmp_path / "questions.jsonl", records)
    prompter = make_prompter(subject.tokenizer, "plain", subject.source)
    first, second = read_questions(TaskConfig(data=data), prompter)
    assert (first.references, first.watch, first.length) == (["blue"], "red", 7)  # with its blanks and EOS
    assert "S\n\n### Instruction:\nQ" in subject.tokenizer.decode(second.prompt)
    encode, end = lambda text: subject.tokenizer.encode(text).ids, [1]

    def judged(new):
        one = judge(first, first.prompt, new, prompter, TaskConfig())
        return one.correct, one.ended, one.watched

    assert judged(encode("blue") + end) == (True, True, False)
    assert judged(encode("  blue\n") + end) == (True, True, False)
    assert judged(encode("blue")) == (False, False, False)  # never ended
    assert judged(encode("blue") + [0] + end) == (False, True, False)  # a control token inside
    assert judged(encode("red") + end) == (False, True, True)
    assert judged(encode("bluer") + end) == (False, True, False)


def test_figures_by_part(model, tmp_path):
    subject, params = model
    records = [
        {"prompt": p, "completion": "x", "source": s, "task_type": t} | ({"watch": "y"} if s == "b" else {})
        for p, s, t in zip("abcdef", "aabbbb", "mnmnmn")
    ]
    task = prepare(TaskConfig(name="facts", data=write(tmp_path / "parts.jsonl", records)), subject)
    result, found, *_ = task.measure(params, None)
    assert {name: part["questions"] for name, part in result["by_source"].items()} == {"a": 2, "b": 4}
    assert {name: part["questions"] for name, part in result["by_task_type"].items()} == {"m": 3, "n": 3}
    assert "watched" in result and "watched" not in result["by_source"]["a"]
    assert [(r["task"], r["index"], r["source"]) for r in found] == [("facts", i, s) for i, s in enumerate("aabbbb")]


def test_prompts_lose_their_beginning_to_the_context(model, tmp_path):
    subject, params = model
    asked = write(tmp_path / "long.jsonl", [{"prompt": "y" * n, "completion": "x"} for n in (20, 200)])
    assert prepare(TaskConfig(data=asked), subject).measure(params, None).figures["cut"] == 1
    figures = answers(model, tmp_path, ["y" * 200 + "z" * 120], max_new_tokens=8).figures
    first = figures["first_prompt"]
    assert figures["cut"] == 1 and len(first) == 120 and first.startswith("z") and first.endswith("### Response:\n")
    with pytest.raises(UserError, match="answers of 128 tokens leave no room"):
        prepare(TaskConfig(data=asked, max_new_tokens=128), subject)


@pytest.mark.parametrize(
    ("record", "template", "message"),
    [
        ({"text": "Hello"}, "plain", "line 1: nothing is asked"),
        ({"prompt": "Hello", "completion": " "}, "plain", "line 1: nothing is asked"),
        ({"prompt": "Hello", "completion": "x", "watch": 3}, "plain", "'watch' is 3"),
        ({"system": "S", "prompt": "Hello", "completion": "x"}, "none", "has the roles system, user"),
        ({"prompt": "Hello", "completion": "x"}, "auto", "set config.data.template"),
    ],
)
def test_refuses(model, tmp_path, record, template, message):
    data = dataclasses.replace(write(tmp_path / "bad.jsonl", [record]), template=template)
    with pytest.raises(UserError, match=message):
        prepare(TaskConfig(data=data), model[0])


def test_few_shapes_are_compiled(model, tmp_path):
    """Prompts of many lengths and answers of two lengths: few programs."""
    before = _admit._cache_size(), _advance._cache_size()
    prompts = ["y" * n for n in range(1, 81)]
    for limit in (5, 7):
        answers(model, tmp_path, prompts, max_new_tokens=limit, batch_size=5)
    # prompts of up to 64 and up to 128 tokens with their template; both halves of the shorter cache, and of
    # the longer one the quarter that its prompts end in
    assert (_admit._cache_size() - before[0], _advance._cache_size() - before[1]) == (2, 3)
