"""Records and their views: what they become, how they stand together, and what is refused."""

import numpy as np
import pytest

from jaxsft.config import DataConfig, SourceConfig
from jaxsft.data.dataset import prepare
from jaxsft.data.loader import Loader
from jaxsft.errors import UserError
from tests.data.conftest import supervised, write_jsonl


def ask(prompt: str, *views: str, **more: object) -> dict:
    return {"prompt": prompt, "completion": "Blue"} | ({"views": list(views)} if views else {}) | more


@pytest.fixture
def make(tmp_path, tokenizer):
    """Prepares records, one list a source."""

    def make(*sources: list[dict], weights=None, **options):
        configs = [
            SourceConfig(path=write_jsonl(tmp_path / f"s{i}.jsonl", rows), weight=weight)
            for i, (rows, weight) in enumerate(zip(sources, weights or [1.0] * len(sources)))
        ]
        options = {"template": "chatml", "max_length": 256, "max_dropped": 1.0, "grouping": "views"} | options
        return prepare(DataConfig(sources=configs, cache_dir=str(tmp_path / "cache"), **options), tokenizer)

    return make


def test_a_record_and_its_views_are_examples_of_one_row(make, tokenizer):
    dataset = make([ask("q", "how", "why"), ask("alone"), {"text": "plain"}, ask("r", "s")])
    assert dataset.records.tolist() == [0, 0, 0, 1, 2, 3, 3]
    assert dataset.variants.tolist() == [0, 1, 2, 0, 0, 0, 1]
    texts = [tokenizer.decode(dataset.example(i)[0].tolist()) for i in range(7)]
    for i, prompt in {0: "q", 1: "how", 2: "why", 3: "alone", 5: "r", 6: "s"}.items():
        assert f"user\n{prompt}<|im_end|>" in texts[i]
        assert supervised(tokenizer, *dataset.example(i)[:2]) == ["Blue<|im_end|>"]
    assert dataset.epoch(0).members.tolist() == list(range(7))
    assert dataset.epoch(0).sizes().tolist() == [3, 1, 1, 2]
    assert not dataset.epochs_vary and not dataset.report.notices
    batch = Loader(dataset, dataset.config, 1).batch(0)
    index, member = batch.extras["example_index"][0, :7], batch.extras["member"][0, :7]
    assert member.tolist() == [dataset.variants[i] for i in index]
    assert (index - member).tolist() == [i - dataset.variants[i] for i in index]
    assert (batch.segment_ids == batch.example_ids).all()  # views do not see each other


def test_a_view_replaces_the_last_question_alone(make, tokenizer):
    turns = [("system", "be"), ("user", "a"), ("assistant", "b"), ("user", "c"), ("assistant", "d")]
    record = {"messages": [{"role": role, "content": text} for role, text in turns], "views": ["e"]}
    dataset = make([record, ask("q", "how")], system="general")
    texts = [tokenizer.decode(dataset.example(i)[0].tolist()) for i in range(4)]
    assert "user\nc<|im_end|>" in texts[0]
    assert texts[1] == texts[0].replace("user\nc", "user\ne")
    assert [text.count("general") for text in texts] == [0, 0, 1, 1]


def test_views_are_not_read_elsewhere(make):
    dataset = make([ask("q", "how"), ask("r") | {"views": 7}], grouping="example")
    assert len(dataset) == 2


@pytest.mark.parametrize(
    ("record", "message"),
    [
        (ask("q") | {"views": "how"}, r"line 2: 'views' is 'how'; it must be a list of strings"),
        (ask("q") | {"views": ["how", 3]}, r"line 2: 'views' is \['how', 3\]; it must be a list of strings"),
        ({"text": "plain", "views": ["how"]}, r"line 2: the record has views but no user turn"),
    ],
)
def test_what_are_no_views_is_refused(make, record, message):
    with pytest.raises(UserError, match=message):
        make([ask("q", "how"), record])


def test_views_that_do_not_fit_are_left_out(make):
    whole = make([ask("q", "how", "why"), ask("r", "s")])
    length = int(whole.lengths[:2].sum())
    dataset = make([ask("q", "how", "why"), ask("r", "s")], max_length=length)
    groups = dataset.epoch(0)
    assert groups.sizes().tolist() == [2, 2] and groups.members.tolist() == [0, 1, 3, 4]
    assert dataset.report.notices == {"views that no longer fit in a row with their record": 1}
    assert groups.sums(dataset.lengths).max() == length
    assert Loader(dataset, dataset.config, 1).rows() == 2


def test_a_record_that_lost_a_view_is_dropped(make):
    """Cut or dropped, so that no view can take the place of the record itself."""
    long = "long " * 300
    for rows in ([ask(long, "how"), ask("q", "why")], [ask("r", long), ask("q", "why")]):
        dataset = make(rows, truncation="drop")
        assert dataset.records.tolist() == [1, 1] and dataset.variants.tolist() == [0, 1]


def test_sources_are_weighed_by_records(make):
    sources = [[ask(f"{s}{i}", *["how", "why"][: i % 3]) for i in range(6)] for s in "ab"]
    dataset = make(*sources, weights=[2.0, 0.5])
    groups = dataset.epoch(0)
    firsts = groups.members[groups.starts[:-1]]
    assert (dataset.variants[firsts] == 0).all()
    counts = np.bincount(dataset.records[firsts], minlength=12)
    assert counts[:6].tolist() == [2] * 6 and sorted(counts[6:]) == [0] * 3 + [1] * 3
    assert groups.sizes().tolist() == [1 + dataset.records[i] % 6 % 3 for i in firsts]


def test_settings_under_which_views_cannot_be_compared_are_refused(make):
    rows = [ask("q", "how")]
    with pytest.raises(UserError, match=r"config\.data\.grouping is 'views', but no record has any"):
        make([ask("q")]).epoch(0)
    with pytest.raises(UserError, match=r"config\.data\.supervise is 'all', but views"):
        make(rows, supervise="all").epoch(0)
    with pytest.raises(UserError, match=r"config\.data\.attention_unit is 'group', under which a view"):
        make(rows, attention_unit="group").epoch(0)
    with pytest.raises(UserError, match=r"config\.data\.packing is False"):
        make(rows, packing=False).epoch(0)
    with pytest.raises(UserError, match="max_examples_per_row is 1, but examples stand in groups of 2"):
        dataset = make(rows, max_examples_per_row=1)
        Loader(dataset, dataset.config, 1).rows()
