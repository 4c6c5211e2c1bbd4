"""Preference pairs: what is supervised of them, how they stand together, and what is refused."""

import numpy as np
import pytest

from jaxsft.config import ClassesConfig, DataConfig, SourceConfig
from jaxsft.data.dataset import prepare
from jaxsft.data.loader import Loader
from jaxsft.errors import UserError
from tests.data.conftest import supervised, write_jsonl


def pair(prompt: str, chosen: str, rejected: str, **more: object) -> dict:
    return {"prompt": prompt, "chosen": chosen, "rejected": rejected, **more}


def turns(*texts: str) -> list[dict]:
    return [{"role": ("user", "assistant")[i % 2], "content": text} for i, text in enumerate(texts)]


LONG = "long " * 30


@pytest.fixture
def make(tmp_path, tokenizer):
    """Prepares records, one list a source."""

    def make(*sources: list[dict], weights=None, **options):
        configs = [
            SourceConfig(path=write_jsonl(tmp_path / f"s{i}.jsonl", rows), weight=weight)
            for i, (rows, weight) in enumerate(zip(sources, weights or [1.0] * len(sources)))
        ]
        options = {"template": "chatml", "max_length": 128, "max_dropped": 1.0, "grouping": "preference"} | options
        return prepare(DataConfig(sources=configs, cache_dir=str(tmp_path / "cache"), **options), tokenizer)

    return make


def test_a_pair_is_two_examples_of_one_row(make, tokenizer):
    dataset = make([pair("q", "good", "bad"), pair("r", "fine", "poor")])
    assert [supervised(tokenizer, *dataset.example(i)[:2]) for i in range(4)] == [
        [f"{answer}<|im_end|>"] for answer in ("good", "bad", "fine", "poor")
    ]
    assert (dataset.records.tolist(), dataset.variants.tolist()) == ([0, 0, 1, 1], [0, 1, 0, 1])
    report = dataset.report
    assert (report.records, report.examples, report.dropped, report.notices) == (2, 4, {}, {})
    batch = Loader(dataset, dataset.config, 1).batch(0)
    index, member = batch.extras["example_index"][0, :4], batch.extras["member"][0, :4]
    assert member.tolist() == [0, 1, 0, 1]
    assert index.tolist() in ([0, 1, 2, 3], [2, 3, 0, 1])
    assert (batch.segment_ids == batch.example_ids).all()  # the sides do not see each other
    assert (batch.positions[0, np.flatnonzero(np.diff(batch.example_ids[0], prepend=0) > 0)] == 0).all()


def test_answers_that_both_sides_begin_with_are_context(make, tokenizer):
    chosen, rejected = turns("a", "shared", "b", "good"), turns("a", "shared", "b", "bad", "c", "worse")
    dataset = make([{"chosen": chosen, "rejected": rejected}])
    assert supervised(tokenizer, *dataset.example(0)[:2]) == ["good<|im_end|>"]
    assert supervised(tokenizer, *dataset.example(1)[:2]) == ["bad<|im_end|>", "worse<|im_end|>"]
    apart = turns("a", "one", "b", "good"), turns("a", "two", "b", "good")
    dataset = make([{"chosen": apart[0], "rejected": apart[1]}])  # what follows a difference is no common beginning
    assert supervised(tokenizer, *dataset.example(1)[:2]) == ["two<|im_end|>", "good<|im_end|>"]


@pytest.mark.parametrize(
    ("record", "message"),
    [
        ({"prompt": "q", "completion": "a"}, r"line 2: the record has no rejected answer.*'preference' needs"),
        ({"text": "plain"}, r"line 2: the record has no rejected answer"),
        (pair("q", "same", "same"), r"line 2: the pair has no difference .* every answer of 'chosen'; remove"),
        (
            {"chosen": turns("a", "b"), "rejected": turns("a", "b", "c", "d")},
            r"line 2: the pair has no difference .* every answer of 'chosen'",
        ),
        (pair("q", "good", "bad", weight=0.5), r"line 2: the weight is 0\.5, but a pair compares whole answers"),
        (
            pair("q", [{"role": "assistant", "content": "good", "weight": 2}], "bad"),
            r"line 2: the weight is 2, but a pair",
        ),
    ],
)
def test_what_is_no_pair_is_refused(make, record, message):
    with pytest.raises(UserError, match=message):
        make([pair("q", "good", "bad"), record])


def test_a_pair_that_lost_a_side_is_dropped(make):
    rows = [pair("q", "good", "bad"), pair("q", "good", LONG), pair(LONG, "good", "bad")]
    dataset = make(rows, truncation="drop")
    assert dataset.records.tolist() == [0, 0]
    lost = "left without the other conversation of their record"
    assert dataset.report.dropped == {"longer than max_length": 3, lost: 1}
    with pytest.raises(UserError, match="4 of 6 conversations would be dropped"):
        make(rows, truncation="drop", max_dropped=0.66)
    assert len(make(rows, truncation="drop", max_dropped=0.67)) == 2
    assert make([pair("q", "good", "bad"), pair("q", "good", "bad", weight=0)]).records.tolist() == [0, 0]


def test_the_sides_of_a_pair_fit_in_a_row(make):
    rows = [pair("q", LONG, f"{LONG} not")]
    dataset = make(rows, max_length=80)
    assert dataset.lengths.tolist() == [40, 40]
    assert dataset.report.cut == 2
    assert Loader(dataset, dataset.config, 1).rows() == 1
    with pytest.raises(UserError, match=r"2 of 2 examples are longer than config\.data\.max_length 80 / 2"):
        make(rows, max_length=80, truncation="error")
    with pytest.raises(UserError, match="max_length is 3"):
        make(rows, max_length=3)
    unpacked = DataConfig(max_length=80, packing=False, max_examples_per_row=1, grouping="preference")
    assert Loader(dataset, unpacked, 1).num_slots == 2
    narrow = Loader(make(rows, max_examples_per_row=1), DataConfig(max_examples_per_row=1, grouping="preference"), 1)
    with pytest.raises(
        UserError, match=r"max_examples_per_row is 1, but examples stand in groups of 2 .* raise it to 2"
    ):
        narrow.rows()


def test_sources_are_weighed_by_pairs(make):
    sources = [[pair("q", f"good {s}{i}", f"bad {s}{i}") for i in range(10)] for s in "abc"]
    dataset = make(*sources, weights=[2.0, 0.5, 0.0])
    first, second = dataset.epoch(0), dataset.epoch(1)
    assert first.sizes().tolist() == [2] * 25
    chosen, rejected = first.members[::2], first.members[1::2]
    assert (dataset.variants[chosen] == 0).all()
    assert (dataset.variants[rejected] == 1).all()
    assert (dataset.records[chosen] == dataset.records[rejected]).all()
    counts = np.bincount(dataset.records[chosen], minlength=30)
    assert counts[:10].tolist() == [2] * 10
    assert sorted(counts[10:20]) == [0] * 5 + [1] * 5
    assert not counts[20:].any()
    assert set(first.members) != set(second.members)  # another half
    assert dataset.epochs_vary
    assert not make(*sources).epochs_vary


def test_every_side_is_scored_by_itself(make):
    """What a reference is asked for: each example once, the sides of a pair wherever they fit."""
    dataset = make([pair("q", f"good {i}", f"bad {'really ' * i}{i}") for i in range(5)])
    batches = list(Loader(dataset, dataset.config, 2).evaluation_batches())
    index = np.concatenate([batch.extras["example_index"].ravel() for batch in batches])
    assert sorted(index[index >= 0]) == list(range(10))
    member = np.concatenate([batch.extras["member"].ravel() for batch in batches])
    assert set(member[index >= 0]) == {0}


def test_only_answers_are_compared(make):
    rows = [pair("q", "good", "bad")]
    with pytest.raises(UserError, match=r"config\.data\.supervise is 'all', but preference pairs"):
        make(rows, supervise="all").epoch(0)
    with pytest.raises(UserError, match=r"config\.data\.attention_unit is 'group', under which the rejected answer"):
        make(rows, attention_unit="group").epoch(0)
    with pytest.raises(UserError, match=r"config\.data\.weighting is 'turn', but preference pairs count alike"):
        make(rows, weighting="turn").epoch(0)
    weighed, chosen = (ClassesConfig(weight={"s0": 1.0, "s1": weight}) for weight in (0.5, 0.0))
    with pytest.raises(UserError, match=r"config\.data\.classes weighs examples, but preference pairs"):
        make(rows, rows, classes=weighed).epoch(0)
    assert make(rows, rows, classes=chosen).epoch(0).members.tolist() == [0, 1]
