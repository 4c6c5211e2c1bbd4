"""Instructions that a program can verify: the 25 of IFEval (Zhou et al. 2023, arXiv:2311.07911), each a check.

Written from their definitions; what the definitions leave open follows the original
(google-research/instruction_following_eval, and lm-evaluation-harness's copy of it), to which
tests/evaluation/test_ifeval.py holds every check. On purpose different: a `letter` that is none, such as "#", is
counted as it stands, where the original draws another one at random; sentences are cut by rules
(`jaxsft.evaluation.ifeval.english`).
"""

import json
import re
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from jaxsft.errors import UserError
from jaxsft.evaluation.ifeval.english import count_capital_words, count_sentences, count_words
from jaxsft.validation import did_you_mean

Detect = Callable[[str], str]  # ISO 639-1 code of a text's language, "" for a text that has none
Verdict = bool | None  # None: not decided, for want of language detection
Settings = Mapping[str, Any]

CONSTRAINED = ("My answer is yes.", "My answer is no.", "My answer is maybe.")
JSON_FENCES = ("```json", "```Json", "```JSON", "```")


def follows(instruction: str, settings: Settings, response: str, detect: Detect | None = None) -> Verdict:
    """Whether a response follows an instruction; an empty one follows none.

    Args:
      instruction: its name, one of `CHECKS`.
      settings: what it leaves open, such as `num_words`; entries that are None do not count.
      response: the text.
      detect: tells languages; None leaves undecided what only it could decide.

    Raises:
      UserError: for an instruction that is not known, or a setting that it lacks.
    """
    check_settings(instruction, settings)
    return bool(response.strip()) and CHECKS[instruction][0](response, settings, detect)


def follows_loosely(instruction: str, settings: Settings, response: str, detect: Detect | None = None) -> Verdict:
    """Whether any of eight versions follows it: without the first line, the last, both or none (an introduction and a
    closing remark), and each of these without asterisks (marks of emphasis)."""
    lines = response.split("\n")
    cut = [response, *("\n".join(part).strip() for part in (lines[1:], lines[:-1], lines[1:-1]))]
    undecided = False
    for text in dict.fromkeys([*cut, *(text.replace("*", "") for text in cut)]):
        verdict = follows(instruction, settings, text, detect)
        if verdict:
            return True
        undecided |= verdict is None
    return None if undecided else False


def check_settings(instruction: str, settings: Settings, where: str = "the record") -> None:
    """Checks that an instruction is known, and has the settings that it needs.

    Raises:
      UserError: if not, or if one is no number, text or list where it must be.
    """
    if instruction not in CHECKS:
        raise UserError(f"{where}: {instruction!r} is no instruction{did_you_mean(instruction, CHECKS) or '.'}")
    needed = CHECKS[instruction][1]
    if missing := [name for name in needed if settings.get(name) is None]:
        raise UserError(f"{where}: the instruction {instruction!r} needs {missing[0]!r} in its kwargs.")
    if wrong := [name for name in needed if not _is_of_its_type(name, settings[name])]:
        raise UserError(
            f"{where}: {wrong[0]!r} of {instruction!r} is {settings[wrong[0]]!r:.60}; it must be {_type_of(wrong[0])}."
        )
    relation = next((settings[name] for name in needed if name.endswith("relation")), "at least")
    if relation not in ("at least", "less than"):
        raise UserError(f"{where}: {instruction!r} has the relation {relation!r}; it is 'at least' or 'less than'.")


def _type_of(name: str) -> str:
    """What a setting is, in words."""
    if name in ("keywords", "forbidden_words"):
        return "a list of texts"
    counts = name.startswith(("num_", "nth_")) or name.endswith("frequency")
    return "a whole number" if counts else "a text"


def _is_of_its_type(name: str, value: Any) -> bool:
    if _type_of(name) == "a list of texts":
        return isinstance(value, list) and all(isinstance(one, str) for one in value)
    return type(value) is (int if _type_of(name) == "a whole number" else str)


def language_detector() -> Detect | None:
    """langdetect with a fixed seed, None where it is not installed."""
    try:
        import langdetect
    except ImportError:
        return None
    langdetect.DetectorFactory.seed = 0  # else it says now this, now that of short texts

    def detect(text: str) -> str:
        try:
            return langdetect.detect(text)
        except langdetect.LangDetectException:
            return ""

    return detect


# ----------------------------------------------------------------------------------------------------------------------


def _compared(count: int, relation: str, threshold: int) -> bool:
    return count < threshold if relation == "less than" else count >= threshold


def _in_language(text: str, language: str, detect: Detect | None) -> Verdict:
    """A text without any language, such as one of digits, counts as followed: so it does in the original."""
    return None if detect is None else detect(text) in ("", language)


def _existence(text: str, s: Settings, _: Any) -> Verdict:
    return all(_occurrences(keyword, text) for keyword in s["keywords"])


def _frequency(text: str, s: Settings, _: Any) -> Verdict:
    return _compared(_occurrences(s["keyword"].strip(), text), s["relation"], s["frequency"])


def _occurrences(keyword: str, text: str) -> int:
    """Anywhere, inside words too."""
    return len(re.findall(re.escape(keyword), text, re.IGNORECASE))


def _forbidden(text: str, s: Settings, _: Any) -> Verdict:
    return not any(re.search(rf"\b{re.escape(word)}\b", text, re.IGNORECASE) for word in s["forbidden_words"])


def _letters(text: str, s: Settings, _: Any) -> Verdict:
    return _compared(text.lower().count(s["letter"].strip().lower()), s["let_relation"], s["let_frequency"])


def _language(text: str, s: Settings, detect: Detect | None) -> Verdict:
    return _in_language(text, s["language"], detect)


def _sentences(text: str, s: Settings, _: Any) -> Verdict:
    return _compared(count_sentences(text), s["relation"], s["num_sentences"])


def _words(text: str, s: Settings, _: Any) -> Verdict:
    return _compared(count_words(text), s["relation"], s["num_words"])


def _paragraphs(text: str, s: Settings, _: Any) -> Verdict:
    """Separated by `***`; nothing need stand before the first and behind the last one."""
    parts = [part.strip() for part in re.split(r"\s?\*\*\*\s?", text)]
    count = len(parts) - sum(not parts[i] for i in {0, len(parts) - 1})
    return all(parts[1:-1]) and count == s["num_paragraphs"]


def _first_word(text: str, s: Settings, _: Any) -> Verdict:
    """Paragraphs are separated by empty lines; the n-th is counted among all, empty ones included."""
    parts, nth = text.split("\n\n"), s["nth_paragraph"]
    count = sum(bool(part.strip()) for part in parts)
    if count != s["num_paragraphs"] or not 0 < nth <= count or not parts[nth - 1].strip():
        return False
    word = parts[nth - 1].split()[0].lstrip("'").lstrip('"')
    return re.match("""[^.,?!'"]*""", word).group().lower() == s["first_word"].lower()


def _placeholders(text: str, s: Settings, _: Any) -> Verdict:
    return len(re.findall(r"\[.*?\]", text)) >= s["num_placeholders"]


def _postscript(text: str, s: Settings, _: Any) -> Verdict:
    """ "P.S." and "P.P.S" may be written with blanks and in small letters."""
    marker = s["postscript_marker"].strip()
    forms = {"P.P.S": r"p\.\s?p\.\s?s", "P.S.": r"p\.\s?s\."}
    return re.search(forms.get(marker, re.escape(marker.lower())), text.lower()) is not None


def _bullets(text: str, s: Settings, _: Any) -> Verdict:
    """Lines that begin with one asterisk, or with a dash."""
    count = sum(len(re.findall(form, text, re.MULTILINE)) for form in (r"^\s*\*[^*].*$", r"^\s*-.*$"))
    return count == s["num_bullets"]


def _constrained(text: str, s: Settings, _: Any) -> Verdict:
    return any(answer in text for answer in CONSTRAINED)


def _highlights(text: str, s: Settings, _: Any) -> Verdict:
    """*So* or **so**; what is doubly marked is found twice."""
    found = [*re.findall(r"\*([^\n*]*)\*", text), *re.findall(r"\*\*([^\n*]*)\*\*", text)]
    return sum(bool(content.strip()) for content in found) >= s["num_highlights"]


def _sections(text: str, s: Settings, _: Any) -> Verdict:
    return len(re.findall(rf"{re.escape(s['section_spliter'].strip())}\s?\d+", text)) >= s["num_sections"]


def _json(text: str, s: Settings, _: Any) -> Verdict:
    text = text.strip()
    for fence in JSON_FENCES:
        text = text.removeprefix(fence)
    try:
        json.loads(text.removesuffix("```").strip())
    except (ValueError, RecursionError):  # brackets without end are no JSON either
        return False
    return True


def _title(text: str, s: Settings, _: Any) -> Verdict:
    return any(title.lstrip("<").rstrip(">").strip() for title in re.findall(r"<<[^\n]+>>", text))


def _two_responses(text: str, s: Settings, _: Any) -> Verdict:
    """Separated by `******`, and different."""
    parts = [part.strip() for part in text.split("******")]
    filled = [part for part in parts if part]
    return all(parts[1:-1]) and len(filled) == 2 and filled[0] != filled[1]


def _repeated(text: str, s: Settings, _: Any) -> Verdict:
    return text.strip().lower().startswith(s["prompt_to_repeat"].strip().lower())


def _end(text: str, s: Settings, _: Any) -> Verdict:
    return text.strip().strip('"').lower().endswith(s["end_phrase"].strip().lower())


def _capitals(text: str, s: Settings, _: Any) -> Verdict:
    return _compared(count_capital_words(text), s["capital_relation"], s["capital_frequency"])


def _upper(text: str, s: Settings, detect: Detect | None) -> Verdict:
    return text.isupper() and _in_language(text, "en", detect)


def _lower(text: str, s: Settings, detect: Detect | None) -> Verdict:
    return text.islower() and _in_language(text, "en", detect)


def _no_comma(text: str, s: Settings, _: Any) -> Verdict:
    return "," not in text


def _quoted(text: str, s: Settings, _: Any) -> Verdict:
    text = text.strip()
    return len(text) > 1 and text[0] == text[-1] == '"'


Check = Callable[[str, Settings, Detect | None], Verdict]

# Name -> its check, and the settings that it needs.
CHECKS: dict[str, tuple[Check, Sequence[str]]] = {
    "keywords:existence": (_existence, ["keywords"]),
    "keywords:frequency": (_frequency, ["keyword", "frequency", "relation"]),
    "keywords:forbidden_words": (_forbidden, ["forbidden_words"]),
    "keywords:letter_frequency": (_letters, ["letter", "let_frequency", "let_relation"]),
    "language:response_language": (_language, ["language"]),
    "length_constraints:number_sentences": (_sentences, ["num_sentences", "relation"]),
    "length_constraints:number_paragraphs": (_paragraphs, ["num_paragraphs"]),
    "length_constraints:number_words": (_words, ["num_words", "relation"]),
    "length_constraints:nth_paragraph_first_word": (_first_word, ["num_paragraphs", "nth_paragraph", "first_word"]),
    "detectable_content:number_placeholders": (_placeholders, ["num_placeholders"]),
    "detectable_content:postscript": (_postscript, ["postscript_marker"]),
    "detectable_format:number_bullet_lists": (_bullets, ["num_bullets"]),
    "detectable_format:constrained_response": (_constrained, []),
    "detectable_format:number_highlighted_sections": (_highlights, ["num_highlights"]),
    "detectable_format:multiple_sections": (_sections, ["section_spliter", "num_sections"]),
    "detectable_format:json_format": (_json, []),
    "detectable_format:title": (_title, []),
    "combination:two_responses": (_two_responses, []),
    "combination:repeat_prompt": (_repeated, ["prompt_to_repeat"]),
    "startend:end_checker": (_end, ["end_phrase"]),
    "startend:quotation": (_quoted, []),
    "change_case:capital_word_frequency": (_capitals, ["capital_frequency", "capital_relation"]),
    "change_case:english_capital": (_upper, []),
    "change_case:english_lowercase": (_lower, []),
    "punctuation:no_comma": (_no_comma, []),
}
