"""Questions in other words: what is filled in, how often each wording comes, and what is refused."""

import collections
import json

import numpy as np
import pytest

from jaxsft.config import RewordConfig, SourceConfig
from jaxsft.errors import UserError
from jaxsft.mixing.reword import Wording, balanced, read_bank, reword

PATTERN = r"(?P<context>.*)\n(?P<instruction>[^\n]*)"


@pytest.fixture
def config(tmp_path):
    rows = [
        {"prompt": f"fact {i}\nmore of {i}\nJudge it.", "completion": f"{i}", "task_type": "judge", "kind": f"k{i}"}
        for i in range(7)
    ]
    (tmp_path / "data.jsonl").write_text("".join(json.dumps(one) + "\n" for one in rows))
    (tmp_path / "bank.txt").write_text("{context} Decide in {format}, {kind}.\n\nIn {format}: {context} {'a': 1}\n")
    return RewordConfig(
        SourceConfig(str(tmp_path / "data.jsonl")), str(tmp_path / "bank.txt"), PATTERN, {"format": "<sep>"}
    )


def records(config, tmp_path):
    reword(config, tmp_path / "out")
    return [json.loads(line) for line in (tmp_path / "out" / "records.jsonl").read_text().splitlines()]


def test_a_wording_is_filled_and_the_answer_stays(config, tmp_path):
    config.fields = {"follows": False}
    made = records(config, tmp_path)
    assert len(made) == 7
    for i, one in enumerate(made):
        asked, answer = (message["content"] for message in one["messages"])
        assert answer == f"{i}" and one["task_type"] == "judge" and one["follows"] is False
        context = f"fact {i}\nmore of {i}"
        assert asked in (f"{context} Decide in <sep>, k{i}.", f"In <sep>: {context} {{'a': 1}}")
    assert records(config, tmp_path) == made
    config.seed = 1
    assert records(config, tmp_path) != made


def test_wordings_come_equally_often_and_each_once_a_record():
    chosen = balanced(100, 7, 3, np.random.default_rng(0))
    counts = collections.Counter(i for own in chosen for i in own)
    assert all(len(set(own)) == 3 for own in chosen) and max(counts.values()) - min(counts.values()) <= 1
    assert len({tuple(sorted(own)) for own in chosen}) > 20


def test_several_wordings_of_a_record(config, tmp_path):
    config.per_record = 2
    made = records(config, tmp_path)
    assert len(made) == 14
    assert all(a["messages"][0] != b["messages"][0] for a, b in zip(made[::2], made[1::2]))
    config.per_record = 3
    with pytest.raises(UserError, match=r"config\.per_record is 3, but .*bank\.txt has 2 wordings"):
        reword(config, tmp_path / "out")


def test_a_bank_is_a_list_or_lines(tmp_path):
    (tmp_path / "a.json").write_text(json.dumps(["one\ntwo", "three"]))
    (tmp_path / "b.txt").write_text("one\n\n  three \n")
    assert read_bank(str(tmp_path / "a.json")) == [Wording("one\ntwo"), Wording("three")]
    assert read_bank(str(tmp_path / "b.txt")) == [Wording("one", "{answer}"), Wording("three", "{answer}")]


def test_an_answer_may_be_given_in_another_form(config, tmp_path):
    (tmp_path / "bank.txt").write_text(json.dumps([["{prompt} As a dict.", "{'answer': '{answer}'}"]]))
    config.pattern = ""
    made = records(config, tmp_path)
    for i, one in enumerate(made):
        assert [message["content"] for message in one["messages"]] == [
            f"fact {i}\nmore of {i}\nJudge it. As a dict.",
            f"{{'answer': '{i}'}}",
        ]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "must hold texts"),
        ("a\na\n", "'a' twice"),
        ("[1]", "must hold texts"),
        ('[["a", "b", "c"]]', "must hold texts"),
        ('["a"', "begins as a JSON list"),
    ],
)
def test_a_bad_bank(tmp_path, text, message):
    (tmp_path / "bank").write_text(text)
    with pytest.raises(UserError, match=message):
        read_bank(str(tmp_path / "bank"))
    with pytest.raises(UserError, match="is no file"):
        read_bank(str(tmp_path / "none"))


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"values": {}}, r"line 1: nothing stands for \{format\}"),
        ({"pattern": "(?P<context>fact 0.*)x"}, r"line 1: the question does not fit config\.pattern"),
        ({"pattern": "("}, r"config\.pattern is no regular expression"),
    ],
)
def test_what_stands_for_nothing(config, tmp_path, changes, message):
    for name, value in changes.items():
        setattr(config, name, value)
    with pytest.raises(UserError, match=message):
        reword(config, tmp_path / "out")
