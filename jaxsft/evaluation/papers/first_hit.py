"""Which of several answers a text gives: normalised, at word boundaries, the first that occurs.

The rule is ours. Substrings would find "USA" in "usage", and a text may name an answer only to reject it afterwards or
before; whichever comes first is what is taken as given. Two capitals, with stops or without, are found as capitals
alone: "U.S." is no part of "Tell us". A text that has no capital at all is not told apart, nor are longer ones.
"""

import re
import unicodedata
from collections.abc import Sequence

ARTICLES = {"a", "an", "the"}
INITIALS = re.compile(r"\b(?:[^\W\d_]\.)+[^\W\d_]\b")
TWO_CAPITALS = re.compile(r"[^\W\d_]{2}")


def normalize(text: str) -> str:
    """Words with single blanks between them: compatibility forms decomposed (NFKD) and accents dropped, case folded,
    stops between single letters deleted (U.S. is us), other punctuation a blank (Rome's is rome s, 3.5 is 3 5),
    articles dropped."""
    return " ".join(word.casefold() for word in _words(text))


def first_hit(text: str, answers: Sequence[Sequence[str]]) -> int | None:
    """Which answer a text gives first.

    Args:
      text: what was written.
      answers: of each the forms that count as it; none of them empty once normalised.

    Returns:
      The place of the answer whose form stands first, the longest of those that begin at the same word; None if there
      is none.
    """
    words = _words(text)
    best: tuple[int, int] | None = None
    found = None
    for i, forms in enumerate(answers):
        for form in forms:
            wanted = _words(form)
            place = _place(words, wanted)
            if place is not None and (best is None or (place, -len(wanted)) < best):
                best, found = (place, -len(wanted)), i
    return found


def _place(words: list[str], wanted: list[str]) -> int | None:
    if not wanted:
        return None
    is_short = len(wanted) == 1 and wanted[0].isupper() and TWO_CAPITALS.fullmatch(wanted[0])
    as_written = is_short and any(word != word.lower() for word in words)
    fold = (lambda word: word) if as_written else str.casefold
    words, wanted = [fold(word) for word in words], [fold(word) for word in wanted]
    starts = range(len(words) - len(wanted) + 1)
    return next((i for i in starts if words[i : i + len(wanted)] == wanted), None)


def _words(text: str) -> list[str]:
    """Those of `normalize` in the case in which they stand, initials with stops in capitals."""
    plain = "".join(c for c in unicodedata.normalize("NFKD", text) if not unicodedata.combining(c))
    joined = INITIALS.sub(lambda match: match.group().replace(".", "").upper(), plain)
    words = re.sub(r"[^\w]|_", " ", joined).split()
    return [word for word in words if word.casefold() not in ARTICLES]
