"""The job that disperses a data set: a table of parts, what they are like, and a picture of them.

Records are dispersed, so what belongs to one record (a pair, the windows of a long text) stays together.
"""

import io
from typing import Any, NamedTuple

import jax
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from etils import epath

from jaxsft.config import DisperseConfig
from jaxsft.data.dataset import Dataset, prepare
from jaxsft.data.grouping import by_itself
from jaxsft.data.loader import Loader
from jaxsft.data.tokenizer import Tokenizer, load_tokenizer
from jaxsft.dispersal import partition, picture
from jaxsft.errors import UserError
from jaxsft.files import write_json, write_text
from jaxsft.models.checkpoint import fingerprint, resolve
from jaxsft.scoring.embedding import embed_examples
from jaxsft.scoring.table import write_scores
from jaxsft.sharding import data_shards, make_mesh, process_share
from jaxsft.training.program import dtypes
from jaxsft.training.restore import open_model, tokenizer_source
from jaxsft.training.runs import is_workdir, weights_fingerprint

PARTS, RECORD, PICTURE, VECTORS = "parts.parquet", "dispersal.json", "dispersal.html", "vectors.parquet"
TYPICAL, LETTERS = 3, 300  # examples told of each part, and how much of each
SAMPLE = 2000  # records in the picture


class Cut(NamedTuple):
    """A dispersal.

    Attributes:
      parts: int32 [records], of the records that are used.
      vectors: float32 [records, D] of unit length that it went by, or None.
      centroids: float32 [K, D], or None.
      names: what each part holds, where it went by names.
    """

    parts: np.ndarray
    vectors: np.ndarray | None = None
    centroids: np.ndarray | None = None
    names: list[list[str]] | None = None


def disperse(config: DisperseConfig, folder: epath.PathLike) -> str:
    """Writes `parts.parquet` (what `config.data.parts` of a training run reads), `dispersal.json` and `dispersal.html`.

    Args:
      config: what is dispersed and how.
      folder: of the files.

    Returns:
      One line on the result.

    Raises:
      UserError: for data or a model that cannot be read, and for parts that stay empty.
    """
    folder, mesh = epath.Path(folder), make_mesh(config.mesh)
    tokenizer = load_tokenizer(str(resolve(tokenizer_source(config.model.path))))
    dataset = prepare(by_itself(config.data, config.grouping), tokenizer)
    if not config.parts and config.method not in ("source", "task_type"):
        raise UserError(f"config.parts is 0, but {config.method!r} has no names to take parts from; say how many.")
    records, first, place = np.unique(dataset.records, return_index=True, return_inverse=True)
    if len(records) < config.parts:
        raise UserError(f"config.parts is {config.parts}, but the data has {len(records)} records; ask for fewer.")
    cut = _cut(config, folder, mesh, dataset, records, first)
    parts = cut.parts[place]
    if len(np.unique(parts)) < config.parts:
        empty = sorted(set(range(config.parts)) - set(parts.tolist()))
        raise UserError(f"part {empty[0]} of {config.parts} got no record; ask for fewer parts, or take another seed.")
    told = _describe(config, dataset, tokenizer, cut, parts, first)
    if jax.process_index() == 0:
        key = {"examples": dataset.examples_fingerprint, "method": config.method, "seed": config.seed}
        write_scores(folder / PARTS, key, np.arange(len(dataset)), {"part": parts})
        write_json(folder / RECORD, told)
        write_text(folder / PICTURE, picture.page(told, _sample(cut)))
    sizes = ", ".join(str(part["examples"]) for part in told["parts"])
    return f"{len(dataset)} examples in {len(told['parts'])} parts by {config.method}: {sizes}"


def _cut(
    config: DisperseConfig, folder: epath.Path, mesh: Any, dataset: Dataset, records: np.ndarray, first: np.ndarray
) -> Cut:
    count = len(records)
    if config.method == "random":
        return Cut(partition.permuted(count, config.parts, config.seed))
    if config.method == "iid":
        return Cut(partition.independent(count, config.parts, config.seed))
    if config.method in ("source", "task_type"):
        by_type = config.method == "task_type"
        names, ids = (dataset.task_types, dataset.task_type_ids) if by_type else (dataset.sources, dataset.source_ids)
        parts, held = partition.by_name(ids[first], names, config.parts)
        return Cut(parts, names=held)
    if config.vectors:
        vectors = _read_vectors(config.vectors, dataset.report.records)[records]
    else:
        vectors = _embed(config, folder, mesh, dataset)[first]
    parts, centroids = partition.kmeans(vectors, config.parts, config.seed, config.balanced)
    return Cut(parts, partition.normalised(vectors), centroids)


def _embed(config: DisperseConfig, folder: epath.Path, mesh: Any, dataset: Dataset) -> np.ndarray:
    model = config.model.path
    opened = open_model(model, config.model, mesh)
    dataset.check_vocabulary(opened.decoder.arch.vocab_size)
    rows = -(-config.batch_size // data_shards(mesh)) * data_shards(mesh)
    loader = Loader(dataset, dataset.config, rows, 0, *process_share(mesh, jax.process_index()))
    key = {
        "examples": dataset.examples_fingerprint,
        "model": weights_fingerprint(model) if is_workdir(model) else fingerprint(resolve(model)),
        "param_dtype": str(dtypes(config.model, mesh)[1]),
    }
    if config.model.quantization != "none":
        key["quantization"] = [config.model.quantization, config.model.double_quantization]
    if config.model.base:
        key["base"] = fingerprint(resolve(config.model.base))
    weights = (opened.params, opened.adapters)
    return embed_examples(opened.decoder, weights, dataset, loader, mesh, folder / VECTORS, key, config.text)


def _read_vectors(path: str, count: int) -> np.ndarray:
    """float32 [records, D], of a user's file."""
    try:
        table = pq.read_table(io.BytesIO(epath.Path(path).read_bytes()))
    except (FileNotFoundError, pa.ArrowInvalid) as error:
        raise UserError(f"config.vectors={path} is no Parquet file that can be read: {error}") from error
    if "vector" not in table.column_names:
        raise UserError(f"{path} has no column 'vector'; it has {', '.join(table.column_names)}.")
    vectors = table.column("vector").to_pylist()
    widths = {len(vector) if isinstance(vector, list) else 0 for vector in vectors}
    if len(vectors) != count or len(widths) != 1 or 0 in widths:
        raise UserError(
            f"{path} holds {len(vectors)} vectors of {sorted(widths)} numbers; it needs one of the same length for "
            f"each of the {count} records, in their order."
        )
    return np.asarray(vectors, np.float32)


def _describe(
    config: DisperseConfig, dataset: Dataset, tokenizer: Tokenizer, cut: Cut, parts: np.ndarray, first: np.ndarray
) -> dict[str, Any]:
    """What each part holds, as plain JSON values."""
    told = []
    for part in range(int(parts.max()) + 1):
        own, members = parts == part, np.flatnonzero(cut.parts == part)
        if cut.centroids is not None:
            away = partition.distances(cut.vectors[members], cut.centroids[part : part + 1])[:, 0]
            members = members[np.argsort(away, kind="stable")]
        count = lambda ids, names, own=own: {
            n: int(c) for n, c in zip(names, np.bincount(ids[own], minlength=len(names))) if n and c
        }
        told.append(
            {
                "records": len(members),
                "examples": int(own.sum()),
                "tokens": int(dataset.lengths[own].sum(dtype=np.int64)),
                "supervised": int(dataset.supervised[own].sum(dtype=np.int64)),
                "names": cut.names[part] if cut.names else [],
                "sources": count(dataset.source_ids, dataset.sources),
                "task_types": count(dataset.task_type_ids, dataset.task_types),
                "examples_of_it": [_text(dataset, tokenizer, first[m]) for m in members[:TYPICAL]],
            }
        )
    fields = {name: getattr(config, name) for name in ("method", "seed", "balanced", "text", "vectors")}
    return fields | {"data": dataset.fingerprint, "examples": dataset.examples_fingerprint, "parts": told}


def _text(dataset: Dataset, tokenizer: Tokenizer, example: int) -> str:
    text = tokenizer.hf.decode(dataset.example(int(example))[0].tolist())
    return text if len(text) <= LETTERS else text[: LETTERS - 1] + "…"


def _sample(cut: Cut) -> tuple[np.ndarray, np.ndarray] | None:
    """Some records' vectors and parts, evenly over the data, for the picture."""
    if cut.vectors is None:
        return None
    chosen = np.unique(np.linspace(0, len(cut.parts) - 1, min(SAMPLE, len(cut.parts))).astype(int))
    return cut.vectors[chosen], cut.parts[chosen]
