"""Judgements: what of them can be read, and what they let through."""

import json

import pytest

from jaxsft.config import DataConfig, JudgeConfig, SynthesisConfig
from jaxsft.data.conversation import parse as parse_record
from jaxsft.errors import UserError
from jaxsft.synthesis.judge import Judge, Judgement, parse
from jaxsft.synthesis.method import Answer, counts
from jaxsft.synthesis.run import synthesize
from tests.synthesis.rows import Says, make_row, make_rows


@pytest.mark.parametrize(
    ("text", "judgement"),
    [
        ("Status: accepted\nRating: 4\nReason: It is right.", ("accepted", 4, "It is right.")),
        ("status = Rejected\nrating = 2/5", ("rejected", 2, "")),
        ("**Rating**: 5 out of 5\n**Status**: **Accepted**", ("accepted", 5, "")),
        ('Here: {"Status": "ok", "rating": 3, "reason": "fine"} done', ("ok", 3, "fine")),
        ('{"rating": "4.5"}', ("", 4.5, "")),
        ("- Rating: 3.", ("", 3, "")),
        ("Status: not accepted\nRating: 5", ("not accepted", 5, "")),
        ("Rating: 4\nRating: 1", ("", 4, "")),  # the first counts
        ("Rating: 4/10", None),  # another scale
        ("Rating: 6", None),
        ("Rating: 0", None),
        ("Rating: good", None),
        ("Status: accepted", None),
        ("{broken", None),
        ('["rating", 4]', None),
        ("", None),
    ],
)
def test_what_can_be_read(text, judgement):
    assert parse(text, 5) == (None if judgement is None else Judgement(*judgement))


ROWS = [{"prompt": f"why {i} ?", "completion": f"so {i}", "synthesis": {"method": "orca"}} for i in range(6)]
SAID = [
    "Status: accepted\nRating: 5\nReason: good",
    "Status: accepted\nRating: 3",
    "Status: rejected\nRating: 5",
    "I like it",
    Answer("", ""),
    "Rating: 4",
]
DROPPED = {
    "rated below 4": 1,
    "rejected": 1,
    "the judgement cannot be read": 1,
    "the prompt is longer than the context": 1,
}


def test_what_is_let_through():
    answers = iter(SAID)
    model = Says(lambda asked: next(answers))
    unanswered = {"messages": [{"role": "user", "content": "why not ?"}]}
    *judged, last = Judge(JudgeConfig())(make_rows(*ROWS, unanswered), model).outcomes
    assert last.reason == "no answer to judge" and len(model.asked["judgements"]) == len(ROWS)
    answers = iter(SAID)
    made = Judge(JudgeConfig())(make_rows(*ROWS), model)
    assert judged == made.outcomes
    assert counts(made.outcomes) == {"kept": 2, "fell back": {}, "dropped": DROPPED}
    assert made.figures == {"rating": pytest.approx((5 + 3 + 5 + 4) / 4)}
    first = made.outcomes[0].record
    assert first["judgement"] == {"status": "accepted", "rating": 5.0, "reason": "good"}
    assert first["synthesis"] == {"method": "orca"}, "it says still who wrote it"
    assert parse_record(first, "here").messages == parse_record(ROWS[0], "here").messages
    text = model.asked["judgements"][1].messages[0].content
    assert "\nwhy 1 ?\n" in text and "\nso 1\n" in text and " to 5 (flawless)" in text


def test_the_judge_sees_the_whole_prompt():
    row = make_row({"prompt": "why {answer} ?", "completion": "so {request}", "system": "be kind ."})
    model = Says(lambda asked: "Rating: 5")
    Judge(JudgeConfig())([row], model)
    text = model.asked["judgements"][0].messages[0].content
    assert "system: be kind .\n\nuser: why {answer} ?" in text and "\nso {request}\n" in text


def test_judgements_made_elsewhere(tmp_path):
    """Of a file; no model is opened."""
    (tmp_path / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in ROWS))
    judged = [{"row": 0, "rating": 5, "status": "pass"}, {"row": 1, "rating": 3}, {"row": 2, "rating": "?"}]
    (tmp_path / "judged.jsonl").write_text("".join(json.dumps(line) + "\n" for line in judged))
    config = SynthesisConfig(data=DataConfig(str(tmp_path / "rows.jsonl")), method="judge")
    config.judge.file = str(tmp_path / "judged.jsonl")
    line = synthesize(config, tmp_path / "kept")
    assert "1 kept, 5 dropped (not judged 3, rated below 4 1, the judgement cannot be read 1), rating 4" in line
    assert "done before" in synthesize(config, tmp_path / "kept")
    for wrong, why in (({"rating": 5}, "no whole number is its `row`"), ({"row": 0, "rating": 5}, "judged before")):
        (tmp_path / "judged.jsonl").write_text("".join(json.dumps(line) + "\n" for line in [judged[0], wrong]))
        with pytest.raises(UserError, match=f"line 2: .*{why}"):
            synthesize(config, tmp_path / "other")
    config.judge.threshold = 6.0
    with pytest.raises(UserError, match="no rating from 1 to 5 reaches"):
        synthesize(config, tmp_path / "other")
