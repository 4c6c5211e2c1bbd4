"""Writes one HTML page about any set of runs: what they learnt, what they forgot, question by question.

    python scripts/report.py --runs runs/base runs/full runs/lora --output=report.html

A folder is a workdir of scripts/train.py, or one that holds an `evaluation.json` (and `evaluation.jsonl`, with every
answer). Of a run of sub-models each is shown by itself, unless what was made of them has an evaluation there. The first
folder that was not trained is the baseline, "before"; --before=DIR names another. Seeds of one config are taken
together, and runs that differ in learning rate alone are joined by a line. --learnt=TASK and --kept=TASK name the tasks
of the trade-off, --questions=N how many lost and won questions are listed, --samples=N how many are shown with all
answers. The page needs no network and no script. Its table, and a few answers, are printed too.
"""

import sys

from absl import flags

from jaxsft import cli
from jaxsft.errors import UserError
from jaxsft.files import write_text
from jaxsft.report import charts, page, plots
from jaxsft.report.read import read_runs
from jaxsft.report.terminal import summary

RUNS = flags.DEFINE_multi_string("runs", [], "Folders, separated by spaces.")
OUTPUT = flags.DEFINE_string("output", None, "HTML file to write.")
LEARNT = flags.DEFINE_string("learnt", "seen", "Task that stands for what was learnt.")
KEPT = flags.DEFINE_string("kept", "cloze", "Task that stands for what the model knew before.")
BEFORE = flags.DEFINE_string("before", "", "Folder of the baseline, one of --runs.")
QUESTIONS = flags.DEFINE_integer("questions", 8, "Lost and won questions listed for each run.", lower_bound=0)
PLOT = flags.DEFINE_string("plot", "", "SVG file to which the plot of the trade-off is written by itself, too.")
SAMPLES = flags.DEFINE_integer("samples", 3, "Questions of each task shown with all answers.", lower_bound=0)


def main() -> str:
    if not RUNS.value:
        raise UserError("--runs is missing; name workdirs, as in --runs runs/base runs/full.")
    if not OUTPUT.value:
        raise UserError("--output is missing; name an HTML file.")
    count = f"{len(RUNS.value)} folder{'s' if len(RUNS.value) > 1 else ''}"
    print(f"reading {count}")
    story = page.tell(read_runs(RUNS.value), LEARNT.value, KEPT.value, BEFORE.value)
    html = page.render(story, QUESTIONS.value, SAMPLES.value)
    write_text(OUTPUT.value, html)
    if PLOT.value:
        write_text(PLOT.value, charts.standalone(plots.trade_off(story, page.WIDE)))
    print(f"\n{summary(story)}\n")
    return f"{OUTPUT.value}: a page of {len(html) / 1024:.0f} KiB about {count}"


def spread_runs(arguments: list[str]) -> list[str]:
    """`--runs A B C` as `--runs=A --runs=B --runs=C`, which is what flags can read."""
    result, inside = [], False
    for argument in arguments:
        if argument in ("--runs", "-runs"):
            inside = True
        elif argument.startswith("-"):
            inside = argument.lstrip("-").startswith("runs=")
            result.append(argument)
        else:
            result.append(f"--runs={argument}" if inside else argument)
    return result


if __name__ == "__main__":
    sys.argv = spread_runs(sys.argv)
    cli.main(main)
