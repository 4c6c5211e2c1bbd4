"""Which of several answers a text gives: normalised, at word boundaries, the first that occurs.

The rule is ours. Substrings would find "USA" in "usage", and a text may name an answer only to reject it afterwards or
before; whichever comes first is what is taken as given.
"""

import re
import unicodedata
from collections.abc import Sequence

ARTICLES = {"a", "an", "the"}
INITIALS = re.compile(r"\b(?:[^\W\d_]\.)+[^\W\d_]\b")


def normalise(text: str) -> str:
    """Words with single blanks between them: compatibility forms decomposed (NFKD) and accents dropped, case folded,
    stops between single letters deleted (U.S. is us), other punctuation a blank (Rome's is rome s, 3.5 is 3 5),
    articles dropped."""
    plain = "".join(c for c in unicodedata.normalize("NFKD", text) if not unicodedata.combining(c)).casefold()
    joined = INITIALS.sub(lambda match: match.group().replace(".", ""), plain)
    words = re.sub(r"[^\w]|_", " ", joined).split()
    return " ".join(word for word in words if word not in ARTICLES)


def first_hit(text: str, answers: Sequence[Sequence[str]]) -> int | None:
    """Which answer a text gives first.

    Args:
      text: what was written.
      answers: of each the forms that count as it; none of them empty once normalised.

    Returns:
      The place of the answer whose form stands first, the longest of those that begin at the same word; None if there
      is none.
    """
    words = normalise(text).split()
    best: tuple[int, int] | None = None
    found = None
    for i, forms in enumerate(answers):
        for form in forms:
            wanted = normalise(form).split()
            place = _place(words, wanted)
            if place is not None and (best is None or (place, -len(wanted)) < best):
                best, found = (place, -len(wanted)), i
    return found


def _place(words: list[str], wanted: list[str]) -> int | None:
    if not wanted:
        return None
    starts = range(len(words) - len(wanted) + 1)
    return next((i for i in starts if words[i : i + len(wanted)] == wanted), None)
