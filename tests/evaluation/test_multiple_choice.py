"""Forms of records, scores by hand, and the tokens that count as a choice's own."""

import dataclasses
import json
import types

import jax
import numpy as np
import pytest

from jaxsft.config import DataConfig, MeshConfig, TaskConfig
from jaxsft.data.tokenizer import load_tokenizer
from jaxsft.errors import UserError
from jaxsft.evaluation.choices.continuations import share
from jaxsft.evaluation.choices.encoded import count_cut, encode_choices, encoder, score
from jaxsft.evaluation.choices.multiple_choice import choose, normalized, prepare, summarize
from jaxsft.evaluation.forms import Question, parse_question, read_questions
from jaxsft.evaluation.task import Subject, question_ids
from jaxsft.models.checkpoint import load_architecture, load_params
from jaxsft.models.decoder import Decoder
from jaxsft.sharding import make_mesh

FORMS = [
    {"question": "q", "choices": ["x", "y", "z"], "answer": 1},
    {"question": "q", "options": ["x", "y", "z"], "label": "y"},
    {"question": "q", "choices": ["x", "y", "z"], "answer": "B", "subject": "s"},
    {"prompt": "q", "choices": {"text": ["x", "y", "z"], "label": ["1", "2", "3"]}, "answerKey": "2"},
    {"question": "q", "mc1_targets": {"x": 0, "y": 1, "z": 0}},
    {"prompt": "q", "choices": ["x", "y", "z"], "completion": "y", "task_type": "t"},
]


@pytest.mark.parametrize("record", FORMS)
def test_forms(record):
    assert parse_question(record, "here", {}, "file") == Question(
        "q", ["x", "y", "z"], {1}, record.get("subject", "file"), record.get("task_type", "")
    )


def test_field_map():
    record = {"stem": "q", "options": ["x", "y"], "gold": 0}
    assert parse_question(record, "here", {"stem": "question", "gold": "answer"}).right == {0}


@pytest.mark.parametrize(
    ("record", "message"),
    [
        ([], "must be an object"),
        ({"question": "q", "choices": ["x", "y"]}, "no field answer or label"),
        ({"questoin": "q", "choices": ["x", "y"], "answer": 0}, "did you mean 'questoin'"),
        ({"question": "q", "choices": ["x"], "answer": 0}, "two or more choices"),
        ({"question": "q", "choices": ["x", "y"], "answer": 2}, "answer 2 is none of the choices"),
        ({"question": "q", "choices": ["x", "y"], "answer": True}, "answer True"),
        ({"question": "q", "mc1_targets": {"x": 0, "y": 0}}, "none of the choices is marked"),
        ({"question": "q", "choices": {"choices": ["x", "y"], "labels": [0, 0, 1]}}, "choices and their marks are not"),
        ({"question": "q", "choices": {"choices": ["x", "y"], "labels": None}}, "choices and their marks are not"),
        ({"question": "q", "choices": {"text": ["x", "y"], "label": ["1", "2", "3"]}, "answer": "3"}, "their labels"),
    ],
)
def test_refuses(record, message):
    with pytest.raises(UserError, match=message):
        parse_question(record, "data.jsonl, line 3", {})


def test_choose_by_hand():
    """Of two questions; "é" is one character of two bytes."""
    texts, bounds = ["aa", "b", "é", "dd", "e"], np.array([2])
    log_likelihoods, tokens = np.array([-4.0, -3.0, -3.0, -5.0, -7.0]), np.array([2, 1, 1, 3, 1])
    premise = np.array([-4.0, -9.0, -3.0, -3.0, -9.0])

    def chosen(kind):
        return choose(normalized(log_likelihoods, tokens, texts, kind, premise), bounds).tolist()

    assert chosen("none") == [1, 0]
    assert chosen("tokens") == [0, 1]  # -2 -3 | -3 -1.67 -7
    assert chosen("characters") == [0, 1]  # -2 -3 | -3 -2.5 -7
    assert chosen("bytes") == [0, 0]  # -2 -3 | -1.5 -2.5 -7
    assert chosen("unconditional") == [1, 2]  # 0 6 | 0 -2 2


@pytest.fixture(scope="module")
def stories(real_data):
    folder = real_data / "models" / "stories260K"
    decoder = Decoder(load_architecture(folder))
    return types.SimpleNamespace(
        decoder=decoder, params=load_params(folder, decoder), tokenizer=load_tokenizer(str(folder)), source=folder
    )


def test_a_system_prompt_stands_before_the_question(stories):
    encode = encoder("plain", stories.tokenizer, system="Be brief.")
    ((ids, weights),) = encode("Once there was a dog.", ["He ran."])
    text = stories.tokenizer.decode(ids)
    assert text.removeprefix("<s>").strip().startswith("Be brief.\n\n### Instruction:\nOnce there")
    assert stories.tokenizer.decode(ids[weights > 0]).strip() == "He ran."


@pytest.mark.parametrize("template", ["none", "plain", "llama2"])
def test_only_the_choice_counts(stories, template):
    ((ids, weights),) = encoder(template, stories.tokenizer)("Once there was a dog.", ["The dog ran </s> home."])
    own = stories.tokenizer.decode(ids[weights > 0])
    assert own.strip() == "The dog ran </s> home."
    assert stories.tokenizer.eos_id not in ids[weights > 0]
    assert (ids == stories.tokenizer.bos_id).sum() == 1


@pytest.mark.parametrize("template", ["none", "plain", "chatml"])
def test_letters_of_bytes_that_are_scored(source, template):
    """On a token a byte: the choice from its first letter to its last, without the blank before it and the end."""
    tokenizer = load_tokenizer(str(source))
    for ids, weights in encoder(template, tokenizer)("Who ran?", ["The dog.", "A"]):
        first, last = np.flatnonzero(weights)[[0, -1]]
        text = tokenizer.decode(ids[first : last + 1])
        assert text.lstrip() in ("The dog.", "A") and (template == "none" or text == text.strip())
        assert weights[first : last + 1].all() and weights.sum() == last + 1 - first
        assert tokenizer.decode(ids[:first]).endswith("ran?" if template == "none" else "\n")


def test_accuracy_and_scores(stories, tmp_path):
    """A story's own next word beats words from elsewhere; scores are those of one forward pass per choice."""
    (tmp_path / "questions.jsonl").write_text(
        '{"question": "Once upon a", "choices": ["time", "ball", "dog"], "answer": 0, "task_type": "next"}\n'
        '{"question": "Once upon a", "choices": ["time", "ball"], "answer": 1, "source": "wrong"}\n'
        '{"question": "She wanted to play with her", "choices": ["rained", "friends"], "answer": "friends"}\n'
    )
    data = DataConfig(path=str(tmp_path / "questions.jsonl"), template="none")
    mesh = make_mesh(MeshConfig(fsdp=1), jax.devices()[:1])
    subject = Subject(stories.decoder, stories.tokenizer, stories.source, mesh)
    task = prepare(TaskConfig(task="multiple_choice", data=data), subject)
    result, records, *_ = task.measure(stories.params, None)
    assert result["questions"] == 3
    assert result["accuracy"] == pytest.approx(2 / 3)
    assert result["chance"] == pytest.approx((1 / 3 + 1 / 2 + 1 / 2) / 3)
    assert result["by_source"]["wrong"]["accuracy"] == 0
    assert {kind: part["accuracy"] for kind, part in result["by_task_type"].items()} == {"": 0.5, "next": 1}
    assert [record["correct"] for record in records] == [True, False, True]
    assert records[1] == {
        "task": "multiple_choice", "index": 1, "id": question_ids([["Once upon a", ["time", "ball"], [1]]])[0],
        "prompt": "Once upon a", "reference": "ball", "answer": "time", "correct": False, "source": "wrong",
        "task_type": "", "choices": ["time", "ball"], "log_likelihoods": records[1]["log_likelihoods"],
    }  # fmt: skip
    config = TaskConfig(data=dataclasses.replace(data, max_length=8))
    questions = read_questions(data)
    asked = [question.text for question in questions], [question.choices for question in questions]
    pairs = encode_choices(*asked, data, subject)
    assert count_cut(pairs, config.data, subject) == 2
    cut_scores = score(pairs, config, subject, stories.params, None)
    scores = score(pairs, TaskConfig(data=data), subject, stories.params, None)
    np.testing.assert_allclose([v for r in records for v in r["log_likelihoods"]], scores, atol=1e-6)
    decoder, params = stories.decoder, stories.params

    @jax.jit
    def log_probs(row):
        hidden = decoder.forward(params, row, np.arange(row.shape[1])[None], np.ones(row.shape, np.int32)).hidden
        return jax.nn.log_softmax(decoder.head(decoder.head_params(params), hidden))[0]

    def by_hand(ids, weights):
        row = np.zeros((1, 32), np.int32)
        row[0, : len(ids)] = ids
        return sum(log_probs(row)[t - 1, ids[t]] for t in np.flatnonzero(weights))

    with pytest.raises(UserError, match="needs a chat template"):
        encoder("none", stories.tokenizer, system="Be brief.")
    encoded = [one for q in questions for one in encoder("none", stories.tokenizer)(q.text, q.choices)]
    assert [len(pair.continuation) for pair in pairs] == [weights.sum() for _, weights in encoded]
    np.testing.assert_allclose(scores, [by_hand(*e) for e in encoded], rtol=1e-5, atol=1e-5)
    np.testing.assert_allclose(cut_scores, [by_hand(*(x[-8:] for x in e)) for e in encoded], rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("template", ["none", "plain", "llama2", "chatml", "openchat"])
def test_choices_are_encoded_as_each_by_itself(stories, template):
    """Also with control strings, blanks at the ends, and one that is the end of another."""
    encode = encoder(template, stories.tokenizer, "auto" if template != "openchat" else "GPT4")
    choices = ["A", "home. ", " The dog ran home.", "A </s> dog", "dog"]
    for found, choice in zip(encode("Where was the dog?", choices), choices):
        (alone,) = encode("Where was the dog?", [choice])
        ends = [np.flatnonzero(weights)[-1] + 1 for _, weights in (found, alone)]  # what follows changes nothing
        np.testing.assert_array_equal(found[0][: ends[0]], alone[0][: ends[1]])
        np.testing.assert_array_equal(found[1][: ends[0]], alone[1][: ends[1]])


def test_letters_of_a_question_need_one_pass(stories, tmp_path):
    """On a tokenizer that writes some letters as one token and some as two; scores are those of each by itself."""
    mesh = make_mesh(MeshConfig(fsdp=1), jax.devices()[:1])
    subject = Subject(stories.decoder, stories.tokenizer, stories.source, mesh)
    data = DataConfig(template="none")
    pairs = encode_choices(["Who ran home?\nAnswer:", "Who did not?\nAnswer:"], [list("ABCD")] * 2, data, subject)
    assert len({len(pair.continuation) for pair in pairs}) == 2
    assert len(share(pairs, 512)) == 2
    together = score(pairs, TaskConfig(data=data), subject, stories.params, None)
    alone = [score([pair], TaskConfig(data=data), subject, stories.params, None)[0] for pair in pairs]
    np.testing.assert_allclose(together, alone, rtol=1e-5)


def test_mass_and_calibration_by_hand():
    """Of one question the right choices are the first and the last, of the other the second; 0.6 + 0.1, and 0.3."""
    logs = [np.log([0.6, 0.3, 0.1]) - 7, np.log([0.7, 0.3]) - 90]  # not normalised
    right = [np.array([True, False, True]), np.array([False, True])]
    found = summarize(logs, right, {"none": np.array([0, 0]), "bytes": np.array([1, 1])}, "bytes")
    assert found["right_mass"] == pytest.approx((0.7 + 0.3) / 2)
    assert found["right_mass_standard_error"] == pytest.approx(0.2 / 2**0.5)
    assert (found["accuracy"], found["normalized"]) == (0.5, {"none": 0.5, "bytes": 0.5})
    assert found["chance"] == pytest.approx((2 / 3 + 1 / 2) / 2)
    assert found["ece"] == pytest.approx((abs(1 - 0.6) + abs(0 - 0.7)) / 2)  # of the likeliest, whatever was chosen


def test_each_choice_has_its_own_premise(source, tmp_path):
    """Of questions that share choices in other orders, on random weights."""
    rng, words = np.random.default_rng(0), ["red", "dog", "a ball", "home", "Tim", "on"]
    rows = [
        {"question": f"What is {i}?", "choices": rng.permutation(words)[:4].tolist(), "answer": 0} for i in range(9)
    ]
    (tmp_path / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    mesh = make_mesh(MeshConfig(fsdp=1), jax.devices()[:1])
    decoder = Decoder(load_architecture(source))
    subject, params = Subject(decoder, load_tokenizer(str(source)), source, mesh), load_params(source, decoder, mesh)
    data = DataConfig(path=str(tmp_path / "rows.jsonl"), template="none")
    config = TaskConfig(data=data, normalize="unconditional", premise="It is")
    log_p = lambda asked, choices: score(
        encode_choices([asked], [choices], data, subject), config, subject, params, None
    )
    alone = dict(zip(words, log_p("It is", words)))
    gains = [log_p(r["question"], r["choices"]) - [alone[word] for word in r["choices"]] for r in rows]
    won = [record["answer"] for record in prepare(config, subject).measure(params, None).records]
    assert won == [row["choices"][gain.argmax()] for row, gain in zip(rows, gains)]


def test_against_a_premise(stories, tmp_path):
    """The log-likelihood less that of the same text behind the premise, end to end."""
    path = tmp_path / "questions.jsonl"
    records = [{"question": "Once upon a", "choices": ["time", "dog"], "answer": 0, "subject": s} for s in "ab"]
    path.write_text("".join(json.dumps(record) + "\n" for record in records))
    mesh = make_mesh(MeshConfig(fsdp=1), jax.devices()[:1])
    subject = Subject(stories.decoder, stories.tokenizer, stories.source, mesh)
    data = DataConfig(path=str(path), template="none")
    for premise in ("", "Once upon a"):
        config = TaskConfig(data=data, normalize="unconditional", premise=premise)
        figures = prepare(config, subject).measure(stories.params, None).figures
        pairs = encode_choices([premise], [["time", "dog"]], data, subject)
        behind = score(pairs, config, subject, stories.params, None)
        pairs = encode_choices(["Once upon a"], [["time", "dog"]], data, subject)
        gain = score(pairs, config, subject, stories.params, None) - behind
        assert figures["accuracy"] == figures["macro_accuracy"] == (gain[0] >= gain[1])
    assert gain == pytest.approx([0, 0], abs=1e-5)  # the question is the premise
