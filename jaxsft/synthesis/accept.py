"""Whether an answer that a model has rewritten may replace the given one (SDFT, arXiv:2402.13669, section 3.2).

Each test is a function (the new answer, the given one) -> why it may not, "" where it may. The phrases and rules are
those of the authors' filter but for numbers: two answers without one do not count as the same here, and "12 5" is not
read as 125.
"""

import re
from collections.abc import Callable

Accept = Callable[[str, str], str]

LEAKS = ("reference answer", "your response", "my response", "your own response", "now it's your turn")
OPENING = "Your turn"
MINUS = "\N{MINUS SIGN}"
NUMBER = re.compile(rf"(?:(?<![\w.)])[-{MINUS}])?(?:\d{{1,3}}(?:[, ]\d{{3}})+(?!\d)|\d+)(?:\.\d+)?")
CALL = re.compile(r"[\w.]+\(.*\)", re.DOTALL)
FENCE, INTRODUCTIONS = "```python", ("I have", "Here is", "I implemented")


def chat(new: str, given: str) -> str:
    """Refuses talk about the task instead of an answer."""
    leaks = any(phrase in new.lower() for phrase in LEAKS) or new.startswith(OPENING)
    return "talks about the task" if leaks else ""


def number(new: str, given: str) -> str:
    """Wants the same last number, which must be whole."""
    ours, theirs = last_number(new), last_number(given)
    if ours is None or theirs is None:
        return "no whole number to compare"
    return "" if ours == theirs else "another number"


def call(new: str, given: str) -> str:
    """Wants the given function call, word for word but for quotes and blanks."""
    found = CALL.search(given)
    if found is None:
        return "no function call to compare"
    return "" if _call_form(found[0]) in _call_form(new) else "not the function call"


def code(new: str, given: str) -> str:
    """Wants a fenced block of Python behind an introduction."""
    return "" if FENCE in new and new.startswith(INTRODUCTIONS) else "no introduced Python"


def last_number(text: str) -> int | None:
    """The last number of a text, whose thousands may be set off by comma or blank; None if there is none, or it is not
    whole."""
    found = NUMBER.findall(text)
    if not found:
        return None
    value = float(re.sub("[, ]", "", found[-1]).replace(MINUS, "-"))
    return int(value) if value.is_integer() else None


def _call_form(text: str) -> str:
    return re.sub(r"\s+", " ", text).replace("'", '"').replace(", ", ",").strip()


def _both(test: Accept) -> Accept:
    return lambda new, given: chat(new, given) or test(new, given)


TESTS: dict[str, Accept] = {
    "chat": chat,
    "number": _both(number),
    "call": _both(call),
    "code": _both(code),
    "none": lambda new, given: "",
}
