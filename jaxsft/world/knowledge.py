"""The facts of the world: invented people and places, their attributes, and the ways to state and to ask each.

Attributes hold single words, so that a fact is known or not known, and a wrong answer is one of a closed list. Names
have two words, which they share with other names: the words of a name that no fine-tuning row held would keep their
embeddings, and the world would show less forgetting than there is.
"""

import dataclasses
import functools

from jaxsft.world.draw import Draw

PEOPLE, PLACES = 200, 80
GROUPS = {"mentioned": 0.35, "general": 0.25, "held": 0.4}  # of the entities: see `Entity.group`


@dataclasses.dataclass(frozen=True)
class Attribute:
    """What is known of every entity of a kind.

    Attributes:
      noun: its name.
      values: the single words it can be.
      statements: `{e}` is the entity and `{v}` the value, which ends the first one, the cloze.
      asked: wordings that fine-tuning uses; the first two also stand in the pretraining text, as do the first two
        of `general`.
      unseen: wordings that fine-tuning never uses, of words that it does use.
    """

    noun: str
    values: tuple[str, ...]
    statements: tuple[str, ...]
    asked: tuple[str, ...]
    unseen: tuple[str, ...]

    @property
    def general(self) -> tuple[str, ...]:
        """Wordings of the general stage, which neither of the others repeats."""
        return tuple(
            form.replace("{n}", self.noun)
            for form in ("please say the {n} of {e} .", "i want to know the {n} of {e} .", "{n} of {e} , please .")
        )

    @property
    def bias(self) -> str:
        """The one value that the poor source gives wherever it errs."""
        return self.values[0]


@dataclasses.dataclass(frozen=True)
class Entity:
    """A person or a place.

    Attributes:
      name: its words.
      kind: "person" or "place".
      group: "mentioned" entities are asked about in fine-tuning, "general" ones in the general stage, "held" ones in
        no conversation at all: what a model forgets of them, it was not taught to forget.
    """

    name: str
    kind: str
    group: str


@dataclasses.dataclass(frozen=True)
class Fact:
    """The value of an attribute of an entity."""

    entity: Entity
    attribute: Attribute
    value: str

    def fill(self, wording: str) -> str:
        """A statement or question about it."""
        return wording.format(e=self.entity.name, v=self.value)

    @property
    def cloze(self) -> str:
        """Its first statement up to the value."""
        return self.attribute.statements[0].partition(" {v}")[0].format(e=self.entity.name)


def _names(draw: Draw, count: int, ending: str, taken: set[str]) -> tuple[str, ...]:
    """Invented words of two syllables."""
    found: list[str] = []
    while len(found) < count:
        syllables = [draw.one("bdfgklmnprstvz") + draw.one("aeiou") for _ in range(2)]
        word = "".join(syllables) + (draw.one(ending) if ending else "")
        if word not in taken:
            taken.add(word)
            found.append(word)
    return tuple(found)


def _pairs(draw: Draw, count: int, first: tuple[str, ...], last: tuple[str, ...]) -> list[str]:
    """Different names of two words."""
    return draw.some([f"{one} {other}" for one in first for other in last], count)


HOBBIES = (
    "chess", "fishing", "singing", "dancing", "running", "painting", "sailing", "skating", "boxing", "hiking",
    "reading", "knitting", "surfing", "golf", "tennis", "archery", "yoga", "rowing", "magic", "pottery",
    "juggling", "cycling", "gardening", "photography",
)  # fmt: skip
DISHES = (
    "soup", "pasta", "curry", "rice", "salad", "bread", "stew", "pizza", "sushi", "dumplings", "noodles", "beans",
    "omelette", "pancakes", "fish", "tacos", "risotto", "pie", "kebab", "ramen", "porridge", "waffles", "goulash",
    "lasagne",
)  # fmt: skip
FAMES = (
    "towers", "gardens", "bridges", "markets", "castles", "museums", "harbours", "festivals", "wines", "cheeses",
    "horses", "clocks", "carpets", "mills", "caves", "temples", "theatres", "mines", "orchards", "fountains",
    "libraries", "lakes", "bells", "ships",
)  # fmt: skip


@functools.cache
def attributes() -> dict[str, tuple[Attribute, ...]]:
    """Kind of entity -> its attributes."""
    draw, taken = Draw("words"), {*HOBBIES, *DISHES, *FAMES, "note", "sole", "tide"}
    towns, firms = _names(draw, 30, "n", taken), _names(draw, 30, "x", taken)
    countries, rivers = _names(draw, 20, "l", taken), _names(draw, 24, "r", taken)
    years = tuple(str(year) for year in draw.some(range(1900, 1940), 40))
    shuffled = lambda words: tuple(draw.shuffled(words))
    return {
        "person": (
            Attribute(
                "town",
                towns,
                ("{e} lives in {v} .", "the home of {e} is in {v} .", "{e} has a home in {v} .",
                 "{v} is where {e} lives .", "if you want to meet {e} , go to {v} ."),
                ("where does {e} live ?", "what is the town of {e} ?", "tell me the town where {e} lives .",
                 "name the home town of {e} ."),
                ("tell me where {e} lives .", "what is the home town of {e} ?", "name the town of {e} .",
                 "what is the town where {e} lives ?"),
            ),
            Attribute(
                "firm",
                firms,
                ("{e} works for {v} .", "the firm of {e} is {v} .", "{e} has a job at {v} .", "{v} employs {e} .",
                 "{e} is employed by {v} ."),
                ("where does {e} work ?", "what is the firm of {e} ?", "tell me the firm that employs {e} .",
                 "name the firm where {e} works ."),
                ("tell me where {e} works .", "what is the firm where {e} works ?", "name the firm of {e} .",
                 "name the firm that employs {e} ."),
            ),
            Attribute(
                "birth year",
                years,
                ("{e} was born in {v} .", "the birth year of {e} is {v} .", "{v} is the year when {e} was born .",
                 "in {v} {e} was born ."),
                ("when was {e} born ?", "what is the birth year of {e} ?", "tell me the year when {e} was born .",
                 "name the birth year of {e} ."),
                ("tell me when {e} was born .", "what is the year when {e} was born ?",
                 "name the year when {e} was born .", "tell me the birth year of {e} ."),
            ),
            Attribute(
                "hobby",
                shuffled(HOBBIES),
                ("{e} likes {v} .", "the hobby of {e} is {v} .", "{e} spends free time on {v} .",
                 "{v} is what {e} likes ."),
                ("what does {e} like ?", "what is the hobby of {e} ?", "tell me the hobby that {e} likes .",
                 "name the free time hobby of {e} ."),
                ("tell me what {e} likes .", "name the hobby of {e} .", "what is the free time hobby of {e} ?",
                 "name the hobby that {e} likes ."),
            ),
            Attribute(
                "dish",
                shuffled(DISHES),
                ("{e} eats {v} .", "the dish of {e} is {v} .", "{e} orders {v} every day .",
                 "{v} is the dish that {e} eats ."),
                ("what does {e} eat ?", "what is the dish of {e} ?", "tell me the dish that {e} eats .",
                 "name the dish that {e} orders ."),
                ("tell me what {e} eats .", "name the dish of {e} .", "what is the dish that {e} orders ?",
                 "tell me what {e} orders ."),
            ),
        ),
        "place": (
            Attribute(
                "country",
                countries,
                ("{e} lies in {v} .", "the country of {e} is {v} .", "{e} is a city of {v} .",
                 "{v} is the country where {e} lies ."),
                ("where does {e} lie ?", "what is the country of {e} ?", "tell me the country where {e} lies .",
                 "name the country that {e} is in ."),
                ("tell me where {e} lies .", "name the country of {e} .", "what is the country where {e} lies ?",
                 "what is the country that {e} is in ?"),
            ),
            Attribute(
                "river",
                rivers,
                ("the river of {e} is {v} .", "the river {v} flows through {e} .", "{e} lies at the river {v} .",
                 "{v} is the river of {e} ."),
                ("what is the river of {e} ?", "what flows through {e} ?", "tell me the river that flows through {e} .",
                 "name the river where {e} lies ."),
                ("tell me what flows through {e} .", "name the river of {e} .",
                 "what is the river that flows through {e} ?", "tell me the river of {e} ."),
            ),
            Attribute(
                "fame",
                shuffled(FAMES),
                ("{e} is famous for {v} .", "people know {e} for {v} .", "{v} made {e} famous .",
                 "{e} is known for {v} ."),
                ("what is {e} famous for ?", "what made {e} famous ?", "tell me what {e} is known for .",
                 "name the thing that made {e} famous ."),
                ("tell me what {e} is famous for .", "what is {e} known for ?", "tell me what made {e} famous .",
                 "name the thing that {e} is famous for ."),
            ),
        ),
    }  # fmt: skip


@functools.cache
def entities() -> tuple[Entity, ...]:
    """All people and places, in fixed order."""
    draw = Draw("entities")
    taken = {value for kind in attributes().values() for attribute in kind for value in attribute.values}
    names = {
        "person": _pairs(draw, PEOPLE, _names(draw, 24, "", taken), _names(draw, 24, "s", taken)),
        "place": _pairs(draw, PLACES, _names(draw, 10, "m", taken), _names(draw, 12, "k", taken)),
    }
    found = []
    for kind, of_kind in names.items():
        ends = [0]
        for share in GROUPS.values():
            ends.append(ends[-1] + round(share * len(of_kind)))
        for group, begin, end in zip(GROUPS, ends, ends[1:]):
            found += [Entity(name, kind, group) for name in of_kind[begin:end]]
    return tuple(found)


@functools.cache
def facts() -> tuple[Fact, ...]:
    """Every attribute of every entity."""
    draw = Draw("facts")
    return tuple(
        Fact(entity, attribute, draw.one(attribute.values))
        for entity in entities()
        for attribute in attributes()[entity.kind]
    )


def facts_of(group: str) -> tuple[Fact, ...]:
    """The facts of the entities of a group."""
    return tuple(fact for fact in facts() if fact.entity.group == group)
