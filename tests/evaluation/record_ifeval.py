"""Records what lm-evaluation-harness's IFEval says, in `recorded/ifeval.json` beside this file.

Run by hand where `lm_eval[ifeval]` is installed and NLTK has its punkt_tab data:

    python tests/evaluation/record_ifeval.py
    python tests/evaluation/record_ifeval.py FILE.json...    # compares our counts on the `output` of real records

`verdicts` holds for each instruction and setting two strings with one digit a response, strict and loose; `sentences`
and `capitals` what NLTK counts in each response; `languages` what langdetect said of the texts that it was asked.
"""

import contextlib
import json
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

from tests.evaluation.ifeval_case import ASKED, RESPONSES, short


def main():
    import langdetect
    import lm_eval
    import nltk
    from lm_eval.tasks.ifeval import instructions, utils
    from lm_eval.tasks.ifeval.instructions_util import count_sentences

    langdetect.DetectorFactory.seed = 0
    languages, original = {}, langdetect.detect

    def detect(text):
        try:
            languages[short(text)] = original(text)
        except langdetect.LangDetectException:
            languages[short(text)] = ""
            raise
        return languages[short(text)]

    instructions.langdetect.detect = detect
    verdicts = {}
    for name, of in ASKED.items():
        verdicts[name] = []
        for settings in of:
            doc = {"key": 0, "prompt": "?", "instruction_id_list": [name], "kwargs": [settings]}
            said = [utils.process_results(doc, [response]) for response in RESPONSES]
            kinds = "inst_level_strict_acc", "inst_level_loose_acc"
            verdicts[name].append(["".join(str(int(one[kind][0])) for one in said) for kind in kinds])
    for response in RESPONSES:  # the original asks no further when one version follows
        lines = response.split("\n")
        for part in ("\n".join(part).strip() for part in (lines[1:], lines[:-1], lines[1:-1])):
            for text in (response, part, response.replace("*", ""), part.replace("*", "")):
                with contextlib.suppress(langdetect.LangDetectException):
                    detect(text)
    recorded = {
        "verdicts": verdicts,
        "sentences": [count_sentences(response) for response in RESPONSES],
        "capitals": [sum(word.isupper() for word in nltk.word_tokenize(response)) for response in RESPONSES],
        "languages": languages,
        "versions": {module.__name__: module.__version__ for module in (lm_eval, nltk)},
    }
    target = Path(__file__).with_name("recorded") / "ifeval.json"
    target.write_text(json.dumps(recorded, indent=1) + "\n")
    print(target, target.stat().st_size)


def compare(files):
    """Prints on how many texts our counts of sentences and of capital words are NLTK's."""
    import nltk
    from lm_eval.tasks.ifeval.instructions_util import count_sentences

    from jaxsft.evaluation.ifeval import english

    texts = [record["output"] for file in files for record in json.loads(Path(file).read_text()) if record["output"]]
    capitals = lambda text: sum(word.isupper() for word in nltk.word_tokenize(text))
    for name, ours, theirs in [
        ("sentences", english.count_sentences, count_sentences),
        ("capital words", english.count_capital_words, capitals),
    ]:
        same = sum(ours(text) == theirs(text) for text in texts)
        print(f"{name}: the same count in {same} of {len(texts)} texts ({same / len(texts):.1%})")


if __name__ == "__main__":
    compare(sys.argv[1:]) if sys.argv[1:] else main()
