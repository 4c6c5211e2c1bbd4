"""Self-distillation: what may replace a given answer, what is shown of it, and what stays as it was."""

import copy
import dataclasses
import json

import numpy as np
import pytest

from jaxsft.config import DataConfig, EvaluateConfig, ModelConfig, SDFTConfig, SynthesisConfig
from jaxsft.data.conversation import Message, parse
from jaxsft.data.dataset import prepare
from jaxsft.data.tokenizer import load_tokenizer
from jaxsft.evaluation.suite import evaluate
from jaxsft.models.checkpoint import resolve
from jaxsft.synthesis import sdft
from jaxsft.synthesis.accept import TESTS, last_number
from jaxsft.synthesis.method import Answer, counts
from jaxsft.synthesis.rows import read_rows
from jaxsft.synthesis.run import RECORDS, synthesize
from jaxsft.synthesis.sdft import SDFT, TEMPLATES, prompt
from tests.synthesis.rows import Says, make_row, make_rows


@pytest.mark.parametrize(
    ("test", "new", "given", "fine"),
    [
        ("chat", "It rains.", "It rains.", True),
        ("chat", "The Reference Answer says so.", "so", False),
        ("chat", "In my response it rains.", "so", False),
        ("chat", "YOUR RESPONSE is good.", "so", False),
        ("chat", "Here is your own response.", "so", False),
        ("chat", "Now it's your turn!", "so", False),
        ("chat", "Your turn.", "so", False),
        ("chat", "your turn.", "so", True),  # the opening alone minds the case
        ("chat", "It is Your turn.", "so", True),
        ("number", "so 1,234", "#### 1234", True),
        ("number", "so 1234, my response", "1234", False),  # the phrases count here too
        ("number", "so 12", "13", False),
        ("number", "none", "none", False),  # two answers without a number are not the same
        ("number", "3.5", "3.5", False),
        ("number", "I have 12 5", "125", False),
        ("number", "I have 12 5", "5", True),
        ("call", "Use: f(a='x',  b=2)", 'f(a="x", b=2)', True),
        ("call", "Use f(a=1)", "f(a=2)", False),
        ("call", "Use f", "none here", False),
        ("code", "Here is it: ```python\n1\n```", "x", True),
        ("code", "I implemented it. ```python\n1\n```", "x", True),
        ("code", "```python\n1\n```", "x", False),
        ("code", "Here is it: ```\n1\n```", "x", False),
        ("none", "Your turn: my response", "x", True),
    ],
)
def test_what_is_accepted(test, new, given, fine):
    assert (TESTS[test](new, given) == "") == fine


@pytest.mark.parametrize(
    ("text", "number"),
    [
        ("it costs 1,234 in all", 1234),
        ("12 000", 12000),
        ("1,234,567.", 1234567),
        ("3.0", 3),
        ("3.5", None),
        (f"{chr(0x2212)}4", -4),
        ("-4", -4),
        ("7-4", 4),
        ("none at all", None),
        ("12 5", 5),
        ("it was 1234 567", 567),
        ("$1,000.00", 1000),
        ("x2 is 9 apples.", 9),
    ],
)
def test_the_last_number(text, number):
    assert last_number(text) == number


def test_what_is_shown():
    row = make_row({"prompt": "why {response} ?", "completion": "so {instruction} .", "system": "be kind ."})
    for name in ("refer", "guide"):
        system, user = prompt(row, TEMPLATES[name]).messages
        assert system.content == f"be kind .\n\n{TEMPLATES[name].system}"
        assert user.content == (  # braces of the record are its own
            "### Instruction:\nwhy {response} ?\n\n### Reference Answer:\nso {instruction} .\n\n### Response:"
        )
    maths = prompt(row, TEMPLATES["math"])
    assert maths.messages[-1].content == "why {response} ?\n\nso {instruction} ." and maths.prefill
    again = prompt(row, TEMPLATES["earlier_answer"])
    assert [message.content for message in again.messages] == [
        "be kind .", "why {response} ?", "so {instruction} .", "why {response} ?"
    ]  # fmt: skip
    talk = make_row({"messages": [{"role": r, "content": c} for r, c in zip(["user", "assistant"] * 2, "abcd")]})
    shown = prompt(talk, TEMPLATES["guide"]).messages
    assert [message.role for message in shown] == ["system", "user", "assistant", "user"]
    assert [message.content for message in shown][1:3] == ["a", "b"], "earlier turns stay turns"


ROWS = [
    {"instruction": "add", "input": "1 2", "output": " it is 3 ", "source": "book"},
    {"prompt": "two", "completion": "2", "id": "second"},
    {"messages": [{"role": "user", "content": "three"}]},
    {"prompt": "four", "completion": "4", "weight": 0.5},
    {"messages": [{"role": "user", "content": "five"}, {"role": "assistant", "content": "5", "weight": 0.25}]},
]
SAID = ["three, 3", "it is 2", "it is 5", Answer("it is 4 and", "length")]


def test_rows_keep_number_and_order():
    answers = iter([SAID[0], SAID[1], SAID[3], SAID[2]])
    made = SDFT(SDFTConfig(accept="number"))(make_rows(*ROWS), Says(lambda asked: next(answers)))
    assert counts(made.outcomes) == {
        "kept": 3,
        "fell back": {"cut off before its end": 1, "no answer to rewrite": 1},
        "dropped": {},
    }
    records = [outcome.record for outcome in made.outcomes]
    assert [record["synthesis"]["row"] for record in records] == [0, 1, 2, 3, 4]
    assert records[0]["messages"][-1]["content"] == "three, 3" and records[0]["source"] == "book"
    assert records[1]["id"] == "second"
    assert (records[3]["weight"], records[3]["messages"][-1]["content"]) == (0.5, "4")
    assert records[4]["messages"][-1] == {"role": "assistant", "content": "it is 5", "weight": 0.25}


def test_without_acceptance_nothing_changes():
    """To the byte, whatever the model says."""
    rows = make_rows(*ROWS)
    before = copy.deepcopy(rows)
    made = [sdft.compose(row, Answer("something else", "token"), lambda new, given: "no") for row in rows]
    for outcome, row, record in zip(made, before, ROWS):
        written = json.loads(json.dumps(outcome.record))
        assert parse(written, "here").messages == row.conversation.messages == parse(record, "here").messages
        assert parse(written, "here").weight == row.conversation.weight
    assert made[0].record["messages"][-1]["content"] == " it is 3 ", "blanks too"


def written_anew(folder, rows, **sampling):
    """The world's own records, and their answers by the model that is trained on them."""
    config = SynthesisConfig(ModelConfig("world:chat"), data=DataConfig("world:train", rows=rows), method="sdft")
    config.sdft.template = "earlier_answer"
    synthesize(dataclasses.replace(config, max_new_tokens=24, **sampling), folder)
    return folder / RECORDS


def lines_of(path):
    return [json.loads(line) for line in path.read_text().splitlines()]


@pytest.fixture(scope="module")
def distilled(tmp_path_factory):
    return written_anew(tmp_path_factory.mktemp("distilled"), ":64")


def test_training_sees_no_given_answer(distilled, tmp_path):
    """The ordinary prompt, tokenised for training, and of the answers only what was written or fell back."""
    data = lambda path: DataConfig(str(path), cache_dir=str(tmp_path), rows=":64", max_length=64)
    tokenizer = load_tokenizer(str(resolve("world:chat")))
    new, given = (prepare(data(path), tokenizer) for path in (distilled, "world:train"))
    records = lines_of(distilled)
    assert len(new) == len(given) == len(records) == 64
    changed = 0
    for i, record in enumerate(records):
        ids, weights, _ = new.example(i)
        before, weights_before, _ = given.example(i)
        prompt_of = lambda ids, weights: ids[: np.argmax(weights > 0)].tolist()
        assert prompt_of(ids, weights) == prompt_of(before, weights_before)
        if "fell_back" in record["synthesis"]:
            assert ids.tolist() == before.tolist()
        changed += ids.tolist() != before.tolist()
    assert changed > 16, "most are the model's own"


def test_own_words_are_likelier(tmp_path):
    """Negative log-likelihood a token of the new answers under the model that wrote them, and of the given ones."""
    made = written_anew(tmp_path / "made", ":400", batch_size=128, temperature=0.95, top_p=0.7, top_k=50)
    rows = [record for record in lines_of(made) if "fell_back" not in record["synthesis"]]
    kept = [record["synthesis"]["row"] for record in rows]
    given = [row.unchanged() for row in read_rows(DataConfig("world:train", rows=":400")) if row.index in kept]
    found = []
    for name, own in (("new", rows), ("given", given)):
        (tmp_path / f"{name}.jsonl").write_text("".join(json.dumps(record) + "\n" for record in own))
        measured = EvaluateConfig(model=ModelConfig("world:chat"), data=DataConfig(str(tmp_path / f"{name}.jsonl")))
        measured.data.cache_dir, measured.data.max_length = str(tmp_path / "cache"), 64
        found.append(evaluate(measured).figures["nll_per_token"])
    assert found[0] < found[1] - 0.1, found


def test_only_the_answer_is_asked_for(distilled):
    """The prompts as the file of answers has them: question, given answer, question."""
    for answer in lines_of(distilled.parent / "answers.jsonl"):
        question, given, again = answer["prompt"]
        assert question == again and given["role"] == "assistant"
        assert Message(**question).role == "user"
