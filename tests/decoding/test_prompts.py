"""Prompts against transformers' generation prompts, and what ends an answer."""

import json

import pytest

from jaxsft.data.conversation import Message
from jaxsft.data.tokenizer import load_tokenizer
from jaxsft.decoding.prompts import make_prompter, read_prompts
from jaxsft.errors import UserError


@pytest.fixture(scope="module")
def stories(real_data):
    return real_data / "models" / "stories260K"


@pytest.fixture(scope="module")
def qwen(real_data):
    return real_data / "tokenizers" / "qwen2"


@pytest.mark.parametrize(
    "prompt",
    [
        "What is 2+2?",
        [Message("system", "Be brief."), Message("user", "Hi"), Message("assistant", "Hello."), Message("user", "é?")],
    ],
)
def test_chat_prompts_are_those_of_transformers(qwen, prompt):
    tokenizer = load_tokenizer(str(qwen))
    messages = [{"role": "user", "content": prompt}] if isinstance(prompt, str) else [m.for_template() for m in prompt]
    expected = tokenizer.hf.apply_chat_template(messages, add_generation_prompt=True, return_dict=False)
    prompter = make_prompter(tokenizer, "auto", qwen)
    assert prompter.encode(prompt) == expected
    end = tokenizer.hf.convert_tokens_to_ids("<|im_end|>")
    assert end in prompter.stop_ids
    answer = tokenizer.encode(" Four.").ids
    assert prompter.decode(expected, [*answer, end]) == " Four."


def test_control_strings_in_a_chat_prompt_are_text(qwen):
    tokenizer = load_tokenizer(str(qwen))
    ids = make_prompter(tokenizer, "auto", qwen).encode("a<|im_end|>b")
    assert ids.count(tokenizer.hf.convert_tokens_to_ids("<|im_end|>")) == 2  # of the system's and the user's turn


def test_without_a_template_the_prompt_is_continued(stories):
    tokenizer = load_tokenizer(str(stories))
    prompter = make_prompter(tokenizer, "auto", stories)
    ids = prompter.encode("Once upon a time")
    assert ids == [1, 403, 407, 261, 378]
    assert prompter.stop_ids == (1, 2)  # as generation_config.json has them
    assert prompter.encode("<s>Once upon a time") == ids
    assert prompter.encode("") == [1]
    assert prompter.decode(ids, tokenizer.encode(", there").ids[1:]).endswith("there")
    with pytest.raises(UserError, match="chat template"):
        prompter.encode([Message("user", "Hi")])


def test_built_in_templates_and_raw(stories):
    tokenizer = load_tokenizer(str(stories))
    plain = make_prompter(tokenizer, "plain", stories)
    text = "### Instruction:\nHi\n\n### Response:\n"
    assert plain.encode("Hi") == [1, *tokenizer.encode(text).ids]
    assert (plain.stop_ids, plain.stop_text) == ((1, 2), "")
    assert make_prompter(tokenizer, "plain", stories, raw=True).encode("Hi") == [1, *tokenizer.encode("Hi").ids]
    chatml = make_prompter(tokenizer, "chatml", stories)  # whose end-of-turn mark is no token of this vocabulary
    assert chatml.stop_text == "<|im_end|>"
    assert chatml.sampling(["x", "<|im_end|>"], seed=3).stop_strings == ("x", "<|im_end|>")
    assert chatml.sampling().stop_strings == ("<|im_end|>",) and plain.sampling().stop_strings == ()
    prompt = chatml.encode("Hi")
    assert chatml.decode(prompt, tokenizer.encode("Yes.<|im_end|>\nmore").ids).strip() == "Yes."


def test_an_answer_is_not_answered(stories):
    prompter = make_prompter(load_tokenizer(str(stories)), "plain", stories)
    with pytest.raises(UserError, match="must end with"):
        prompter.encode([Message("user", "Hi"), Message("assistant", "Hello")])


def test_prompt_files(tmp_path):
    file = tmp_path / "prompts.jsonl"
    records = [{"prompt": "Hi"}, {"messages": [{"role": "user", "content": "Ho"}]}]
    file.write_text("".join(json.dumps(record) + "\n" for record in records))
    assert read_prompts(str(file)) == ["Hi", [Message("user", "Ho")]]
    file.write_text('{"question": "Hi"}\n')
    with pytest.raises(UserError, match="line 1: the record has neither"):
        read_prompts(str(file))


def test_an_answer_that_is_begun_is_part_of_the_prompt(qwen, stories):
    tokenizer = load_tokenizer(str(qwen))
    prompter = make_prompter(tokenizer, "auto", qwen)
    plain = prompter.encode("Why?")
    assert prompter.encode("Why?", prefill="Let us see.") == plain + tokenizer.encode("Let us see.").ids
    llama = make_prompter(load_tokenizer(str(stories)), "llama2", stories)  # which puts a blank before an answer
    text = llama.tokenizer.decode(llama.encode("Why?", prefill="See."), skip_special_tokens=False)
    assert text.endswith("[/INST] See.")
    bare = make_prompter(load_tokenizer(str(stories)), "none", stories)
    assert bare.encode("Once", prefill=" upon a time") == bare.encode("Once upon a time")
