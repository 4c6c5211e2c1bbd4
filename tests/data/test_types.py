"""Types of examples from the tags of their records: in batches, in the report, and what is refused."""

import dataclasses

import numpy as np
import pytest

from jaxsft.config import DataConfig, TrainConfig, TypesConfig
from jaxsft.data.dataset import prepare
from jaxsft.data.loader import Loader
from jaxsft.errors import UserError
from jaxsft.training.setup import held_out_data
from tests.data.conftest import write_jsonl


@pytest.fixture
def make(tmp_path, tokenizer):
    """Prepares eight pairs of answers: four facts, three sums, and one without task type."""
    names = ["fact", "sum", "fact", "", "sum", "fact", "sum", "fact"]
    rows = [{"prompt": "q", "chosen": "so " * (i + 1), "rejected": "no", "task_type": n} for i, n in enumerate(names)]
    path = write_jsonl(tmp_path / "rows.jsonl", rows)

    def make(types, **options):
        data = DataConfig(path=path, template="plain", max_length=64, types=types, **options)
        data.cache_dir = str(tmp_path / "cache")
        return prepare(data, tokenizer)

    return make


def test_types_are_in_the_batch_and_the_report(make):
    dataset = make(TypesConfig(of={"fact": 1, "sum": 0}))
    assert dataset.type_ids.tolist() == [1, 0, 1, -1, 0, 1, 0, 1]
    assert dataset.report.types == {"untyped": 1, "0": 3, "1": 4}
    assert "\ntypes: untyped 1, 0 3, 1 4" in str(dataset.report)
    batch = Loader(dataset, dataset.config, 2).batch(0)
    index, kinds = batch.extras["example_index"], batch.extras["type"]
    assert kinds.dtype == np.int32 and (kinds[index < 0] == -1).all()
    assert kinds[index >= 0].tolist() == dataset.type_ids[index[index >= 0]].tolist()


def test_both_sides_of_a_pair_have_the_type_of_their_record(make):
    dataset = make(TypesConfig(of={"fact": 1}, other=0), grouping="preference")
    assert dataset.type_ids.tolist() == [1, 1, 0, 0, 1, 1, 0, 0, 0, 0, 1, 1, 0, 0, 1, 1]
    assert dataset.report.types == {"0": 8, "1": 8}


def test_without_types_nothing_is_added(make):
    dataset = make(TypesConfig())
    assert "type" not in dataset.extras(0) and not dataset.report.types and "\ntypes:" not in str(dataset.report)


def test_types_decide_the_fingerprint_of_the_data_and_not_of_its_examples(make):
    sets = [make(types) for types in (TypesConfig(), TypesConfig(of={"fact": 1}), TypesConfig(of={"fact": 2}))]
    assert len({dataset.fingerprint for dataset in sets}) == 3
    assert len({dataset.examples_fingerprint for dataset in sets}) == 1


@pytest.mark.parametrize(
    ("types", "message"),
    [
        (
            TypesConfig(of={"facts": 1}),
            r"names 'facts', which is no task type of the data; did you mean 'fact'\?",
        ),
        (TypesConfig(by="source", of={"fact": 1}), r"types\.of names 'fact', which is no source of the data"),
        (TypesConfig(of={"fact": -2}), r"gives 'fact' the type -2; types are 0, 1"),
    ],
)
def test_what_cannot_be_meant_is_refused(make, types, message):
    with pytest.raises(UserError, match=message):
        make(types)


def test_held_out_data_needs_no_types():
    """It may lack some of the tags, and its loss does not read them."""
    config = TrainConfig()
    config.data = dataclasses.replace(config.data, types=TypesConfig(of={"fact": 1}))
    assert held_out_data(config).types == TypesConfig()
