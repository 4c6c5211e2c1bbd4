r"""Answers in LaTeX, as MATH compares them: the last \boxed{...}, written in one way.

The rules are those of the data set's authors (Hendrycks et al. 2021, arXiv:2103.03874).
"""

import re

SIMPLER = (
    ("\n", ""), ("\\!", ""), ("\\\\", "\\"), ("tfrac", "frac"), ("dfrac", "frac"), ("\\left", ""), ("\\right", ""),
    ("^{\\circ}", ""), ("^\\circ", ""), ("\\$", ""),
)  # fmt: skip
LAST = (("\\%", ""), (" .", " 0."), ("{.", "{0."))


def boxed(text: str) -> str | None:
    r"""What stands in the last \boxed{...} or \fbox{...}, its braces balanced; None if there is none."""
    begin = max(text.rfind("\\boxed"), text.rfind("\\fbox"))
    if begin < 0:
        return None
    behind = text[begin:].removeprefix("\\boxed").removeprefix("\\fbox")
    if behind.startswith(" "):
        return behind[1:].split("$")[0]
    depth = 0
    for i, character in enumerate(behind):
        depth += (character == "{") - (character == "}")
        if depth == 0:
            return behind[1:i] if i else None
    return None


def simplest(answer: str) -> str:
    """The form in which two answers are compared."""
    for old, new in SIMPLER:
        answer = answer.replace(old, new)
    answer = answer.split("\\text{ ")[0]  # units
    for old, new in LAST:
        answer = answer.replace(old, new)
    answer = re.sub(r"^\.", "0.", answer)
    name, equals, value = answer.partition("=")
    if equals and len(name) <= 2 and "=" not in value:
        answer = value
    answer = re.sub(r"\\sqrt([^{])", r"\\sqrt{\1}", answer).replace(" ", "")
    answer = re.sub(r"\\frac([^{])([^{])", r"\\frac{\1}{\2}", answer)
    answer = re.sub(r"\\frac([^{])(?={)", r"\\frac{\1}", answer)
    if answer == "0.5":
        return "\\frac{1}{2}"
    return re.sub(r"^(-?\d+)/(-?\d+)$", r"\\frac{\1}{\2}", answer)
