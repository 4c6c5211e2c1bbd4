"""From a data config to the examples that rows are made of, and the report of what was kept, cut and dropped."""

import collections
import hashlib
import json
from collections.abc import Iterable
from typing import Any

import numpy as np

from jaxsft.config import DataConfig
from jaxsft.data import classes, mixture, selection, types
from jaxsft.data.batch import DOMAIN, TYPE
from jaxsft.data.cache import TokenCache
from jaxsft.data.grouping import GROUPINGS, longest
from jaxsft.data.groups import Groups
from jaxsft.data.report import Report, check_dropped
from jaxsft.data.sources import open_source
from jaxsft.data.tokenise import tokenised
from jaxsft.data.tokenizer import Tokenizer
from jaxsft.data.windows import Windows, windows
from jaxsft.errors import UserError


def prepare(config: DataConfig, tokenizer: Tokenizer, seed: int = 0) -> "Dataset":
    """Reads, renders and tokenises what `config` names, through the cache.

    Args:
      config: the data.
      tokenizer: the model's.
      seed: of the draws of fractional mixtures.

    Raises:
      UserError: for data that cannot be trained on, saying which record and why.
    """
    if config.max_length < 2 * GROUPINGS[config.grouping].parts:
        raise UserError(f"config.data.max_length is {config.max_length}; a token and its target need at least 2.")
    classes.check(config)
    mixture.check(config)
    sources = config.all_sources()
    opened = [open_source(source) for source in sources]
    caches = [tokenised(source, s, config, tokenizer) for source, s in zip(sources, opened)]
    return Dataset(config, caches, [source.weight for source in sources], seed, tokenizer.bos_id)


class Dataset:
    """The examples of all sources, within `max_length`, and how they form groups.

    Attributes:
      config: what it was made from.
      lengths: int32 [examples], tokens.
      supervised: int32 [examples], how many of them have a loss weight.
      first_targets: int32 [examples], place of the first of these.
      records: int64 [examples], which record each is of; windows of a long text share one.
      variants: int32 [examples], which of a record's conversations each is: of a preference pair 0 the preferred
        answer and 1 the rejected one.
      report: what was kept, cut and dropped.
      fingerprint: of everything that decides the examples and their order.
      examples_fingerprint: of the examples alone, which is what scores belong to.
      sources, task_types: names that the extras `source` and `task_type` index.
      domain_ids: int32 [examples], index into `config.mixture.domains`; empty without domains. Batches then hold
        `domain/NAME` [B, E] for each: 1 for its examples, 0 for others.
      type_ids: int32 [examples], their types by `config.types`, -1 for none, which batches then hold as `type` [B, E];
        empty where examples have no types.
      ranking: float32 [examples], the scores that `config.scores` names, or None.
    """

    def __init__(
        self, config: DataConfig, caches: list[TokenCache], weights: list[float], seed: int, bos_id: int | None = None
    ):
        """Applies the truncation policy to cached examples.

        Raises:
          UserError: if too many are dropped, or none is left; and what the groups refuse.
        """
        self._caches, self._seed, self.config, self._bos_id = caches, seed, config, bos_id
        self._scores: dict[str, Any] = {}
        parts = [windows(cache, config) for cache in caches]
        self.sources = sorted({name for cache in caches for name in cache.source_names})
        self.task_types = sorted({name for cache in caches for name in cache.task_type_names})
        self._cache_of = np.concatenate([np.full(len(part.starts), i, np.int32) for i, part in enumerate(parts)])
        self._starts = np.concatenate([part.starts for part in parts])
        self.lengths = np.concatenate([part.lengths for part in parts]).astype(np.int32)
        self.supervised = np.concatenate([part.supervised for part in parts]).astype(np.int32)
        self.source_ids = _rename(parts, [c.sources for c in caches], [c.source_names for c in caches], self.sources)
        self.task_type_ids = _rename(
            parts, [c.task_types for c in caches], [c.task_type_names for c in caches], self.task_types
        )
        firsts = np.cumsum([0] + [cache.num_records for cache in caches])
        self.records = np.concatenate([first + c.records[p.records] for first, c, p in zip(firsts, caches, parts)])
        self.variants = np.concatenate([c.variants[p.records] for c, p in zip(caches, parts)]).astype(np.int32)
        self._scales, report_scales = self._class_scales()
        firsts_of = [np.where(c.is_text[p.records], 1, c.firsts[p.records]) for c, p in zip(caches, parts)]
        self.first_targets = np.concatenate(firsts_of).astype(np.int32)
        self._weights = weights
        if not any(weights):
            raise UserError("every source of the mixture has weight 0; give one a positive weight.")
        self._bounds = np.cumsum([0] + [len(part.starts) for part in parts])
        scaled = [] if not report_scales else [config.classes.by, report_scales]
        spread = [] if config.weighting == "token" else [config.weighting]
        self.examples_fingerprint = _digest(
            [cache.fingerprint for cache in caches], longest(config), config.truncation, *scaled, *spread
        )
        order = [] if config.grouping == "example" else [config.grouping, config.attention_unit]
        if config.grouping == "domain":
            order += [config.mixture.by, config.mixture.domains]
        if types.given(config.types):
            order += ["types", config.types.by, sorted(config.types.of.items()), config.types.other]
        self.ranking = selection.read_ranking(config, self.examples_fingerprint, len(self))
        if self.ranking is not None:
            order += ["ranked", selection.digest(self.ranking), config.keep]
        part = selection.read_part(config, self.examples_fingerprint, len(self))
        if part is not None:
            order += ["part", selection.digest(part)]
        self.fingerprint = _digest(self.examples_fingerprint, weights, seed, *order)
        self.report = self._report(parts, report_scales)
        check_dropped(self.report, config, sum(len(cache.records) for cache in caches))
        lowest = np.full(int(self.records[-1]) + 1, np.iinfo(np.int32).max)
        np.minimum.at(lowest, self.records, self.variants)
        self._first = self.variants == lowest[self.records]
        if part is not None:
            self.report.notices["left to other parts"] = int(np.sum(self._first & ~part))
            self._first &= part
        if config.keep < 1:
            whole, self._first = self._first, selection.best(self.ranking, self._first, config.keep)
            self.report.notices[f"left out by their {config.score}"] = int(np.sum(whole & ~self._first))
        self.domain_ids = mixture.domain_ids(self) if config.mixture.domains else np.zeros(0, np.int32)
        self.type_ids = types.type_ids(self)
        self.report.types = types.counts(self.type_ids)
        self.report.notices.update(GROUPINGS[config.grouping].notices(self, self._members(0)))

    def __len__(self) -> int:
        return len(self.lengths)

    def check_vocabulary(self, size: int) -> None:
        """Refuses data that a model of so many embeddings cannot read; a lookup beyond them would give NaN.

        Raises:
          UserError: if there is a token id of `size` or more.
        """
        largest = max(cache.max_id for cache in self._caches)
        if largest >= size:
            raise UserError(
                f"the data holds the token id {largest}, but the model has {size} embeddings (vocab_size): its "
                "tokenizer was extended without it; resize the model, or choose a template of its own tokens."
            )

    def example(self, i: int) -> tuple[np.ndarray, np.ndarray, dict[str, int]]:
        """Example i: ids int32 [n], weights float32 [n] of each token as a target, and its extras."""
        cache, start = self._caches[self._cache_of[i]], self._starts[i]
        window = slice(start, start + self.lengths[i])
        weights = self._spread(i)
        weights[:1] = 0.0  # a later window's first token was scored in the one before
        return np.array(cache.ids[window]), weights, self.extras(i)

    def _spread(self, i: int) -> np.ndarray:
        """float32 [n], the loss weights of example i under its class's."""
        cache, start, stop = self._caches[self._cache_of[i]], self._starts[i], self._starts[i] + self.lengths[i]
        first, last = start, stop
        if self.config.weighting == "turn":  # a turn that is cut keeps the weights that it has as a whole
            place = np.searchsorted(cache.starts, start, side="right") - 1
            first, last = cache.starts[place : place + 2]
        whole = np.array(cache.weights[first:last])
        weights = classes.spread(whole, self._scales[i], self.config.weighting, self.supervised[i])
        return weights[start - first : stop - first]

    def extras(self, i: int) -> dict[str, Any]:
        """What a batch holds of an example besides.

        A number goes into the example's slot of an [B, E] array; an array of one number a token, of the token as a
        target, as weights are, into an [B, T] array.
        """
        extras = {"example_index": i, "source": int(self.source_ids[i])}
        if any(self.task_types):
            extras["task_type"] = int(self.task_type_ids[i])
        for k, name in enumerate(self.config.mixture.domains):
            extras[f"{DOMAIN}{name}"] = int(self.domain_ids[i] == k)
        if len(self.type_ids):
            extras[TYPE] = int(self.type_ids[i])
        return extras | {name: values[i] for name, values in self._scores.items()}

    def score(self, name: str, values: Any) -> None:
        """Gives every example a score, which batches then hold under this name.

        Args:
          name: of the extra; a name that is there already gets new values.
          values: float32 [examples]; or for each example an array of one float32 a token, of the token as a target.
        """
        if len(values) != len(self):
            raise ValueError(f"{len(values)} scores {name!r} for {len(self)} examples")
        self._scores[name] = values

    def epoch(self, epoch: int) -> Groups:
        """The groups of an epoch: those of a source of weight 2 twice, of 0.5 a random half."""
        return GROUPINGS[self.config.grouping].groups(self, self._members(epoch), epoch)

    def begins_with_bos(self, examples: np.ndarray) -> np.ndarray:
        """bool, whether each of some examples begins with the tokenizer's BOS."""
        found = np.zeros(examples.shape, bool)
        for i, cache in enumerate(self._caches):
            own = self._cache_of[examples] == i
            found[own] = cache.ids[self._starts[examples[own]]] == self._bos_id
        return found

    def _members(self, epoch: int) -> np.ndarray:
        """int64, the examples that sources and weights give an epoch, of each record its first variant."""
        chosen = []
        for i, (weight, begin, end) in enumerate(zip(self._weights, self._bounds, self._bounds[1:])):
            own = begin + np.flatnonzero(self._first[begin:end])
            whole, count = int(weight), round((weight - int(weight)) * len(own))
            random = np.random.default_rng((self._seed, epoch, i))
            chosen += [own] * whole
            chosen.append(own[np.sort(random.choice(len(own), count, replace=False))])
        return np.concatenate(chosen).astype(np.int64)

    def random(self, epoch: int, *which: int) -> np.random.Generator:
        """Of the draws of an epoch's groups; several independent ones by `which`."""
        return np.random.default_rng((self._seed, epoch, len(self._weights), *which))

    @property
    def epochs_vary(self) -> bool:
        """Whether epochs hold different groups."""
        fractional = any(weight != int(weight) for weight in self._weights)
        return fractional or GROUPINGS[self.config.grouping].varies

    def _class_scales(self) -> tuple[np.ndarray, dict[str, float]]:
        """float64 [examples], the weight of each example's class; and what classes have, {} where all have the same."""
        by_type = self.config.classes.by == "task_type"
        names, ids = (self.task_types, self.task_type_ids) if by_type else (self.sources, self.source_ids)
        weights = classes.class_weights(self.config.classes, names, np.bincount(ids, minlength=len(names)).tolist())
        differ = bool((weights != 1.0).any())
        return weights[ids], dict(zip(names, weights.tolist())) if differ else {}

    def _report(self, parts: list["Windows"], class_weights: dict[str, float]) -> Report:
        count = lambda ids, names: dict(zip(names, np.bincount(ids, minlength=len(names)).tolist()))
        return Report(
            records=sum(cache.num_records for cache in self._caches),
            examples=len(self.lengths),
            cut=sum(part.cut for part in parts),
            dropped=_total(part.dropped for part in parts),
            tokens=int(self.lengths.sum(dtype=np.int64)),
            supervised=int(self.supervised.sum(dtype=np.int64)),
            sources=count(self.source_ids, self.sources),
            task_types=count(self.task_type_ids, self.task_types),
            notices=_total(cache.notices for cache in self._caches),
            class_weights=class_weights,
        )


def _rename(parts: list[Windows], ids: list[np.ndarray], names: list[list[str]], all_names: list[str]) -> np.ndarray:
    """int32, each example's name as an index into `all_names`."""
    maps = [np.array([all_names.index(name) for name in own], np.int32) for own in names]
    return np.concatenate([m[i[part.records]] for m, i, part in zip(maps, ids, parts)]).astype(np.int32)


def _total(counts: Iterable[dict[str, int]]) -> dict[str, int]:
    return dict(sum((collections.Counter(count) for count in counts), collections.Counter()))


def _digest(*values: Any) -> str:
    return hashlib.sha256(json.dumps(values).encode()).hexdigest()[:32]
