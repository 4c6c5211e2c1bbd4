"""Records of benchmarks, as their files have them, and what is read of them."""

import json

import pytest

from jaxsft.config import DataConfig
from jaxsft.errors import UserError
from jaxsft.evaluation.forms import Question, parse_question, parse_written, read_questions, records

OPENCHAT = {
    "subject": "abstract_algebra", "id": 0, "question": "What is 1 + 1?\nIn Z_3.\n(A) 1 (B) 2 (C) (A) and (B) (D) 0 \n"
    "A: Let's think step by step.", "label": "(B)", "options": ["(A)", "(B)", "(C)", "(D)"],
}  # fmt: skip
AGIEVAL = {
    "passage": "A bird sings.", "question": "Who sings?", "options": ["(A)A dog", "(B)A bird", "(C) Nobody"],
    "label": "B", "answer": None, "other": {"solution": None},
}  # fmt: skip
BBH = "Which is a colour?\nOptions:\n(A) red\n(B) loud\n(C) two (B) or more"


@pytest.mark.parametrize(
    ("record", "expected"),
    [
        (OPENCHAT, Question("What is 1 + 1?\nIn Z_3.", ["1", "2", "(A) and (B)", "0"], {1}, "abstract_algebra")),
        (AGIEVAL, Question("A bird sings.\nWho sings?", ["A dog", "A bird", "Nobody"], {1}, "f")),
        ({"input": BBH, "target": "(A)"}, Question("Which is a colour?", ["red", "loud", "two (B) or more"], {0}, "f")),
        ({"input": "So?\nOptions:\n- yes\n- no", "target": "no"}, Question("So?", ["yes", "no"], {1}, "f")),
        (
            {"question": "q", "choices": {"text": ["x", "y"], "label": ["A", "B"]}, "answerKey": "B", "id": "ARC_1"},
            Question("q", ["x", "y"], {1}, "f"),
        ),
        (
            {"question": "q", "mc1_targets": {"choices": ["x", "y", "x"], "labels": [0, 1, 0]}},
            Question("q", ["x", "y", "x"], {1}, "f"),
        ),
        ({"question": "q", "subject": "s", "choices": ["x", "y"], "answer": 1}, Question("q", ["x", "y"], {1}, "s")),
        ({"question": "q", "options": ["(A) x", "y"], "label": "y"}, Question("q", ["(A) x", "y"], {1}, "f")),
        ({"question": "q", "options": ["x", "y"], "label": ["B"]}, Question("q", ["x", "y"], {1}, "f")),
    ],
    ids=["OpenChat", "AGIEval", "BBH letters", "BBH dashes", "ARC", "TruthfulQA", "MMLU", "unlabelled", "one of"],
)  # fmt: skip
def test_choices(record, expected):
    assert parse_question(record, "here", {}, "f") == expected


def test_mc2_by_the_field_map():
    record = {"question": "q", "mc1_targets": {"x": 1, "y": 0}, "mc2_targets": {"x": 1, "y": 0, "z": 1}}
    assert parse_question(record, "here", {}).right == {0}
    question = parse_question(record, "here", {"mc2_targets": "choices"})
    assert (question.choices, question.right) == (["x", "y", "z"], {0, 2})


@pytest.mark.parametrize(
    ("record", "message"),
    [
        ({"input": "True and False is", "target": "False"}, "lists none.*task 'generation'"),
        ({**OPENCHAT, "question": "What?\n(A) 1 (B) 2"}, "lists none"),
        ({**AGIEVAL, "label": ["A", "B"]}, r"answer \['A', 'B'\] is none of the choices"),
        ({**AGIEVAL, "label": "(D)"}, r"answer '\(D\)' is none"),
    ],
)
def test_choices_refused(record, message):
    with pytest.raises(UserError, match=f"data.jsonl, line 3: .*{message}"):
        parse_question(record, "data.jsonl, line 3", {})


@pytest.mark.parametrize(
    ("record", "answers"),
    [
        ({"question": "q", "answer": ["1972", "in 1972", "1972"]}, ["1972", "in 1972"]),
        ({"question": "q", "answer": {"value": "Pulsar", "aliases": ["pulsars", "Pulsar"]}}, ["Pulsar", "pulsars"]),
        ({"question": "q", "answer": "St Vitus; Vitus"}, ["St Vitus", "Vitus"]),
        ({"question": "q", "answer": "2 + 2\n#### 4"}, ["2 + 2\n#### 4"]),
        ({"input": "q", "target": "True"}, ["True"]),
        ({"problem": "q", "solution": "It is \\boxed{2}."}, ["It is \\boxed{2}."]),
        ({"question": "q", "answer": 7.0}, ["7"]),
        ({"prompt": "q", "completion": "a"}, ["a"]),
        ({"prompt": "q", "completion": "a", "answers": ["a", "b"]}, ["a", "b"]),
        ({"messages": [{"role": "user", "content": "q"}, {"role": "assistant", "content": "a"}]}, ["a"]),
        ({"instruction": "q", "output": "a", "question": "no", "answer": "no"}, ["a"]),
    ],
)
def test_written_answers(record, answers):
    written = parse_written(record, "here", {}, "file", "; ")
    assert written.answers == answers
    assert written.source == "file"
    assert written.conversation.messages[0].content == "q"
    assert [message.role for message in written.conversation.messages] == ["user", "assistant"]


def test_written_answers_behind_a_passage_and_inside_an_object():
    written = parse_written({"passage": "A bird.", "question": "Who?", "answer": "it", "source": "x"}, "here", {})
    assert written.conversation.messages[0].content == "A bird.\nWho?" and written.source == "x"
    fields = {"translation.de": "question", "translation.en": "answer"}
    written = parse_written({"translation": {"de": "Hund", "en": "dog"}}, "here", fields)
    assert (written.conversation.messages[0].content, written.answers) == ("Hund", ["dog"])
    written = parse_written(
        {"q": "Who?", "a": "it", "false": "he"}, "here", {"q": "question", "a": "answer", "false": "watch"}
    )
    assert written.conversation.extras["watch"] == "he"


@pytest.mark.parametrize(
    ("record", "message"),
    [
        ({"question": "q"}, "a record of no known form"),
        ({"question": "q", "answer": [" "]}, "nothing is asked; there is no answer"),
        ({"question": "q", "answer": [["a"]]}, r"the answer is \[\['a'\]\]; it must be text"),
        ({"question": "q", "answer": float("nan")}, "the answer is nan"),
        ({"question": "q", "answer": {"value": "abc", "aliases": "abc"}}, "aliases are a str"),
        ({"question": "", "answer": "a"}, "the question is ''"),
        ({"prompt": "q", "completion": ""}, "nothing is asked"),
        ("q", "must be an object"),
    ],
)
def test_written_answers_refused(record, message):
    with pytest.raises(UserError, match=f"here: .*{message}"):
        parse_written(record, "here", {})


def test_files_of_bbh_and_tables(tmp_path):
    """An object that holds `examples`, on one line or several; a table with names, quotes and a mark of byte order."""
    examples = {"canary": "no data", "examples": [{"input": BBH, "target": "(A)"}, {"input": BBH, "target": "(C)"}]}
    (tmp_path / "movies.json").write_text(json.dumps(examples, indent=1))
    (tmp_path / "snarks.json").write_text(json.dumps(examples))
    found = read_questions(DataConfig(path=str(tmp_path)))
    assert [question.source for question in found] == ["movies"] * 2 + ["snarks"] * 2
    assert [question.right for question in found] == [{0}, {2}] * 2
    (tmp_path / "trivia.csv").write_bytes(b'\xef\xbb\xbfquestion,answer\r\n"Who, ""he""?","a; b"\r\n\r\nWhat?,c\r\n')
    sources = DataConfig(path=str(tmp_path / "trivia.csv")).all_sources()
    assert [(record, where.split(", ")[-1]) for record, where, *_ in records(sources)] == [
        ({"question": 'Who, "he"?', "answer": "a; b"}, "line 2"), ({"question": "What?", "answer": "c"}, "line 4"),
    ]  # fmt: skip
    (tmp_path / "lines.json").write_text('{"input": "q", "target": "t"}\n{"input": "q2", "target": "t"}\n')
    assert len(list(records(DataConfig(path=str(tmp_path / "lines.json")).all_sources()))) == 2
