"""How confident a model was in each example while it learnt it (SFTMix, Jin et al., arXiv:2410.05248).

    Conf_i = -(1/C) sum_c Perp_c(Y_i | X_i),    Perp_c = exp( -(1/N_i) sum_n log p_c(y_n | X_i, y_<n) )          (M1)

over C checkpoints of a reference run, trained on the same data, and the N_i supervised targets of example i. One model
that was not trained on it, C = 1, gives its perplexity alone.
"""

from typing import Any

import jax
import numpy as np
from etils import epath
from jax.sharding import Mesh

from jaxsft.config import ScoreConfig
from jaxsft.data.dataset import Dataset, prepare
from jaxsft.data.grouping import by_itself
from jaxsft.data.loader import Loader
from jaxsft.data.tokenizer import load_tokenizer
from jaxsft.errors import UserError
from jaxsft.models.checkpoint import fingerprint, resolve
from jaxsft.scoring.reference import score_log_probs
from jaxsft.scoring.table import read_scores, write_scores
from jaxsft.sharding import data_shards, make_mesh, process_share
from jaxsft.training.program import dtypes
from jaxsft.training.restore import open_model, tokenizer_source
from jaxsft.training.runs import is_workdir, snapshots, trained_by, weights_fingerprint

LARGEST = 50.0  # nats; a mean beyond it counts as this, so that one wild checkpoint leaves the others a say


def confidence(nll: np.ndarray, counts: np.ndarray) -> np.ndarray:
    """Equation (M1): float64 [N], at most -1.

    Args:
      nll: [C, N], summed over the supervised targets of each example, in nats.
      counts: [N], how many these are.
    """
    mean = np.asarray(nll, np.float64) / np.asarray(counts, np.float64)
    return -np.exp(np.minimum(mean, LARGEST)).mean(axis=0)


def score_confidence(config: ScoreConfig, path: epath.PathLike) -> str:
    """Writes a table of confidences, or finds it written; what was broken off goes on.

    The table has the columns `confidence` and, for every checkpoint of step s, `nll_s` (nats, summed).

    Args:
      config: what is asked about what.
      path: the table. A table for each checkpoint is kept beside it.

    Returns:
      One line on the result.

    Raises:
      UserError: for a model or data that cannot be read, and for tables of other examples or models.
    """
    path, model, mesh = epath.Path(path), config.model.path, make_mesh(config.mesh)
    steps: list[int | None] = list(snapshots(model)) if is_workdir(model) else [None]
    dataset, loader = read_examples(config, mesh)
    key = table_key(config, dataset, mesh) | {"models": [model_fingerprint(model, step) for step in steps]}
    if not path.exists():
        nll = {}
        for i, step in enumerate(steps):
            name = _name(step)
            if jax.process_index() == 0:
                print(f"{i + 1}/{len(steps)}: {model}{'' if step is None else f' at step {step}'}", flush=True)
            nll[name] = summed_nll(config, dataset, loader, mesh, path.parent / f"{name}.parquet", step)
        scores = {"confidence": confidence(np.stack(list(nll.values())), dataset.supervised).astype(np.float32), **nll}
        if jax.process_index() == 0:
            write_scores(path, key, np.arange(len(dataset)), scores)
    else:
        scores = read_scores(path, key)[1]
    low, median, high = np.quantile(scores["confidence"], (0, 0.5, 1))
    return (
        f"{len(dataset)} examples by {len(steps)} checkpoints, confidence {low:.3g} to {high:.3g}, median {median:.3g}"
    )


def read_examples(config: ScoreConfig, mesh: Mesh) -> tuple[Dataset, Loader]:
    """The examples of a run or of `config.data`, as scores are made of them."""
    model, data = config.model.path, config.data
    tokenizer = resolve(tokenizer_source(model))
    if is_workdir(model):
        run = trained_by(model)
        data = data if data.path or data.sources else run.data
    if not data.path and not data.sources:
        raise UserError("config.data.path is empty; a model that is no run's workdir says of no data what it learnt.")
    dataset = prepare(by_itself(data, config.grouping), load_tokenizer(str(tokenizer)))
    rows = -(-config.batch_size // data_shards(mesh)) * data_shards(mesh)
    return dataset, Loader(dataset, dataset.config, rows, 0, *process_share(mesh, jax.process_index()))


def summed_nll(
    config: ScoreConfig, dataset: Dataset, loader: Loader, mesh: Mesh, path: epath.Path, step: int | None
) -> np.ndarray:
    """float32 [examples], of one checkpoint; kept, so that a broken-off stage loads no model for it again."""
    key = table_key(config, dataset, mesh) | {"model": model_fingerprint(config.model.path, step)}
    if path.exists():
        return -read_scores(path, key)[1]["log_prob"]
    opened = open_model(config.model.path, config.model, mesh, step)
    dataset.check_vocabulary(opened.decoder.arch.vocab_size)
    weights = (opened.params, opened.adapters)
    return -score_log_probs(opened.decoder, weights, dataset, loader, mesh, path, key)


def table_key(config: ScoreConfig, dataset: Dataset, mesh: Mesh) -> dict[str, Any]:
    """What decides the numbers besides the models: nothing else records it before the stage is done."""
    dtype, param_dtype = (str(dtype) for dtype in dtypes(config.model, mesh))
    stored = [config.model.quantization, config.model.double_quantization]
    known = {"examples": dataset.examples_fingerprint, "dtype": dtype, "param_dtype": param_dtype}
    return known | ({"quantization": stored} if config.model.quantization != "none" else {})


def model_fingerprint(model: str, step: int | None) -> str:
    """Of a model folder, or of the checkpoint of a step in a workdir."""
    return fingerprint(resolve(model)) if step is None else weights_fingerprint(model, step)


def _name(step: int | None) -> str:
    return "nll" if step is None else f"nll_{step}"
