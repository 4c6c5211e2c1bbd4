"""Records what lm-evaluation-harness says of answers, in `recorded/answers.json` beside this file.

Run by hand where lm_eval is installed:

    HF_HUB_OFFLINE=1 python tests/evaluation/record_answers.py
"""

import ast
import collections
import json
import re
import string
import typing
from pathlib import Path

NUMBERS = [  # (answer, reference)
    ("2 + 2 = 4\n#### 4", "2 + 2 = <<2+2=4>>4\n#### 4"),
    ("It is 4.", "#### 4"),
    ("It is $1,234.00", "#### 1,234"),
    ("It is $1,234", "#### 1234"),
    ("#### 1,234", "#### 1234"),
    ("#### $18", "#### 18"),
    ("#### 18.", "#### 18"),
    ("#### 18 and then 19", "#### 18"),
    ("#### 17\n#### 18", "#### 18"),
    ("from 3 to -7", "#### -7"),
    ("The answer is 5. Next, 12 more", "#### 5"),
    ("no number", "#### 5"),
    ("", "#### 5"),
    ("price: $", "#### 5"),
    ("about 3.50", "#### 3.50"),
    ("####18", "#### 18"),
    ("1,000,000", "#### 1000000"),
    ("it costs 5.", "#### 5"),
]
MATH = [
    ("so \\boxed{\\frac12}", "\\frac{1}{2}"),
    ("\\boxed{\\dfrac{1}{2}}", "\\frac{1}{2}"),
    ("\\boxed{0.5}", "\\frac{1}{2}"),
    ("\\boxed{1/2}", "\\frac{1}{2}"),
    ("\\boxed{x/y}", "\\frac{x}{y}"),
    ("\\boxed{x = 5}", "5"),
    ("\\boxed{xyz = 5}", "5"),
    ("\\boxed{\\sqrt3}", "\\sqrt{3}"),
    ("\\boxed{10\\%}", "10"),
    ("\\boxed{\\$10}", "10"),
    ("\\boxed{5\\text{ cm}}", "5"),
    ("\\boxed{90^\\circ}", "90"),
    ("\\boxed{.5}", "0.5"),
    ("\\boxed{\\left( 1, 2 \\right)}", "(1,2)"),
    ("\\boxed{1} and \\boxed{2}", "2"),
    ("\\boxed{\\frac{a}{\\sqrt{b}}}", "\\frac{a}{\\sqrt{b}}"),
    ("\\boxed{\\tfrac1{72}}", "\\frac{1}{72}"),
    ("\\boxed{3", "3"),
    ("\\fbox{7}", "7"),
    ("\\boxed{2}", "3"),
]
WORDS = [  # (answer, reference)
    ("The Beatles!", "beatles"),
    ("An apple a day", "apple day"),
    ("New York City", "York"),
    ("", "York"),
    ("St. Vitus", "St Vitus"),
    ("54\u00a0Mbit/s", "54 Mbit/s"),
    ("a b b c", "b b b d"),
    ("14 December 1972 UTC", "December 1972"),
]
TRANSLATIONS = (
    ["The cat sat on the mat.", "It rains.", "Nothing like it"],
    [["The cat sat on a mat.", "A cat sat on the mat."], ["It is raining.", "It rains today."], ["Another thing", "x"]],
)


def numbers() -> list[list[bool]]:
    """Strict and flexible."""
    from lm_eval.api.metrics import exact_match_hf_evaluate
    from lm_eval.filters.extraction import RegexFilter

    ignored = [",", "\\$", "(?s).*#### ", "\\.$"]  # of the harness's task gsm8k, as the patterns below
    filters = [
        RegexFilter("#### (\\-?[0-9\\.\\,]+)"),
        RegexFilter("(-?[$0-9.,]{2,})|(-?[0-9]+)", group_select=-1),
    ]

    def right(found: str, reference: str) -> bool:
        options = {"regexes_to_ignore": ignored, "ignore_case": True}
        return bool(exact_match_hf_evaluate([found], [reference], **options)["exact_match"])

    return [[right(f.apply([[answer]], [{}])[0][0], wanted) for f in filters] for answer, wanted in NUMBERS]


def mathematics() -> list[bool]:
    """Whether the boxed answers are equivalent; False where none is boxed."""
    from lm_eval.tasks.hendrycks_math.utils import is_equiv, last_boxed_only_string, remove_boxed

    def right(answer: str, wanted: str) -> bool:
        boxed = last_boxed_only_string(answer)
        if boxed and boxed.startswith("\\fbox"):
            boxed = boxed.replace("\\fbox", "\\boxed", 1)
        return boxed is not None and bool(is_equiv(remove_boxed(boxed), wanted))

    return [right(*each) for each in MATH]


def words() -> list[list[float]]:
    """Exact match and F1, of functions whose module needs more than they do."""
    import lm_eval

    file = Path(lm_eval.__file__).parent / "tasks" / "longbench" / "metrics.py"
    wanted = ("normalize_answer", "f1_score", "qa_f1_score")
    found = [node for node in ast.parse(file.read_text()).body if getattr(node, "name", "") in wanted]
    space = {"re": re, "string": string, "Counter": collections.Counter, "Union": typing.Union}
    exec(compile(ast.Module(found, []), str(file), "exec"), space)
    normal, f1 = space["normalize_answer"], space["qa_f1_score"]
    return [[float(normal(answer) == normal(wanted)), float(f1(answer, wanted))] for answer, wanted in WORDS]


def translations() -> dict[str, float]:
    """As lm-evaluation-harness asks sacrebleu."""
    from lm_eval.api.metrics import bleu, chrf

    items = [(references, answer) for answer, references in zip(*TRANSLATIONS)]
    return {"bleu": bleu(items), "chrf": chrf(items)}


if __name__ == "__main__":
    import lm_eval
    import sacrebleu

    found = {
        "versions": {"lm_eval": lm_eval.__version__, "sacrebleu": sacrebleu.__version__},
        "numbers": [[*each, *own] for each, own in zip(NUMBERS, numbers())],
        "math": [[*each, own] for each, own in zip(MATH, mathematics())],
        "words": [[*each, *own] for each, own in zip(WORDS, words())],
        "translations": {"answers": TRANSLATIONS[0], "references": TRANSLATIONS[1], **translations()},
    }
    file = Path(__file__).parent / "recorded" / "answers.json"
    file.write_text(json.dumps(found, indent=1, ensure_ascii=False) + "\n")
    print(file)
