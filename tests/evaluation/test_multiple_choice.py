"""Forms of records, scores by hand, and the tokens that count as a choice's own."""

import dataclasses
import types

import jax
import numpy as np
import pytest

from jaxsft.config import DataConfig, EvaluateConfig, MeshConfig
from jaxsft.data.tokenizer import load_tokenizer
from jaxsft.errors import UserError
from jaxsft.evaluation.multiple_choice import (
    Question,
    encoder,
    grade,
    measure,
    parse_question,
    read_questions,
    score_choices,
)
from jaxsft.models.checkpoint import load_architecture, load_params
from jaxsft.models.decoder import Decoder
from jaxsft.sharding import make_mesh

FORMS = [
    {"question": "q", "choices": ["x", "y", "z"], "answer": 1},
    {"question": "q", "options": ["x", "y", "z"], "label": "y"},
    {"question": "q", "choices": ["x", "y", "z"], "answer": "B", "subject": "s"},
    {"prompt": "q", "choices": {"text": ["x", "y", "z"], "label": ["1", "2", "3"]}, "answerKey": "2"},
    {"question": "q", "mc1_targets": {"x": 0, "y": 1, "z": 0}},
]


@pytest.mark.parametrize("record", FORMS)
def test_forms(record):
    assert parse_question(record, "here", {}, "file") == Question(
        "q", ["x", "y", "z"], {1}, record.get("subject", "file")
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
    ],
)
def test_refuses(record, message):
    with pytest.raises(UserError, match=message):
        parse_question(record, "data.jsonl, line 3", {})


def test_grade_by_hand():
    questions = [Question("q", ["aa", "b"], {0}, ""), Question("q", ["c", "ddd", "e"], {1, 2}, "")]
    log_likelihoods, tokens = np.array([-4.0, -3.0, -2.0, -5.0, -7.0]), np.array([2, 1, 1, 3, 1])
    assert grade(questions, log_likelihoods, tokens, "none").tolist() == [False, False]
    assert grade(questions, log_likelihoods, tokens, "tokens").tolist() == [True, True]  # -2 -3 | -2 -1.67 -7
    assert grade(questions, log_likelihoods, tokens, "bytes").tolist() == [True, True]


@pytest.fixture(scope="module")
def stories(real_data):
    folder = real_data / "models" / "stories260K"
    decoder = Decoder(load_architecture(folder))
    return types.SimpleNamespace(
        decoder=decoder, params=load_params(folder, decoder), adapters=None, tokenizer=load_tokenizer(str(folder))
    )


@pytest.mark.parametrize("template", ["none", "plain", "llama2"])
def test_only_the_choice_counts(stories, template):
    ids, weights = encoder(template, stories.tokenizer)("Once there was a dog.", "The dog ran </s> home.")
    own = stories.tokenizer.decode(ids[weights > 0])
    assert own.strip() == "The dog ran </s> home."
    assert stories.tokenizer.eos_id not in ids[weights > 0]
    assert (ids == stories.tokenizer.bos_id).sum() == 1


def test_accuracy_and_scores(stories, tmp_path):
    """A story's own next word beats words from elsewhere; scores are those of one forward pass per choice."""
    (tmp_path / "questions.jsonl").write_text(
        '{"question": "Once upon a", "choices": ["time", "ball", "dog"], "answer": 0}\n'
        '{"question": "Once upon a", "choices": ["time", "ball"], "answer": 1, "source": "wrong"}\n'
        '{"question": "She wanted to play with her", "choices": ["rained", "friends"], "answer": "friends"}\n'
    )
    data = DataConfig(path=str(tmp_path / "questions.jsonl"), template="none")
    mesh = make_mesh(MeshConfig(fsdp=1), jax.devices()[:1])
    result = measure(stories, EvaluateConfig(task="multiple_choice", data=data), mesh)
    assert result["questions"] == 3
    assert result["accuracy"] == pytest.approx(2 / 3)
    assert result["chance"] == pytest.approx((1 / 3 + 1 / 2 + 1 / 2) / 3)
    assert result["by_source"]["wrong"]["accuracy"] == 0
    config = EvaluateConfig(data=dataclasses.replace(data, max_length=8, packing=False))
    questions = read_questions(data)
    cut_scores, tokens, cut = score_choices(stories, questions, config, mesh)
    assert cut == 2
    scores, _, _ = score_choices(stories, questions, EvaluateConfig(data=data), mesh)
    decoder, params = stories.decoder, stories.params

    @jax.jit
    def log_probs(row):
        hidden = decoder.forward(params, row, np.arange(row.shape[1])[None], np.ones(row.shape, np.int32)).hidden
        return jax.nn.log_softmax(decoder.head(decoder.head_params(params), hidden))[0]

    def score(ids, weights):
        row = np.zeros((1, 32), np.int32)
        row[0, : len(ids)] = ids
        return sum(log_probs(row)[t - 1, ids[t]] for t in np.flatnonzero(weights))

    encoded = [encoder("none", stories.tokenizer)(q.text, c) for q in questions for c in q.choices]
    assert tokens.tolist() == [weights.sum() for _, weights in encoded]
    np.testing.assert_allclose(scores, [score(*e) for e in encoded], rtol=1e-5, atol=1e-5)
    np.testing.assert_allclose(cut_scores, [score(*(x[-8:] for x in e)) for e in encoded], rtol=1e-5, atol=1e-5)
