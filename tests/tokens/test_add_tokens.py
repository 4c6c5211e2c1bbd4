"""New tokens: exactly their rows are new, texts hold them, and rows that only pad are never drawn."""

import json
import shutil
import sys
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from etils import epath

from jaxsft.config import TokensConfig
from jaxsft.data.conversation import Conversation, Message
from jaxsft.data.render import Renderer
from jaxsft.data.templates import load_template
from jaxsft.data.tokenizer import load_tokenizer
from jaxsft.decoding.engine import Sampler
from jaxsft.decoding.prompts import make_prompter
from jaxsft.decoding.sampling import Sampling
from jaxsft.errors import UserError
from jaxsft.models.checkpoint import load_architecture, load_params, open_tensors, save_hf
from jaxsft.models.decoder import Decoder
from jaxsft.tokens.add import add_or_find, add_tokens
from jaxsft.tokens.files import new_ids, write_tokens
from jaxsft.tokens.rows import new_rows, padded, with_rows
from tests.conftest import REPOSITORY
from tests.evaluation.folders import make_folder
from tests.tiny import logits
from tests.training.conftest import run

KNOWN = 258  # ids of the tiny tokenizer: two control tokens and all bytes


def make(folder: Path, **changes):
    decoder, params = make_folder(folder / "old", **changes)
    return folder / "old", decoder, params


def matrices(folder: Path) -> dict[str, np.ndarray]:
    files = open_tensors(folder, Decoder(load_architecture(folder)))
    return {name: np.array(file.read(key)) for name, (file, key) in files.items()}


def states(decoder: Decoder, params: Any, tokens: np.ndarray) -> np.ndarray:
    positions = jnp.broadcast_to(jnp.arange(tokens.shape[1]), tokens.shape)
    return np.asarray(jax.jit(decoder.forward)(params, tokens, positions, jnp.ones_like(positions)).hidden)


@pytest.mark.parametrize("tied", [False, True])
def test_exactly_the_new_ids_get_new_rows(tmp_path, tied):
    old, _, _ = make(tmp_path, tie_word_embeddings=tied)
    line = add_tokens(TokensConfig(str(old), ("<sep>", "<alt>")), tmp_path / "new")
    before, after = matrices(old), matrices(tmp_path / "new")
    assert line == f"{tmp_path / 'new'}: <sep> = 258, <alt> = 259, by normal0.02; 258 rows became 320"
    assert before.keys() == after.keys() and ("lm_head.weight" in after) != tied
    for name, array in before.items():
        grown = after[name]
        if array.shape == grown.shape:
            assert array.tobytes() == grown.tobytes()
            continue
        assert grown.shape == (320, 32) and grown[:KNOWN].tobytes() == array.tobytes()
        assert np.all(np.abs(grown[KNOWN : KNOWN + 2]).max(axis=1) > 0.01) and not grown[KNOWN + 2 :].any()
        assert grown[KNOWN:].std() < 0.03
    assert load_architecture(tmp_path / "new").new_ids == (258, 259)
    line = add_tokens(TokensConfig(str(old), ("<sep>",), multiple=1), tmp_path / "tight")
    assert line.endswith("258 rows became 259")


@pytest.mark.parametrize(
    ("init", "head"),
    [("normal0.02", 0.02), ("unit_normal", 0.02), ("mean", None), ("mean_cov", None), ("mean_of_text", None)],
)
def test_first_values_are_as_the_option_says(tmp_path, init, head):
    old, _, _ = make(tmp_path)
    described = {"<sep>": "a dict"} if init == "mean_of_text" else {}
    add_tokens(TokensConfig(str(old), ("<sep>",), init, described), tmp_path / "new")
    before, after = matrices(old), matrices(tmp_path / "new")
    for name in ("model.embed_tokens.weight", "lm_head.weight"):
        table, row = before[name].astype(np.float64), after[name][KNOWN]
        if init == "mean":
            np.testing.assert_allclose(row, table.mean(0), rtol=1e-6)
        if init == "mean_of_text":
            ids = load_tokenizer(str(old)).encode("a dict").ids
            assert len(ids) == 6
            np.testing.assert_allclose(row, table[ids].mean(0), rtol=1e-5)
        if init in ("normal0.02", "unit_normal"):
            wanted = head if name == "lm_head.weight" or init == "normal0.02" else 1.0
            assert wanted * 0.7 < np.linalg.norm(row) / 32**0.5 < wanted * 1.3


def test_draws_by_mean_and_covariance_have_them():
    rng = np.random.default_rng(0)
    table = (rng.normal(size=(50, 4)) @ rng.normal(size=(4, 4)) + [3, 0, -1, 2]).astype(np.float32)
    drawn = new_rows(table, 40_000, "mean_cov", rng)
    covariance = np.cov(table.T.astype(np.float64), bias=True)
    np.testing.assert_allclose(drawn.mean(0), table.mean(0), atol=4 * np.sqrt(covariance.max() / 40_000))
    np.testing.assert_allclose(np.cov(drawn.T), covariance, atol=0.04 * covariance.max())


def test_sizes_are_rounded_up_and_not_beyond():
    assert [padded(n, 64, 64) for n in (1, 64, 65)] == [64, 64, 128]
    assert padded(65, 64, 1) == 65 and padded(10, 100, 1) == 100
    table = np.arange(8, dtype=np.float16).reshape(4, 2)
    assert with_rows(table, 4, [3], np.array([[9.0, 9.0]])).tolist() == [[0, 1], [2, 3], [4, 5], [9, 9]]


def test_rows_are_initialised_where_the_matrix_has_room(tmp_path):
    """LLaMA-Factory, issue 10547: what a padded matrix held at the new id is no embedding."""
    old, _, _ = make(tmp_path)
    add_tokens(TokensConfig(str(old), ("<a>",)), tmp_path / "padded")
    add_tokens(TokensConfig(str(tmp_path / "padded"), ("<b>",), "mean"), tmp_path / "new")
    before, after = matrices(tmp_path / "padded"), matrices(tmp_path / "new")
    for name in ("model.embed_tokens.weight", "lm_head.weight"):
        changed = np.flatnonzero((before[name] != after[name]).any(axis=1))
        assert before[name].shape == after[name].shape and changed.tolist() == [259]
        np.testing.assert_allclose(after[name][259], before[name][:259].mean(0, dtype=np.float64), rtol=1e-5)
    assert load_architecture(tmp_path / "new").new_ids == (258, 259)
    assert load_tokenizer(str(tmp_path / "new")).content_tokens == ("<a>", "<b>")


@pytest.mark.parametrize("tied", [False, True])
def test_prompts_without_the_token_have_the_same_logits(tmp_path, tied):
    old, decoder, params = make(tmp_path, tie_word_embeddings=tied)
    add_tokens(TokensConfig(str(old), ("<sep>",)), tmp_path / "new")
    grown = Decoder(load_architecture(tmp_path / "new"))
    tokens = np.random.default_rng(0).integers(0, KNOWN, (2, 24))
    models = {decoder: params, grown: load_params(tmp_path / "new", grown)}
    before, after = (np.asarray(logits(model, tokens, own)) for model, own in models.items())
    hidden = [states(model, own, tokens) for model, own in models.items()]
    np.testing.assert_array_equal(*hidden)  # what the head reads is the same to the bit,
    assert after.shape[-1] == 320  # and its columns too; a wider product may be summed in another order
    np.testing.assert_allclose(after[..., :KNOWN], before, rtol=0, atol=2e-6)


def test_the_text_of_a_message_holds_the_new_token_and_no_other_special_one(tmp_path):
    old, _, _ = make(tmp_path)
    add_tokens(TokensConfig(str(old), ("<sep>",)), tmp_path / "new")
    tokenizer = load_tokenizer(str(tmp_path / "new"))
    assert tokenizer.num_ids == 259 and tokenizer.fingerprint != load_tokenizer(str(old)).fingerprint
    renderer = Renderer(load_template("chatml", tokenizer), tokenizer)
    turns = [Message("user", "follow <sep>, not </s>"), Message("assistant", "<sep> {'a': 1}")]
    (example,) = renderer.examples([(Conversation(turns), "here")])
    ids = example.ids.tolist()
    assert ids.count(258) == 2 and ids.count(1) == 0
    assert tokenizer.decode(ids).count("</s>") == 1  # spelt out
    first = ids.index(258)
    assert example.weights[first] == 0 and example.weights[ids.index(258, first + 1)] == 1
    assert 258 in tokenizer.encode_text("a text with <sep>") and 1 not in tokenizer.encode_text("a text with </s>")
    prompt = make_prompter(tokenizer, "chatml", tmp_path / "new").encode("follow <sep>, not </s>")
    assert prompt == ids[: len(prompt)] and prompt.count(258) == 1


def test_the_loss_is_of_the_answer_and_its_end_alone(tmp_path):
    """Neither of the prompt, in which the new token stands, nor of the mark that begins the answer."""
    add_tokens(TokensConfig("world:chat", ("<sep>",)), tmp_path / "new")
    tokenizer = load_tokenizer(str(tmp_path / "new"))
    renderer = Renderer(load_template("auto", tokenizer), tokenizer)
    turns = [Message("user", "what is <sep> ?"), Message("assistant", "b c d")]
    (example,) = renderer.examples([(Conversation(turns), "here")])
    read = [tokenizer.hf.convert_ids_to_tokens(i) for i in example.ids.tolist()]
    assert read == ["<bos>", "<user>", "what", "is", "<sep>", "?", "<assistant>", "b", "c", "d", "<eos>"]
    assert example.weights.tolist() == [0.0] * 7 + [1.0] * 4


def test_ids_that_only_pad_are_never_drawn(tmp_path, mesh):
    """Not even where their logits are the largest of all."""
    old, _, _ = make(tmp_path)
    add_tokens(TokensConfig(str(old), ("<sep>",)), tmp_path / "new")
    grown = Decoder(load_architecture(tmp_path / "new"))
    params = load_params(tmp_path / "new", grown, mesh)
    kernel = params["head"]["kernel"]
    params["head"]["kernel"] = kernel.at[:, 259:].set(9 * jax.random.normal(jax.random.key(1), kernel[:, 259:].shape))
    vocabulary = make_prompter(load_tokenizer(str(tmp_path / "new")), "none", tmp_path / "new").sampling().vocabulary
    assert vocabulary == 259
    for temperature in (0.0, 1.0):
        free, held = (
            Sampler(grown, Sampling(temperature, max_new_tokens=24, vocabulary=v, seed=3), mesh, batch_size=4).generate(
                params, [[5, 6], [7], [8, 9, 10], [11]]
            )
            for v in (0, vocabulary)
        )
        assert max(t for one in free for t in one.tokens) >= vocabulary  # so the limit is what keeps them out
        assert max(t for one in held for t in one.tokens) < vocabulary
        assert all(len(one.tokens) == 24 for one in held)


def test_a_stage_that_was_broken_off_finds_its_own_tokens_alone(tmp_path):
    config = TokensConfig("world:chat", ("<sep>",))
    line = add_or_find(config, tmp_path / "new")
    assert add_or_find(config, tmp_path / "new") == line and "<sep> = " in line
    for other in (TokensConfig("world:chat", ("<alt>",)), TokensConfig("world:chat", ("<sep>",), "mean")):
        with pytest.raises(UserError, match="holds other new tokens"):
            add_or_find(other, tmp_path / "new")


def test_a_half_precision_model_keeps_its_bits(tmp_path):
    _, decoder, params = make(tmp_path)
    save_hf(tmp_path / "half", decoder, params, jnp.bfloat16, tokenizer_from=tmp_path / "old")
    add_tokens(TokensConfig(str(tmp_path / "half"), ("<sep>",)), tmp_path / "new")
    before, after = matrices(tmp_path / "half"), matrices(tmp_path / "new")
    assert after["lm_head.weight"].dtype == before["lm_head.weight"].dtype == jnp.bfloat16
    assert all(array.tobytes() == after[name][: len(array)].tobytes() for name, array in before.items())
    assert json.loads((tmp_path / "new" / "config.json").read_text())["dtype"] == "bfloat16"


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"tokens": ()}, "config.tokens is empty"),
        ({"tokens": ("<a>", "<a>")}, "'<a>' twice"),
        ({"tokens": ("</s>",)}, "'</s>', which the tokenizer has already"),
        ({"tokens": (" <a>",)}, "without blanks"),
        ({"init": "mean_of_text"}, "no text for '<sep>'"),
        ({"descriptions": {"<sep>": "a dict"}}, "set it to mean_of_text"),
    ],
)
def test_what_cannot_be_is_refused(tmp_path, source, changes, message):
    with pytest.raises(UserError, match=message):
        add_tokens(TokensConfig(**{"model": str(source), "tokens": ("<sep>",)} | changes), tmp_path / "new")
    assert not (tmp_path / "new").exists()


@pytest.mark.parametrize("name", ["qwen2", "minimind"])
def test_real_tokenizers_read_back(real_data, tmp_path, name):
    """Of which one has no tokenizer.json."""
    for file in (real_data / "tokenizers" / name).iterdir():
        shutil.copy(file, tmp_path / file.name)
    before = load_tokenizer(str(tmp_path))
    (new,) = new_ids(before, ["<sep>"])
    write_tokens(epath.Path(tmp_path), before, ["<sep>"], [new])
    after = load_tokenizer(str(tmp_path))
    assert new == before.num_ids and after.num_ids == new + 1 and after.content_tokens == ("<sep>",)
    assert after.encode("a<sep>b").ids == [*before.encode("a").ids, new, *before.encode("b").ids]
    assert after.chat_template == before.chat_template and after.variables.items() >= before.variables.items()


def test_the_script(tmp_path, source):
    script = [sys.executable, str(REPOSITORY / "scripts/add_tokens.py"), f"--config={REPOSITORY}/configs/tokens.py"]
    done = run([*script, f"--output={tmp_path / 'new'}", f"--config.model={source}", "--config.init=mean"])
    assert done.returncode == 0, done.stderr
    assert done.stdout.splitlines()[-1] == f"{tmp_path / 'new'}: <sep> = 258, by mean; 258 rows became 320"
    refused = run([*script, f"--config.model={source}"])
    assert refused.returncode == 1 and "--output is missing" in refused.stderr
