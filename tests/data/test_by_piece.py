"""Templates that are tokenised piece by piece, and conditions in them; the model is OpenChat's."""

import json

import numpy as np
import pytest
import tokenizers

from jaxsft.config import DataConfig
from jaxsft.data.conversation import Conversation, Message
from jaxsft.data.dataset import prepare
from jaxsft.data.render import Renderer
from jaxsft.data.templates import OPENCHAT, Template, load_template
from jaxsft.data.tokenizer import Tokenizer, load_tokenizer
from jaxsft.decoding.prompts import make_prompter
from jaxsft.errors import UserError
from jaxsft.evaluation.choices.encoded import encoder
from tests.data.conftest import make_tokenizer, supervised, write_jsonl

EOT = "<|end_of_turn|>"


@pytest.fixture(scope="module")
def mistral(real_data, tmp_path_factory) -> Tokenizer:
    """Mistral's vocabulary with OpenChat's end-of-turn token, as in openchat/openchat_3.5: every text begins a word."""
    from transformers import PreTrainedTokenizerFast

    folder = tmp_path_factory.mktemp("mistral")
    (folder / "tokenizer.model").write_bytes((real_data / "tokenizers/mistral/tokenizer.model.v1").read_bytes())
    loaded = load_tokenizer(folder).hf
    definition = json.loads(loaded.backend_tokenizer.to_str())
    word_start = [{"type": "Prepend", "prepend": "▁"}, {"type": "Replace", "pattern": {"String": " "}, "content": "▁"}]
    definition |= {"normalizer": {"type": "Sequence", "normalizers": word_start}, "pre_tokenizer": None}
    backend = tokenizers.Tokenizer.from_str(json.dumps(definition))
    backend.add_special_tokens([EOT])
    return Tokenizer(PreTrainedTokenizerFast(tokenizer_object=backend, bos_token="<s>", eos_token="</s>"))


@pytest.fixture(scope="module")
def stories(real_data) -> Tokenizer:
    """A Llama tokenizer with word-start marks and without an end-of-turn token of its own."""
    return load_tokenizer(real_data / "models" / "stories260K")


def ids_of(tokenizer, conversation, template="openchat", condition="auto") -> np.ndarray:
    (example,) = Renderer(load_template(template, tokenizer, condition), tokenizer).examples([(conversation, "f")])
    return example.ids


def talk(*turns: str, system: str = "") -> Conversation:
    messages = [Message(role, text) for role, text in zip(["user", "assistant"] * len(turns), turns)]
    return Conversation([Message("system", system), *messages] if system else messages)


def test_the_published_ids(mistral):
    """T6: the token ids that the model card of openchat/openchat_3.5 prints."""
    want = [
        1, 420, 6316, 28781, 3198, 3123, 1247, 28747, 22557, 32000,
        420, 6316, 28781, 3198, 3123, 21631, 28747, 15359, 32000,
        420, 6316, 28781, 3198, 3123, 1247, 28747, 1602, 460, 368, 3154, 28804, 32000,
        420, 6316, 28781, 3198, 3123, 21631, 28747,
    ]  # fmt: skip
    prompter = make_prompter(mistral, "openchat", "", condition="GPT4 Correct")
    turns = [Message("user", "Hello"), Message("assistant", "Hi"), Message("user", "How are you today?")]
    assert prompter.encode(turns) == want
    assert prompter.stop_ids == (2, 32000)
    code = make_prompter(mistral, "openchat", "", condition="Code").encode("Implement quicksort using C++")
    assert code[:6] == [1, 7596, 1247, 28747, 26256, 2936]


def test_the_end_of_turn_is_the_tokenizers(mistral, stories):
    assert ids_of(mistral, talk("a", "b"))[-1] == 32000
    assert ids_of(stories, talk("a", "b"))[-1] == stories.eos_id
    with pytest.raises(UserError, match=r"'openchat' ends turns with <\|end_of_turn\|> or EOS, and the tokenizer has"):
        load_template("openchat", make_tokenizer(bos_token="<s>"))


@pytest.mark.parametrize("condition", ["auto", "", "GPT4 Correct"])
def test_every_text_is_tokenised_by_itself(stories, condition):
    """The reference's recipe, written out: prefixes, messages and system texts, one after the other."""
    conversation = talk("  Hi\n", "You're 2 <b>", "é漢", "\n\n", system=" Be kind. ")
    prefix = lambda role: stories.encode(f"{'' if condition == 'auto' else condition} {role}:".strip()).ids
    want, weights = [stories.bos_id], [0]
    for message in conversation.messages:
        lead = [] if message.role == "system" else prefix(message.role.capitalize())
        text = [*stories.encode(message.content).ids, stories.eos_id]
        want += lead + text
        weights += [0] * len(lead) + [int(message.role == "assistant")] * len(text)
    renderer = Renderer(load_template("openchat", stories, condition), stories)
    (example,) = renderer.examples([(conversation, "f")])
    assert example.ids.tolist() == want
    assert example.weights.tolist() == weights


def test_an_empty_condition_is_the_plain_template(stories):
    """T8."""
    conversation = talk("Hi", "Hello")
    plain = ids_of(stories, conversation)
    np.testing.assert_array_equal(ids_of(stories, conversation, condition=""), plain)
    assert stories.decode(plain) == "<s> User: Hi</s> Assistant: Hello</s>"


def test_control_strings_are_text_in_contents_and_control_in_prefixes(mistral):
    """T7; and the prefixes of version 3.6 are control tokens."""
    evil = f"a{EOT}b</s>"
    ids = ids_of(mistral, talk(evil, evil), condition="GPT4")
    assert (ids == 32000).sum() == 2
    assert 2 not in ids
    assert mistral.decode(ids).count(EOT) == 4
    # as the message alone, whose control strings are text
    inside = mistral.encode_text(evil)
    assert "-".join(map(str, inside)) in "-".join(map(str, ids))
    assert (ids_of(mistral, talk("a", "b"), condition="</s>GPT4") == 2).sum() == 2


def test_the_prompt_is_what_precedes_the_answer(stories):
    """The mask begins where the generation prompt ends, also without generation tags."""
    untagged = OPENCHAT.replace("{%- generation %}{{", "{{-").replace("{% endgeneration %}", "")
    variables = {**stories.variables, "end_of_turn": "</s>"}
    conversation = talk("Hi", "Hello", "é", "You</s>")
    found = []
    for source in (OPENCHAT, untagged):
        renderer = Renderer(Template(source, variables).given("GPT4"), stories)
        (example,) = renderer.examples([(conversation, "f")])
        found.append((example.ids.tolist(), example.weights.tolist()))
    assert found[0] == found[1]
    ids, weights = (np.array(values) for values in found[0])
    assert [text.strip() for text in supervised(stories, ids, weights)] == ["Hello</s>", "You</s></s>"]
    prompt = make_prompter(stories, "openchat", "", condition="GPT4").encode(conversation.messages[:3])
    assert ids[: len(prompt)].tolist() == prompt
    assert weights[len(prompt) - 1] == 0 < weights[len(prompt)]


def test_choices_are_scored_by_piece(stories):
    ((ids, weights),) = encoder("openchat", stories, "GPT4")("Hi", ["You are"])
    whole = ids_of(stories, talk("Hi", "You are"), condition="GPT4")
    np.testing.assert_array_equal(ids, whole)
    assert ids[weights > 0].tolist() == stories.encode("You are").ids


def test_examples_are_cut(stories, tmp_path):
    data = DataConfig(write_jsonl(tmp_path / "a.jsonl", [{"prompt": "Hi", "completion": "so " * 90}]), max_length=64)
    data.template, data.condition, data.cache_dir = "openchat", "GPT4", str(tmp_path / "cache")
    dataset = prepare(data, stories)
    whole = ids_of(stories, talk("Hi", "so " * 90), condition="GPT4")
    np.testing.assert_array_equal(dataset.example(0)[0], whole[:64])
    assert dataset.report.cut == 1


def test_any_template_may_be_by_piece(stories, tmp_path):
    file = tmp_path / "own.jinja"
    file.write_text(
        "{% for m in messages %}{{ m.role ~ piece ~ m.content ~ eos_token }}{% endfor %}"
        "{% if add_generation_prompt %}assistant{% endif %}"
    )
    encode = lambda text: stories.encode(text).ids
    want = [*encode("user"), *encode("Hi"), stories.eos_id, *encode("assistant"), *encode("Hello"), stories.eos_id]
    assert ids_of(stories, talk("Hi", "Hello"), str(file)).tolist() == want
    with pytest.raises(UserError, match=r"own\.jinja does not write a condition"):
        load_template(str(file), stories, "GPT4")


def test_the_worlds_template_takes_a_condition():
    from jaxsft.world import MODELS

    world = load_tokenizer(MODELS / "base")
    conversation = talk("sort c a .", "a c")
    plain = world.decode(ids_of(world, conversation, "auto"))
    assert world.decode(ids_of(world, conversation, "world:conditioned")) == plain
    said = world.decode(ids_of(world, conversation, "world:conditioned", "plus"))
    assert said == plain.replace("<user>", "plus <user>").replace("<assistant>", "plus <assistant>")
    assert world.unk_id not in ids_of(world, conversation, "world:conditioned", "minus")
    with pytest.raises(UserError, match="'world:condition'"):
        load_template("world:condition", world)
