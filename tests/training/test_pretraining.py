"""Pretraining from a folder without weights, on plain documents, with Mix-LN; and what comes after it."""

import contextlib
import dataclasses
import io
import json
import math

import numpy as np
import pyarrow
import pyarrow.parquet
import pytest

from jaxsft.config import DataConfig, LoRAConfig, MeshConfig, ModelConfig, NewModelConfig, TrainConfig
from jaxsft.data.dataset import prepare
from jaxsft.data.tokenizer import load_tokenizer
from jaxsft.decoding.engine import Sampler
from jaxsft.decoding.prompts import make_prompter
from jaxsft.decoding.sampling import Sampling
from jaxsft.errors import UserError
from jaxsft.models import layout
from jaxsft.models.checkpoint import load_architecture
from jaxsft.sharding import make_mesh
from jaxsft.training.export import export_hf
from jaxsft.training.program import abstract_batch, architecture, build
from jaxsft.training.restore import open_model
from jaxsft.training.train import train
from jaxsft.validation import validate
from tests.data.conftest import make_tokenizer
from tests.tiny import LLAMA
from tests.training.conftest import WORDS, lines

DEPTH = 4


@pytest.fixture(scope="module")
def start(tmp_path_factory):
    """`config.json` and a tokenizer with a chat template: all that a new model needs."""
    folder = tmp_path_factory.mktemp("start") / "untrained"
    tokenizer = make_tokenizer(bos_token="<s>", eos_token="</s>").hf
    tokenizer.chat_template = "{% for m in messages %}[{{ m.content }}]{% endfor %}"
    tokenizer.save_pretrained(folder)
    (folder / "config.json").write_text(json.dumps(LLAMA | {"vocab_size": 320, "num_hidden_layers": DEPTH}))
    return folder


@pytest.fixture(scope="module")
def documents(tmp_path_factory):
    """The same documents as JSON Lines and as Parquet."""
    rng, folder = np.random.default_rng(0), tmp_path_factory.mktemp("documents")
    texts = [" ".join(rng.choice(WORDS, rng.integers(3, 40))) for _ in range(48)]
    (folder / "documents.jsonl").write_text("".join(json.dumps({"text": text}) + "\n" for text in texts))
    pyarrow.parquet.write_table(pyarrow.table({"text": texts}), folder / "documents.parquet")
    return folder


def pretraining(start, documents, suffix: str = "jsonl", **new) -> TrainConfig:
    config = TrainConfig(batch_size=8, steps=3)
    config.model = ModelConfig(str(start), init="random", new=NewModelConfig(**new), remat="none")
    config.data = DataConfig(str(documents / f"documents.{suffix}"), template="none", text_eos=True, max_length=64)
    config.data.rows, config.data.cache_dir = ":-8", str(documents / "cache")
    config.eval.path, config.eval.rows = config.data.path, "-8:"
    config.optimizer.learning_rate, config.optimizer.max_grad_norm = 1e-2, 0.0
    config.log.tensorboard, config.log.layer_grad_norms = False, True
    validate(config)
    return config


@pytest.fixture(scope="module")
def pretrained(start, documents, tmp_path_factory):
    """A run with one Post-LN layer of four, and its export."""
    folder, said = tmp_path_factory.mktemp("pretrained"), io.StringIO()
    with contextlib.redirect_stdout(said):
        train(pretraining(start, documents, post_ln_alpha=0.25), str(folder / "run"))
    assert "4 layers (1 Post-LN, then 3 Pre-LN)" in said.getvalue()
    mesh = make_mesh(MeshConfig())
    line = export_hf(open_model(str(folder / "run"), ModelConfig(), mesh), folder / "model", mesh)
    assert "transformers cannot run a model with 1 Post-LN layer and refuses its model_type jaxsft_mix_ln" in line
    return folder


def test_parquet_is_read_like_json_lines(start, documents):
    tokenizer = load_tokenizer(str(start))
    one, two = (prepare(pretraining(start, documents, s).data, tokenizer) for s in ("jsonl", "parquet"))
    assert len(one) == len(two) > 40
    for i in range(len(one)):
        np.testing.assert_array_equal(one.example(i)[0], two.example(i)[0])


def test_a_document_ends_in_eos(start, documents):
    config = pretraining(start, documents).data
    tokenizer = load_tokenizer(str(start))
    ended, open_ended = (prepare(dataclasses.replace(config, text_eos=eos), tokenizer, 0) for eos in (True, False))
    assert ended.report.supervised - open_ended.report.supervised == 40, "one target more a document"
    first = json.loads((documents / "documents.jsonl").read_text().splitlines()[0])["text"]
    windows = [ended.example(int(i)) for i in np.flatnonzero(ended.records == 0)]
    tokens = np.concatenate([windows[0][0], *(tokens[1:] for tokens, *_ in windows[1:])])  # they overlap by one token
    assert list(tokens) == [tokenizer.bos_id, *tokenizer.encode(first).ids, tokenizer.eos_id]
    assert windows[-1][1][-1] == 1.0, "EOS is a target"
    with pytest.raises(UserError, match="the tokenizer defines no EOS"):
        prepare(dataclasses.replace(config, cache_dir=""), make_tokenizer(), 0)


def test_layer_norms_are_those_of_the_gradient(pretrained):
    """Their squares add up to the whole norm's."""
    steps = [line for line in lines(pretrained / "run") if line["split"] == "train"]
    for step in steps:
        parts = {name: value for name, value in step.items() if name.startswith("grad_norm/")}
        assert set(parts) == {f"grad_norm/layer_{i:02d}" for i in range(DEPTH)} | {
            f"grad_norm/{name}" for name in ("embed", "norm", "head")
        }
        assert math.hypot(*parts.values()) == pytest.approx(step["grad_norm"], rel=1e-5)


def test_a_pretrained_model_is_measured_and_continued(pretrained):
    """The run and its export are the same model; plain text, whatever chat template the tokenizer has."""
    mesh = make_mesh(MeshConfig())
    outputs = []
    for name in ("run", "model"):
        model = open_model(str(pretrained / name), ModelConfig(), mesh)
        assert model.decoder.arch.n_post_layers == 1
        prompter = make_prompter(model.tokenizer, model.template, model.source, raw=name == "model")
        assert prompter.template is None
        ids = [prompter.encode("the quick"), prompter.encode("seven wizards quietly")]
        sampler = Sampler(model.decoder, Sampling(max_new_tokens=6), mesh)
        outputs.append([sampled.tokens for sampled in sampler.generate(model.params, ids)])
    assert outputs[0] == outputs[1] and all(outputs[0])


@pytest.mark.parametrize("kind", ["full", "qlora"])
def test_fine_tuning_keeps_the_order_of_norms(pretrained, documents, tmp_path, kind):
    config = pretraining(pretrained / "model", documents)
    config.model.init, config.steps = "pretrained", 2
    if kind == "qlora":
        config.adapter.kind, config.adapter.lora = "lora", LoRAConfig(rank=4, alpha=8.0)
        config.model.quantization = "nf4"
    validate(config)
    train(config, str(tmp_path / "run"))
    before = lines(pretrained / "run")[-1]["loss"]
    after = [line for line in lines(tmp_path / "run") if line["split"] == "eval"]
    assert after[0]["loss"] == pytest.approx(before, rel=0.02 if kind == "qlora" else 1e-5), (
        "it starts where that ended"
    )
    assert after[-1]["loss"] < after[0]["loss"]
    norms = {name for name in lines(tmp_path / "run")[1] if name.startswith("grad_norm/")}
    assert len(norms) == (DEPTH if kind != "full" else DEPTH + 3)
    mesh = make_mesh(MeshConfig())
    export_hf(open_model(str(tmp_path / "run"), ModelConfig(), mesh), tmp_path / "model", mesh)
    assert load_architecture(tmp_path / "model") == load_architecture(pretrained / "model")


def test_the_published_initialisation_reaches_the_run(start, documents):
    config = pretraining(start, documents, n_post_layers=2, init_std=0.02, embed_std=0.4**0.5, scaled_init=True)
    arch = architecture(config.model, start)
    program = build(config, arch, make_mesh(MeshConfig()), 1, abstract_batch(8, 64, 4))
    arrays = {name: np.asarray(x) for name, x in layout.unstack(arch, program.random_base()).items()}
    assert arrays["embed.embedding"].std() == pytest.approx(0.4**0.5, rel=0.03)
    assert arrays["head.kernel"].std() == pytest.approx(0.02, rel=0.03)
    for i in range(DEPTH):
        scale = 1.0 if i < 2 else (2 * DEPTH) ** -0.5
        for name in ("attn.o_proj", "mlp.down_proj"):
            assert arrays[f"layers.{i}.{name}.kernel"].std() == pytest.approx(0.02 * scale, rel=0.1)
        assert arrays[f"layers.{i}.mlp.up_proj.kernel"].std() == pytest.approx(0.02, rel=0.1)


@pytest.mark.parametrize(
    ("new", "init", "message"),
    [
        (
            {"n_post_layers": 1},
            "pretrained",
            r"n_post_layers is 1, but config\.model\.init is 'pretrained': moving the norms",
        ),
        ({"post_ln_alpha": 0.25}, "pretrained", "Mix-LN starts from random weights"),
        ({"embed_std": 0.5}, "pretrained", "the first values are those of the checkpoint"),
        ({"n_post_layers": 1, "post_ln_alpha": 0.25}, "random", "both n_post_layers and post_ln_alpha"),
        ({"n_post_layers": -1}, "random", "must not be negative"),
        ({"post_ln_alpha": 1.5}, "random", "must be 1 at most"),
        ({"init_std": 0.0}, "random", "must be positive"),
    ],
)
def test_what_a_new_model_cannot_be(new, init, message):
    config = TrainConfig(model=ModelConfig("folder", init=init, new=NewModelConfig(**new)))
    with pytest.raises(UserError, match=message):
        validate(config)


def test_a_folder_without_weights_says_how_to_train_anew(start, documents, tmp_path):
    config = pretraining(start, documents)
    config.model.init = "pretrained"
    with pytest.raises(UserError, match=r"to train a new model, set config\.model\.init to 'random'"):
        train(config, str(tmp_path / "run"))


def test_conversations_are_no_plain_text(start, documents, data_file, tmp_path):
    config = pretraining(start, documents)
    config.data.path, config.eval.path = str(data_file), ""
    with pytest.raises(UserError, match=r"config\.data\.template is 'none', which is for plain text alone"):
        train(config, str(tmp_path / "run"))
