"""Mixture-of-Instructions: a system prompt per domain, and chunks of one example per domain (arXiv:2404.18410).

A chunk is the concatenation of one example of each domain, in a fixed order. With `config.data.attention_unit` "group"
attention is causal inside a chunk, across its examples, and blocked between chunks, and positions restart with each
chunk (v2 of the paper):

    A[q, k] = 1  iff  k <= q and chunk(q) = chunk(k)                                                            (O1)
    L = (1 / Z) sum_j sum_{t in responses of chunk j} -log P(token_t | tokens of chunk j before t)              (O2)

(O2) is the loss of `jaxsft.objectives.sft`: with `reduction` "token_mean" Z is the number of supervised tokens of the
global batch, with "example_mean" each response's mean counts the same.

Each domain is an endless stream of its examples, shuffled anew in every pass, and chunk g of the whole run takes item g
of each stream. An epoch has (examples / domains) chunks, so small domains repeat within it and the largest goes on in
the next. Epoch e begins at item g = e * chunks, which is pass g // n and place g % n of a domain of n examples: nothing
but the epoch has to be remembered.
"""

from typing import TYPE_CHECKING, NamedTuple

import numpy as np

from jaxsft.config import DataConfig
from jaxsft.data.conversation import Conversation, Message
from jaxsft.data.groups import Groups
from jaxsft.errors import UserError
from jaxsft.validation import did_you_mean

if TYPE_CHECKING:
    from jaxsft.data.dataset import Dataset

NAMES = {"task_type": "task type", "source": "source"}


def check(config: DataConfig) -> None:
    """Refuses domains that contradict each other or the rest of the config.

    Raises:
      UserError: naming the field.
    """
    mixture, domains = config.mixture, config.mixture.domains
    if len(set(domains)) < len(domains):
        raise UserError(f"config.data.mixture.domains is {domains!r}; name each domain once.")
    if strange := [name for name in mixture.system if name not in domains]:
        hint = did_you_mean(strange[0], domains) or "; list it there."
        raise UserError(
            f"config.data.mixture.system has a prompt for {strange[0]!r}, which is not among "
            f"config.data.mixture.domains{hint}"
        )
    if config.grouping != "domain":
        return
    if not domains:
        raise UserError("config.data.grouping 'domain' needs config.data.mixture.domains; list them in order.")
    if config.packing and len(domains) > config.max_examples_per_row:
        raise UserError(
            f"a chunk of {len(domains)} domains needs as many of the {config.max_examples_per_row} slots of a row; "
            "raise config.data.max_examples_per_row."
        )
    if any(source.weight != int(source.weight) for source in config.all_sources()):
        raise UserError(
            "config.data.grouping 'domain' draws every domain equally often, so a source's weight must be a whole "
            "number; leave it at 1."
        )


def add_system(conversation: Conversation, config: DataConfig, source: str, where: str) -> Conversation:
    """Gives a conversation the system prompt of its domain, or the general one; one of its own is kept.

    Args:
      conversation: what was read; it is changed.
      config: for `system` and `mixture`.
      source: name of its source, if it does not say one itself.
      where: its place, for messages.

    Raises:
      UserError: for plain text of a domain that has a prompt.
    """
    mixture = config.mixture
    domain = conversation.source or source if mixture.by == "source" else conversation.task_type
    prompt = mixture.system.get(domain, config.system)
    if conversation.text is not None:
        if domain in mixture.system:
            raise UserError(
                f"{where}: plain text has no turns, so it cannot have the system prompt of {domain!r}; remove that "
                "from config.data.mixture.system."
            )
        return conversation
    for side in (conversation.messages, conversation.rejected):
        if prompt and side and all(message.role != "system" for message in side):
            side.insert(0, Message("system", prompt))
    return conversation


def domain_ids(dataset: "Dataset") -> np.ndarray:
    """int32 [examples], the domain of each as an index into `config.data.mixture.domains`.

    Raises:
      UserError: for examples of no domain, and for a domain without examples.
    """
    mixture = dataset.config.mixture
    names, ids = dataset.sources, dataset.source_ids
    if mixture.by == "task_type":
        names, ids = dataset.task_types, dataset.task_type_ids
    found, kind = np.bincount(ids, minlength=len(names)), NAMES[mixture.by]
    held = {name: int(count) for name, count in zip(names, found) if count}
    if held.get(""):
        raise UserError(
            f"{held['']} of {len(ids)} examples have no task type, so they belong to no domain; map a field to "
            "'task_type' by config.data.fields, or set config.data.mixture.by to 'source'."
        )
    if strange := [name for name in held if name not in mixture.domains]:
        raise UserError(
            f"{held[strange[0]]} examples are of the {kind} {strange[0]!r}, which is not among "
            f"config.data.mixture.domains{did_you_mean(strange[0], mixture.domains) or '; list it, or leave them out.'}"
        )
    if empty := [name for name in mixture.domains if name not in held]:
        raise UserError(
            f"config.data.mixture.domains has {empty[0]!r}, but no example is of that {kind}; the data has "
            f"{', '.join(held)}."
        )
    return np.array([mixture.domains.index(name) if name in held else -1 for name in names], np.int32)[ids]


class Chunks(NamedTuple):
    """The chunks of an epoch.

    Attributes:
      members: int64 [chunks, domains], an example of each domain.
      windows: int64 [chunks, domains, 2], the first token of each that is used, and one past the last.
      fits: bool [chunks], whether a chunk is used.
    """

    members: np.ndarray
    windows: np.ndarray
    fits: np.ndarray


def chunks(dataset: "Dataset", members: np.ndarray, epoch: int) -> Groups:
    """The chunks of an epoch as groups; see `Grouping.groups`."""
    drawn = _chunks(dataset, members, epoch)
    kept = drawn.members[drawn.fits]
    grouped = Groups.of(kept.ravel(), np.full(len(kept), kept.shape[1]))
    return grouped._replace(windows=drawn.windows[drawn.fits].reshape(-1, 2))


def notices(dataset: "Dataset", members: np.ndarray) -> dict[str, int]:
    """What `max_length` does to the chunks of the first epoch; see `Grouping.notices`.

    Raises:
      UserError: if more of them are dropped than `config.data.max_dropped` allows.
    """
    drawn, config = _chunks(dataset, members, 0), dataset.config
    dropped = int((~drawn.fits).sum())
    if dropped > config.max_dropped * len(drawn.fits) or not drawn.fits.any():
        raise UserError(
            f"{dropped} of {len(drawn.fits)} chunks do not fit into config.data.max_length {config.max_length}, more "
            f"than config.data.max_dropped {config.max_dropped:g} allows; raise max_length, or name fewer domains."
        )
    begins = drawn.windows[..., 0]
    cut = ((drawn.windows[..., 1] < dataset.lengths[drawn.members]).any(axis=1) & drawn.fits).sum()
    found = {
        f"of the first epoch's {len(begins)} chunks dropped, being longer than max_length": dropped,
        f"of the first epoch's {len(begins)} chunks with members cut, being longer than max_length": int(cut),
    }
    return {what: count for what, count in found.items() if count}


def _chunks(dataset: "Dataset", members: np.ndarray, epoch: int) -> Chunks:
    config, domains = dataset.config, dataset.domain_ids[members]
    count = -(-len(members) // len(config.mixture.domains))
    pools = [members[domains == k] for k in range(len(config.mixture.domains))]
    if empty := [name for name, pool in zip(config.mixture.domains, pools) if not len(pool)]:
        if config.keep < 1:
            raise UserError(
                f"config.data.keep {config.keep:g} leaves no example of the domain {empty[0]!r}; raise it, or leave "
                "out both that domain's records and its name."
            )
        raise UserError(f"every source with examples of the domain {empty[0]!r} has weight 0; raise one.")
    table = np.stack([_stream(dataset, pool, k, epoch * count, count) for k, pool in enumerate(pools)], axis=1)
    begins = np.zeros(table.shape, np.int64)
    if config.attention_unit != "example":
        begins[:, 1:] = dataset.begins_with_bos(table[:, 1:])  # the chunk is one sequence, which begins once
    sizes = dataset.lengths[table] - begins
    over = sizes.sum(axis=1) > config.max_length
    fits = np.ones(count, bool)
    if over.any() and config.truncation == "error":
        raise UserError(
            f"{over.sum()} of {count} chunks are longer than config.data.max_length {config.max_length} (the longest "
            f"has {sizes.sum(axis=1).max()} tokens); raise it, or set config.data.truncation to 'right' or 'drop'."
        )
    if config.truncation == "right":
        for chunk in np.flatnonzero(over):
            sizes[chunk] = cut(sizes[chunk], config.max_length)
            # an example without targets is of no use, and would break the balance
            fits[chunk] = (dataset.first_targets[table[chunk]] < begins[chunk] + sizes[chunk]).all()
    else:
        fits = ~over
    return Chunks(table, np.stack([begins, begins + sizes], axis=-1), fits)


def cut(sizes: np.ndarray, budget: int) -> np.ndarray:
    """The sizes with the largest lowered to one bound, the highest at which they sum to no more than the budget."""
    falling = np.sort(sizes)[::-1]
    for longest in range(1, len(falling) + 1):
        bound = (budget - falling[longest:].sum()) // longest
        if longest == len(falling) or bound >= falling[longest]:
            break
    return np.minimum(sizes, bound)


def _stream(dataset: "Dataset", pool: np.ndarray, domain: int, start: int, count: int) -> np.ndarray:
    """Items `start` up to `start + count` of a domain's endless stream."""
    first, last = start // len(pool), (start + count - 1) // len(pool)
    drawn = [pool[dataset.random(turn, domain).permutation(len(pool))] for turn in range(first, last + 1)]
    return np.concatenate(drawn)[start - first * len(pool) :][:count]
