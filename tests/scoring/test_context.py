"""Losses with and without the context against a model's own, and training on the better half of them."""

import dataclasses
import json

import numpy as np
import pytest

from jaxsft.config import (
    ClassesConfig,
    DataConfig,
    ModelConfig,
    RecipeConfig,
    ScoreConfig,
    SourceConfig,
    StageConfig,
    TrainConfig,
)
from jaxsft.data.tokenizer import load_tokenizer
from jaxsft.errors import UserError
from jaxsft.evaluation.choices.encoded import encoder
from jaxsft.evaluation.likelihood.perplexity import make_nll
from jaxsft.evaluation.rows import InMemory, batches
from jaxsft.evaluation.scoring import example_sums
from jaxsft.models.checkpoint import load_architecture, load_params
from jaxsft.models.decoder import Decoder
from jaxsft.recipes.run import run
from jaxsft.scoring.context import score_context, without
from jaxsft.scoring.table import read_scores
from tests.training.conftest import model_folder

__all__ = ["model_folder"]  # a fixture

RECORDS = [
    {"instruction": f"What is number {i}?", "input": "" if i % 4 == 0 else f"It says {i * 7}.", "output": f"{i * 7}"}
    for i in range(24)
]


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    folder = tmp_path_factory.mktemp("context")
    (folder / "data.json").write_text(json.dumps(RECORDS))
    return DataConfig(str(folder / "data.json"), template="plain", max_length=128, cache_dir=str(folder / "cache"))


@pytest.fixture(scope="module")
def table(data, model_folder, tmp_path_factory):
    path = tmp_path_factory.mktemp("scores") / "scores.parquet"
    config = ScoreConfig(ModelConfig(str(model_folder)), data, context="input")
    line = score_context(config, path)
    assert score_context(config, path) == line, "read back"
    assert line.startswith("24 examples, context gain ")
    return read_scores(path)[1]


def own_loss(model_folder, mesh, prompts):
    """Nats a token of the answers behind other prompts, by way of multiple choice, which has no end of turn."""
    decoder, tokenizer = Decoder(load_architecture(model_folder)), load_tokenizer(str(model_folder))
    params, encode = load_params(model_folder, decoder, mesh), encoder("plain", tokenizer)
    rows = InMemory([encode(prompt, [record["output"]])[0] for prompt, record in zip(prompts, RECORDS)])
    nll = make_nll(decoder)
    sums = example_sums(lambda b: nll(params, None, b), batches(rows, DataConfig(), 8, mesh), mesh)
    return sums["nll_sum"], sums["tokens"]


def test_without_a_context_nothing_is_gained(table):
    gains, bare = table["context_gain"], np.arange(24) % 4 == 0
    np.testing.assert_allclose(gains[bare], 0, atol=1e-5)
    assert (np.abs(gains[~bare]) > 1e-4).all()
    np.testing.assert_allclose(table["loss_without_context"] - table["loss"], gains, atol=1e-5)


def test_losses_are_those_of_the_prompts(table, model_folder, mesh):
    """The losses of the table are of the answer and its end of turn; those of choices of the answer alone, so their sum
    is smaller, by what the end of turn costs; and that ranks the prompts alike where it costs the same."""
    instructions = [record["instruction"] for record in RECORDS]
    nll, tokens = own_loss(model_folder, mesh, instructions)
    ends = table["loss_without_context"] * (tokens + 1) - nll
    assert (ends > 0).all() and (ends < 12).all()
    bare = [i for i in range(24) if not RECORDS[i]["input"]]
    told = table["loss"][bare] * (tokens[bare] + 1) - nll[bare]
    np.testing.assert_allclose(told, ends[bare], atol=1e-3)


def test_a_recipe_trains_on_the_higher_half(data, model_folder, tmp_path):
    train = TrainConfig(data=data, batch_size=8, steps=2)
    train.model.path, train.log.tensorboard = str(model_folder), False
    changes = {"data.scores": "{scores}/scores.parquet", "data.score": "loss_without_context", "data.keep": 0.5}
    score = ScoreConfig(ModelConfig(str(model_folder)), data, context="input")
    stages = [StageConfig("scores", "score", score), StageConfig("target", "train", changes=changes)]
    assert "2 steps" in run(RecipeConfig(train=train, stages=stages), str(tmp_path / "work"))


def test_refusals(data, model_folder, tmp_path):
    config = ScoreConfig(ModelConfig(str(model_folder)), data, context="background")
    with pytest.raises(UserError, match="the record has no field 'background', which the field map names"):
        score_context(config, tmp_path / "scores.parquet")
    # a class of weight 0 that records are of when their own source is left out
    data_file = tmp_path / "own.json"
    own = ["lost", *["kept"] * 23]
    data_file.write_text(json.dumps([record | {"source": name} for record, name in zip(RECORDS, own)]))
    sources = [SourceConfig(str(data_file), "kept", rows=":20"), SourceConfig(str(data_file), "lost", rows="20:")]
    classes = ClassesConfig(weight={"kept": 1.0, "lost": 0.0})
    sourced = dataclasses.replace(data, path="", sources=sources, classes=classes)
    config = ScoreConfig(ModelConfig(str(model_folder)), sourced, context="source")
    with pytest.raises(UserError, match=r"4 of 23 examples are dropped when config\.context .source. is .* record 21,"):
        score_context(config, tmp_path / "scores.parquet")
    assert without(data, "input").sources[0].fields == {"input": "context_left_out"}
