import numpy as np
import pytest

from jaxsft.config import DataConfig, SourceConfig
from jaxsft.data.dataset import prepare
from jaxsft.data.groups import Groups
from jaxsft.errors import UserError
from tests.data.conftest import make_tokenizer, supervised, write_jsonl


def records(*answers: str, prompt: str = "q") -> list[dict]:
    return [{"prompt": prompt, "completion": answer} for answer in answers]


@pytest.fixture
def make(tmp_path, tokenizer):
    """Prepares records, one list a source."""

    def make(*sources: list[dict], weights=None, own_tokenizer=tokenizer, seed=0, **options):
        configs = [
            SourceConfig(path=write_jsonl(tmp_path / f"s{i}.jsonl", rows), weight=weight)
            for i, (rows, weight) in enumerate(zip(sources, weights or [1.0] * len(sources)))
        ]
        options = {"template": "chatml", "max_length": 64, "max_dropped": 1.0, **options}
        return prepare(DataConfig(sources=configs, cache_dir=str(tmp_path / "cache"), **options), own_tokenizer, seed)

    return make


def test_examples_and_report(make, tokenizer):
    dataset = make(records("one", "two"), records("three"))
    assert [tokenizer.decode(dataset.example(i)[0]) for i in range(3)] == [
        f"<s><|im_start|>user\nq<|im_end|>\n<|im_start|>assistant\n{answer}<|im_end|>\n"
        for answer in ("one", "two", "three")
    ]
    assert [supervised(tokenizer, *dataset.example(i)[:2]) for i in range(3)] == [
        [f"{answer}<|im_end|>"] for answer in ("one", "two", "three")
    ]
    report = dataset.report
    assert (report.records, report.examples, report.cut, report.dropped) == (3, 3, 0, {})
    assert report.tokens == sum(len(dataset.example(i)[0]) for i in range(3)) == dataset.lengths.sum()
    assert report.supervised == sum((dataset.example(i)[1] > 0).sum() for i in range(3))
    assert report.sources == {"s0": 2, "s1": 1}
    assert [dataset.supervised[i] for i in range(3)] == [(dataset.example(i)[1] > 0).sum() for i in range(3)]


def test_sources_and_task_types_of_records(make):
    rows = [{**records("a")[0], "source": "web", "task_type": "sums"}, {**records("b")[0], "task_type": "tales"}]
    dataset = make(rows, records("c"))
    extras = [dataset.example(i)[2] for i in range(3)]
    assert [dataset.sources[e["source"]] for e in extras] == ["web", "s0", "s1"]
    assert [dataset.task_types[e["task_type"]] for e in extras] == ["sums", "tales", ""]
    assert "task_type" not in make(records("a")).example(0)[2]


LONG = "long " * 30


def test_truncation(make):
    rows = records("short", LONG) + records("answer", prompt=LONG)
    cut = make(rows, truncation="right", max_length=40)
    assert (len(cut), cut.report.cut, cut.lengths.max()) == (2, 1, 40)
    assert cut.report.dropped == {"no supervised token left within max_length": 1}
    whole = make(rows, max_length=512)
    assert cut.example(1)[0].tolist() == whole.example(1)[0][:40].tolist()
    assert cut.example(1)[1].tolist() == whole.example(1)[1][:40].tolist()
    drop = make(rows, truncation="drop", max_length=40)
    assert (len(drop), drop.report.cut, drop.report.dropped) == (1, 0, {"longer than max_length": 2})
    with pytest.raises(UserError, match=r"2 of 3 examples are longer .* 40"):
        make(rows, truncation="error", max_length=40)
    assert len(make(rows[:1], truncation="error", max_length=40)) == 1


def test_too_many_dropped(make):
    rows = records("a", "b", "c") + records("answer", prompt=LONG)
    assert len(make(rows, max_length=40, max_dropped=0.25)) == 3
    with pytest.raises(UserError, match=r"1 of 4 records would be dropped \(1 no supervised token left"):
        make(rows, max_length=40, max_dropped=0.24)
    with pytest.raises(UserError, match="no example is left"):
        make(records("answer", prompt=LONG), max_length=40)


def test_records_that_supervise_nothing(make, tmp_path):
    rows = records("a") + [{**records("b")[0], "weight": 0}]
    assert make(rows).report.dropped == {"no supervised token": 1}
    (tmp_path / "none.jinja").write_text(
        "{% for m in messages %}{{ m.content }}{% endfor %}{% if false %}{% generation %}{% endgeneration %}{% endif %}"
    )
    with pytest.raises(UserError, match=r"no token of any record is supervised .*none\.jinja"):
        make(records("a", "b"), template=str(tmp_path / "none.jinja"), max_dropped=0.2)


@pytest.mark.parametrize("own_tokenizer", [None, make_tokenizer()])
def test_long_text_is_read_in_windows(make, tokenizer, own_tokenizer):
    own_tokenizer = own_tokenizer or tokenizer
    text = " ".join(f"word{i}" for i in range(40))
    dataset = make([{"text": text}, {"text": "Hello"}], template="auto", max_length=16, own_tokenizer=own_tokenizer)
    bos = [own_tokenizer.bos_id] if own_tokenizer.bos else []
    whole = bos + own_tokenizer.encode(text).ids
    scored = []
    for i in range(len(dataset) - 1):
        ids, weights, _ = dataset.example(i)
        assert len(ids) <= 16
        assert weights[0] == 0
        scored += ids[weights > 0].tolist()
    assert scored == whole[1:]  # every token but the first exactly once, in order
    assert dataset.report.supervised == len(scored) + len(dataset.example(len(dataset) - 1)[0]) - 1
    assert (dataset.report.records, dataset.report.cut, dataset.report.dropped) == (2, 0, {})


def test_mixtures(make):
    dataset = make(records(*"abcdefgh"), records(*"ABCDEFGHIJ"), records("x"), weights=[2.0, 0.5, 0.0])
    first, second = dataset.epoch(0).members, dataset.epoch(1).members
    counts = np.bincount(first, minlength=19)
    assert (counts[:8] == 2).all()
    assert counts[8:18].sum() == 5
    assert counts[8:18].max() == 1
    assert counts[18] == 0
    assert len(first) == len(second)
    assert set(first[first >= 8]) != set(second[second >= 8])  # another half in each epoch
    assert (first == dataset.epoch(0).members).all()
    half = make(records(*"abcdefgh"), records(*"ABCDEFGHIJ"), weights=[1.5, 0.5], seed=1)
    assert half.fingerprint != dataset.fingerprint
    with pytest.raises(UserError, match="weight 0"):
        make(records("a"), weights=[0.0])


def test_a_missing_bos_is_told(make, tmp_path):
    from tokenizers import processors

    tokenizer = make_tokenizer(bos_token="<s>", eos_token="</s>")
    tokenizer.hf.backend_tokenizer.post_processor = processors.TemplateProcessing(
        single="<s> $A", special_tokens=[("<s>", 0)]
    )
    tokenizer = type(tokenizer)(tokenizer.hf)
    assert tokenizer.adds_bos
    bare = "{% for m in messages %}{{ m.content + '</s>' }}{% endfor %}"
    (tmp_path / "bare.jinja").write_text(bare)
    notices = make(records("a", "b"), template=str(tmp_path / "bare.jinja"), own_tokenizer=tokenizer).report.notices
    assert len(notices) == 1
    (text,) = notices
    assert "without BOS '<s>'" in text
    assert notices[text] == 2
    (tmp_path / "with.jinja").write_text("{{ bos_token }}" + bare)
    assert not make(records("a"), template=str(tmp_path / "with.jinja"), own_tokenizer=tokenizer).report.notices


def test_bad_records_are_named(make, tmp_path):
    with pytest.raises(UserError, match="weight"):
        make([{"messages": [{"role": "assistant", "content": "a", "weight": 0.5}]}], supervise="all")
    with pytest.raises(UserError, match=r"s0\.jsonl, line 2: the conversation has no assistant turn"):
        make(records("a") + [{"messages": [{"role": "user", "content": "q"}]}])
    with pytest.raises(UserError, match=r"s0\.jsonl, line 1: .*prompt, response"):
        make([{"prompt": "q", "response": "a"}])
    with pytest.raises(UserError, match="no chat template"):
        make(records("a"), template="auto")
    with pytest.raises(UserError, match="at least 2"):
        make(records("a"), max_length=1)
    with pytest.raises(UserError, match="no data was named"):
        prepare(DataConfig(), make_tokenizer())


def test_preference_pairs_train_on_the_preferred_answer(make, tokenizer):
    dataset = make([{"prompt": "q", "chosen": "good", "rejected": "bad"}])
    assert supervised(tokenizer, *dataset.example(0)[:2]) == ["good<|im_end|>"]
    assert list(dataset.report.notices.values()) == [1]
    assert "preferred" in str(dataset.report)


def test_groups():
    lengths = np.array([5, 6, 7, 8])
    groups = Groups.of(np.array([3, 1, 2, 0]), np.array([3, 1]))
    assert [[example for example, _ in groups.group(g)] for g in range(groups.count)] == [[3, 1, 2], [0]]
    assert groups.sizes().tolist() == [3, 1]
    assert groups.sums(lengths).tolist() == [21, 5]
    assert Groups.single(np.array([2, 2, 0])).sums(lengths).tolist() == [7, 7, 5]


def test_dolly_fills_rows(real_data, tmp_path):
    from jaxsft.data.loader import Loader
    from jaxsft.data.tokenizer import load_tokenizer

    config = DataConfig(
        path=str(real_data / "instruct/dolly/dolly_3k.json"), rows=":-300", template="plain", max_length=512,
        fields={"category": "task_type"}, cache_dir=str(tmp_path),
    )  # fmt: skip
    dataset = prepare(config, load_tokenizer(real_data / "models/stories260K"))
    loader = Loader(dataset, config, 16)
    assert loader.fill_rate() >= 0.98
    assert dataset.report.records == 2696
    assert len(dataset.task_types) == 8
