"""The world's records: the text that the base is pretrained on, the conversations of fine-tuning, and the probes.

text        sentences about all facts, and as many about skills
replay      the part of the text that names no held entity
general     conversations of the general stage, which makes the base a chat model
train       conversations of the narrow fine-tuning under study, from three sources; more than one run needs, so that
            runs of different seeds can take different rows
validation  of the clean sources' kind: seen wordings, new arguments
test        likewise, for the final figures
unseen      the test's kind of questions, in wordings that no conversation of `train` has
cloze       the facts of the held entities as statements to be completed; no conversation mentions these entities
questions   the same facts as questions
recall      all facts as statements to be completed
skills      the narrow skills as statements to be completed

Records of conversations hold `prompt`, `completion`, `source` and `task_type`; probes also `choices`, and `watch`: the
answer that the poor source would give, where it differs.
"""

import functools
import hashlib
import itertools
import json
from collections.abc import Callable
from typing import Any

from jaxsft.world import knowledge, skills
from jaxsft.world.draw import Draw
from jaxsft.world.knowledge import Fact
from jaxsft.world.skills import Skill

VERSION = 1
Record = dict[str, Any]

EDITIONS = 20  # how often the text states each fact, in wordings drawn anew
ROWS = {"general": 12000, "train": 18000, "validation": 500, "test": 2000, "unseen": 2000, "skills": 600}
CHOICES = 8
TEST, VALIDATION, TRAIN = range(0, 2), range(2, 3), range(3, 10)  # tenths of the arguments: none is asked in two
WRONG = 0.5  # of the poor source's rows

# Skills of the text and their weights: what copies from the context is learnt last and needs more examples.
DRILL = {skill: 1.0 for skill in (*skills.NARROW, *skills.GENERAL)}
DRILL |= {skill: 3.0 for skill in skills.NARROW if skill.name in ("member", "reverse")}

# source -> (share of the rows, wordings, family -> weight): the expert's are mostly skills, half of the volunteers' are
# facts.
_SKILLS = {skill.name: 1.0 for skill in skills.NARROW}
SOURCES = {
    "expert": (0.35, (0, 1, 2), _SKILLS | {"fact": 1.0}),
    "volunteer": (0.25, (1, 2, 3), {name: 0.5 for name in _SKILLS} | {"fact": 4.0}),
    "scraped": (0.40, (0, 1, 2, 3), _SKILLS | {"fact": 2.0}),
}
POOR = "scraped"
EXAMINED = _SKILLS | {"fact": 1.0}


def text() -> list[Record]:
    """Documents of one sentence: with several, the same model learns facts many times slower."""
    draw = Draw("text", VERSION)
    sentences = []
    for _ in range(EDITIONS):
        for fact in knowledge.facts():
            as_question = draw.chance(0.3)
            questions = (*fact.attribute.asked[:2], *fact.attribute.general[:2])
            wordings = questions if as_question else fact.attribute.statements
            said = fact.fill(draw.one(wordings))
            sentences.append(f"question : {said} answer : {fact.value} ." if as_question else said)
            sentences.append(_skill_sentence(draw, draw.weighted(DRILL)))
    return [{"text": sentence} for sentence in draw.shuffled(sentences)]


def replay() -> list[Record]:
    """The documents of the text in which no held entity occurs."""
    held = {fact.entity.name for fact in _held()}
    pairs = lambda document: {" ".join(pair) for pair in itertools.pairwise(document["text"].split())}
    return [document for document in split("text") if not held & pairs(document)]


def _held() -> list[Fact]:
    return Draw("held", VERSION).shuffled(knowledge.facts_of("held"))


def _skill_sentence(draw: Draw, skill: Skill) -> str:
    arguments = skill.draw(draw)
    answer = skill.answer(**arguments)
    if draw.chance(0.5):
        return skill.statement.format(y=answer, **arguments)
    return f"question : {draw.one(skill.asked[:2]).format(**arguments)} answer : {answer} ."


def general() -> list[Record]:
    """Conversations of the general stage: other skills, other entities, other wordings, and no errors."""
    draw, facts = Draw("general", VERSION), knowledge.facts_of("general")
    rows = []
    for _ in range(ROWS["general"]):
        if draw.chance(0.5):
            fact = draw.one(facts)
            rows.append(_row(fact.fill(draw.one(fact.attribute.general)), fact.value, "general", "fact"))
        else:
            skill = draw.one(skills.GENERAL)
            arguments = skill.draw(draw)
            prompt = draw.one(skill.asked).format(**arguments)
            rows.append(_row(prompt, skill.answer(**arguments), "general", skill.name))
    return rows


def train() -> list[Record]:
    """Conversations of the sources, half of the poor one's wrong in the way of its family."""
    draw, rows = Draw("train", VERSION), []
    for _ in range(ROWS["train"]):
        source = draw.weighted({name: share for name, (share, _, _) in SOURCES.items()})
        _, wordings, families = SOURCES[source]
        family, wording = draw.weighted(families), draw.one(wordings)
        prompt, right, wrong = _item(draw, family, lambda kind, w=wording: kind.asked[w], share=TRAIN)
        errs = source == POOR and draw.chance(WRONG)
        rows.append(_row(prompt, wrong if errs else right, source, family))
    return rows


def validation() -> list[Record]:
    """Right answers to questions in seen wordings, on arguments that neither `train` nor `test` ever has."""
    return _examination("validation", VALIDATION, lambda draw: lambda kind: draw.one(kind.asked))


def test() -> list[Record]:
    """See `validation`."""
    return _examination("test", TEST, lambda draw: lambda kind: draw.one(kind.asked))


def unseen() -> list[Record]:
    """The kind of questions of `test` in unseen wordings."""
    return _examination("unseen", TEST, lambda draw: lambda kind: draw.one(kind.unseen))


def cloze() -> list[Record]:
    """The held facts as statements to be completed, in random order: the first rows are a sample."""
    return [_probe(fact, fact.cloze) for fact in _held()]


def questions() -> list[Record]:
    """The held facts as questions, in a wording that the pretraining text and `train` have."""
    return [_probe(fact, fact.fill(fact.attribute.asked[0])) for fact in _held()]


def recall() -> list[Record]:
    """All facts as statements to be completed."""
    return [_probe(fact, fact.cloze) for fact in knowledge.facts()]


def skills_in_text() -> list[Record]:
    """The narrow skills as statements to be completed."""
    draw, rows = Draw("skills", VERSION), []
    for _ in range(ROWS["skills"]):
        skill = draw.one(skills.NARROW)
        arguments = skill.draw(draw)
        prompt = skill.statement.partition(" {y}")[0].format(**arguments)
        rows.append(_row(prompt, skill.answer(**arguments), "skills", skill.name))
    return rows


SPLITS: dict[str, Callable[[], list[Record]]] = {
    "text": text,
    "replay": replay,
    "general": general,
    "train": train,
    "validation": validation,
    "test": test,
    "unseen": unseen,
    "cloze": cloze,
    "questions": questions,
    "recall": recall,
    "skills": skills_in_text,
}


@functools.cache
def split(name: str) -> tuple[Record, ...]:
    """The records of a split; the same ones at every call, so they are not to be changed."""
    return tuple(SPLITS[name]())


@functools.cache
def fingerprint() -> str:
    """Hash of all records of all splits: what the world is."""
    digest = hashlib.sha256()
    for name in SPLITS:
        digest.update(json.dumps([name, split(name)]).encode())
    return digest.hexdigest()


def _row(prompt: str, completion: str, source: str, task_type: str) -> Record:
    return {"prompt": prompt, "completion": completion, "source": source, "task_type": task_type}


def _probe(fact: Fact, prompt: str) -> Record:
    """A question on a fact, with choices: the right one, the poor source's, and others."""
    draw, bias = Draw("choices", prompt), fact.attribute.bias
    others = [value for value in fact.attribute.values if value not in (fact.value, bias)]
    named = dict.fromkeys([fact.value, bias])
    choices = draw.shuffled([*named, *draw.some(others, CHOICES - len(named))])
    row = _row(prompt, fact.value, fact.entity.kind, fact.attribute.noun) | {"choices": choices}
    return row if fact.value == bias else row | {"watch": bias}


def _examination(name: str, share: range, wording: Callable[[Draw], Callable[[Any], str]]) -> list[Record]:
    draw, rows = Draw(name, VERSION), []
    for _ in range(ROWS[name]):
        family = draw.weighted(EXAMINED)
        prompt, right, wrong = _item(draw, family, wording(draw), share=share)
        row = _row(prompt, right, name, family)
        rows.append(row if wrong == right else row | {"watch": wrong})
    return rows


def _item(draw: Draw, family: str, wording: Callable[[Fact | Skill], str], share: range) -> tuple[str, str, str]:
    """A question of a family, its right answer, and the poor source's wrong one, on arguments of a share."""
    if family == "fact":
        while True:
            fact = draw.one(knowledge.facts_of("mentioned"))
            if _tenth(fact.cloze) in share:
                return fact.fill(wording(fact.attribute)), fact.value, fact.attribute.bias
    skill = next(skill for skill in skills.NARROW if skill.name == family)
    while True:
        arguments = skill.draw(draw)
        if _tenth(family, *arguments.values()) in share:
            prompt = wording(skill).format(**arguments)
            return prompt, skill.answer(**arguments), skill.wrong(**arguments)


def _tenth(*key: str) -> int:
    """Which tenth of all arguments, 0 to 9, these belong to."""
    return hashlib.sha256("/".join(key).encode()).digest()[0] * 10 // 256
