"""LaMini's, Evol-Instruct's and Orca's ways to new records: what is asked, and what is eliminated and counted."""

import pytest

from jaxsft.config import EvolInstructConfig, LaMiniConfig, OrcaConfig
from jaxsft.data.conversation import Message, parse
from jaxsft.errors import UserError
from jaxsft.synthesis.evol_instruct import EvolInstruct, eliminated, same, useless
from jaxsft.synthesis.lamini import LaMini, instructions
from jaxsft.synthesis.method import Answer, counts
from jaxsft.synthesis.orca import Orca
from jaxsft.synthesis.wordings import MARKERS, OPERATORS, SYSTEMS
from tests.synthesis.rows import Says, make_rows

ROWS = [{"prompt": f"Name {what}.", "completion": what} for what in ("a bird", "a fish", "a tree", "a stone")]


@pytest.mark.parametrize(
    ("text", "stopped_by", "items"),
    [
        ("1. One thing.\n2) Another.\n 3: A third. ", "token", ["One thing.", "Another.", "A third."]),
        ("Sure!\n- One.\n* Two.\n\nThat is all.", "token", ["One.", "Two."]),
        ("1. One.\n2. Tw", "length", ["One."]),
        ("1. On", "context", []),
        ("nothing of the kind", "token", []),
        ("1.\n2. Two", "token", ["Two"]),
    ],
)
def test_lists(text, stopped_by, items):
    assert instructions(Answer(text, stopped_by)) == items


def test_lamini():
    lists = iter(["1. Name a river.\n2. name  A Bird.\n3. Name a hill.", "1. Name a RIVER.\n2. Name a sea.", "no"])

    def say(asked):
        text = asked.messages[-1].content
        if text.startswith("Here are instructions"):
            return next(lists)
        return Answer("and so", "length") if "hill" in text else f"answer to {text}"

    model = Says(say)
    made = LaMini(LaMiniConfig(lists=3, examples=2, wanted=3), seed=0)(make_rows(*ROWS), model)
    assert counts(made.outcomes) == {
        "kept": 2,
        "fell back": {},
        "dropped": {
            "cut off before its end": 1,
            "no list of instructions": 1,
            "one of the given": 1,
            "written before": 1,
        },
    }
    records = [outcome.record for outcome in made.outcomes if outcome.record]
    assert [parse(record, "here").messages[0].content for record in records] == ["Name a river.", "Name a sea."]
    assert records[0]["messages"][1]["content"] == "answer to Name a river." and records[0]["source"] == "lamini"
    for asked, record in zip(model.asked["instructions"], records):
        shown = [ROWS[i]["prompt"] for i in record["synthesis"]["examples"]]
        assert len(set(shown)) == 2 and f"1. {shown[0]}\n2. {shown[1]}\n" in asked.messages[0].content
    assert [asked.id for asked in model.asked["answers"]] == [0, 2, 4], "list 0: items 0 and 2; list 1: item 1"
    with pytest.raises(UserError, match=r"config\.lamini\.examples is 5, but there are 4 records"):
        LaMini(LaMiniConfig(examples=5), seed=0)(make_rows(*ROWS), model)


def test_elimination():
    """The four rules of Evol-Instruct, section 3.2, and what no method keeps."""
    said = lambda text: Answer(text, "token")
    assert eliminated("Name a bird.", said("Name a red bird.")) == ""
    assert eliminated("Name a bird.", said(" name a  BIRD.")) == "asks for the same as before"
    assert all(eliminated("x", said(f"The {marker}: y")) == "repeats the wording of the task" for marker in MARKERS)
    assert eliminated("x", Answer("y and", "length")) == "the new instruction: cut off before its end"
    assert same(said("Equal.")) == same(said('"equal"')) == "asks for the same as before"
    assert same(said("Different")) == same(said("not equal")) == same(said("equality?")) == ""
    assert useless(said("I am sorry, I cannot.")) == "the answer is an excuse"
    assert useless(said("I am sorry. " + "word " * 76)) == "the answer is an excuse"
    assert useless(said("I am sorry. " + "word " * 77)) == "", "of 80 words none is one"
    assert useless(said("...?! the, and it!")) == "the answer says nothing"
    assert useless(said("a robin")) == ""
    assert useless(said("")) == "the answer: empty"


def test_evol_instruct():
    """Two rounds over three instructions: one grows twice, one is eliminated and tried again, one never is new."""

    def say(asked):
        text = asked.messages[-1].content
        if text.startswith("Below is an instruction"):
            old = text.split("### Given instruction:\n")[1].split("\n\n### New")[0]
            return old if "tree" in old else old.replace("Name", "Name exactly")
        if text.startswith("Do these two"):
            return "equal" if "a fish" in text and "exactly exactly" not in text and model.round == 1 else "different"
        return "a robin"

    class Rounds(Says):
        round = 1

        def __call__(self, name, prompts):
            self.round = int(name[-1])
            return super().__call__(name, prompts)

    model = Rounds(say)
    made = EvolInstruct(EvolInstructConfig(rounds=2), seed=0)(make_rows(*ROWS[:3]), model)
    same_as_before = "asks for the same as before"
    assert [outcome.reason for outcome in made.outcomes] == ["", same_as_before, same_as_before, "", "", same_as_before]
    records = [outcome.record for outcome in made.outcomes if outcome.record]
    assert [record["messages"][0]["content"] for record in records] == [
        "Name exactly a bird.", "Name exactly exactly a bird.", "Name exactly a fish."
    ]  # fmt: skip
    assert [(r["synthesis"]["round"], r["synthesis"]["row"]) for r in records] == [(1, 0), (2, 0), (2, 1)]
    assert all(record["synthesis"]["operator"] in OPERATORS for record in records)
    assert [len(model.asked[f"{name}_1"]) for name in ("evolved", "compared", "answers")] == [3, 2, 1]
    assert [len(model.asked[f"{name}_2"]) for name in ("evolved", "compared", "answers")] == [3, 2, 2]
    ids = [asked.id for turn in (1, 2) for asked in model.asked[f"evolved_{turn}"]]
    assert len(set(ids)) == 6, "every try is drawn anew"
    without = Says(lambda asked: say(asked) if "Below" in asked.messages[-1].content else "a robin")
    EvolInstruct(EvolInstructConfig(rounds=1, compare=False), seed=0)(make_rows(*ROWS[:3]), without)
    assert list(without.asked) == ["evolved_1", "answers_1"]


def test_every_operator_shows_the_instruction_and_is_drawn():
    rows, model = (
        make_rows(*[{"prompt": f"Do {i} {{x}}.", "completion": "y"} for i in range(60)]),
        Says(lambda _: "new"),
    )
    made = EvolInstruct(EvolInstructConfig(rounds=1, compare=False), seed=3)(rows, model)
    drawn = [outcome.record["synthesis"]["operator"] for outcome in made.outcomes]
    assert set(drawn) == set(OPERATORS)
    assert all(f"\nDo {i} {{x}}.\n" in asked.messages[0].content for i, asked in enumerate(model.asked["evolved_1"]))


def test_orca():
    records = [
        {"prompt": "why ?", "completion": "so", "system": "be brief .", "task_type": "qa"},
        *[{"prompt": f"why {i} ?", "completion": "so"} for i in range(60)],
    ]
    cut = Answer("because", "length")
    model = Says(lambda asked: cut if "why 7 ?" in asked.messages[-1].content else "because")
    made = Orca(OrcaConfig(), seed=0)(make_rows(*records), model)
    assert counts(made.outcomes)["dropped"] == {"cut off before its end": 1}
    first = made.outcomes[0].record
    assert all("be brief" not in message["content"] for message in first["messages"])
    assert (first["source"], first["task_type"]) == ("orca", "qa")
    systems = {o.record["messages"][0]["content"] for o in made.outcomes if o.record and len(o.record["messages"]) == 3}
    assert systems == set(SYSTEMS) - {""}
    alone = [o.record for o in made.outcomes if o.record and len(o.record["messages"]) == 2]
    assert alone, "the empty system message asks the question alone"
    model, tools = Says(lambda asked: "because"), [{"name": "add", "parameters": {}}]
    (one,) = Orca(OrcaConfig(), seed=0)(make_rows({**records[0], "tools": tools}), model).outcomes
    assert model.asked["answers"][0].tools == parse(one.record, "here").tools == tools
    (one,) = Orca(OrcaConfig(systems=("explain",)), seed=0)(make_rows(records[0]), model).outcomes
    messages = [Message("system", "explain"), Message("user", "why ?"), Message("assistant", "because")]
    assert parse(one.record, "here").messages == messages
