"""What fine-tuned models have forgotten of the model that they were made from, on the same questions:

    python scripts/forgetting.py --base=MODEL --model=runs/full --model=runs/lora --config=configs/eval/suite.py:FILE \
        --output=FOLDER

The config is one of several tasks, as scripts/evaluate.py takes. --drift=FILE adds the distance from the base (KL, and
MinorSFT's deviation) on conversations or text, --pretraining=FILE the perplexity on held-out text. Where the
evaluations are there already no model is opened:

    python scripts/forgetting.py --base_figures=base.json --figures=full.json --figures=lora.json --output=FOLDER

FOLDER gets report.html (a page that needs nothing else), report.json (every number), questions.jsonl (every question
with all answers) and differences.svg. --draws, --confidence and --seed are those of the bootstrap; --shown is how many
lost and won questions of a subject stand on the page.
"""

import dataclasses

import jax
from absl import flags

from jaxsft import cli
from jaxsft.config import ForgettingConfig, SuiteConfig
from jaxsft.errors import UserError
from jaxsft.forgetting.differences import Settings
from jaxsft.forgetting.evaluations import Evaluation, read_evaluation
from jaxsft.forgetting.measure import measure
from jaxsft.forgetting.report import PAGE, headline, tell, write
from jaxsft.forgetting.terminal import summary
from jaxsft.report.read import unique_names
from jaxsft.training.distributed import initialize
from jaxsft.validation import validate

cli.define_config()
BASE = flags.DEFINE_string("base", "", "Model that the others were made from: a folder, a hub name, a workdir.")
MODEL = flags.DEFINE_multi_string("model", [], "A fine-tuned model; once for each.")
BASE_FIGURES = flags.DEFINE_string("base_figures", "", "JSON file that scripts/evaluate.py wrote of the base.")
FIGURES = flags.DEFINE_multi_string("figures", [], "Likewise of a fine-tuned model; once for each.")
OUTPUT = flags.DEFINE_string("output", None, "Folder of the report.")
DRIFT = flags.DEFINE_string("drift", "", "Conversations or text to measure the distance from the base on.")
PRETRAINING = flags.DEFINE_string("pretraining", "", "Held-out text to measure the perplexity of.")
DRAWS = flags.DEFINE_integer("draws", 10_000, "Of the bootstrap.", lower_bound=1)
CONFIDENCE = flags.DEFINE_float("confidence", 0.95, "Share of the draws inside an interval.")
SEED = flags.DEFINE_integer("seed", 0, "Of the draws.", lower_bound=0)
SHOWN = flags.DEFINE_integer("shown", 5, "Lost and won questions of a subject on the page.", lower_bound=0)


def main() -> str:
    if not OUTPUT.value:
        raise UserError("--output is missing; name a folder for the report.")
    written = bool(BASE_FIGURES.value or FIGURES.value)
    if written and (BASE.value or MODEL.value):
        raise UserError("give either models (--base, --model) or what was written of them (--base_figures, --figures).")
    config = ForgettingConfig() if written else _config()
    config.draws, config.confidence, config.seed = DRAWS.value, CONFIDENCE.value, SEED.value
    validate(config)
    evaluations, remarks = (_read(), []) if written else measure(config, OUTPUT.value)
    if jax.process_index() != 0:
        return ""
    report = tell(evaluations, Settings(config.draws, config.confidence, config.seed), remarks)
    write(report, OUTPUT.value, SHOWN.value)
    print(f"\n{summary(report)}\n")
    return f"{OUTPUT.value}/{PAGE}: {headline(report)}"


def _config() -> ForgettingConfig:
    found = cli.get_config(SuiteConfig, ForgettingConfig)
    if isinstance(found, SuiteConfig):
        found = ForgettingConfig(tasks=found.tasks, model=found.model, mesh=found.mesh, base=found.reference)
    changes = {"base": BASE.value, "models": MODEL.value, "drift": DRIFT.value, "pretraining": PRETRAINING.value}
    initialize()
    return dataclasses.replace(found, **{name: value for name, value in changes.items() if value})


def _read() -> list[Evaluation]:
    files = [BASE_FIGURES.value, *FIGURES.value]
    if not all(files) or len(files) < 2:
        raise UserError("--base_figures and at least one --figures go together; name a file of each.")
    read = [read_evaluation(file) for file in files]
    paths = [one.model for one in read]
    if len(set(paths)) < len(paths):  # one model measured in several ways
        paths = [file.removesuffix(".json") for file in files]
    return [dataclasses.replace(one, name=name) for one, name in zip(read, unique_names(paths))]


if __name__ == "__main__":
    cli.main(main)
