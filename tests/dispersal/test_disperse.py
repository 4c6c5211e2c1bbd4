"""The job: parts that training reads, embeddings by hand, and the record."""

import json
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from jaxsft.config import DataConfig, DisperseConfig, ModelConfig
from jaxsft.data.dataset import prepare
from jaxsft.data.tokenizer import load_tokenizer
from jaxsft.dispersal.run import disperse
from jaxsft.errors import UserError
from jaxsft.models.decoder import Decoder
from jaxsft.scoring.embedding import mean_hidden_states
from jaxsft.scoring.table import read_scores
from tests.data.conftest import write_jsonl
from tests.tiny import llama, make_batch, random_examples
from tests.training.conftest import model_folder

__all__ = ["model_folder"]  # a fixture
COUNT = 43


@pytest.fixture
def config(model_folder, tmp_path):
    """Conversations of two sources; one is too long for two rows of a pair, none is dropped."""
    rng = np.random.default_rng(0)
    words = lambda: " ".join(rng.choice(["blue", "red", "green"], rng.integers(1, 7)))
    rows = [{"prompt": words(), "completion": words(), "source": "ab"[i % 3 == 0]} for i in range(COUNT)]
    data = DataConfig(str(write_jsonl(tmp_path / "rows.jsonl", rows)), template="plain", max_length=128)
    data.cache_dir = str(tmp_path / "cache")
    return DisperseConfig(ModelConfig(str(model_folder)), data, parts=3, batch_size=8)


def examples_of(config, **changes):
    data = prepare(DataConfig(**{**vars(config.data), **changes}), load_tokenizer(config.model.path))
    return set(data.epoch(0).members.tolist()), data


@pytest.mark.parametrize("method", ["random", "iid", "kmeans"])
def test_parts_are_disjoint_and_exhaustive(config, method, tmp_path):
    config.method = method
    line = disperse(config, tmp_path)
    assert f"{COUNT} examples in 3 parts by {method}" in line
    parts = [examples_of(config, parts=str(tmp_path / "parts.parquet"), part=k)[0] for k in range(3)]
    assert sum(map(len, parts)) == COUNT and set.union(*parts) == set(range(COUNT)) and all(parts)
    assert examples_of(config, parts=str(tmp_path / "parts.parquet"))[0] == set(range(COUNT))
    told = json.loads((tmp_path / "dispersal.json").read_text())
    assert [part["examples"] for part in told["parts"]] == [len(part) for part in parts]
    assert sum(part["sources"].get("a", 0) for part in told["parts"]) == sum(i % 3 != 0 for i in range(COUNT))
    page = (tmp_path / "dispersal.html").read_text()
    assert page.count("<section>") == 3 and ("<svg" in page) == (method == "kmeans")
    before = read_scores(tmp_path / "parts.parquet")[1]["part"]
    disperse(config, tmp_path / "again")
    np.testing.assert_array_equal(read_scores(tmp_path / "again" / "parts.parquet")[1]["part"], before)


def test_a_part_reports_what_it_leaves_and_has_a_fingerprint_of_its_own(config, tmp_path):
    disperse(config, tmp_path)
    table = str(tmp_path / "parts.parquet")
    sets = [examples_of(config, parts=table, part=k) for k in range(3)]
    assert len({data.fingerprint for _, data in sets}) == 3
    assert all(data.report.notices["left to other parts"] == COUNT - len(own) for own, data in sets)
    assert len({data.examples_fingerprint for _, data in sets}) == 1, "scores fit every part"


def test_by_source(config, tmp_path):
    config.method, config.parts = "source", 0
    disperse(config, tmp_path)
    parts = read_scores(tmp_path / "parts.parquet")[1]["part"]
    np.testing.assert_array_equal(parts, [i % 3 == 0 for i in range(COUNT)])
    assert [part["names"] for part in json.loads((tmp_path / "dispersal.json").read_text())["parts"]] == [["a"], ["b"]]


def test_a_record_that_is_dropped_keeps_its_vector(config, tmp_path):
    """The last one too: a file of vectors has one for each record of the data, used or not."""
    rows = Path(config.data.path).read_text().splitlines(keepends=True)
    rows[0], rows[-1] = (json.dumps({"prompt": "blue " * 200, "completion": "red", "source": "a"}) + "\n",) * 2
    config.data.path = str(write_jsonl(tmp_path / "long.jsonl", [json.loads(row) for row in rows]))
    config.data.max_dropped = 0.5
    vectors = np.eye(3)[np.arange(COUNT) % 3] + 0.01
    pq.write_table(pa.table({"vector": list(vectors)}), tmp_path / "v.parquet")
    config.method, config.vectors = "kmeans", str(tmp_path / "v.parquet")
    disperse(config, tmp_path)
    parts = read_scores(tmp_path / "parts.parquet")[1]["part"]
    assert len(parts) == COUNT - 2
    assert all(len(set(parts[i::3])) == 1 for i in range(3)) and len(set(parts)) == 3


def test_vectors_of_another_base_are_made_anew(config, tmp_path):
    config.method, config.parts = "kmeans", 2
    disperse(config, tmp_path)
    before = (tmp_path / "vectors.parquet").read_bytes()
    config.model.quantization = "int8"
    with pytest.raises(UserError, match="stale: they were made with quantization = None"):
        disperse(config, tmp_path)
    assert (tmp_path / "vectors.parquet").read_bytes() == before


def test_vectors_of_the_user(config, tmp_path):
    """They are of records, and decide alone."""
    vectors = np.eye(3)[np.arange(COUNT) % 3] + 0.01
    pq.write_table(pa.table({"vector": list(vectors)}), tmp_path / "v.parquet")
    config.method, config.vectors = "kmeans", str(tmp_path / "v.parquet")
    disperse(config, tmp_path)
    parts = read_scores(tmp_path / "parts.parquet")[1]["part"]
    assert all(len(set(parts[i::3])) == 1 for i in range(3)) and len(set(parts)) == 3
    pq.write_table(pa.table({"vector": list(vectors[:-1])}), tmp_path / "v.parquet")
    with pytest.raises(UserError, match=rf"holds 42 vectors .* for each of the {COUNT} records"):
        disperse(config, tmp_path / "short")


@pytest.mark.parametrize("text", ["response", "instruction", "both"])
def test_the_mean_of_the_hidden_states_of_a_text(text):
    decoder = Decoder(llama(), remat="none")
    params = decoder.init(jax.random.key(0))
    examples = [(tokens, (np.arange(len(tokens)) >= 3).astype(np.float32)) for tokens, _ in random_examples(3, 12)]
    batch = make_batch([examples[:2], examples[2:]], 32, 4)
    got = mean_hidden_states(decoder, text, params, None, batch)
    assert got["embedding"].shape == (2, 4, 32)
    for (tokens, _), place in zip(examples, [(0, 0), (0, 1), (1, 0)]):
        n = len(tokens)
        row = decoder.forward(params, jnp.array([tokens]), jnp.arange(n)[None], jnp.ones((1, n), jnp.int32)).hidden[0]
        wanted = {"response": row[3:], "instruction": row[:3], "both": row}[text]
        np.testing.assert_allclose(got["embedding"][place], wanted.mean(axis=0), rtol=1e-5, atol=1e-6)
    assert np.all(got["embedding"][1, 1:] == 0), "an empty slot"


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"parts": 0}, "config.parts is 0, but 'random' has no names"),
        ({"parts": COUNT + 1}, f"config.parts is {COUNT + 1}, but the data has {COUNT} records"),
        ({"method": "iid", "parts": COUNT}, "got no record; ask for fewer parts"),
    ],
)
def test_what_cannot_be_cut(config, changes, message, tmp_path):
    for name, value in changes.items():
        setattr(config, name, value)
    with pytest.raises(UserError, match=message):
        disperse(config, tmp_path)


def test_a_part_that_is_none(config, tmp_path):
    with pytest.raises(UserError, match=r"config\.data\.part is 1, but config\.data\.parts names no table"):
        examples_of(config, part=1)
    disperse(config, tmp_path)
    with pytest.raises(UserError, match=r"config\.data\.part is 3, but the parts in .* are 0 to 2"):
        examples_of(config, parts=str(tmp_path / "parts.parquet"), part=3)
