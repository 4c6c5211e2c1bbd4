"""How much the answers of training data need the context that they are given with (Goyal et al., arXiv:2410.10796).

Examples whose answer a model gives without the context teach it to do without contexts. The split of context-critical
examples ranks all by the loss of the base on the answer when the context is left out, and trains on the higher part:

    loss                 = -(1/|y|) log p(y | instruction, context)
    loss_without_context = -(1/|y|) log p(y | instruction)
    context_gain         = loss_without_context - loss

in nats a token. The second is the paper's, as second-hand accounts have it. It is high, too, for answers that are
merely hard; the gain is not, and is 0 for an example without context.

The table is what `config.data.scores` reads; `config.data.score` names one of the three, `config.data.keep` the part.
"""

import dataclasses

import jax
import numpy as np
from etils import epath

from jaxsft.config import DataConfig, ScoreConfig
from jaxsft.errors import UserError
from jaxsft.scoring.confidence import model_fingerprint, read_examples, summed_nll, table_key
from jaxsft.scoring.table import read_scores, write_scores
from jaxsft.sharding import make_mesh
from jaxsft.training.runs import is_workdir, snapshots

LEFT_OUT = "context_left_out"  # a name that no form of records knows


def score_context(config: ScoreConfig, path: epath.PathLike) -> str:
    """Writes a table of the columns `loss`, `loss_without_context` and `context_gain`, or finds it written.

    Args:
      config: `context` names the field that is left out; a run's workdir as the model is its last checkpoint.
      path: the table. One of the summed loss with the context and one of that without are kept beside it.

    Returns:
      One line on the result.

    Raises:
      UserError: for a model or data that cannot be read, records without that field, and tables of other examples.
    """
    path, mesh, model = epath.Path(path), make_mesh(config.mesh), config.model.path
    step = snapshots(model)[-1] if is_workdir(model) else None
    dataset, loader = read_examples(config, mesh)
    bare = dataclasses.replace(config, data=without(dataset.config, config.context), grouping="example")
    key = table_key(config, dataset, mesh) | {"model": model_fingerprint(model, step), "context": config.context}
    if not path.exists():
        alone, alone_loader = read_examples(bare, mesh)
        place = {record: i for i, record in enumerate(zip(alone.records.tolist(), alone.variants.tolist()))}
        same = [place.get(record, -1) for record in zip(dataset.records.tolist(), dataset.variants.tolist())]
        if lost := same.count(-1):
            raise UserError(
                f"{lost} of {len(same)} examples are dropped when config.context {config.context!r} is left out, the "
                f"first that of record {dataset.records[same.index(-1)] + 1}, so they have no loss without it; leave "
                "them out, or name another field."
            )
        told = summed_nll(config, dataset, loader, mesh, path.parent / "nll.parquet", step) / dataset.supervised
        nll = summed_nll(bare, alone, alone_loader, mesh, path.parent / "nll_without_context.parquet", step)
        mean = (nll / alone.supervised)[same]
        scores = {"loss": told, "loss_without_context": mean, "context_gain": mean - told}
        if jax.process_index() == 0:
            columns = {name: np.asarray(values, np.float32) for name, values in scores.items()}
            write_scores(path, key, np.arange(len(dataset)), columns)
    else:
        scores = read_scores(path, key)[1]
    gains = scores["context_gain"]
    low, median, high = np.quantile(gains, (0, 0.5, 1))
    return f"{len(gains)} examples, context gain {low:.3g} to {high:.3g} nats a token, median {median:.3g}"


def without(data: DataConfig, field: str) -> DataConfig:
    """The data whose records lack a field."""
    sources = [dataclasses.replace(s, fields={**s.fields, field: LEFT_OUT}) for s in data.all_sources()]
    return dataclasses.replace(data, path="", rows="", fields={}, sources=sources)
