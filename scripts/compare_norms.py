"""Compares Pre-LN, Mix-LN and Post-LN on the embedded world: python scripts/compare_norms.py --output=runs/norms.

Each is pretrained from random weights by configs/pretrain/mix_ln.py on the world's text, then fine-tuned by the
world's plain recipe. Perplexity, what is answered, and the norm of each layer's gradient are printed and written to
OUTPUT/results.md. What is done stays done: the same command goes on where it was broken off.
"""

import json
import runpy
from pathlib import Path

from absl import flags

from jaxsft import cli
from jaxsft.comparison import workers
from jaxsft.comparison.norm_order import ALPHAS, RESULT, Job, execute, tables
from jaxsft.errors import UserError
from jaxsft.files import write_text

CONFIG = Path(__file__).resolve().parents[1] / "configs" / "pretrain" / "mix_ln.py"

VARIANTS = flags.DEFINE_list("variants", list(ALPHAS), "Of pre_ln, mix_ln and post_ln.")
SEEDS = flags.DEFINE_integer("seeds", 2, "Runs of each.", lower_bound=1, upper_bound=6)
EPOCHS = flags.DEFINE_float("epochs", 1.0, "Of pretraining.", lower_bound=0.0)
OUTPUT = flags.DEFINE_string("output", None, "Folder of the runs.")
JOBS = flags.DEFINE_integer(
    "jobs", 0, "Processes; 0 is one for each CPU core, or one where there is an accelerator.", lower_bound=0
)


def main() -> str:
    if not OUTPUT.value:
        raise UserError("--output is missing; name a folder for the runs.")
    if unknown := [name for name in VARIANTS.value if name not in ALPHAS]:
        raise UserError(f"--variants names {unknown[0]!r}; known are {', '.join(ALPHAS)}.")
    if not VARIANTS.value:
        raise UserError(f"--variants is empty; known are {', '.join(ALPHAS)}.")
    output = Path(OUTPUT.value)
    pretraining = runpy.run_path(str(CONFIG))["get_config"]()
    jobs = [Job(name, seed, pretraining, EPOCHS.value) for seed in range(SEEDS.value) for name in VARIANTS.value]
    todo = [(job, job.folder(output)) for job in jobs if not (job.folder(output) / RESULT).exists()]
    print(f"{len(jobs)} jobs, {len(jobs) - len(todo)} of them done")
    if todo:
        workers.run(execute, todo, JOBS.value)
    results: dict[str, list[dict]] = {}
    for job in jobs:
        results.setdefault(job.variant, []).append(json.loads((job.folder(output) / RESULT).read_text()))
    text = tables(results)
    print(f"\n{text}\n")
    write_text(output / "results.md", text + "\n")
    return f"{output / 'results.md'}: {len(jobs)} jobs"


if __name__ == "__main__":
    cli.main(main)
