"""Compares methods on the embedded world: python scripts/compare.py --cases=full,lora --seeds=3 --output=runs/compare.

A case is a file of configs/world/ with LEARNING_RATES; each is run at every learning rate with every seed from every
start, and measured. What is done stays done: the same command goes on where it was broken off, and only what changed is
run again. Tables are printed and written to OUTPUT/results.md; every job is a workdir below OUTPUT, for
scripts/report.py.
"""

from pathlib import Path

from absl import flags

from jaxsft import cli
from jaxsft.comparison import workers
from jaxsft.comparison.jobs import EVALUATION, execute, find_cases, plan, record
from jaxsft.errors import UserError
from jaxsft.files import write_text

CONFIGS = Path(__file__).resolve().parents[1] / "configs" / "world"

CASES = flags.DEFINE_list(
    "cases",
    ["full", "lora"],
    "Files of configs/world/ with LEARNING_RATES, by name; FILE:VARIANT where one has variants.",
)
AGAINST = flags.DEFINE_string("against", "full", "The case that the others are held against in the tables.")
STARTS = flags.DEFINE_list("starts", ["world:base"], "Models that fine-tuning starts from.")
RATES = flags.DEFINE_list("learning_rates", [], "Of the LEARNING_RATES of each case only these.")
SEEDS = flags.DEFINE_integer("seeds", 3, "Runs of each case at each learning rate.")
OUTPUT = flags.DEFINE_string("output", None, "Folder of the runs.")
JOBS = flags.DEFINE_integer(
    "jobs", 0, "Processes; 0 is one for each CPU core, or one where there is an accelerator.", lower_bound=0
)


def main() -> str:
    if not OUTPUT.value:
        raise UserError("--output is missing; name a folder for the runs.")
    output = Path(OUTPUT.value)
    cases = find_cases(CONFIGS, CASES.value)
    jobs = plan(cases, STARTS.value, SEEDS.value, [float(rate) for rate in RATES.value])
    folders = [job.folder(output) for job in jobs]
    open_jobs = [(job, folder) for job, folder in zip(jobs, folders) if not (folder / EVALUATION).exists()]
    print("\n".join(f"{case.name}: {case.about}" for case in cases))
    print(f"{len(jobs)} jobs, {len(jobs) - len(open_jobs)} of them done")
    for job, folder in zip(jobs, folders):
        record(job, folder)
    if open_jobs:
        workers.run(execute, open_jobs, JOBS.value)
    from jaxsft.comparison import tables  # SciPy is slow to import

    done = [tables.read(job, folder) for job, folder in zip(jobs, folders)]
    starts = dict.fromkeys(job.start for job in jobs)
    text = "\n\n".join(tables.tables([d for d in done if d.job.start == start], AGAINST.value) for start in starts)
    print(f"\n{text}\n")
    write_text(output / "results.md", text + "\n")
    return f"{output / 'results.md'}: {len(jobs)} jobs"


if __name__ == "__main__":
    cli.main(main)
