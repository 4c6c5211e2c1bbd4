"""Perplexity of plain text and of conversations on a real model, against windows scored one by one."""

import dataclasses
import json
import types

import jax
import numpy as np
import pytest

from jaxsft.config import DataConfig, EvaluateConfig, MeshConfig
from jaxsft.data.tokenizer import load_tokenizer
from jaxsft.errors import UserError
from jaxsft.evaluation.likelihood.perplexity import prepare
from jaxsft.evaluation.rows import batches, read_examples
from jaxsft.evaluation.task import Subject
from jaxsft.models.checkpoint import load_architecture, load_params
from jaxsft.models.decoder import Decoder
from jaxsft.sharding import make_mesh


@pytest.fixture(scope="module")
def folder(real_data):
    return real_data / "models" / "stories260K"


def open_on(folder, mesh):
    decoder = Decoder(load_architecture(folder))
    return types.SimpleNamespace(
        decoder=decoder,
        params=load_params(folder, decoder, mesh),
        adapters=None,
        tokenizer=load_tokenizer(str(folder)),
    )


@pytest.fixture(scope="module")
def texts(real_data, tmp_path_factory):
    """A file of short stories and one text of several windows."""
    stories = (real_data / "text" / "tinystories_sample.txt").read_text().split("<|endoftext|>")
    stories = [story.strip() for story in stories if story.strip()]
    file = tmp_path_factory.mktemp("texts") / "texts.jsonl"
    records = [*({"text": s, "source": "short"} for s in stories), {"text": "\n".join(stories), "source": "long"}]
    file.write_text("".join(json.dumps(record) + "\n" for record in records))
    return file


def config(file, rows, packing, tmp_path, **data):
    data = DataConfig(path=str(file), packing=packing, max_length=1_000_000, cache_dir=str(tmp_path), **data)
    return EvaluateConfig(data=data, batch_size=rows)


def by_hand(folder, texts):
    """sum -log p over sum of tokens, in float64 from the logits of each window of 512 inputs."""
    mesh = make_mesh(MeshConfig(fsdp=1), jax.devices()[:1])
    model = open_on(folder, mesh)
    tokenizer = model.tokenizer.hf

    @jax.jit
    def logits(row):
        hidden = model.decoder.forward(model.params, row, np.arange(512)[None], np.ones(row.shape, np.int32)).hidden
        return model.decoder.head(model.decoder.head_params(model.params), hidden)[0]

    nll, count, windows = 0.0, 0, 0
    for record in map(json.loads, texts.read_text().splitlines()):
        ids = [1, *tokenizer(record["text"], add_special_tokens=False).input_ids]
        for start in range(0, len(ids) - 1, 512):
            inputs, targets = ids[start : start + 512], ids[start + 1 : start + 513]
            row = np.zeros((1, 512), np.int32)
            row[0, : len(inputs)] = inputs
            z = np.asarray(logits(row), np.float64)[: len(targets)]
            log_probs = z - np.log(np.exp(z).sum(-1, keepdims=True))
            nll -= log_probs[np.arange(len(targets)), targets].sum()
            count, windows = count + len(targets), windows + 1
    return nll / count, count, windows


def test_text_is_scored_once_whatever_the_layout(folder, texts, tmp_path):
    expected, tokens, windows = by_hand(folder, texts)
    results = []
    for devices, rows, packing in ((1, 3, False), (8, 8, True)):
        mesh = make_mesh(MeshConfig(fsdp=devices), jax.devices()[:devices])
        model = open_on(folder, mesh)
        task = prepare(config(texts, rows, packing, tmp_path), Subject(model.decoder, model.tokenizer, folder, mesh))
        result = task.measure(model.params, None).figures
        assert result["nll_per_token"] == pytest.approx(expected, rel=2e-6)
        assert (result["tokens"], result["windows"]) == (tokens, windows)
        assert result["examples"] == len(texts.read_text().splitlines())
        results.append(result)
    parts = results[0]["by_source"]
    assert parts["short"]["tokens"] + parts["long"]["tokens"] == tokens
    assert 1 < expected < 2.5  # the model was trained on such stories


def test_conversations_are_cut_to_the_context(folder, tmp_path):
    file = tmp_path / "chat.jsonl"
    record = {"prompt": "Tell me a story.", "completion": "Once upon a time there was a dog. " * 100}
    file.write_text(json.dumps(record) + "\n")
    tokenizer, arch = load_tokenizer(str(folder)), load_architecture(folder)
    assert arch.max_positions == 512
    data = config(file, 1, True, tmp_path, template="plain").data
    assert read_examples(data, tokenizer, arch).lengths.tolist() == [512]
    assert read_examples(dataclasses.replace(data, max_length=100), tokenizer, arch).lengths.tolist() == [100]
    with pytest.raises(UserError, match=r"token id .* model has 100 embeddings"):
        read_examples(data, tokenizer, dataclasses.replace(arch, vocab_size=100))


@pytest.mark.parametrize("packing", [True, False])
def test_rows_hold_every_example_once_and_are_short(folder, texts, tmp_path, packing):
    mesh = make_mesh(MeshConfig(fsdp=8), jax.devices())
    tokenizer, arch = load_tokenizer(str(folder)), load_architecture(folder)
    data = config(texts, 1, packing, tmp_path).data
    dataset = read_examples(data, tokenizer, arch)
    seen = list(batches(dataset, data, 3, mesh))
    indices = np.concatenate([batch.extras["example_index"].ravel() for batch in seen])
    assert sorted(indices[indices >= 0].tolist()) == list(range(len(dataset)))
    assert {batch.tokens.shape for batch in seen} == {(8, 512)}
    assert sum((batch.weights > 0).sum() for batch in seen) == dataset.supervised.sum()
    (tmp_path / "short.jsonl").write_text('{"text": "Once upon a time there was a dog."}\n')
    short = dataclasses.replace(data, path=str(tmp_path / "short.jsonl"))
    (batch,) = batches(
        read_examples(short, tokenizer, arch), short, 1, make_mesh(MeshConfig(fsdp=1), jax.devices()[:1])
    )
    assert batch.tokens.shape[1] <= 256
