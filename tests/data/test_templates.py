import datetime

import pytest

from jaxsft.data.templates import BUILT_IN, TODAY, Template, load_template
from jaxsft.errors import UserError
from tests.data.conftest import make_tokenizer

CHAT = [
    {"role": "system", "content": "Be brief."},
    {"role": "user", "content": "Hi"},
    {"role": "assistant", "content": "Hello"},
    {"role": "user", "content": "Bye"},
    {"role": "assistant", "content": "So long"},
]
ALPACA = "Below is an instruction that describes a task. Write a response that appropriately completes the request.\n\n"
GOLDEN = {
    "chatml": "<s><|im_start|>system\nBe brief.<|im_end|>\n<|im_start|>user\nHi<|im_end|>\n<|im_start|>assistant\nHello"
    "<|im_end|>\n<|im_start|>user\nBye<|im_end|>\n<|im_start|>assistant\nSo long<|im_end|>\n",
    "llama2": "<s>[INST] <<SYS>>\nBe brief.\n<</SYS>>\n\nHi [/INST] Hello </s><s>[INST] Bye [/INST] So long </s>",
    "plain": "<s>Be brief.\n\n### Instruction:\nHi\n\n### Response:\nHello</s>\n\n### Instruction:\nBye\n\n###"
    " Response:\nSo long</s>",
    "raw": "<s>Be brief.HiHello</s>ByeSo long</s>",
}
GOLDEN["alpaca"] = GOLDEN["plain"]
GOLDEN["openbezoar"] = GOLDEN["plain"].replace("<s>", "<s>### System:\n")  # as its model cards write it
GOLDEN["openchat"] = (
    "<s>Be brief.</s>User:Hi</s>Assistant:Hello</s>User:Bye</s>Assistant:So long</s>"  # by piece, without a condition
)


@pytest.mark.parametrize("name", BUILT_IN)
def test_built_in_templates(tokenizer, name):
    template = load_template(name, tokenizer)
    text, spans, _ = template.render(CHAT)
    assert text == GOLDEN[name]
    ends = {"chatml": "{}<|im_end|>", "llama2": " {} </s>"}.get(name, "{}</s>")
    assert [text[a:b] for a, b in spans] == [ends.format("Hello"), ends.format("So long")]


@pytest.mark.parametrize("name", BUILT_IN)
def test_the_generation_prompt_is_what_comes_before_the_answer(tokenizer, name):
    template = load_template(name, tokenizer)
    prompt = template.render(CHAT[:4], add_generation_prompt=True).text
    whole, spans, _ = template.render(CHAT)
    assert prompt == whole[: spans[-1][0]]


def test_alpaca_writes_its_preamble_where_there_is_no_system_turn(tokenizer):
    text = load_template("alpaca", tokenizer).render(CHAT[1:3]).text
    assert text == f"<s>{ALPACA}### Instruction:\nHi\n\n### Response:\nHello</s>"


def test_a_bos_that_is_chatmls_own_mark_is_not_doubled():
    tokenizer = make_tokenizer(bos_token="<|im_start|>", eos_token="<|im_end|>")
    assert load_template("chatml", tokenizer).render(CHAT).text.startswith("<|im_start|>system")


TRICKS = """{% for m in messages if m.role != 'system' %}
    {% if loop.index > 3 %}{% break %}{% endif %}
    {{ m.role }} {% generation %}{{ m | tojson }}{% endgeneration %}
{{ m.content[::-1] | upper -}}
{% endfor %}{{ strftime_now('%j of %Y') }}{{ tools | tojson(indent=1) }}{{ undefined_name }}{{ dict(a=1) | tojson }}"""


def test_rendering_and_spans_are_those_of_transformers():
    tokenizer = make_tokenizer(bos_token="<s>", eos_token="</s>")
    tools = [{"name": "f<&>", "text": "ünï"}]
    rendered = Template(TRICKS, tokenizer.variables).render(CHAT, tools)
    want = tokenizer.hf.apply_chat_template(CHAT, tools=tools, chat_template=TRICKS, tokenize=False)
    today = f"{datetime.datetime.now():%j of %Y}"  # ours is one day always: tokens must not change overnight
    assert rendered.text == want.replace(today, f"{TODAY:%j of %Y}")
    ours = [rendered.text[a:b] for a, b in rendered.spans]
    assert ours == [f'{{"role": "{m["role"]}", "content": "{m["content"]}"}}' for m in CHAT[1:4]]


@pytest.mark.parametrize("attack", ["{{ ''.__class__.__mro__[1].__subclasses__() }}", "{{ messages.append(1) }}"])
def test_templates_run_in_a_sandbox(attack):
    with pytest.raises(UserError, match="cannot render"):
        Template(attack).render(CHAT)


def test_reasoning_is_known_by_either_name():
    template = Template("{{ messages[0].reasoning_content }}{{ messages[0].thinking }}")
    assert template.render([{"role": "assistant", "content": "", "reasoning": "hm"}]).text == "hmhm"


def test_what_a_template_refuses_is_said_in_its_words(tokenizer):
    with pytest.raises(UserError, match="no form for the role tool"):
        load_template("plain", tokenizer).render([{"role": "tool", "content": "x"}])
    with pytest.raises(UserError, match="no valid Jinja"):
        Template("{% if %}")


def test_choosing_a_template(tokenizer, tmp_path):
    with pytest.raises(UserError, match="no chat template; choose one of chatml"):
        load_template("auto", tokenizer)
    with pytest.raises(UserError, match="did you mean 'chatml'"):
        load_template("chatlm", tokenizer)
    with pytest.raises(UserError, match="no file"):
        load_template(str(tmp_path / "absent.jinja"), tokenizer)
    with pytest.raises(UserError, match="EOS"):
        load_template("plain", make_tokenizer())
    (tmp_path / "own.jinja").write_text("{{ messages[0].content }}")
    assert load_template(str(tmp_path / "own.jinja"), tokenizer).render(CHAT).text == "Be brief."
