"""The chat template of an exported folder prompts in transformers as the run does here, condition and all."""

import dataclasses

import jax
import numpy as np
import pytest

from jaxsft.config import MeshConfig, ModelConfig
from jaxsft.data.conversation import Message
from jaxsft.data.templates import Template, load_template
from jaxsft.data.tokenizer import load_tokenizer
from jaxsft.decoding.prompts import make_prompter
from jaxsft.sharding import make_mesh
from jaxsft.training.export import export_hf, standalone
from jaxsft.training.restore import open_model
from tests.data.conftest import make_tokenizer

TURNS = [Message("user", "Sing, please!"), Message("assistant", " La\n\nla"), Message("user", "é 2 </b>")]


def transformers_ids(tokenizer, source=None, **variables) -> list[int]:
    messages = [message.for_template() for message in TURNS]
    options = {"chat_template": source, "add_generation_prompt": True, "return_dict": False, **variables}
    return tokenizer.hf.apply_chat_template(messages, **options)


@pytest.fixture(scope="module")
def stories(real_data):
    return real_data / "models" / "stories260K"


def test_an_exported_folder_asks_with_the_inference_condition(stories, tmp_path):
    mesh = make_mesh(MeshConfig(fsdp=1), jax.devices()[:1])
    model = open_model(str(stories), ModelConfig(dtype="float32", param_dtype="float32"), mesh)
    run = dataclasses.replace(model, template="openchat", condition='GPT4 "Correct"')
    line = export_hf(run, tmp_path / "out", mesh)
    assert "note" not in line
    want = make_prompter(run.tokenizer, "openchat", "", condition=run.condition).encode(TURNS)
    exported = load_tokenizer(tmp_path / "out")
    assert transformers_ids(exported) == want
    assert make_prompter(exported, "auto", tmp_path / "out").encode(TURNS) == want
    other = make_prompter(run.tokenizer, "openchat", "", condition="Code").encode(TURNS)
    assert other != want
    assert transformers_ids(exported, condition="Code") == other
    assert make_prompter(exported, "auto", tmp_path / "out", condition="Code").encode(TURNS) == other


@pytest.mark.parametrize("condition", ["auto", "", "Code"])
def test_byte_level_tokenizers_need_no_blank(condition):
    tokenizer = make_tokenizer(bos_token="<s>", eos_token="</s>")
    source, same = standalone(load_template("openchat", tokenizer, condition), tokenizer)
    assert same
    assert transformers_ids(tokenizer, source) == make_prompter(tokenizer, "openchat", "", condition=condition).encode(
        TURNS
    )


def test_a_template_that_is_not_by_piece_gets_its_condition_alone(stories):
    tokenizer = load_tokenizer(stories)
    assert standalone(load_template("plain", tokenizer), tokenizer) == (load_template("plain", tokenizer).source, True)
    template = load_template("world:conditioned", tokenizer, "plus")
    source, same = standalone(template, tokenizer)
    assert same
    assert source == '{%- set condition = condition | default("plus") %}\n' + template.source
    prompter = make_prompter(tokenizer, "world:conditioned", "", condition="plus")
    np.testing.assert_array_equal(transformers_ids(tokenizer, source), prompter.encode(TURNS))


def test_other_ids_are_told():
    """A template that cuts a word in two, which as a whole is other tokens."""
    tokenizer = make_tokenizer(bos_token="<s>", eos_token="</s>")
    source = (
        "{% for m in messages %}a col{{ piece }}our {{ m.role ~ piece ~ m.content + eos_token }}{% endfor %}"
        "{% if add_generation_prompt %}a col{{ piece }}our assistant{% endif %}"
    )
    assert standalone(Template(source, tokenizer.variables), tokenizer)[1] is False
