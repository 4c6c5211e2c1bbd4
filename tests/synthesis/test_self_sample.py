"""Own answers: what is asked, what is dropped and counted, and what the records say."""

import pytest

from jaxsft.config import SelfSampleConfig
from jaxsft.data.conversation import Message, parse
from jaxsft.synthesis.method import Answer, counts
from jaxsft.synthesis.self_sample import SelfSample, overlap, prompt
from tests.synthesis.rows import Says, make_row, make_rows

ROWS = [
    {"prompt": "what is red ?", "completion": "a colour", "source": "book", "task_type": "fact"},
    {"prompt": "what is <sep> ?", "completion": "a token"},
    {"prompt": "what is one ?", "completion": "a number"},
    {"prompt": "what is one ?", "completion": "a number"},
    {"prompt": "what is long ?", "completion": "a length"},
    {"prompt": "what is void ?", "completion": "nothing"},
    {"prompt": "what is bad ?", "completion": "this"},
    {"prompt": "what is huge ?", "completion": "that"},
]
SAID = {
    "red": "a colour",
    "one": "the first",
    "long": Answer("and so on", "length"),
    "void": "",
    "bad": "a <sep> b",
    "huge": Answer("", ""),
}


def say(asked):
    return SAID[asked.messages[-1].content.split()[2]]


def test_what_is_kept_and_what_is_dropped():
    model = Says(say)
    made = SelfSample(SelfSampleConfig(forbidden=("<sep>",)))(make_rows(*ROWS), model)
    assert counts(made.outcomes) == {
        "kept": 2,
        "fell back": {},
        "dropped": {
            "a forbidden text in the answer": 1,
            "a forbidden text in the question": 1,
            "cut off before its end": 1,
            "empty": 1,
            "the prompt is longer than the context": 1,
            "written before": 1,
        },
    }
    assert len(made.outcomes) == len(ROWS)
    assert [asked.id for asked in model.asked["answers"]] == [0, 2, 3, 4, 5, 6, 7], "ids are those of the rows"
    first = made.outcomes[0].record
    assert parse(first, "here").messages == [Message("user", "what is red ?"), Message("assistant", "a colour")]
    assert (first["source"], first["task_type"]) == ("book", "fact")
    assert first["synthesis"] == {"method": "self_sample", "row": 0, "sample": 0, "mode": "plain"}
    assert made.figures == {"overlap": 0.5, "same_as_given": 1}, "the means of 1 and 0"


def test_forbidden_texts_are_so_in_whatever_case():
    asked = make_rows({"prompt": "what is <SEP> ?", "completion": "x"}, {"prompt": "why ?", "completion": "x"})
    made = SelfSample(SelfSampleConfig(forbidden=("<Sep>",)))(asked, Says(lambda asked: "a <sep>"))
    dropped = {"a forbidden text in the question": 1, "a forbidden text in the answer": 1}
    assert counts(made.outcomes)["dropped"] == dropped


def test_with_reference_is_asked_behind_the_given_answer():
    row = make_row({"prompt": "why ?", "completion": "so ."})
    asked = prompt(row, SelfSampleConfig("with_reference", system="help ."))
    assert [(message.role, message.content) for message in asked.messages] == [
        ("system", "help ."), ("user", "why ?"), ("assistant", "so ."), ("user", "why ?")
    ]  # fmt: skip
    made = SelfSample(SelfSampleConfig("with_reference"))([row], Says(lambda asked: "because"))
    assert parse(made.outcomes[0].record, "here").messages == [
        Message("user", "why ?"),
        Message("assistant", "because"),
    ]
    own = make_row({"prompt": "why ?", "completion": "so .", "system": "be brief ."})
    assert [m.content for m in prompt(own, SelfSampleConfig("with_reference")).messages][:2] == ["be brief .", "why ?"]
    alone = make_row({"messages": [{"role": "user", "content": "why ?"}]})
    made = SelfSample(SelfSampleConfig("with_reference"))([alone], Says(lambda asked: "because"))
    assert counts(made.outcomes)["dropped"] == {"no answer to refer to": 1}
    shown = make_row({"prompt": "why ?", "completion": "<sep>"})
    for mode, kept in (("plain", 1), ("with_reference", 0)):
        made = SelfSample(SelfSampleConfig(mode, forbidden=("<sep>",)))([shown], Says(lambda asked: "because"))
        assert counts(made.outcomes)["kept"] == kept, "what was forbidden was not to be seen either"


def test_tools_are_described_and_kept():
    tools = [{"name": "add", "parameters": {}}]
    record = {"prompt": "1 + 1 ?", "completion": "2", "tools": tools}
    model = Says(lambda asked: "two")
    made = SelfSample(SelfSampleConfig())(make_rows(record), model)
    assert model.asked["answers"][0].tools == tools
    assert parse(made.outcomes[0].record, "here").tools == tools


def test_several_samples_of_a_question():
    model = Says(lambda asked: f"answer {asked.id}")
    made = SelfSample(SelfSampleConfig(samples=3))(make_rows(*ROWS[:2]), model)
    assert [asked.id for asked in model.asked["answers"]] == list(range(6))
    records = [outcome.record for outcome in made.outcomes]
    assert [record["messages"][-1]["content"] for record in records] == [f"answer {i}" for i in range(6)]
    assert [(r["synthesis"]["row"], r["synthesis"]["sample"]) for r in records] == [(i // 3, i % 3) for i in range(6)]


@pytest.mark.parametrize(
    ("text", "reference", "share"),
    [("a b", "A B", 1.0), ("a b", "c d", 0.0), ("a a b", "a c", 0.4), ("a", "a b c", 0.5), ("", "", 0.0)],
)
def test_overlap(text, reference, share):
    """By hand: twice the words in common over all words."""
    assert overlap(text, reference) == pytest.approx(share)
