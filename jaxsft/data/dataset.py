"""From a data config to the examples that rows are made of, and the report of what was kept, cut and dropped."""

import collections
import dataclasses
import hashlib
import itertools
import json
from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Any, NamedTuple

import numpy as np
import tokenizers
from tqdm import tqdm

from jaxsft.config import DataConfig, SourceConfig
from jaxsft.data import classes, dcot, mixture, mixup, selection
from jaxsft.data.batch import DOMAIN
from jaxsft.data.cache import Entry, TokenCache, cache_folder, cached, hash_files
from jaxsft.data.conversation import Conversation, parse
from jaxsft.data.groups import Groups
from jaxsft.data.preference import pairs, sides
from jaxsft.data.render import Example, Renderer
from jaxsft.data.sources import Source, open_source, row_range
from jaxsft.data.templates import Template, load_template
from jaxsft.data.tokenizer import Tokenizer
from jaxsft.errors import UserError

CHUNK = 256  # records rendered, then tokenised together
NO_TARGET = "no supervised token"
CUT_TARGET = "no supervised token left within max_length"
TOO_LONG = "longer than max_length"
UNWANTED = "of a class of weight 0"
LOST_VARIANT = "left without the other conversation of their record"


@dataclasses.dataclass
class Report:
    """What became of the records.

    Attributes:
      records: how many were read.
      examples: how many are trained on; plain text longer than a row gives several.
      cut: examples cut to `max_length`.
      dropped: reason -> records.
      tokens: tokens of all examples.
      supervised: how many of these have a loss weight.
      sources: name -> examples.
      task_types: name -> examples.
      notices: what looks like a mistake but may be meant -> examples.
      class_weights: class -> loss weight of its tokens, where classes differ.
    """

    records: int
    examples: int
    cut: int
    dropped: dict[str, int]
    tokens: int
    supervised: int
    sources: dict[str, int]
    task_types: dict[str, int]
    notices: dict[str, int]
    class_weights: dict[str, float] = dataclasses.field(default_factory=dict)

    def __str__(self) -> str:
        dropped = ", ".join(f"{count} {reason}" for reason, count in self.dropped.items()) or "none"
        lines = [
            f"{self.records} records -> {self.examples} examples; cut: {self.cut}; dropped: {dropped}",
            f"{self.tokens} tokens, {self.supervised} supervised ({self.supervised / max(self.tokens, 1):.1%})",
        ]
        if len(self.sources) > 1:
            lines.append("sources: " + ", ".join(f"{name} {count}" for name, count in self.sources.items()))
        if any(self.task_types):
            lines.append("task types: " + ", ".join(f"{name or '(none)'} {n}" for name, n in self.task_types.items()))
        if self.class_weights:
            lines.append("class weights: " + ", ".join(f"{name} {w:.4g}" for name, w in self.class_weights.items()))
        return "\n".join(lines + [f"note: {count} {what}" for what, count in self.notices.items()])


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
    caches = [_tokenised(source, s, config, tokenizer) for source, s in zip(sources, opened)]
    return Dataset(config, caches, [source.weight for source in sources], seed, tokenizer.bos_id)


def alone(conversation: Conversation, where: str) -> list[Conversation]:
    """The one conversation of a record."""
    del where
    return [conversation]


class Grouping(NamedTuple):
    """A way in which examples stand together, as `config.data.grouping` names it.

    Attributes:
      groups: (data set, members, epoch) -> the groups of an epoch. `members` are the examples that sources and weights
        give it, of each record its first variant; what else belongs to them, the function adds.
      expand: (conversation, where) -> the conversations that a record gives, its variants in order.
      whole: whether a record is of use only with all of its variants.
      varies: whether epochs differ in their groups.
      parts: into how many equal parts a row is divided, of which an example fills one at most: the examples of a group
        must fit in one row, whichever they are.
      read: (record, where, field map, data config) -> the conversations of a record of a form of its own, in place of
        `parse` and `expand`; None where there is none.
      notices: (data set, members) -> what users should know of the groups -> how many, as in `Report.notices`.
    """

    groups: Callable[["Dataset", np.ndarray, int], Groups]
    expand: Callable[[Conversation, str], list[Conversation]] = alone
    whole: bool = False
    varies: bool = True
    parts: int = 1
    read: Callable[[Any, str, Mapping[str, str], DataConfig], list[Conversation]] | None = None
    notices: Callable[["Dataset", np.ndarray], dict[str, int]] = lambda dataset, members: {}


GROUPINGS: dict[str, Grouping] = {
    "example": Grouping(lambda dataset, members, epoch: Groups.single(members), varies=False),
    "preference": Grouping(pairs, sides, whole=True, varies=False, parts=2),
    "mixup": Grouping(mixup.pairs, parts=2),
    "domain": Grouping(mixture.chunks, notices=mixture.notices),
    "dcot": Grouping(dcot.groups, read=dcot.read),
}


def longest(config: DataConfig) -> int:
    """Tokens of an example at most."""
    return config.max_length // GROUPINGS[config.grouping].parts


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
        parts = [_windows(cache, config) for cache in caches]
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
        self.ranking = selection.read_ranking(config, self.examples_fingerprint, len(self))
        if self.ranking is not None:
            order += ["ranked", selection.digest(self.ranking), config.keep]
        self.fingerprint = _digest(self.examples_fingerprint, weights, seed, *order)
        self.report = self._report(parts, report_scales)
        _check_dropped(self.report, config, sum(len(cache.records) for cache in caches))
        lowest = np.full(int(self.records[-1]) + 1, np.iinfo(np.int32).max)
        np.minimum.at(lowest, self.records, self.variants)
        self._first = self.variants == lowest[self.records]
        if config.keep < 1:
            whole, self._first = self._first, selection.best(self.ranking, self._first, config.keep)
            self.report.notices[f"left out by their {config.score}"] = int(np.sum(whole & ~self._first))
        self.domain_ids = mixture.domain_ids(self) if config.mixture.domains else np.zeros(0, np.int32)
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

    def _report(self, parts: list["_Windows"], class_weights: dict[str, float]) -> Report:
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


@dataclasses.dataclass
class _Windows:
    """What of a cache is used: record, first token, length and number of targets of each example."""

    records: np.ndarray
    starts: np.ndarray
    lengths: np.ndarray
    cut: int
    dropped: dict[str, int]
    supervised: np.ndarray


def _windows(cache: TokenCache, config: DataConfig) -> _Windows:
    """Applies `max_length` and the truncation policy.

    Plain text is never cut: it is read in windows that overlap by the one token whose target is in the next, so every
    token but the first is a target exactly once.
    """
    parts = GROUPINGS[config.grouping].parts
    size, starts, lengths = longest(config), cache.starts[:-1], np.diff(cache.starts)
    long = (lengths > size) & ~cache.is_text
    if config.truncation == "error" and long.any():
        bound = f"{config.max_length} / {parts}, of which a row holds {parts}" if parts > 1 else f"{size}"
        raise UserError(
            f"{long.sum()} of {len(lengths)} examples are longer than config.data.max_length {bound} (the longest has "
            f"{lengths.max()} tokens); raise it, or set config.data.truncation to 'right' or 'drop'."
        )
    unwanted = _unwanted(cache, config)
    empty = (cache.supervised == 0) & ~unwanted
    too_long = long & ~empty & ~unwanted & (config.truncation == "drop")
    lost = long & ~empty & ~unwanted & ~too_long & (cache.firsts >= size)
    kept = ~(unwanted | empty | lost | too_long)
    dropped = {UNWANTED: unwanted, NO_TARGET: empty, CUT_TARGET: lost, TOO_LONG: too_long}
    if GROUPINGS[config.grouping].whole:
        short = np.bincount(cache.records) != np.bincount(cache.records[kept], minlength=cache.num_records)
        dropped[LOST_VARIANT] = kept & short[cache.records]
        kept &= ~dropped[LOST_VARIANT]
    use = np.flatnonzero(kept)
    records, firsts, sizes = use, starts[use], np.where(long, size, lengths)[use]
    supervised = np.array(cache.supervised[use])
    for i in np.flatnonzero(long[use]):
        supervised[i] = np.count_nonzero(cache.weights[firsts[i] : firsts[i] + size])
    if (sizes > size).any():
        pieces = -(-(sizes - 1) // (size - 1))
        inside = np.arange(pieces.sum()) - np.repeat(np.cumsum(pieces) - pieces, pieces)
        ends = np.repeat(firsts + sizes, pieces)
        records, firsts = np.repeat(records, pieces), np.repeat(firsts, pieces) + inside * (size - 1)
        sizes = np.minimum(size, ends - firsts)
        supervised = np.where(cache.is_text[records], sizes - 1, supervised[np.repeat(np.arange(len(use)), pieces)])
    return _Windows(
        records,
        firsts,
        sizes,
        cut=int(long[use].sum()),
        dropped={reason: int(which.sum()) for reason, which in dropped.items() if which.any()},
        supervised=supervised,
    )


def _unwanted(cache: TokenCache, config: DataConfig) -> np.ndarray:
    """bool [examples], which are of a class of weight 0."""
    by_type = config.classes.by == "task_type"
    ids, names = (cache.task_types, cache.task_type_names) if by_type else (cache.sources, cache.source_names)
    return np.isin(ids, [i for i, name in enumerate(names) if config.classes.weight.get(name) == 0])


def _rename(parts: list[_Windows], ids: list[np.ndarray], names: list[list[str]], all_names: list[str]) -> np.ndarray:
    """int32, each example's name as an index into `all_names`."""
    maps = [np.array([all_names.index(name) for name in own], np.int32) for own in names]
    return np.concatenate([m[i[part.records]] for m, i, part in zip(maps, ids, parts)]).astype(np.int32)


def _check_dropped(report: Report, config: DataConfig, conversations: int) -> None:
    """Compares what was dropped with how many conversations the records gave."""
    mistakes = {reason: count for reason, count in report.dropped.items() if reason != UNWANTED}
    dropped = sum(mistakes.values())
    reasons = "; ".join(f"{count} {reason}" for reason, count in mistakes.items())
    if dropped and dropped > config.max_dropped * conversations:
        if report.dropped.get(NO_TARGET) == conversations:
            raise UserError(
                f"no token of any record is supervised with the template {config.template!r}: its generation tags or "
                "the records' weights mask everything; see scripts/inspect_data.py."
            )
        noun = "records" if conversations == report.records else "conversations"
        raise UserError(
            f"{dropped} of {conversations} {noun} would be dropped ({reasons}), more than config.data.max_dropped "
            f"{config.max_dropped:g} allows; raise config.data.max_length (now {config.max_length}) or mend the data."
        )
    if not report.examples:
        raise UserError("no example is left to train on; see the counts of scripts/inspect_data.py.")


def _tokenised(config: SourceConfig, source: Source, data: DataConfig, tokenizer: Tokenizer) -> TokenCache:
    start, stop = row_range(config.rows, len(source))
    folder = cache_folder(data.cache_dir)
    template = (
        None
        if data.template == "auto" and tokenizer.chat_template is None
        else load_template(data.template, tokenizer, data.condition)
    )
    key = {
        "files": hash_files(source.files, folder),
        "selection": source.selection,
        "name": source.name,
        "rows": [start, stop],
        "fields": config.fields,
        "template": template.source if template else None,
        "tokenizer": tokenizer.fingerprint,
        "tokenizers": tokenizers.__version__,
        "supervise": data.supervise,
    }
    grouping = GROUPINGS[data.grouping]
    if grouping.expand is not alone or grouping.read is not None:
        key["grouping"] = data.grouping
    if data.condition != classes.AUTO:
        key["condition"] = data.condition
    if data.classes.condition:
        key["conditions"] = [data.classes.by, data.classes.condition]
    if data.grouping == "dcot":
        key["dcot"] = dataclasses.asdict(data.dcot)
    if data.system or data.mixture.system:
        key["system"] = [data.system, data.mixture.by, data.mixture.system]
    return cached(data.cache_dir, key, _examples(config, source, range(start, stop), data, template, tokenizer))


def _examples(
    config: SourceConfig, source: Source, rows: range, data: DataConfig, template: Template | None, tokenizer: Tokenizer
) -> Iterator[Entry]:
    records = source.records(rows.start, rows.stop)
    progress = tqdm(total=len(rows), desc=f"tokenising {source.name}", unit="record", delay=1.0, disable=None)
    renderer = Renderer(template, tokenizer, data.supervise)
    with progress:
        while chunk := list(itertools.islice(records, CHUNK)):
            several = [(_conversations(record, where, config, data), where) for record, where in chunk]
            pairs = [
                (mixture.add_system(conversation, data, source.name, where), where)
                for conversations, where in several
                for conversation in conversations
            ]
            for conversation, where in pairs:
                conversation.condition = classes.condition_of(conversation, source.name, data, where)
            variants = [variant for conversations, _ in several for variant in range(len(conversations))]
            if template is None and any(c.text is None for c, _ in pairs):
                load_template(data.template, tokenizer)  # says that there is none
            for (conversation, _), variant, example in zip(pairs, variants, renderer.examples(pairs)):
                notice = _notice(conversation, example, tokenizer)
                yield Entry(example, conversation.source or source.name, conversation.task_type, notice, variant)
            progress.update(len(chunk))


def _conversations(record: Any, where: str, source: SourceConfig, data: DataConfig) -> list[Conversation]:
    grouping = GROUPINGS[data.grouping]
    if grouping.read is not None:
        return grouping.read(record, where, source.fields, data)
    return grouping.expand(parse(record, where, source.fields), where)


def _notice(conversation: Conversation, example: Example, tokenizer: Tokenizer) -> str:
    if tokenizer.adds_bos and len(example.ids) and example.ids[0] != tokenizer.bos_id:
        return (
            f"without BOS {tokenizer.bos!r}, which the tokenizer adds to plain text but the template does not write; "
            "if the model was trained with it, begin the template with {{ bos_token }}"
        )
    if conversation.rejected:
        return "preference pairs, of which the preferred answer is used"
    answers = [m for m in conversation.messages if m.role == "assistant" and m.weight != 0 and not m.fields]
    if not all(answer.content is None or answer.content.strip() for answer in answers):
        return "with an empty answer, which teaches to end the turn at once"
    if tokenizer.unk_id is not None and tokenizer.unk_id in example.ids:
        return f"with {tokenizer.hf.unk_token!r}, which stands for what the tokenizer does not know"
    return ""


def _total(counts: Iterable[dict[str, int]]) -> dict[str, int]:
    return dict(sum((collections.Counter(count) for count in counts), collections.Counter()))


def _digest(*values: Any) -> str:
    return hashlib.sha256(json.dumps(values).encode()).hexdigest()[:32]
