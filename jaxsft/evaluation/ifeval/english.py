"""Sentences and words of English text, counted as IFEval's verifiers count them, by rules instead of a trained model.

The original (google-research/instruction_following_eval) cuts sentences with NLTK's Punkt (Kiss and Strunk 2006,
"Unsupervised Multilingual Sentence Boundary Detection") and words with its Penn Treebank rules. Punkt decides by lists
that it has learnt from newspapers: of abbreviations, and of how words are written inside and at the beginning of
sentences. Here both are short lists; `tests/evaluation/record_ifeval.py FILE` says how often the counts agree.
"""

import re

# Titles, companies, places, months and days. As in the original's list there is neither "etc" nor "e.g" nor "p.s", so a
# sentence ends behind them.
_SHORT = """
a.d a.m d.c l.a m.b.a n.c n.j n.y p.m ph.d s.c u.k u.n u.s u.s.a u.s.s.r w.va adm ala ariz aug ave bros calif chg cie
co col colo conn corp cos ct dec dr feb fla fri ft ga gen inc jan jr kan ky lt ltd maj messrs mg mich minn mr mrs ms
nev nov oct okla ore pa prof rep reps sen sep sept sr st sw tenn tues va vs vt wash wed wis yr
"""
# Words whose capital tells that a sentence begins: they have none inside one.
_COMMON = """
a about after again against all almost also although always an and another any anyone anything are as at away be
because been before behind being below between both but by can come could did does down during each either enough even
every everyone everything few finally first for four from get give go good had has have he help her here hers him his
how however if in indeed instead into is it its just keep last later least less let like little look make many maybe
me meanwhile might more moreover most much must my near never next no nobody none nor not nothing now of off often on
once one only or other our out over own perhaps please quite rather really say see seven several she should since so
some someone something sometimes soon still such take than that the their them then there these they thing think this
those though three through thus to together too toward two under unless until up upon use very was we well were what
when where whether which while whose why will with within without would yes yet you your yours
"""
ABBREVIATIONS, COMMON = frozenset(_SHORT.split()), frozenset(_COMMON.split())
NEVER_LAST = frozenset("cdefghklmnprstvw")  # letters behind which, with a period, no sentence ends

_QUOTES = "\u2018\u2019\u201c\u201d\u00ab\u00bb"  # curly ones, and guillemets
_SIGNS = r""")";}\]*:@({\["""  # no word goes on behind them
_BESIDE = rf"[{_SIGNS}'{_QUOTES}?!]"  # what may follow a mark without a blank
_MARK = re.compile(rf"[.?!](?={_BESIDE})|[.?!]$")
_CLOSING = re.compile(rf"""["')\]}}{_QUOTES}]+?(?:\s+|(?=--)|$)""", re.MULTILINE)
_LAST_PART = re.compile(rf"""(?:['{_QUOTES}][^{_SIGNS}]*|[^{_SIGNS}'{_QUOTES}]*)$""")
_NUMBER = re.compile(r"-?[.,]?\d[\d,.-]*")
_FIRST_PART = re.compile(rf"""[^("`{{\[:;&#*@)}}\]\-,][^{_SIGNS}'{_QUOTES}?!,\s]*""")

_TOKENS = re.compile(rf"""[,;:@#$%&*?!()\[\]{{}}<>"`{_QUOTES}\u201e\u2013\u2014]|--+|\.\.\.|(?<=\s)'|'(?=\s|$)""")
_ENDINGS = re.compile(r"(?i)(n't|'(?:s|m|d|ll|re|ve))(?=\s|$)")
_JOINED = re.compile(r"(?i)\b(?:(can)(not)|(gim|lem)(me)|(gon|wan)(na)|(got)(ta))\b")


def count_words(text: str) -> int:
    """Runs of letters, digits and underscores; "don't" has two."""
    return len(re.findall(r"\w+", text))


def count_capital_words(text: str) -> int:
    """Words whose letters, at least one, are all capitals; "CAN'T" has two ("CA", "N'T"), "MR." and "A-B" one."""
    spaced = _ENDINGS.sub(r" \1", _TOKENS.sub(lambda match: f" {match.group()} ", text))
    spaced = _JOINED.sub(lambda match: " ".join(filter(None, match.groups())), spaced)
    return sum(word.isupper() for word in spaced.split())


def count_sentences(text: str) -> int:
    """Sentences; what stands behind the last one, such as asterisks that close a bold text, is one more."""
    text, count, begin = text.rstrip(), 0, 0
    words = list(re.finditer(r"\S+", text))
    for word, after in zip(words, [*words[1:], None]):
        mark = _last_mark(word.group(), after is not None)
        if mark is None:
            continue
        end = word.start() + mark + 1
        inside = end < word.end()
        following = text[end] if inside else after.group()
        if _ends(word.group()[:mark], text[end - 1], following):
            count += begin < end
            resume = end if inside else after.start()
            closing = _CLOSING.match(text, resume)
            begin = closing.end() if closing else resume
    return count + (begin < len(text))


def _last_mark(word: str, followed: bool) -> int | None:
    """The place of the last mark in a word at which a sentence could end."""
    places = [m.start() for m in _MARK.finditer(word) if followed or m.end() < len(word)]
    return places[-1] if places else None


def _ends(before: str, mark: str, following: str) -> bool:
    """Whether a sentence ends at a mark, given the word before it, and the next word or sign."""
    if mark != "." or "?" in before or "!" in before:
        return True
    word = _LAST_PART.search(before).group().lstrip("`&#-,").lower()
    after = _FIRST_PART.match(following)
    after = after.group().rstrip(".") if after else ""
    begins = after[:1].isupper() and after.lower() in COMMON
    if before.endswith("."):  # dots
        return begins
    if len(word) == 1 and word.isalpha():
        return word not in NEVER_LAST and (begins or not after[:1].isalpha())
    if _NUMBER.fullmatch(word):
        return not after[:1].islower()
    return begins if word in ABBREVIATIONS or word.rpartition("-")[2] in ABBREVIATIONS else True
