"""From a config to records: real answers of the world's chat model, resumed, refused, and trained on."""

import json

import pytest

from jaxsft.config import DataConfig, ModelConfig, SynthesisConfig
from jaxsft.data.conversation import parse
from jaxsft.errors import UserError
from jaxsft.synthesis.run import MANIFEST, RECORDS, synthesize
from tests.training.test_formats import table


@pytest.fixture
def config():
    made = SynthesisConfig(ModelConfig("world:chat"), data=DataConfig("world:train", rows=":20"), max_new_tokens=24)
    made.self_sample.samples, made.part_rows, made.batch_size = 2, 16, 16
    return made


def records(folder):
    return [json.loads(line) for line in (folder / RECORDS).read_text().splitlines()]


def test_records_and_report(config, tmp_path):
    line = synthesize(config, tmp_path / "made")
    report = json.loads((tmp_path / "made" / MANIFEST).read_text())
    written = records(tmp_path / "made")
    assert report["records"] == report["kept"] == len(written) > 0
    assert report["kept"] + sum(report["dropped"].values()) == 40, "every answer is accounted for"
    assert set(report) == set(table("## Written records"))
    assert report["result"] in line and f"{len(written)} kept" in line
    answers = [json.loads(line) for line in (tmp_path / "made" / "answers.jsonl").read_text().splitlines()]
    assert [answer["index"] for answer in answers] == list(range(40))
    for record in written:
        place = record["synthesis"]["row"] * 2 + record["synthesis"]["sample"]
        *_, question, answer = parse(record, "here").messages
        assert (question.content, answer.content) == (
            answers[place]["prompt"][-1]["content"],
            answers[place]["answer"].strip(),
        )
    order = [(record["synthesis"]["row"], record["synthesis"]["sample"]) for record in written]
    assert order == sorted(order)
    before = (tmp_path / "made" / RECORDS).stat().st_mtime_ns
    assert "done before" in synthesize(config, tmp_path / "made")
    assert (tmp_path / "made" / RECORDS).stat().st_mtime_ns == before


def test_an_answer_depends_on_seed_and_row_alone(config, tmp_path):
    """Not on the other rows, the batch or the parts."""
    synthesize(config, tmp_path / "all")
    config.batch_size, config.part_rows = 8, 5
    config.self_sample.forbidden = ("zzz", "what")  # leaves rows out before anything is asked
    synthesize(config, tmp_path / "some")
    texts = lambda name: {
        (r["synthesis"]["row"], r["synthesis"]["sample"]): r["messages"] for r in records(tmp_path / name)
    }
    all_of, some = texts("all"), texts("some")
    assert 0 < len(some) < len(all_of)
    assert all(all_of[key] == messages for key, messages in some.items())
    config.self_sample.forbidden, config.seed = (), 1
    synthesize(config, tmp_path / "other")
    assert texts("other") != all_of


def test_another_synthesis_is_refused(config, tmp_path):
    synthesize(config, tmp_path / "made")
    config.temperature = 0.5
    with pytest.raises(UserError, match=r"its config\.temperature is 1\.0, now it is 0\.5; choose another output"):
        synthesize(config, tmp_path / "made")
    (tmp_path / "made" / MANIFEST).unlink()  # as if broken off behind the answers
    with pytest.raises(UserError, match=r"of another job: its sampling\.temperature"):
        synthesize(config, tmp_path / "made")


def test_nothing_left_is_said_in_a_sentence(config, tmp_path):
    config.self_sample.forbidden = (" ",)
    said = r"leaves no record of 20: 0 kept, 20 dropped \(a forbidden text in the question 20\)"
    with pytest.raises(UserError, match=said):
        synthesize(config, tmp_path / "made")
    assert not (tmp_path / "made" / MANIFEST).exists()


def test_what_cannot_be_asked_is_refused(config, tmp_path):
    (tmp_path / "text.jsonl").write_text('{"text": "once"}\n')
    (tmp_path / "prompts.jsonl").write_text('{"q": "what is 1 + 1 ?"}\n')
    config.data = DataConfig(str(tmp_path / "text.jsonl"))
    with pytest.raises(UserError, match=r"text\.jsonl, line 1: nothing is asked"):
        synthesize(config, tmp_path / "made")
    config.data = DataConfig(str(tmp_path / "prompts.jsonl"), fields={"q": "prompt"})
    config.self_sample.samples = 1
    synthesize(config, tmp_path / "made")
    assert records(tmp_path / "made")[0]["messages"][0]["content"] == "what is 1 + 1 ?"
    config.adapter = False
    with pytest.raises(UserError, match="world:chat is no adapter"):
        synthesize(config, tmp_path / "other")
    config.model.path = ""
    with pytest.raises(UserError, match=r"config\.model\.path is empty"):
        synthesize(config, tmp_path / "other")
