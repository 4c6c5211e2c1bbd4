"""Instructions in other words by a model: what is asked, what is kept of a record, and what is dropped."""

import pytest

from jaxsft.config import ParaphraseConfig
from jaxsft.errors import UserError
from jaxsft.synthesis.method import Answer, counts
from jaxsft.synthesis.paraphrase import Paraphrase
from tests.synthesis.rows import Says, make_rows

ROWS = [
    {"prompt": "some context\nJudge it in <sep>.", "completion": "{'a': 1}", "task_type": "judge"},
    {"prompt": "no instruction", "completion": "none"},
]
PATTERN = r".*\n(?P<text>[^\n]*)"


def test_the_instruction_changes_and_all_else_stays():
    model = Says(lambda prompt: "Give your view in <sep>.")
    made = Paraphrase(ParaphraseConfig(pattern=PATTERN, preserve=("<sep>",)))(make_rows(*ROWS), model)
    (asked,) = model.asked["answers"]
    assert len(asked.messages) == 1 and "some context" not in asked.messages[0].content
    assert (
        asked.messages[0].content.endswith("\n\nJudge it in <sep>.")
        and "'<sep>' as it stands" in asked.messages[0].content
    )
    assert counts(made.outcomes)["dropped"] == {"the question does not fit the pattern": 1}
    record = made.outcomes[0].record
    assert [message["content"] for message in record["messages"]] == [
        "some context\nGive your view in <sep>.",
        "{'a': 1}",
    ]
    assert record["task_type"] == "judge"
    assert record["synthesis"] == {"method": "paraphrase", "row": 0, "sample": 0}


def test_what_is_no_new_wording_is_dropped():
    said = [
        "Say it in <sep>.",
        "judge it, in <SEP>",
        "say it in <sep>!",
        "without it",
        Answer("In <sep> go", "length"),
        "So in <sep>",
    ]
    model = Says(lambda prompt: said[prompt.id])
    made = Paraphrase(ParaphraseConfig(PATTERN, ("<sep>",), 6))(make_rows(ROWS[0]), model)
    assert [outcome.reason for outcome in made.outcomes] == [
        "", "'<sep>' is lost", "the wording is not new", "'<sep>' is lost", "cut off before its end", ""
    ]  # fmt: skip
    plain = Paraphrase(ParaphraseConfig(samples=2))(
        make_rows(ROWS[1]), Says(lambda prompt: ["No Instruction!", "none"][prompt.id])
    )
    assert [outcome.fate for outcome in plain.outcomes] == ["dropped", "kept"]
    assert plain.outcomes[1].record["messages"][0]["content"] == "none"
    model = Says(lambda prompt: f"wording {prompt.id}")
    several = Paraphrase(ParaphraseConfig(samples=2))(make_rows(*ROWS), model)
    assert [one.record["messages"][-2]["content"] for one in several.outcomes] == [f"wording {i}" for i in range(4)]


def test_a_question_without_the_text_does_not_fit():
    rows = make_rows({"prompt": "b", "completion": "1"}, {"prompt": "ab", "completion": "2"})
    made = Paraphrase(ParaphraseConfig("(?P<text>a)?b"))(rows, Says(lambda prompt: "c"))
    assert [outcome.reason for outcome in made.outcomes] == ["the question does not fit the pattern", ""]
    assert made.outcomes[1].record["messages"][0]["content"] == "cb"


@pytest.mark.parametrize(("pattern", "message"), [("(", "is no regular expression"), ("(?P<a>.*)", "has no group")])
def test_a_bad_pattern(pattern, message):
    with pytest.raises(UserError, match=message):
        Paraphrase(ParaphraseConfig(pattern))
