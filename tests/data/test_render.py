import numpy as np
import pytest

from jaxsft.data.conversation import Conversation, Message, parse
from jaxsft.data.render import Renderer
from jaxsft.data.templates import Template, load_template
from jaxsft.errors import UserError
from tests.data.conftest import make_tokenizer, supervised

CHATML = """{%- for m in messages %}{{- '<|im_start|>' + m.role + '\\n' + m.content + '<|im_end|>\\n' }}{%- endfor %}
{%- if add_generation_prompt %}{{- '<|im_start|>assistant\\n' }}{%- endif %}"""
TRIMMING = """{{- bos_token }}{%- for m in messages %}
{{- m.role | upper + ': ' + m.content | trim + eos_token + '\\n' }}
{%- endfor %}{%- if add_generation_prompt %}{{- 'ASSISTANT:' }}{%- endif %}"""
NO_HEADER = """{%- for m in messages %}{%- if m.role == 'user' %}{{- '[INST] ' + m.content + ' [/INST]' }}
{%- else %}{{- ' ' + m.content + eos_token }}{%- endif %}{%- endfor %}"""
HEADER_WITH_ANSWER = (
    """{%- for m in messages %}{{- '<|im_start|>' + m.role + '\\n' + m.content + '<|im_end|>\\n' }}{%- endfor %}"""
)
# Like Qwen3's: thoughts of earlier turns are forgotten, the last turn always has some.
FORGETS = """{%- for m in messages %}{{- '<|im_start|>' + m.role + '\\n' }}{%- set text = m.content %}
{%- if m.role == 'assistant' %}{%- set thought = '' %}{%- if '</think>' in text %}
{%- set thought = text.split('</think>')[0].split('<think>')[-1].strip('\\n') %}
{%- set text = text.split('</think>')[-1].lstrip('\\n') %}{%- endif %}
{%- if loop.last %}{{- '<think>\\n' + thought + '\\n</think>\\n\\n' }}{%- endif %}{%- endif %}
{{- text + '<|im_end|>\\n' }}{%- endfor %}
{%- if add_generation_prompt %}{{- '<|im_start|>assistant\\n' }}{%- endif %}"""
CALLS = """{%- for m in messages %}{{- '<|im_start|>' + m.role + '\\n' + (m.content or '') }}
{%- for c in m.tool_calls or [] %}{{- '<call>' + c.function | tojson + '</call>' }}{%- endfor %}{{- '<|im_end|>\\n' }}
{%- endfor %}{%- if add_generation_prompt %}{{- '<|im_start|>assistant\\n' }}{%- endif %}{%- if tools %}{%- endif %}"""


def chat(*turns: str, **options) -> Conversation:
    roles = ["user", "assistant"] * len(turns)
    return Conversation([Message(role, text) for role, text in zip(roles, turns)], **options)


def render(tokenizer, source: str, conversation: Conversation, supervise: str = "assistant"):
    renderer = Renderer(Template(source, tokenizer.variables), tokenizer, supervise)
    (example,) = renderer.examples([(conversation, "f, line 1")])
    return example


def runs(tokenizer, source, conversation):
    example = render(tokenizer, source, conversation)
    return supervised(tokenizer, example.ids, example.weights)


@pytest.mark.parametrize(
    ("source", "want"),
    [
        (CHATML, [" one \n<|im_end|>", "two<|im_end|>"]),
        (TRIMMING, [" one</s>", " two</s>"]),
        (NO_HEADER, ["  one \n</s>", " two</s>"]),
        (HEADER_WITH_ANSWER, [" one \n<|im_end|>", "two<|im_end|>"]),
    ],
)
def test_answers_and_their_ends_are_supervised(tokenizer, source, want):
    assert runs(tokenizer, source, chat("q", " one \n", "again\n", "two")) == want


@pytest.mark.parametrize("source", [CHATML, TRIMMING, NO_HEADER, FORGETS])
def test_the_supervised_part_follows_the_prompt_of_generation(tokenizer, source):
    """At inference the model is given the rendered prompt; what it must then write is what is supervised."""
    conversation = chat("Hello world", "fine, thanks")
    example = render(tokenizer, source, conversation)
    template = Template(source, tokenizer.variables)
    prompt = template.render([m.for_template() for m in conversation.messages[:1]], add_generation_prompt=True).text
    first = int(np.flatnonzero(example.weights)[0])
    assert tokenizer.decode(example.ids[:first]) == prompt


def test_ids_are_those_of_the_whole_text(tokenizer):
    conversation = chat("Hello", "fine")
    example = render(tokenizer, CHATML, conversation)
    messages = [m.for_template() for m in conversation.messages]
    want = tokenizer.hf.apply_chat_template(messages, chat_template=CHATML, return_dict=True)["input_ids"]
    assert example.ids.tolist() == want
    assert (example.ids.dtype, example.weights.dtype) == (np.int32, np.float32)


def test_a_token_across_the_seam_belongs_to_the_prompt(tokenizer):
    """The prompt ends in a blank, which the tokenizer joins with the first word."""
    source = """{%- for m in messages %}{{- m.role + ' says ' + m.content + eos_token }}{%- endfor %}
{%- if add_generation_prompt %}{{- 'assistant says ' }}{%- endif %}"""
    assert tokenizer.decode(tokenizer.encode(" colour").ids[:1]) == " colour"
    assert runs(tokenizer, source, chat("q", "colour you")) == [" you</s>"]


@pytest.mark.parametrize("answer", ["", " \n"])
def test_an_empty_answer_teaches_to_stop(tokenizer, answer):
    want = [f"{answer}<|im_end|>", "two<|im_end|>"]
    assert runs(tokenizer, CHATML, chat("q", answer, "q", "two")) == want


def test_an_assistant_may_speak_first(tokenizer):
    turns = [Message("assistant", "Welcome!"), Message("user", "q"), Message("assistant", "one")]
    assert runs(tokenizer, CHATML, Conversation(turns)) == ["Welcome!<|im_end|>", "one<|im_end|>"]


def test_rewritten_history(tokenizer):
    thought = "<think>\nhm\n</think>\n\n"
    want = ["one<|im_end|>", "<think>\nhm\n</think>\n\ntwo<|im_end|>"]
    assert runs(tokenizer, FORGETS, chat("q", thought + "one", "q", thought + "two")) == want
    assert runs(tokenizer, FORGETS, chat("q", "one", "q", thought + "two")) == want
    assert runs(tokenizer, FORGETS, chat("q", thought + "one", "q", "")) == [
        want[0],
        "<think>\n\n</think>\n\n<|im_end|>",
    ]


def test_tool_calls_are_supervised(tokenizer):
    call = {"type": "function", "function": {"name": "find", "arguments": {"q": "x"}}}
    turns = [
        Message("user", "q"),
        Message("assistant", None, fields={"tool_calls": [call]}),
        Message("tool", "r"),
        Message("assistant", "done"),
    ]
    want = ['<call>{"name": "find", "arguments": {"q": "x"}}</call><|im_end|>', "done<|im_end|>"]
    assert runs(tokenizer, CALLS, Conversation(turns)) == want


def test_control_strings_in_contents_are_text(tokenizer):
    example = render(tokenizer, CHATML, chat("say <|im_end|> and </s>", "<|im_end|>\n<|im_start|>user\nhi<|im_end|>"))
    control = [int(i) for i in example.ids if i < 4]
    assert control == [2, 3, 2, 3]
    assert supervised(tokenizer, example.ids, example.weights) == [
        "<|im_end|>\n<|im_start|>user\nhi<|im_end|><|im_end|>"
    ]
    assert example.ids[np.flatnonzero(example.weights)[-1]] == 3


def test_a_control_string_that_the_template_reads_is_the_templates():
    """`</think>` is a control token here: in an answer the template splits at it, in a question it is text."""
    tokenizer = make_tokenizer(bos_token="<s>", eos_token="</s>")
    tokenizer.hf.add_tokens(["<think>", "</think>"])
    tokenizer = type(tokenizer)(tokenizer.hf)
    think = tokenizer.hf.convert_tokens_to_ids(["<think>", "</think>"])
    example = render(tokenizer, FORGETS, chat("what is </think>?", "<think>\nhm\n</think>\n\nan end"))
    assert [int(i) for i in example.ids if i in think] == think
    assert tokenizer.decode(example.ids).count("</think>") == 2


def test_weights_of_messages_and_records(tokenizer):
    conversation = chat("q", "one", "q", "two", "q", "three", weight=0.5)
    conversation.messages[1].weight, conversation.messages[3].weight = 0.25, 0.0
    example = render(tokenizer, CHATML, conversation)
    assert supervised(tokenizer, example.ids, example.weights) == ["one<|im_end|>", "three<|im_end|>"]
    assert set(example.weights.tolist()) == {0.0, 0.125, 0.5}


def test_supervising_all(tokenizer):
    example = render(tokenizer, CHATML, chat("q", "one", weight=0.5), supervise="all")
    assert example.weights[0] == 0
    assert (example.weights[1:] == 0.5).all()


def test_text_begins_with_bos_and_ends_as_it_ends(tokenizer):
    renderer = Renderer(None, tokenizer)
    (example,) = renderer.examples([(parse({"text": "Hello </s>", "weight": 2}, "f"), "f")])
    assert example.ids[0] == tokenizer.bos_id
    assert tokenizer.decode(example.ids[1:]) == "Hello </s>"
    assert 1 not in example.ids
    assert example.weights.tolist() == [0.0] + [2.0] * (len(example.ids) - 1)
    (bare,) = Renderer(None, make_tokenizer()).examples([(parse({"text": "Hello"}, "f"), "f")])
    assert tokenizer.decode(bare.ids) == "Hello"


TAGGED = """{%- for m in messages %}{{- '<|im_start|>' + m.role + '\\n' }}{%- if m.role == 'assistant' %}
{%- generation %}{{- m.content }}{%- endgeneration %}{%- else %}{{- m.content }}{%- endif %}
{{- '<|im_end|>\\n' }}{%- endfor %}"""


def test_tags_that_leave_the_end_of_turn_outside(tokenizer):
    assert runs(tokenizer, TAGGED, chat("q", "one", "q", "two")) == ["one<|im_end|>", "two<|im_end|>"]


@pytest.mark.parametrize(
    ("source", "conversation", "words"),
    [
        (CHATML, Conversation([Message("user", "q")]), ["no assistant turn"]),
        (
            "{%- for m in messages %}{{- m.role + ':' + m.content }}{%- endfor %}",
            chat("q", "a"),
            ["never learn to stop"],
        ),
        (
            "{%- for m in messages %}{{- m.role + ':' + m.content }}{%- endfor %}",
            chat("q", "a", "r"),
            ["learn to stop"],
        ),
        (TAGGED.replace("<|im_end|>", ""), chat("q", "a "), ["never learn to stop"]),
        ("<s>" + TRIMMING, chat("q", "a"), ["BOS twice"]),
        ("{{ raise_exception('too odd') }}", chat("q", "a"), ["too odd"]),
        ("{{ messages[0].content }}</s>", chat("q", "a"), ["cannot be found", "generation"]),
        (CHATML, Conversation([Message("assistant", "a", fields={"reasoning_content": "hm"})]), ["reasoning"]),
        (CHATML, chat("q", "a", tools=[{"name": "f"}]), ["tools"]),
        (
            TAGGED + TAGGED,
            Conversation([Message("user", "q"), Message("assistant", "a", 0.5)]),
            ["2 spans", "1 assistant"],
        ),
    ],
)
def test_refusals_name_the_place(tokenizer, source, conversation, words):
    with pytest.raises(UserError) as error:
        render(tokenizer, source, conversation)
    assert all(word in str(error.value) for word in ["f, line 1", *words]), error.value


def test_calls_that_the_template_would_drop(tokenizer):
    call = {"type": "function", "function": {"name": "f", "arguments": {}}}
    with pytest.raises(UserError, match="does not write calls"):
        render(
            tokenizer,
            CHATML,
            Conversation([Message("user", "q"), Message("assistant", "", None, {"tool_calls": [call]})]),
        )


def test_one_batch_of_mixed_kinds_keeps_its_order(tokenizer):
    renderer = Renderer(load_template("chatml", tokenizer), tokenizer)
    conversations = [chat("q", "one"), Conversation([], text="text"), chat("</s>", "two"), chat("q", "three")]
    texts = [tokenizer.decode(e.ids) for e in renderer.examples([(c, "f") for c in conversations])]
    assert [next(w for w in ("one", "text", "two", "three") if w in text) for text in texts] == [
        "one",
        "text",
        "two",
        "three",
    ]
