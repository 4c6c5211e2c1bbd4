"""Wordings made of those of training: what they ask stays, and evaluation's own are not among them."""

from jaxsft.world import knowledge, records, skills
from jaxsft.world.vocabulary import words
from jaxsft.world.wordings import bank, families, reworded


def test_no_wording_is_one_of_evaluations():
    found = {wording for family in families() for wording in bank(family)}
    own = {wording for kind in knowledge.attributes().values() for attribute in kind for wording in attribute.unseen}
    own |= {wording for skill in skills.NARROW for wording in skill.unseen}
    assert len(families()) == 17 and len(own) == 68
    assert not found & own
    assert all(len(bank(family)) >= 20 and set(family.asked) <= set(bank(family)) for family in families())
    # and the recombination would have made some of them, which are left out
    reverse = next(family for family in families() if family.name == "reverse")
    assert "write {x} backwards ." in bank(reverse) and "give {x} backwards ." not in bank(reverse)


def test_no_question_of_the_evaluation_is_asked():
    rows = records.split("train")[:3000]
    asked = {record["prompt"] for record in reworded(rows, 0)}
    assert not asked & {record["prompt"] for name in ("unseen", "test", "questions") for record in records.split(name)}


def test_what_is_asked_stays():
    """A question's arguments, answer and tags; and all words are the world's."""
    rows = records.split("train")[:2000]
    made = reworded(rows, 0)
    names = sorted((entity.name for entity in knowledge.entities()), key=len)
    known = {*words(), "<unk>"}
    for before, after in zip(rows, made):
        assert {k: v for k, v in before.items() if k != "prompt"} == {k: v for k, v in after.items() if k != "prompt"}
        assert set(after["prompt"].split()) <= known
        arguments = lambda text: sorted(word for word in text.split() if len(word) == 1 and word.isalnum())
        assert arguments(before["prompt"]) == arguments(after["prompt"])
        assert [n for n in names if n in before["prompt"]] == [n for n in names if n in after["prompt"]]
    assert sum(a["prompt"] != b["prompt"] for a, b in zip(rows, made)) > 1700
    assert reworded(rows[:50], 0) == made[:50] and reworded(rows[:50], 1) != made[:50]
