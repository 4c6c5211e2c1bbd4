"""A task among unrelated records: numbers, order, and what is refused as a leak."""

import collections
import json

import numpy as np
import pytest

from jaxsft.config import DataConfig, LeakConfig, MixConfig, SourceConfig
from jaxsft.data.conversation import Conversation, Message
from jaxsft.data.dataset import prepare
from jaxsft.data.loader import Loader
from jaxsft.errors import UserError
from jaxsft.mixing.leaks import Leaks, words
from jaxsft.mixing.mix import count, mix, order
from jaxsft.synthesis.rows import Row
from tests.data.conftest import make_tokenizer


def write(path, *kinds):
    """A file of records for (name, how many)."""
    records = [{"prompt": f"{name} {i}", "completion": f"{i} said"} for name, n in kinds for i in range(n)]
    path.write_text("".join(json.dumps(record) + "\n" for record in records))
    return SourceConfig(str(path))


def mixed(tmp_path, task, cache, ratio, **changes):
    """The line, the report and the questions of a mixture, in order."""
    config = MixConfig(
        write(tmp_path / "task.jsonl", ("task", task)), write(tmp_path / "cache.jsonl", ("other", cache)), ratio
    )
    for name, value in changes.items():
        setattr(config, name, value)
    line = mix(config, tmp_path / "out")
    records = [json.loads(text) for text in (tmp_path / "out" / "records.jsonl").read_text().splitlines()]
    return line, json.loads((tmp_path / "out" / "mix.json").read_text()), records


def questions(records):
    return [record["messages"][0]["content"] for record in records]


def test_the_numbers_of_the_paper(tmp_path):
    """100 records and rho = 260: 26,100 rows. A tenth is 41 steps of 64 and 164 of 16, the last ones not full; so all
    are 408 and 1,632."""
    line, report, records = mixed(tmp_path, 100, 26_500, 260.0)
    found = collections.Counter(questions(records))
    assert len(records) == 26_100 and max(found.values()) == 1
    assert sum(question.startswith("task") for question in found) == 100
    assert (report["diverse"], report["ratio"], report["cache"]) == (26_000, 260.0, 26_500)
    assert "warning" not in line
    places = np.flatnonzero([record["mixed"] == "task" for record in records])
    assert abs(places.mean() / 26_100 - 0.5) < 0.15, "one shuffle of all"
    assert len(mixed(tmp_path, 10, 2_650, 260.0)[2]) == 2_610
    data = DataConfig(str(tmp_path / "out" / "records.jsonl"), template="chatml", packing=False, max_length=64)
    data.cache_dir = str(tmp_path / "cache")
    dataset = prepare(data, make_tokenizer())
    assert [Loader(dataset, data, rows).steps(1.0) for rows in (64, 16)] == [41, 164]


@pytest.mark.parametrize(
    ("ratio", "rows", "wanted"),
    [(0.29, 100, 29), (0.1, 30, 3), (2.5, 3, 7), (0.0, 9, 0), (1e-3, 100, 0), (260, 7, 1820)],
)
def test_counts_are_exact(ratio, rows, wanted):
    """floor(0.29 * 100) is 28 in floating point."""
    assert count(ratio, rows) == wanted


def test_a_mixture_is_the_same_under_its_seed(tmp_path):
    (_, _, one), (_, _, same) = (mixed(tmp_path, 8, 40, 2.5, seed=7) for _ in range(2))
    _, _, other = mixed(tmp_path, 8, 40, 2.5, seed=8)
    assert one == same and len(one) == 28
    assert questions(one) != questions(other)
    assert {q for q in questions(one) if "task" in q} == {q for q in questions(other) if "task" in q}


def test_without_diverse_records_it_is_the_task(tmp_path):
    config = MixConfig(write(tmp_path / "task.jsonl", ("task", 9)), ratio=0.0)
    mix(config, tmp_path / "out")
    records = [json.loads(text) for text in (tmp_path / "out" / "records.jsonl").read_text().splitlines()]
    assert sorted(questions(records)) == [f"task {i}" for i in range(9)]


def test_a_small_cache_is_taken_whole_with_a_warning(tmp_path):
    line, report, records = mixed(tmp_path, 10, 25, 4.0)
    assert len(records) == 35 and set(questions(records)) >= {f"other {i}" for i in range(25)}
    assert report["ratio"] == 2.5 and report["wanted"] == 40
    assert line.endswith("warning: 40 unrelated ones were wanted, so the ratio is 2.5 and not 4")


def test_the_baseline_of_equal_steps_has_as_many_rows(tmp_path):
    _, _, diverse = mixed(tmp_path, 10, 25, 4.0)
    line, report, records = mixed(tmp_path, 10, 25, 4.0, repeat=True)
    found = collections.Counter(questions(records))
    assert len(records) == len(diverse) == 35
    assert set(found) == {f"task {i}" for i in range(10)} and set(found.values()) == {3, 4}
    assert (report["diverse"], report["repeated"]) == (0, 25) and "25 of them again" in line


def test_duplicates_of_the_cache_are_left_out(tmp_path):
    config = MixConfig(
        write(tmp_path / "task.jsonl", ("task", 4)), write(tmp_path / "c.jsonl", ("o", 5), ("o", 3)), 2.0
    )
    records = [json.loads(line) for line in (tmp_path / "c.jsonl").read_text().splitlines()]
    marked = [{**record, "synthesis": {"row": i}} for i, record in enumerate(records)]  # the same, of another row
    (tmp_path / "c.jsonl").write_text("".join(json.dumps(record) + "\n" for record in marked))
    assert "5 unrelated ones, 3 duplicates left out, warning" in mix(config, tmp_path / "out")


def test_order_places_everything_once():
    own, other = order(5, 20, 12, False, 3)
    assert sorted(own[own >= 0]) == list(range(5)) and np.all((own >= 0) == (other < 0))
    assert len(set(other[other >= 0])) == 12
    assert not np.array_equal(np.flatnonzero(own >= 0), np.arange(5)), "one shuffle of all"


def row(text, answer="yes", system=None):
    messages = [Message("user", text), Message("assistant", answer)]
    return Row(0, Conversation(([Message("system", system)] if system else []) + messages), "here", "place")


TASK = [row("Say what the capital of the large country in the north is, in <sep>."), row("Is it so?")]


@pytest.mark.parametrize(
    ("other", "leak"),
    [
        (row("What is a bird?"), ""),
        (row("Tell me: the capital of the LARGE country, in one word"), "5 consecutive words of the task"),
        (row("the capital of the"), ""),
        (row("the capital of the large"), "5 consecutive words of the task"),
        (row("What is north is, in <SEP"), ""),
        (row("the north is, in sep?"), "5 consecutive words of the task"),
        (row("is it so"), "a question of the task"),
        (row("use <SEP> here"), "the text '<sep>'"),
        (row("fine", "with <sep> in the answer"), "the text '<sep>'"),
        (row("fine", system="the capital of the large country"), ""),
    ],
)
def test_what_leaks(other, leak):
    """Five words in a row, a whole question, or a forbidden text in any case."""
    leaks = Leaks(LeakConfig(("<sep>",), words=5), TASK)
    assert leaks.of(other) == leak
    assert Leaks(LeakConfig(("<Sep>",), words=5), TASK).of(other) == leak.replace("<sep>", "<Sep>")


def test_without_blanks_characters_count():
    leaks = Leaks(LeakConfig(words=5), [row("请问这个大国的首都是哪里 用ABC格式")])
    assert leaks.of(row("你知道大国的首都吗")) == "5 consecutive words of the task"
    assert leaks.of(row("大国的首是什么")) == "", "four in a row"
    assert words("国の カナ is_1 한국 어") == ("国", "の", "カ", "ナ", "is_1", "한국", "어")


def test_leaks_stop_or_are_counted():
    rows = [row("a <sep>"), row("good"), row("is it so"), row("b <sep>")]
    with pytest.raises(UserError, match=r"3 of 4 records of FILE .*2 with the text '<sep>', 1 with a question .*place"):
        Leaks(LeakConfig(("<sep>",)), TASK).left(rows, "FILE")
    left, counts = Leaks(LeakConfig(("<sep>",), on_leak="drop"), TASK).left(rows, "FILE")
    assert left == [rows[1]] and counts == {"the text '<sep>'": 2, "a question of the task": 1}
    with pytest.raises(UserError, match="no record of FILE is unrelated"):
        Leaks(LeakConfig(("<sep>",), on_leak="drop"), TASK).left(rows[:1], "FILE")


def test_a_mixture_with_leaks_is_refused(tmp_path):
    with pytest.raises(UserError, match=r"12 of 12 records .* the text 'other'"):
        mixed(tmp_path, 3, 12, 2.0, leaks=LeakConfig(("other",)))
    held_out = write(tmp_path / "eval.jsonl", ("other", 2))
    leaks = LeakConfig(against=[held_out], on_leak="drop")
    _, report, records = mixed(tmp_path, 3, 12, 4.0, leaks=leaks)
    assert report["leaks"] == {"a question of the task": 2} and not {"other 0", "other 1"} & set(questions(records))
    with pytest.raises(UserError, match=r"config\.diverse\.path is empty"):
        mix(MixConfig(write(tmp_path / "task.jsonl", ("task", 2))), tmp_path / "out")
