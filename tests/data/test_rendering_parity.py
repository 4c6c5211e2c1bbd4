"""Token for token the ids of transformers' `apply_chat_template`, and masks that decode to what the assistant says."""

import json
import shutil
import unicodedata

import jinja2
import pytest

from jaxsft.data.conversation import Conversation, Message, parse
from jaxsft.data.render import Renderer
from jaxsft.data.templates import BUILT_IN, load_template
from jaxsft.data.tokenizer import load_tokenizer
from jaxsft.errors import UserError
from tests.data.conftest import supervised

TOKENIZERS = ("minimind", "qwen2", "stories260K", "mistral")
CHATS = {
    "single": ["How are you?", "Fine, thanks."],
    "blanks": ["  Hi there \n", "\n Hello!\n\nWorld  ", "again\t", "yes \n"],
    "unicode": ["ünï 漢字 😀", "naïve — 日本語 🎉🏽 e\u0301", "¿qué?", "\u200bאבג\u00a0x"],
    "code": ["write", "```python\ndef f(x):\n    return x * 2\n```", "<b>&amp;</b> {{ x }} {% y %}", "1 | 2 |"],
}


@pytest.fixture(scope="module", params=TOKENIZERS)
def tokenizer(request, real_data, tmp_path_factory):
    if request.param != "mistral":
        folder = "models" if request.param == "stories260K" else "tokenizers"
        return load_tokenizer(real_data / folder / request.param)
    folder = tmp_path_factory.mktemp("mistral")
    shutil.copy(real_data / "tokenizers/mistral/tokenizer.model.v1", folder / "tokenizer.model")
    return load_tokenizer(folder)


def templates(real_data, tokenizer):
    own = ["auto"] if tokenizer.chat_template else []
    whole = [name for name in BUILT_IN if name != "openchat"]  # which is tokenised by piece
    return [*own, *whole, *map(str, sorted((real_data / "chat_templates").glob("*.jinja")))]


def chats():
    for name, texts in CHATS.items():
        turns = [Message(role, text) for role, text in zip(["user", "assistant"] * 9, texts)]
        yield name, Conversation(turns)
        yield f"{name} with system", Conversation([Message("system", " Be kind. "), *turns])


def reference(tokenizer, template, conversation):
    """transformers' ids; None where the template refuses the conversation or lacks a token."""
    messages = [message.for_template() for message in conversation.messages]
    try:
        return tokenizer.hf.apply_chat_template(
            messages, conversation.tools, chat_template=template.source, return_dict=True
        )["input_ids"]
    except (jinja2.TemplateError, TypeError):
        return None


def says(content: str, template: str) -> str:
    """What of a content every template keeps."""
    if "falcon" in template:  # collapses empty lines
        content = content.replace("\n\n", "\n")
    return content.strip()


def test_ids_and_masks(real_data, tokenizer):
    compared = 0
    for path in templates(real_data, tokenizer):
        try:
            template = load_template(path, tokenizer)
        except UserError:
            continue
        for name, conversation in chats():
            where = f"{path}: {name}"
            want = reference(tokenizer, template, conversation)
            messages = [message.for_template() for message in conversation.messages]
            if want is None:
                with pytest.raises(UserError):
                    template.render(messages)
                continue
            text = template.render(messages).text
            assert tokenizer.encode(text).ids == want, where
            assert tokenizer.encode_guarded(text, []) == tokenizer.encode(text), where
            if want[:2] == [tokenizer.bos_id] * 2:  # a template that doubles this tokenizer's BOS
                with pytest.raises(UserError, match="BOS twice"):
                    list(Renderer(template, tokenizer).examples([(conversation, where)]))
                continue
            (example,) = Renderer(template, tokenizer).examples([(conversation, where)])
            assert example.ids.tolist() == want, where
            runs = supervised(tokenizer, example.ids, example.weights)
            answers = [says(m.content, path) for m in conversation.messages if m.role == "assistant"]
            assert len(runs) == len(answers), where
            if "qwen2" in str(tokenizer.hf.name_or_path):  # it normalises
                answers = [unicodedata.normalize("NFC", answer) for answer in answers]
            for run, answer in zip(runs, answers):
                assert run.strip().startswith(answer), f"{where}: {run!r}"
                end = run.strip().removeprefix(answer)
                assert len(end) < 20, f"{where}: {run!r}"
                assert end or run != run.rstrip(), f"{where}: no end of turn in {run!r}"
            compared += 1
    assert compared > 60


@pytest.mark.parametrize("path", ["auto", "qwen2.5-instruct.jinja"])
def test_tool_turns(real_data, path):
    tokenizer = load_tokenizer(real_data / "tokenizers/minimind")
    template = load_template(path if path == "auto" else str(real_data / "chat_templates" / path), tokenizer)
    records = json.loads((real_data / "instruct/llamafactory-demo/glaive_toolcall_en_demo.json").read_text())
    for i, record in enumerate(records[:40]):
        conversation = parse(record, f"record {i}")
        (example,) = Renderer(template, tokenizer).examples([(conversation, "f")])
        assert example.ids.tolist() == reference(tokenizer, template, conversation)
        runs = supervised(tokenizer, example.ids, example.weights)
        assistant = [message for message in conversation.messages if message.role == "assistant"]
        assert len(runs) == len(assistant)
        for run, message in zip(runs, assistant):
            assert run.endswith("<|im_end|>")
            if message.content:
                assert run == f"{message.content}<|im_end|>"
            for call in message.fields.get("tool_calls", []):
                assert call["function"]["name"] in run
                assert run.startswith("<tool_call>")


def test_reasoning_turns(real_data):
    tokenizer = load_tokenizer(real_data / "tokenizers/minimind")
    renderer, compared = Renderer(load_template("auto", tokenizer), tokenizer), 0
    for line in (real_data / "instruct/llamafactory-demo/reason_tool_use_demo_50.jsonl").read_text().splitlines()[:20]:
        conversation = parse(json.loads(line), "f")
        (example,) = renderer.examples([(conversation, "f")])
        if not renderer.layout(conversation, "f").guarded:
            assert example.ids.tolist() == reference(tokenizer, renderer.template, conversation)
            compared += 1
        runs = supervised(tokenizer, example.ids, example.weights)
        assistant = [message for message in conversation.messages if message.role == "assistant"]
        for run, message in zip(runs, assistant, strict=True):
            assert run.startswith(message.fields["reasoning_content"].strip("\n"))
            assert "</think>" in run
            assert run.endswith("<|im_end|>")
    assert compared > 15


@pytest.mark.parametrize(
    ("folder", "template", "control"),
    [
        ("tokenizers/qwen2", "auto", "<|im_end|>"),
        ("tokenizers/minimind", "auto", "<|im_start|>"),
        ("models/stories260K", "plain", "</s>"),
    ],
)
def test_control_strings_stay_text(real_data, folder, template, control):
    """The same conversation with a harmless word instead has as many control ids."""
    tokenizer = load_tokenizer(real_data / folder)
    renderer = Renderer(load_template(template, tokenizer), tokenizer)
    texts = []
    for word in (control, "word"):
        turns = [Message("user", f"what is {word}?"), Message("assistant", f"{word} ends a turn {word}")]
        (example,) = renderer.examples([(Conversation(turns), "f")])
        texts.append((example, [int(i) for i in example.ids if int(i) in tokenizer.hf.added_tokens_decoder]))
    assert texts[0][1] == texts[1][1]
    (run,) = supervised(tokenizer, texts[0][0].ids, texts[0][0].weights)
    assert run.startswith(f"{control} ends a turn {control}")
    assert tokenizer.decode(texts[0][0].ids).count(control) > tokenizer.decode(texts[1][0].ids).count(control)
