"""Compares methods on the embedded world: python scripts/compare.py --cases=full,lora --seeds=3 --output=runs/compare.

A case is a file of configs/world/ with LEARNING_RATES; each is run at every learning rate with every seed from every
start, and measured. What is done stays done: the same command goes on where it was broken off, and only what changed is
run again. Tables are printed and written to OUTPUT/results.md; every job is a workdir below OUTPUT, for
scripts/report.py.
"""

import concurrent.futures
import json
import multiprocessing
import os
from pathlib import Path

from absl import flags
from tqdm import tqdm

from jaxsft import cli
from jaxsft.errors import UserError
from jaxsft.files import write_text
from jaxsft.world import compare

CONFIGS = Path(__file__).resolve().parents[1] / "configs" / "world"

CASES = flags.DEFINE_list("cases", ["full", "lora"], "Files of configs/world/ with LEARNING_RATES, by name.")
STARTS = flags.DEFINE_list("starts", ["world:base"], "Models that fine-tuning starts from.")
SEEDS = flags.DEFINE_integer("seeds", 3, "Runs of each case at each learning rate.")
OUTPUT = flags.DEFINE_string("output", None, "Folder of the runs.")
JOBS = flags.DEFINE_integer("jobs", 0, "Processes; 0 is one for each CPU core, or one where there is an accelerator.")


def main() -> str:
    if not OUTPUT.value:
        raise UserError("--output is missing; name a folder for the runs.")
    output = Path(OUTPUT.value)
    cases = compare.find_cases(CONFIGS, CASES.value)
    jobs = compare.plan(cases, STARTS.value, SEEDS.value)
    folders = [job.folder(output) for job in jobs]
    open_jobs = [(job, folder) for job, folder in zip(jobs, folders) if not (folder / compare.EVALUATION).exists()]
    print(
        f"{len(jobs)} jobs, {len(jobs) - len(open_jobs)} of them done; "
        + "; ".join(f"{c.name}: {c.about}" for c in cases)
    )
    if open_jobs:
        _run(open_jobs)
    from jaxsft.world import tables  # SciPy is slow to import

    done = [tables.read(job, folder) for job, folder in zip(jobs, folders)]
    text = "\n\n".join(tables.tables([d for d in done if d.job.start == start]) for start in STARTS.value)
    print(f"\n{text}\n")
    write_text(output / "results.md", text + "\n")
    write_text(output / "jobs.json", json.dumps([folder.name for folder in folders], indent=2) + "\n")
    return f"{output / 'results.md'}: {len(jobs)} jobs"


def _run(jobs: list[tuple[compare.Job, Path]]) -> None:
    """Runs jobs in processes of their own, each on a core of its own."""
    cores = sorted(os.sched_getaffinity(0))
    count = min(JOBS.value or (len(cores) if _on_cpu() else 1), len(jobs))
    context = multiprocessing.get_context("spawn")
    free = context.Queue()
    for i in range(count):
        free.put({cores[i % len(cores)]} if count > 1 else set(cores))
    pool = concurrent.futures.ProcessPoolExecutor(count, context, _on_a_core, (free,))
    with pool, tqdm(total=len(jobs), desc="comparing", unit="job") as bar:
        waiting = {pool.submit(compare.execute, job, folder): folder for job, folder in jobs}
        for future in concurrent.futures.as_completed(waiting):
            try:
                future.result()
            except UserError as error:
                pool.shutdown(cancel_futures=True)
                raise UserError(f"{waiting[future]}: {error}") from error
            bar.update()


def _on_a_core(free: multiprocessing.Queue) -> None:
    """Before jax counts the cores: small models are fastest on one, and processes do not disturb each other."""
    os.sched_setaffinity(0, free.get())


def _on_cpu() -> bool:
    import jax

    return jax.default_backend() == "cpu"


if __name__ == "__main__":
    cli.main(main)
