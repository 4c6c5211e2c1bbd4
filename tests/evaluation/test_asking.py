"""What a model is asked: golden prompts in both modes, examples, and that no question is its own example."""

import json

import jax
import pytest

from jaxsft.config import (
    AnswerConfig,
    DataConfig,
    MeshConfig,
    PromptConfig,
    ShotsConfig,
    TaskConfig,
)
from jaxsft.data.tokenizer import load_tokenizer
from jaxsft.errors import UserError
from jaxsft.evaluation.answers import generation
from jaxsft.evaluation.asking import Asker, Pool, Shot, fill
from jaxsft.evaluation.choices import multiple_choice
from jaxsft.evaluation.task import Subject
from jaxsft.sharding import make_mesh
from tests.evaluation.folders import make_folder

COLOURS = [
    {"question": f"Is {{x}} {i}?", "choices": ["red", "blue"], "answer": i % 2, "subject": f"the_{'ab'[i // 3]}"}
    for i in range(6)
]
LISTED = "{question}\n{choices}\nAnswer:"


@pytest.fixture(scope="module")
def subject(tmp_path_factory):
    folder = tmp_path_factory.mktemp("models") / "bytes"
    decoder, params = make_folder(folder, max_position_embeddings=1024)
    mesh = make_mesh(MeshConfig(fsdp=1), jax.devices()[:1])
    return Subject(decoder, load_tokenizer(str(folder)), folder, mesh), params


def write(path, rows):
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return str(path)


def first_prompt(subject, path, template, task="multiple_choice", **config):
    data = DataConfig(path=path, template=template, max_length=1_000_000)
    kind = {"multiple_choice": multiple_choice, "generation": generation}[task]
    task = TaskConfig(task=task, data=data, max_new_tokens=2, **config)
    return kind.prepare(task, subject[0]).measure(subject[1], None).figures["first_prompt"]


LETTERS = {"choices": "letters", "prompt": PromptConfig(LISTED, "About {subject}.\n\n", ShotsConfig(2))}
GOLDEN = {
    "none": "<s>About the a.\n\nIs {x} 1?\nA. red\nB. blue\nAnswer: B\n\nIs {x} 2?\nA. red\nB. blue\nAnswer: A\n\n"
    "Is {x} 0?\nA. red\nB. blue\nAnswer:",
    "chatml": "<s><|im_start|>user\nAbout the a.\n\nIs {x} 1?\nA. red\nB. blue\nAnswer:<|im_end|>\n"
    "<|im_start|>assistant\nB<|im_end|>\n<|im_start|>user\nIs {x} 2?\nA. red\nB. blue\nAnswer:<|im_end|>\n"
    "<|im_start|>assistant\nA<|im_end|>\n<|im_start|>user\nIs {x} 0?\nA. red\nB. blue\nAnswer:<|im_end|>\n"
    "<|im_start|>assistant\n",
}


@pytest.mark.parametrize("template", ["none", "chatml"])
def test_golden_prompts_of_letters(subject, tmp_path, template):
    path = write(tmp_path / "colours.jsonl", COLOURS)
    assert first_prompt(subject, path, template, **LETTERS) == GOLDEN[template]


def test_golden_prompt_of_examples_in_one_turn(subject, tmp_path):
    path, shots = write(tmp_path / "colours.jsonl", COLOURS), ShotsConfig(1, turns=False, separator="\n---\n")
    found = first_prompt(subject, path, "chatml", prompt=PromptConfig("Q: {question}\nA:", shots=shots))
    assert found == (
        "<s><|im_start|>user\nQ: Is {x} 1?\nA: blue\n---\nQ: Is {x} 0?\nA:<|im_end|>\n<|im_start|>assistant\n"
    )


@pytest.mark.parametrize(
    ("template", "golden"),
    [
        ("none", "<s>Q: Why 1?\nA: so\n#### 1\n\nQ: Why 0?\nA:"),
        ("chatml", "<s><|im_start|>user\nQ: Why 1?\nA:<|im_end|>\n<|im_start|>assistant\nso\n#### 1<|im_end|>\n"
         "<|im_start|>user\nQ: Why 0?\nA:<|im_end|>\n<|im_start|>assistant\n"),
    ],
)  # fmt: skip
def test_golden_prompts_of_written_answers(subject, tmp_path, template, golden):
    path = write(tmp_path / "sums.jsonl", [{"question": f"Why {i}?", "answer": f"so\n#### {i}"} for i in range(2)])
    prompt = PromptConfig("Q: {question}\nA:", shots=ShotsConfig(1))
    answer = AnswerConfig("number", stop=("Q:",))
    assert first_prompt(subject, path, template, "generation", prompt=prompt, answer=answer) == golden


def test_no_question_is_its_own_example(tmp_path):
    """From the questions' own file and from another that holds them too, however blanks and case are set."""
    shots = [Shot(f"Question {i % 7}", f"asked {i}", str(i), "ab"[i % 2]) for i in range(14)]
    for config in (
        ShotsConfig(5), ShotsConfig(5, draw="random"), ShotsConfig(2, same_source=True, draw="random", seed=3)
    ):  # fmt: skip
        pool = Pool(shots, config)
        for shot in shots:
            asked = Shot(f"  {shot.question.upper()} ", "", "", shot.source)
            drawn = pool.before(asked)
            assert len(drawn) == config.count and shot.question not in [other.question for other in drawn]
            if config.same_source:
                assert {other.source for other in drawn} == {shot.source}


def test_a_question_with_its_choices_in_another_order_is_no_example(subject, tmp_path):
    for name, choices, right in (("asked", ["red", "blue"], 0), ("examples", ["blue", "red"], 1)):
        line = {"question": "Which?", "choices": choices, "answer": right}
        (tmp_path / f"{name}.jsonl").write_text(json.dumps(line) + "\n")
    shots = ShotsConfig(1, path=str(tmp_path / "examples.jsonl"))
    data = DataConfig(path=str(tmp_path / "asked.jsonl"), template="none")
    with pytest.raises(UserError, match="there are 0 other questions"):
        multiple_choice.prepare(
            TaskConfig(task="multiple_choice", data=data, prompt=PromptConfig(shots=shots)), subject
        )


def test_draws_belong_to_the_question():
    """They depend on its text and the seed, and not on the other questions; "first" takes those that stand first."""
    shots = [Shot(str(i), "", "", "") for i in range(20)]
    drawn = lambda seed, text: [s.question for s in Pool(shots, ShotsConfig(3, draw="random", seed=seed)).before(text)]
    asked, other = Shot("q", "", "", ""), Shot("r", "", "", "")
    assert drawn(0, asked) == drawn(0, asked) != drawn(1, asked)
    assert drawn(0, asked) != drawn(0, other)
    assert [shot.question for shot in Pool(shots, ShotsConfig(3)).before(shots[1])] == ["0", "2", "3"]


def test_braces_of_a_record_stay():
    assert fill("{question} {choices}", {"question": "{choices} {x}", "choices": "{question}"}) == (
        "{choices} {x} {question}"
    )


@pytest.mark.parametrize(
    ("config", "message"),
    [
        (TaskConfig(prompt=PromptConfig("{queston}")), "'{queston}', which stands for nothing; known are {question}"),
        (TaskConfig(prompt=PromptConfig("What?")), "has no '{question}'"),
        (TaskConfig(prompt=PromptConfig(preamble="{question}")), "config.prompt.preamble holds '{question}'"),
    ],
)
def test_refuses_prompts(config, message):
    with pytest.raises(UserError, match=message):
        Asker(config, lambda sources: [])


def test_refuses(subject, tmp_path):
    path = write(tmp_path / "colours.jsonl", COLOURS)
    with pytest.raises(UserError, match=r"shots.count is 3, but there are 2 other questions of the source 'the_a'"):
        first_prompt(subject, path, "none", prompt=PromptConfig(shots=ShotsConfig(3, same_source=True)))
    with pytest.raises(UserError, match=r"nobody is told what the letters stand for"):
        first_prompt(subject, path, "none", choices="letters")
    turns = [{"messages": [{"role": r, "content": r} for r in ("user", "assistant", "user", "assistant")]}] * 2
    path = write(tmp_path / "turns.jsonl", turns)
    with pytest.raises(UserError, match="a question of several turns cannot have examples"):
        first_prompt(subject, path, "chatml", "generation", prompt=PromptConfig(shots=ShotsConfig(1)))


def test_ids_do_not_depend_on_how_questions_are_put(subject, tmp_path):
    """So that the answers of two models, or of one asked in two ways, can be paired."""

    def ids(kind, template, prompt, system=""):
        data = DataConfig(path=path, template=template, max_length=1_000_000, system=system)
        task = TaskConfig(data=data, prompt=prompt, max_new_tokens=2)
        return [record["id"] for record in kind.prepare(task, subject[0]).measure(subject[1], None).records]

    rows = [row | {"prompt": row["question"], "completion": row["choices"][row["answer"]]} for row in COLOURS]
    path = write(tmp_path / "colours.jsonl", rows)
    for kind in (multiple_choice, generation):
        plain = ids(kind, "none", PromptConfig())
        assert len(set(plain)) == 6
        assert ids(kind, "chatml", PromptConfig("Q: {question}", shots=ShotsConfig(1)), "Be brief.") == plain
