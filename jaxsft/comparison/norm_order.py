"""Pre-LN, Mix-LN and Post-LN models of the world: pretrained from random weights, then fine-tuned, all alike.

Mix-LN (arXiv:2412.13795) claims that its models have a lower perplexity, gradients that are evener over the depth, and
are better after fine-tuning. Each job is one order of norms and sums with one seed; its folder has the runs, and
`result.json`, written last.
"""

import copy
import dataclasses
import json
import statistics
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from jaxsft.comparison.jobs import printing_to
from jaxsft.config import EvalConfig, ModelConfig, NewModelConfig, SuiteConfig, TrainConfig
from jaxsft.files import write_json
from jaxsft.training.workdir import LAYER_GRADIENT
from jaxsft.world import recipe
from jaxsft.world.model import save_untrained

RESULT = "result.json"
ALPHAS = {"pre_ln": 0.0, "mix_ln": 0.25, "post_ln": 1.0}
HELD_OUT = 2000  # sentences of `world:text`
ASKED = ":500"  # questions of a task
TASKS = ("seen", "unseen", "cloze")
# As wide as the world's own model is not, so that it can be deep: 12 layers, as the authors' smallest model has.
SIZES = {
    "hidden_size": 64, "intermediate_size": 176, "num_hidden_layers": 12, "num_attention_heads": 4,
    "num_key_value_heads": 4, "head_dim": 16, "tie_word_embeddings": False,
}  # fmt: skip
# The authors draw matrices with 0.02 at width 512: 0.45 / sqrt(width), which at width 64 is this.
INIT_STD = 0.06


@dataclasses.dataclass(frozen=True)
class Job:
    """One order of norms with one seed.

    Attributes:
      variant: a key of `ALPHAS`.
      seed: of weights, order and rows.
      pretraining: the published recipe, of which model and data are replaced.
      epochs: of pretraining on the world's text.
    """

    variant: str
    seed: int
    pretraining: TrainConfig
    epochs: float

    def folder(self, output: Path) -> Path:
        """Where it is done."""
        return output / f"{self.variant}-epochs{self.epochs:g}-seed{self.seed}"

    def pretrain_config(self, model: Path) -> TrainConfig:
        """Pretraining from the folder of an untrained model."""
        config = copy.deepcopy(self.pretraining)
        config.model = ModelConfig(str(model), init="random", remat="none")
        config.model.new = NewModelConfig(
            post_ln_alpha=ALPHAS[self.variant], init_std=INIT_STD, embed_std=self.pretraining.model.new.embed_std
        )
        config.data = recipe.data("world:text", f":-{HELD_OUT}", config.data.template)
        config.data.text_eos = self.pretraining.data.text_eos
        config.eval = EvalConfig(path="world:text", rows=f"-{HELD_OUT}:", batch_size=64)
        config.batch_size, config.steps, config.epochs, config.seed = 16, 0, self.epochs, self.seed
        config.checkpoint.every, config.log.tensorboard = 0, False
        return config

    def sft_config(self, model: Path) -> TrainConfig:
        """The world's plain recipe, from the pretrained model."""
        config = recipe.plain()
        config.model.path, config.seed = str(model), self.seed
        config.data.rows = f"{self.seed * recipe.ROWS}:{(self.seed + 1) * recipe.ROWS}"
        config.eval, config.log.layer_grad_norms = EvalConfig(), True
        config.checkpoint.every, config.log.tensorboard = 0, False
        return config


def execute(job: Job, folder: Path) -> None:
    """Pretrains, fine-tunes and measures, or what is left of it; what is printed goes to `log.txt` in the folder."""
    if (folder / RESULT).exists():
        return
    folder.mkdir(parents=True, exist_ok=True)
    with printing_to(folder / "log.txt"):
        from jaxsft.config import MeshConfig
        from jaxsft.sharding import make_mesh
        from jaxsft.training.export import export_hf
        from jaxsft.training.restore import open_model
        from jaxsft.training.train import train

        runs = {name: folder / name for name in ("untrained", "pretraining", "pretrained", "sft")}
        save_untrained(runs["untrained"], SIZES)
        print(train(job.pretrain_config(runs["untrained"]), str(runs["pretraining"])))
        if not runs["pretrained"].exists():
            mesh = make_mesh(MeshConfig())
            print(export_hf(open_model(str(runs["pretraining"]), ModelConfig(), mesh), runs["pretrained"], mesh))
        print(train(job.sft_config(runs["pretrained"]), str(runs["sft"])))
        lines = [json.loads(line) for line in (runs["pretraining"] / "metrics.jsonl").read_text().splitlines()]
        result = {
            "perplexity": [line["perplexity"] for line in lines if line["split"] == "eval"][-1],
            "gradients": gradients([line for line in lines if line["split"] == "train"]),
            "before": _measure(runs["pretrained"], ("cloze",)),
            "after": _measure(runs["sft"], TASKS),
        }
        write_json(folder / RESULT, result)


def gradients(lines: Sequence[dict[str, Any]]) -> dict[str, list[float]]:
    """The norm of each layer's gradient at the first step, and its mean over the second half of the steps.

    Args:
      lines: of `metrics.jsonl`, of training.
    """
    names = sorted(name for name in lines[0] if name.startswith(LAYER_GRADIENT))
    second = lines[len(lines) // 2 :]
    return {
        "start": [lines[0][name] for name in names],
        "second half": [statistics.fmean(line[name] for line in second) for name in names],
    }


def tables(results: dict[str, list[dict[str, Any]]]) -> str:
    """What was found, in Markdown: means over seeds, with standard deviations where there are several.

    Args:
      results: variant -> the results of its seeds.
    """
    out = ["| | perplexity | cloze before | seen | unseen | cloze after |", "|---|---|---|---|---|---|"]
    for variant, found in results.items():
        cells = [_mean([r["perplexity"] for r in found], 2), _mean([100 * r["before"]["cloze"] for r in found], 1)]
        cells += [_mean([100 * r["after"][task] for r in found], 1) for task in TASKS]
        out.append(f"| {variant} | {' | '.join(cells)} |")
    depth = len(next(iter(results.values()))[0]["gradients"]["start"])
    for when in ("start", "second half"):
        out += ["", f"Norm of the gradient of each layer of pretraining, {when}:", ""]
        out += [f"| | {' | '.join(map(str, range(depth)))} | largest / smallest |", "|---" * (depth + 2) + "|"]
        for variant, found in results.items():
            norms = [statistics.fmean(r["gradients"][when][i] for r in found) for i in range(depth)]
            cells = [f"{norm:.3f}" for norm in norms] + [f"{max(norms) / min(norms):.1f}"]
            out.append(f"| {variant} | {' | '.join(cells)} |")
    return "\n".join(out)


def _measure(model: Path, tasks: Sequence[str]) -> dict[str, float]:
    """Exact match of the world's tasks on a model."""
    from jaxsft.evaluation.suite import evaluate

    suite = SuiteConfig(tasks=[task for task in recipe.suite().tasks if task.name in tasks])
    suite.model.path = str(model)
    for task in suite.tasks:
        task.data.rows = ASKED
    figures = evaluate(suite).figures["tasks"]
    return {name: figures[name]["exact_match"] for name in tasks}


def _mean(values: Sequence[float], digits: int) -> str:
    error = f" ± {statistics.stdev(values):.{digits}f}" if len(values) > 1 else ""
    return f"{statistics.fmean(values):.{digits}f}{error}"
