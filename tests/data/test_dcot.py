"""Divergent chains of thought: the format, the draws, and what is supervised."""

import collections
import itertools
import re

import pytest

from jaxsft.config import DataConfig, DCoTConfig, MixtureConfig, SourceConfig
from jaxsft.data import dcot
from jaxsft.data.dataset import prepare
from jaxsft.data.loader import Loader
from jaxsft.errors import UserError
from tests.data.conftest import supervised, write_jsonl

PROBLEM = dcot.Problem("How many?", "7")
GOLDEN = {
    1: "[Question] How many?\n[Number of answers] 1\n[Answer 1] one\n\n[Final answer] 7",
    2: "[Question] How many?\n[Context] Two boxes.\n[Number of answers] 2\n[Answer 1] one\n[Answer 2] two\n\n"
    "[Final answer] 7",
    4: "[Question] How many?\n[Context] Two boxes.\n[Options] (A) 7 (B) 8\n[Number of answers] 4\n[Answer 1] one\n"
    "[Answer 2] two\n[Answer 3] three\n[Answer 4] four\n\n[Final answer] 7",
}
WITH = {1: {}, 2: {"context": "Two boxes."}, 4: {"context": "Two boxes.", "options": "(A) 7 (B) 8"}}
RECORDS = [
    {"question": f"q{i}", "chains": [f"c{i}{letter}" for letter in "abcd"[:count]], "answer": i}
    for i, count in enumerate((1, 4, 2, 3))
]


@pytest.fixture
def make(tmp_path, tokenizer):
    def make(records=RECORDS, weight=1.0, supervise="assistant", truncation="right", max_dropped=0.2, **options):
        config = DataConfig(
            sources=[SourceConfig(write_jsonl(tmp_path / "chains.jsonl", records), weight=weight)],
            template="raw",
            grouping="dcot",
            dcot=DCoTConfig(**options),
            supervise=supervise,
            max_length=128,
            truncation=truncation,
            max_dropped=max_dropped,
            cache_dir=str(tmp_path / "cache"),
        )
        return prepare(config, tokenizer), config

    return make


def texts(dataset, tokenizer, epoch: int) -> list[str]:
    return [tokenizer.decode(dataset.example(i)[0]) for i in dataset.epoch(epoch).members]


def chains_of(text: str) -> list[str]:
    """The chains of an example, read from its text alone."""
    body = text.partition("\n\n[Final answer]")[0]
    return [chain.strip() for chain in re.split(r"\[Answer \d+\]", body)[1:]]


@pytest.mark.parametrize("k", GOLDEN)
def test_the_format(k):
    problem, chains = PROBLEM._replace(**WITH[k]), ["one", "two", "three", "four"][:k]
    text = dcot.prompt(problem, k) + dcot.response(chains, problem.answer)
    assert text == GOLDEN[k]
    assert dcot.final_answer(dcot.response(chains, problem.answer)) == ("7", True)
    assert chains_of(text) == chains


@pytest.mark.parametrize(
    ("response", "expected"),
    [
        (" I think\n\n[Final answer] Blue Whale ", ("blue whale", True)),
        (" a\n[Final answer] B\n[Question] next", ("b", True)),
        (" a\n[Final answer] 1 [Answer 2] b\n[Final answer] 2", ("1", True)),
        (" [sic] [Final answer] [0, 1]", ("[0, 1]", True)),
        (" It is Blue.", ("it is blue.", False)),
        ("", ("", False)),
    ],
)
def test_reading_the_final_answer(response, expected):
    assert dcot.final_answer(response) == expected


def test_an_epoch_has_every_number_of_chains_once(make, tokenizer):
    dataset, _ = make()
    for epoch in range(3):
        found = texts(dataset, tokenizer, epoch)
        assert len(found) == sum(len(record["chains"]) for record in RECORDS)
        for record in RECORDS:
            own = [text for text in found if f"[Question] {record['question']}\n" in text]
            asked = [int(re.search(r"\[Number of answers\] (\d+)", text)[1]) for text in own]
            assert sorted(asked) == list(range(1, len(record["chains"]) + 1))
            for text, k in zip(own, asked):
                chains = chains_of(text)
                assert len(chains) == len(set(chains)) == k
                assert set(chains) <= set(record["chains"])
                assert re.findall(r"\[Answer (\d+)\]", text) == [str(i) for i in range(1, k + 1)]
                assert text.endswith(f"\n\n[Final answer] {record['answer']}</s>")


def test_epochs_see_one_draw_after_the_other(make, tokenizer):
    dataset, _ = make(draws=2)
    one, other, again = (texts(dataset, tokenizer, epoch) for epoch in (0, 1, 2))
    assert one == again != other
    assert make(draws=2)[0].fingerprint == dataset.fingerprint
    assert texts(make(draws=2, seed=1)[0], tokenizer, 0) != one
    assert sorted(texts(make(RECORDS[::-1], draws=2)[0], tokenizer, 0)) == sorted(one)  # whatever the records' order
    twice, _ = make(draws=2, weight=2.0)
    assert collections.Counter(texts(twice, tokenizer, 1)) == {text: 2 for text in other}
    loader = Loader(dataset, dataset.config, 2)
    assert loader.rows(0) == loader.rows(1) == loader.rows(2)


def test_permutations_are_uniform():
    """Chi-squared of 600 draws of 2 of 3 chains over the 6 ordered pairs; 20.5 has probability 0.001 at 5 degrees."""
    drawn = dcot.draws(["a", "b", "c"], "q", DCoTConfig(draws=600))
    counts = collections.Counter(tuple(chains) for chains in drawn if len(chains) == 2)
    assert len(counts) == 6
    assert sum((count - 100) ** 2 / 100 for count in counts.values()) < 20.5


def test_the_baseline_has_one_chain_a_response(make, tokenizer):
    dataset, _ = make(single=True)
    for epoch in (0, 1):
        found = texts(dataset, tokenizer, epoch)
        assert all("[Number of answers] 1\n" in text for text in found)
        assert sorted(itertools.chain(*map(chains_of, found))) == sorted(
            c for record in RECORDS for c in record["chains"]
        )


def test_the_prompt_has_no_loss(make, tokenizer):
    dataset, _ = make()
    for i in range(len(dataset)):
        ids, weights, _ = dataset.example(i)
        (run,) = supervised(tokenizer, ids, weights)
        assert tokenizer.decode(ids) == "<s>" + tokenizer.decode(ids[weights == 0]).removeprefix("<s>") + run
        assert run.startswith(" c")  # the blank and what follows
        assert "[Answer 1]" not in run
        assert run.endswith("</s>")
    everything, _ = make(supervise="all")
    ids, weights, _ = everything.example(0)
    assert weights.tolist() == [0.0] + [1.0] * (len(ids) - 1)


@pytest.mark.parametrize("name", ["weight", "loss_weight"])
def test_a_question_has_a_weight_by_either_name(make, name):
    dataset, _ = make([record | {name: 0.5} for record in RECORDS])
    assert set(dataset.example(0)[1].tolist()) == {0.0, 0.5}


def test_questions_without_chains_and_long_ones_are_counted(make, tokenizer):
    records = [*RECORDS, {"question": "q", "chains": [], "answer": "a"}]
    dataset, config = make(records)
    assert dataset.report.dropped == {"no supervised token": 1}
    assert (dataset.report.records, dataset.report.examples) == (5, 30)
    config.mixture = MixtureConfig("source", tuple(dataset.sources), dict.fromkeys(dataset.sources, "Add."))
    assert prepare(config, tokenizer).report.dropped == dataset.report.dropped  # a prompt that plain text cannot have
    long = {"question": "long", "chains": ["short", "word" + " word" * 99], "answer": "a"}
    rest, _ = make([*RECORDS, long], truncation="drop", max_dropped=1.0)
    found = [texts(rest, tokenizer, epoch) for epoch in range(3)]
    own = [[text for text in epoch if "[Question] long" in text] for epoch in found]
    drawn = dcot.draws(long["chains"], "long", DCoTConfig())
    assert [len(epoch) for epoch in found] == [10 + len(one) for one in own]
    assert own == [[text for text in one if "short" in text] for one in own]
    assert [len(one) for one in own] == [int(drawn[epoch] == ["short"]) for epoch in range(3)]
    assert rest.report.dropped == {"longer than max_length": 6 - sum(map(len, own))}


def test_the_forms_of_records():
    read = lambda record, **fields: dcot.read(record, "here", fields, DataConfig(dcot=DCoTConfig(draws=1)))
    cots = [{"cot": " one ", "cot_trigger": "x"}, {"cot": "one"}]
    (conversation,) = read({"question": "q", "correct_cots": cots, "answer": 145.0, "task_type": "sums", "weight": 2})
    assert [m.content for m in conversation.messages] == [
        "[Question] q\n[Number of answers] 1\n[Answer 1]",
        " one\n\n[Final answer] 145",
    ]
    assert (conversation.task_type, conversation.weight) == ("sums", 2.0)
    mapped = read({"Q": "q", "chains": ["c"], "answer": "a"}, Q="question")
    assert mapped[0].messages[0].content.startswith("[Question] q\n")
    for chain in ("[Answer 2] x", "so [Final answer] 3", ""):
        with pytest.raises(UserError, match="here: a chain of thought"):
            read({"question": "q", "chains": [chain], "answer": "a"})
    with pytest.raises(UserError, match=r"here: the record has no field 'answer'; did you mean 'answers'"):
        read({"question": "q", "chains": ["c"], "answers": "a"})
    with pytest.raises(UserError, match="here: the record has no field 'chains'"):
        read({"question": "q", "answer": "a"})
    with pytest.raises(UserError, match="'chains' is a str"):
        read({"question": "q", "chains": "c", "answer": "a"})
    with pytest.raises(UserError, match="'answer' holds a list"):
        read({"question": "q", "chains": ["c"], "answer": ["a"]})
    with pytest.raises(UserError, match="must be an object"):
        read("q")


def test_real_chains(real_data, tmp_path):
    from jaxsft.data.tokenizer import load_tokenizer

    config = DataConfig(
        path=str(real_data / "instruct/dcot/svamp_cot_dataset.json"), template="raw", max_length=4096, grouping="dcot",
        dcot=DCoTConfig(draws=1), cache_dir=str(tmp_path),
    )  # fmt: skip
    dataset = prepare(config, load_tokenizer(real_data / "models/stories260K"))
    assert dataset.report.dropped == {"no supervised token": 36}
    assert len(dataset.epoch(0).members) == len(dataset) == 2651
