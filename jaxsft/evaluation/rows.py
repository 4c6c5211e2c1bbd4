"""Rows to score: of any size that holds the examples, since no figure depends on it."""

import dataclasses
from collections.abc import Iterator

import jax
import numpy as np
from jax.sharding import Mesh
from tqdm import tqdm

from jaxsft.config import DataConfig, SourceConfig
from jaxsft.data.batch import Batch
from jaxsft.data.conversation import parse
from jaxsft.data.dataset import Dataset, prepare
from jaxsft.data.loader import Loader
from jaxsft.data.sources import open_source
from jaxsft.data.tokenizer import Tokenizer
from jaxsft.errors import UserError
from jaxsft.models.architecture import Architecture
from jaxsft.sharding import process_share

SHORTEST_ROW = 256  # below it a row is not worth its overhead


def read_examples(config: DataConfig, tokenizer: Tokenizer, arch: Architecture) -> Dataset:
    """The examples that `config` names, none longer than the model's context.

    A conversation is cut to the context (or to less, by `config.max_length`), as in training. Plain text is never
    cut: it begins with BOS if the tokenizer defines one, has no EOS, and is read in windows of up to context inputs,
    each of which begins with the last token that the window before predicted. So every token but the first is scored
    once, given what precedes it in its window.

    Raises:
      UserError: see `prepare`; also for token ids that the model does not have, and a selection.
    """
    if config.part >= 0 or config.keep < 1:
        name = "part" if config.part >= 0 else "keep"
        raise UserError(
            f"config.data.{name} selects what is trained on, but here every example counts; leave it alone, and name "
            "the rows by config.data.rows."
        )
    longest = arch.max_positions + _is_text(config)  # the last token of a window is only predicted
    dataset = prepare(dataclasses.replace(config, max_length=min(config.max_length, longest)), tokenizer)
    dataset.check_vocabulary(arch.vocab_size)
    return dataset


def batches(
    dataset: Dataset,
    config: DataConfig,
    batch_size: int,
    mesh: Mesh,
    name: str = "scoring",
    examples: np.ndarray | None = None,
) -> Iterator[Batch]:
    """Every example once, in rows just long enough.

    Args:
      dataset: what `read_examples` returned, or `InMemory`.
      config: for `packing` and `max_examples_per_row`.
      batch_size: rows of a batch; rounded up so that they divide over the mesh.
      mesh: the model's.
      name: what the progress bar says.
      examples: those that are wanted; None is all.
    """
    longest = int(dataset.lengths.max())
    length = max(SHORTEST_ROW, 1 << (longest - 2).bit_length()) + 1 if config.packing else longest
    shares, count = process_share(mesh, jax.process_index())
    rows = -(-batch_size // count) * count
    loader = Loader(dataset, dataclasses.replace(config, max_length=length), rows, 0, shares, count)
    count_all = len(dataset) if examples is None else len(examples)
    with tqdm(total=count_all, desc=name, unit="example", leave=False, disable=None) as progress:
        for batch in loader.evaluation_batches(examples=examples):
            yield _without_last_column(batch)
            progress.update(int((batch.extras["example_index"] >= 0).sum()))


class InMemory:
    """Examples that were made here, as `Loader` reads them.

    Attributes:
      lengths: int32 [examples], tokens.
      supervised: int32 [examples], tokens of weight above 0.
    """

    def __init__(self, examples: list[tuple[np.ndarray, np.ndarray]]):
        """Keeps (ids int32 [n], weights float32 [n] of each token as a target) of every example."""
        self._examples = examples
        self.lengths = np.array([len(ids) for ids, _ in examples], np.int32)
        self.supervised = np.array([np.count_nonzero(weights) for _, weights in examples], np.int32)

    def __len__(self) -> int:
        return len(self._examples)

    def example(self, i: int) -> tuple[np.ndarray, np.ndarray, dict[str, int]]:
        """Example i: ids, weights, and its extras."""
        return *self._examples[i], self.extras(i)

    def extras(self, i: int) -> dict[str, int]:
        """What goes into an example's slot of a batch."""
        return {"example_index": i}


def _is_text(config: DataConfig) -> bool:
    """Whether the first record of every source is plain text."""

    def first_is_text(source: SourceConfig) -> bool:
        record, where = next(iter(open_source(source).records(0, 1)))
        return parse(record, where, source.fields).text is not None

    return all(first_is_text(source) for source in config.all_sources())


def _without_last_column(batch: Batch) -> Batch:
    """Nothing follows the last column, so it predicts nothing and nothing sees it."""
    names = ("tokens", "positions", "segment_ids", "example_ids", "targets", "weights")
    cut = {name: getattr(batch, name)[:, :-1] for name in names}
    whole = batch.tokens.shape
    extras = {name: extra[:, :-1] if extra.shape == whole else extra for name, extra in batch.extras.items()}
    return dataclasses.replace(batch, **cut, extras=extras)
