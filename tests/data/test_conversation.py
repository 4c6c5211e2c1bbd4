import pytest

from jaxsft.data.conversation import Message, parse
from jaxsft.errors import UserError

U, A = (lambda text: Message("user", text)), (lambda text: Message("assistant", text))


@pytest.mark.parametrize(
    ("record", "messages"),
    [
        ({"messages": [{"role": "user", "content": "q"}, {"role": "assistant", "content": "a"}]}, [U("q"), A("a")]),
        ({"conversations": [{"from": "human", "value": "q"}, {"from": "gpt", "value": "a"}]}, [U("q"), A("a")]),
        ({"conversations": [{"from": "user", "value": "q"}, {"from": "bing", "value": "a"}]}, [U("q"), A("a")]),
        (
            {"system": "s", "conversations": [{"from": "human", "value": "q"}, {"from": "gpt", "value": "a"}]},
            [Message("system", "s"), U("q"), A("a")],
        ),
        ({"instruction": "q", "input": "", "output": "a"}, [U("q"), A("a")]),
        ({"instruction": "q", "input": "i", "output": "a"}, [U("q\n\ni"), A("a")]),
        (
            {"instruction": "q", "output": "a", "system": "s", "history": [["q0", "a0"]]},
            [Message("system", "s"), U("q0"), A("a0"), U("q"), A("a")],
        ),
        ({"prompt": "q", "completion": "a"}, [U("q"), A("a")]),
        (
            {"prompt": [{"role": "user", "content": "q"}], "completion": [{"role": "assistant", "content": "a"}]},
            [U("q"), A("a")],
        ),
    ],
)
def test_forms(record, messages):
    assert parse(record, "f").messages == messages


def test_text_and_what_any_record_carries():
    conversation = parse({"text": "t", "source": "web", "task_type": "story", "weight": 0.5, "id": 7}, "f")
    assert (conversation.text, conversation.messages, conversation.extras) == ("t", [], {"id": 7})
    assert (conversation.source, conversation.task_type, conversation.weight) == ("web", "story", 0.5)


@pytest.mark.parametrize(
    "record",
    [
        {"prompt": "q", "chosen": "good", "rejected": "bad"},
        {"prompt": [{"role": "user", "content": "q"}], "chosen": [{"role": "assistant", "content": "good"}],
         "rejected": "bad"},
        {"conversations": [{"from": "human", "value": "q"}], "chosen": {"from": "gpt", "value": "good"},
         "rejected": {"from": "gpt", "value": "bad"}},
        {"chosen": [{"role": "user", "content": "q"}, {"role": "assistant", "content": "good"}],
         "rejected": [{"role": "user", "content": "q"}, {"role": "assistant", "content": "bad"}]},
        {"prompt": "q", "chosen": [{"role": "user", "content": "q"}, {"role": "assistant", "content": "good"}],
         "rejected": [{"role": "user", "content": "q"}, {"role": "assistant", "content": "bad"}]},
    ],
)  # fmt: skip
def test_preference_pairs(record):
    pair = parse(record, "f")
    assert pair.messages == [U("q"), A("good")]
    assert pair.rejected == [U("q"), A("bad")]


def test_field_map():
    record = {"question": "q", "answer": "a", "category": "sums"}
    fields = {"question": "prompt", "answer": "completion", "category": "task_type"}
    conversation = parse(record, "f", fields)
    assert (conversation.messages, conversation.task_type) == ([U("q"), A("a")], "sums")


def test_tool_calls_from_sharegpt():
    call = '{"name": "search", "arguments": {"q": "x"}}'
    turns = [
        {"from": "human", "value": "q"},
        {"from": "function_call", "value": call},
        {"from": "observation", "value": "r"},
    ]
    conversation = parse({"conversations": turns, "tools": '[{"name": "search"}]'}, "f")
    assert [message.role for message in conversation.messages] == ["user", "assistant", "tool"]
    function = {"name": "search", "arguments": {"q": "x"}}
    assert conversation.messages[1].for_template() == {
        "role": "assistant",
        "tool_calls": [{"type": "function", "function": function}],
    }
    assert conversation.tools == [{"name": "search"}]


def test_contents_in_parts_and_weights_of_messages():
    parts = [{"type": "reasoning", "value": "hm"}, {"type": "text", "text": "a"}]
    turns = [
        {"role": "user", "content": "q", "weight": 0},
        {"role": "assistant", "content": parts, "loss_weight": 0.25},
    ]
    user, assistant = parse({"messages": turns}, "f").messages
    assert (user.weight, assistant.weight, assistant.content) == (0.0, 0.25, "a")
    assert assistant.for_template()["reasoning_content"] == "hm"


def test_absent_fields_of_columns_are_ignored():
    turn = {"role": "user", "content": "q", "tool_calls": None}
    conversation = parse({"messages": [turn], "text": None, "weight": None}, "f")
    assert conversation.messages == [U("q")]
    assert conversation.weight == 1.0


@pytest.mark.parametrize(
    ("record", "words"),
    [
        ({"question": "q", "answer": "a"}, ["f, line 3", "answer, question", "fields"]),
        ({}, ["no known form", "(none)"]),
        ([1], ["list", "object"]),
        ({"conversations": [{"from": "narrator", "value": "x"}]}, ["message 1", "'narrator'", "human"]),
        ({"messages": [{"role": "user"}]}, ["message 1", "no content"]),
        ({"messages": [{"role": "user", "content": 3}]}, ["int", "string"]),
        ({"messages": "hello"}, []),
        ({"messages": [{"role": "user", "content": "q", "weight": 1}]}, ["weight 1.0", "'user'"]),
        ({"text": "t", "weight": -1}, ["weight", "-1"]),
        ({"text": "t", "weight": "big"}, ["weight", "'big'"]),
        ({"text": 3}, ["'text'", "int"]),
        ({"prompt": "q", "completion": 4}, ["'completion'", "int"]),
        ({"chosen": "x", "rejected": "y"}, ["common beginning", "prompt"]),
        ({"instruction": "q", "output": "a", "history": [["x"]]}, ["history"]),
        ({"conversations": [{"from": "function_call", "value": "{oops"}]}, ["tool call", "JSON"]),
        ({"messages": [{"role": "user", "content": [{"type": "image", "url": "x"}]}]}, ["'image'"]),
        ({"text": "t", "tools": "{"}, ["'tools'", "JSON"]),
    ],
)
def test_refusals_name_place_and_cause(record, words):
    if record == {"messages": "hello"}:  # a string is one user message
        assert parse(record, "f, line 3").messages == [U("hello")]
        return
    with pytest.raises(UserError) as error:
        parse(record, "f, line 3")
    assert all(word in str(error.value) for word in ["f, line 3", *words]), error.value


def test_field_map_that_fits_nothing():
    with pytest.raises(UserError, match=r"'questoin'.*'question'"):
        parse({"question": "q", "answer": "a"}, "f", {"questoin": "prompt"})
