"""Every check against the original's verdicts, and the task from prompts to figures."""

import json
from pathlib import Path

import pytest

from jaxsft.config import DataConfig, MeshConfig, TaskConfig
from jaxsft.data.tokenizer import load_tokenizer
from jaxsft.errors import UserError
from jaxsft.evaluation.ifeval import following
from jaxsft.evaluation.ifeval.english import count_capital_words, count_sentences, count_words
from jaxsft.evaluation.ifeval.following import Prompt, Verdicts, judge, read_prompts, summarize
from jaxsft.evaluation.ifeval.verifiable import CHECKS, follows, follows_loosely, language_detector
from jaxsft.evaluation.registry import headline, prepare
from jaxsft.evaluation.task import Subject
from jaxsft.models.checkpoint import load_architecture, load_params
from jaxsft.models.decoder import Decoder
from jaxsft.sharding import make_mesh
from tests.evaluation.folders import make_folder
from tests.evaluation.ifeval_case import ASKED, RESPONSES, short
from tests.evaluation.pages import figures_on_the_page

RECORDED = json.loads(Path(__file__).with_name("recorded").joinpath("ifeval.json").read_text())
PAIRS = [(name, i) for name, of in ASKED.items() for i in range(len(of))]


def recorded_detect(text):
    return RECORDED["languages"][short(text)]


def test_all_instructions_are_asked():
    assert set(ASKED) == set(CHECKS) and len(CHECKS) == 25


@pytest.mark.parametrize(("name", "i"), PAIRS)
def test_verdicts_are_those_of_the_original(name, i):
    for kind, function in enumerate((follows, follows_loosely)):
        said = [function(name, ASKED[name][i], response, recorded_detect) for response in RESPONSES]
        assert "".join(str(int(verdict)) for verdict in said) == RECORDED["verdicts"][name][i][kind]


def test_each_instruction_is_followed_and_not():
    for name, of in RECORDED["verdicts"].items():
        assert {digit for both in of for digits in both for digit in digits} == {"0", "1"}, name


def test_counts_are_those_of_nltk():
    assert [count_sentences(response) for response in RESPONSES] == RECORDED["sentences"]
    assert [count_capital_words(response) for response in RESPONSES] == RECORDED["capitals"]
    assert count_words("don't co-op snake_case 3.14") == 7


def test_languages_with_langdetect():
    pytest.importorskip("langdetect", reason="langdetect is not installed; pip install 'jaxsft[eval]'")
    detect = language_detector()
    for response in RESPONSES:
        if len(response) > 60:  # of short texts it is not sure
            assert detect(response) == recorded_detect(response)
    assert detect("1234") == ""


def test_without_a_detector_nothing_passes_silently():
    upper, lower = "change_case:english_capital", "change_case:english_lowercase"
    assert follows(upper, {}, "Not in capitals") is False  # case alone decides
    assert follows(upper, {}, "IN CAPITALS") is None and follows(lower, {}, "small") is None
    assert follows("language:response_language", {"language": "de"}, "Guten Tag") is None
    assert follows("language:response_language", {"language": "de"}, " ") is False
    assert follows_loosely(upper, {}, "Sure:\nIN CAPITALS") is None


def prompt(*names, settings=None):
    return Prompt("?", list(names), settings or [{}] * len(names), "file")


def test_loosely_a_line_too_many_is_forgiven():
    asked = prompt("startend:end_checker", "punctuation:no_comma", settings=[{"end_phrase": "The end."}, {}])
    assert judge(asked, "A story. The end.", None) == Verdicts([True, True], [True, True])
    assert judge(asked, "A story. The end.\nAnything else?", None) == Verdicts([False, True], [True, True])
    assert judge(asked, "Sure, here it is:\nThe end.", None) == Verdicts([True, False], [True, True])
    assert judge(asked, "Once, a story.", None) == Verdicts([False, False], [False, False])


def test_figures():
    prompts = [prompt("a", "b"), prompt("a"), prompt("b"), prompt("b", "c")]
    verdicts = [
        Verdicts([True, False], [True, True]),
        Verdicts([True], [True]),
        Verdicts([None], [None]),  # counts nowhere
        Verdicts([None, False], [None, False]),  # not followed, whatever the first would be
    ]
    figures = summarize(prompts, verdicts)
    assert figures["prompt_strict"] == pytest.approx(1 / 3) and figures["prompt_loose"] == pytest.approx(2 / 3)
    assert figures["standard_error"] == pytest.approx((1 / 3 * 2 / 3 / 3) ** 0.5)
    assert figures["instruction_strict"] == pytest.approx(2 / 4) and figures["instruction_loose"] == pytest.approx(
        3 / 4
    )
    assert (figures["prompts"], figures["instructions"], figures["undecided"]) == (4, 6, 2)
    assert figures["by_instruction"] == {
        "a": {"strict": 1.0, "loose": 1.0, "instructions": 2},
        "b": {"strict": 0.0, "loose": 1.0, "instructions": 3},
        "c": {"strict": 0.0, "loose": 0.0, "instructions": 1},
    }


RECORDS = [
    {"prompt": "Say it", "instruction_id_list": ["punctuation:no_comma", "startend:quotation"], "kwargs": [{}, None]},
    {"prompt": "Now", "instruction_id_list": ["length_constraints:number_words"],
     "kwargs": [{"num_words": 1, "relation": "less than", "language": None}]},
    {"prompt": "Whisper", "instruction_id_list": ["language:response_language"], "kwargs": [{"language": "en"}]},
]  # fmt: skip


@pytest.fixture
def asked(tmp_path):
    make_folder(tmp_path)
    source, mesh = str(tmp_path), make_mesh(MeshConfig())
    decoder = Decoder(load_architecture(tmp_path))
    subject = Subject(decoder, load_tokenizer(source), tmp_path, mesh)
    params = load_params(tmp_path, decoder, mesh, "float32")

    def run(records, **config):
        (tmp_path / "data.jsonl").write_text("".join(json.dumps(record) + "\n" for record in records))
        data = DataConfig(path=str(tmp_path / "data.jsonl"), template="none")
        task = TaskConfig(task="ifeval", data=data, batch_size=8, **({"max_new_tokens": 12} | config))
        ready = prepare(task, subject)
        return ready, task, ready.measure(params, None)

    return run


def test_task(asked, monkeypatch):
    monkeypatch.setattr(following, "language_detector", lambda: None)
    ready, task, result = asked(RECORDS)
    assert "3 prompts with 4 instructions" in ready.report and "1 of them ask for a language" in ready.report
    assert [record["reference"] for record in result.records] == [r["instruction_id_list"] for r in RECORDS]
    assert [record["counted"] for record in result.records] == [True, True, False]
    assert result.figures.keys() | {"strict", "loose"} == figures_on_the_page("ifeval")
    assert result.figures["undecided"] == 1 and f"{result.figures['prompt_strict']:.4f}" in headline(task, result)
    for record, of in zip(result.records, read_prompts(task.data)):
        verdicts = judge(of, record["answer"], None)
        assert record["verdicts"] == [list(both) for both in zip(verdicts.strict, verdicts.loose)]
    counted = [record["correct"] for record in result.records if record["counted"]]
    assert result.figures["prompt_strict"] == sum(counted) / len(counted)


def test_where_nothing_is_decided_nothing_is_shared(asked, monkeypatch):
    monkeypatch.setattr(following, "language_detector", lambda: None)
    monkeypatch.setattr(following, "judge", lambda *_: Verdicts([None], [None]))
    _, task, result = asked([RECORDS[2]])
    assert result.figures["prompt_strict"] is None and result.figures["standard_error"] is None
    assert headline(task, result) == (
        "prompt_strict undefined +- undefined, instruction_strict undefined on 1 prompts, 1 instructions undecided"
    )


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"instruction_id_list": ["punctuation:no_coma"]}, "did you mean 'punctuation:no_comma'"),
        ({"instruction_id_list": []}, "a list `instruction_id_list` of names that is not empty"),
        ({"instruction_id_list": [["x"]]}, "a list `instruction_id_list` of names"),
        ({"kwargs": []}, "one object for each of the 1 instructions"),
        ({"kwargs": ["num_words"]}, "one object for each of the 1 instructions"),
        ({"kwargs": [{"num_words": "3", "relation": "less than"}]}, "is '3'; it must be a whole number"),
        ({"kwargs": [{"num_words": 3.5, "relation": "less than"}]}, r"is 3\.5; it must be a whole number"),
        ({"kwargs": [{"keywords": "cat"}], "instruction_id_list": ["keywords:existence"]}, "must be a list of texts"),
        (
            {
                "kwargs": [{"letter": 3, "let_frequency": 2, "let_relation": "at least"}],
                "instruction_id_list": ["keywords:letter_frequency"],
            },
            "'letter' of .* is 3; it must be a text",
        ),
        ({"kwargs": [{"num_words": 3, "relation": None}]}, "needs 'relation'"),
        ({"kwargs": [{"num_words": 3, "relation": "about"}]}, "has the relation 'about'"),
        ({"prompt": " "}, "has a `prompt`"),
    ],
)
def test_bad_records(asked, change, message):
    with pytest.raises(UserError, match=f"data.jsonl.*{message}"):
        asked([RECORDS[1] | change])


def test_whole_numbers_of_tables_with_gaps(asked):
    ready, *_ = asked([RECORDS[1] | {"kwargs": [{"num_words": 1.0, "relation": "less than"}]}])
    assert ready.fingerprint == asked([RECORDS[1]])[0].fingerprint


def test_long_answers_are_refused(asked):
    with pytest.raises(UserError, match=r"no room for a prompt in a context of 128; lower config\.max_new_tokens"):
        asked(RECORDS, max_new_tokens=1280)


def test_published_file(real_data):
    data = DataConfig(path=str(real_data / "eval" / "ifeval" / "input_data.jsonl"))
    prompts = read_prompts(data)
    assert len(prompts) == 541 and sum(len(prompt.instructions) for prompt in prompts) == 834
    assert {name for prompt in prompts for name in prompt.instructions} == set(CHECKS)
