"""Leaves out closed-book questions that the training data answers, so that what is left probes pretraining alone:

    python scripts/filter_overlap.py --data=TriviaQA.csv --separator="; " --against=conversations.jsonl \
        --output=triviaqa_filtered.jsonl

Records are kept as they are. See jaxsft/evaluation/papers/overlap.py for what counts as overlap.
"""

from absl import flags

from jaxsft import cli
from jaxsft.config import SourceConfig
from jaxsft.errors import UserError
from jaxsft.evaluation.papers.overlap import read_seen, without_overlap
from jaxsft.files import as_json_lines, write_text

DATA = flags.DEFINE_string("data", "", "Questions: a file, a folder, a glob.")
AGAINST = flags.DEFINE_string("against", "", "Training data, likewise.")
AGAINST_ROWS = flags.DEFINE_string("against_rows", "", "Which of them, as config.data.rows.")
SEPARATOR = flags.DEFINE_string("separator", "", "What stands between answers that are one text.")
OUTPUT = flags.DEFINE_string("output", None, "JSON Lines file for the questions that are left.")


def main() -> str:
    if not (DATA.value and AGAINST.value and OUTPUT.value):
        raise UserError("--data, --against or --output is missing; name questions, training data and a file.")
    seen = read_seen(SourceConfig(path=AGAINST.value, rows=AGAINST_ROWS.value))
    print(f"{len(seen.questions)} different prompts and {len(seen.answers)} responses", flush=True)
    found = without_overlap(SourceConfig(path=DATA.value), seen, SEPARATOR.value)
    write_text(OUTPUT.value, as_json_lines(found.records))
    out = f"left out: {found.by_question} by their question, {found.by_answer} by an answer"
    return f"{OUTPUT.value}: {len(found.records)} questions; {out}"


if __name__ == "__main__":
    cli.main(main)
