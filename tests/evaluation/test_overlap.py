"""What overlaps by hand, and on real questions against training data that holds some of them."""

import json
import runpy

import pytest

from jaxsft.config import SourceConfig
from jaxsft.errors import UserError
from jaxsft.evaluation.papers.overlap import Seen, overlaps, read_seen, without_overlap
from jaxsft.validation import validate
from tests.conftest import REPOSITORY

SEEN = Seen(frozenset({"who wrote it"}), frozenset({"moon", "bobby scott"}))


@pytest.mark.parametrize(
    "question, answers, found",
    [
        ("Who wrote it?", ["nobody"], "question"),
        ("Who sang?", ["Anna", "The Bobby Scott."], "answer"),
        ("Who wrote it twice?", ["the moonlight"], ""),
        ("Where?", ["the Moon!"], "answer"),
    ],
)
def test_by_hand(question, answers, found):
    assert overlaps(question, answers, SEEN) == found


def test_files(tmp_path):
    train = [
        {
            "messages": [
                {"role": r, "content": c}
                for r, c in (("system", "Rome"), ("user", "Capital?"), ("assistant", "Paris."))
            ]
        },
        {"prompt": "Say the river", "completion": ""},
    ]
    (tmp_path / "train.jsonl").write_text("".join(json.dumps(record) + "\n" for record in train))
    seen = read_seen(SourceConfig(path=str(tmp_path / "train.jsonl")))
    assert seen == Seen(frozenset({"capital", "say river"}), frozenset({"paris"}))
    (tmp_path / "asked.csv").write_text("question,answer\ncapital,x\ncity,Lutetia; PARIS\ntown,Rome\n")
    found = without_overlap(SourceConfig(path=str(tmp_path / "asked.csv")), seen, "; ")
    assert ([record["question"] for record in found.records], found.by_question, found.by_answer) == (["town"], 1, 1)
    (tmp_path / "asked.csv").write_text("question,answer\ncapital,x\n")
    with pytest.raises(UserError, match="nothing is left"):
        without_overlap(SourceConfig(path=str(tmp_path / "asked.csv")), seen)


def test_real_questions(real_data, tmp_path):
    """Of NQ-open's questions a hundred are trained on, with their first answers."""
    file = real_data / "eval" / "nq_open" / "NQ-open.dev.jsonl"
    records = [json.loads(line) for line in file.read_text().splitlines()]
    train = [{"prompt": r["question"] + "?", "completion": r["answer"][0]} for r in records[:100]]
    (tmp_path / "train.jsonl").write_text("".join(json.dumps(record) + "\n" for record in train))
    found = without_overlap(SourceConfig(path=str(file)), read_seen(SourceConfig(path=str(tmp_path / "train.jsonl"))))
    assert found.by_question == 100 and len(found.records) + 100 + found.by_answer == len(records)
    assert 0 < found.by_answer < 100 and all(record in records[100:] for record in found.records)


def test_the_probe_has_a_task_for_each_file():
    config = runpy.run_path(str(REPOSITORY / "configs/eval/world_knowledge.py"))["get_config"]("a=x.csv,b=y.jsonl")
    validate(config)
    assert [(task.name, task.data.path) for task in config.tasks] == [("a", "x.csv"), ("b", "y.jsonl")]
