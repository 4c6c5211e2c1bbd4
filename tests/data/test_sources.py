import importlib.util
import json
import os
import subprocess
import sys

import pyarrow
import pyarrow.parquet
import pytest
from etils.epath import testing as epath_testing

from jaxsft.config import SourceConfig
from jaxsft.data.cache import hash_files
from jaxsft.data.sources import open_source, row_range
from jaxsft.errors import UserError
from tests.data.conftest import write_jsonl

RECORDS = [{"prompt": f"q{i}", "completion": f"a{i}"} for i in range(5)]


def read(path, **options) -> list:
    source = open_source(SourceConfig(path=str(path), **options))
    return [record for record, _ in source.records(0, len(source))]


def test_every_kind_of_file_gives_the_same_records(tmp_path):
    (tmp_path / "array.json").write_text(json.dumps(RECORDS, indent=1))
    (tmp_path / "lines.json").write_text("\n\n".join(json.dumps(record) for record in RECORDS))
    (tmp_path / "bom.jsonl").write_bytes(b"\xef\xbb\xbf" + "\n".join(json.dumps(r) for r in RECORDS).encode())
    write_jsonl(tmp_path / "lines.jsonl", RECORDS)
    pyarrow.parquet.write_table(pyarrow.Table.from_pylist(RECORDS), tmp_path / "table.parquet")
    for name in ("array.json", "lines.json", "bom.jsonl", "lines.jsonl", "table.parquet"):
        assert read(tmp_path / name) == RECORDS, name


def test_folders_and_globs_follow_the_order_of_names(tmp_path):
    write_jsonl(tmp_path / "b.jsonl", RECORDS[2:])
    write_jsonl(tmp_path / "a.jsonl", RECORDS[:2])
    (tmp_path / "notes.txt").write_text("no data")
    assert read(tmp_path) == RECORDS
    assert read(tmp_path / "*.jsonl") == RECORDS
    assert read(str(tmp_path.parent / f"{tmp_path.name[:-1]}?" / "a.jsonl")) == RECORDS[:2]


def test_a_range_of_rows_crosses_files_and_names_lines(tmp_path):
    write_jsonl(tmp_path / "a.jsonl", RECORDS[:2])
    write_jsonl(tmp_path / "b.jsonl", RECORDS[2:])
    source = open_source(SourceConfig(path=str(tmp_path)))
    assert [(r["prompt"], os.path.basename(where)) for r, where in source.records(1, 4)] == [
        ("q1", "a.jsonl, line 2"),
        ("q2", "b.jsonl, line 1"),
        ("q3", "b.jsonl, line 2"),
    ]


def test_nested_columns_of_parquet(tmp_path):
    records = [{"messages": [{"role": "user", "content": "q"}, {"role": "assistant", "content": "a"}]}]
    pyarrow.parquet.write_table(pyarrow.Table.from_pylist(records), tmp_path / "t.parquet")
    assert read(tmp_path / "t.parquet") == records


@pytest.mark.parametrize(
    ("rows", "want"), [("", (0, 10)), (":-3", (0, 7)), ("-3:", (7, 10)), ("2:5", (2, 5)), ("5:99", (5, 10))]
)
def test_row_ranges_are_pythons(rows, want):
    assert row_range(rows, 10) == want
    start, stop = (int(part) if part else None for part in (rows or ":").split(":"))
    assert list(range(10))[start:stop] == list(range(*want))


@pytest.mark.parametrize("rows", ["a:b", "3", "1:2:3", "5:5", "20:"])
def test_row_ranges_that_are_none(rows):
    with pytest.raises(UserError, match="rows"):
        row_range(rows, 10)


@pytest.mark.parametrize(
    ("name", "content", "words"),
    [
        ("x.jsonl", b'{"text": "a"}\n{"text": oops}\n', ["x.jsonl, line 2", "malformed JSON"]),
        ("x.json", b'[{"text": "a"},\n {"text": }]', ["x.json, line 2", "malformed JSON"]),
        ("x.jsonl", b'{"text": "\xff"}\n', ["x.jsonl, line 1", "UTF-8"]),
        ("x.json", b'["\xff"]', ["x.json", "UTF-8"]),
        ("x.jsonl", b'{"text": "\\ud83d\\ude00"}\n{"text": ["\\uD800"]}\n', ["x.jsonl, line 2", "half of a surrogate"]),
        ("x.json", b'[{"text": "a"}, {"a\\udc00": "b"}]', ["x.json, record 2", "half of a surrogate"]),
        ("x.jsonl", b"", ["no records", "empty"]),
        ("x.json", b"[]", ["no records"]),
        ("x.parquet", b"PAR1 broken", ["x.parquet", "Parquet"]),
        ("x.tsv", b"a\tb", ["x.tsv", ".jsonl"]),
        ("x.csv", b"a,b", ["no records"]),
        ("x.csv", b"a,b\n1,2,3\n", ["x.csv, line 2", "3 fields under 2 names"]),
        ("x.csv", b'a,b\n1,"2\n', ["x.csv, line 2", "malformed CSV"]),
        ("x.csv", b"a\n\xff\n", ["x.csv", "UTF-8"]),
    ],
)
def test_bad_files_are_named(tmp_path, name, content, words):
    (tmp_path / name).write_bytes(content)
    with pytest.raises(UserError) as error:
        read(tmp_path / name)
    assert all(word in str(error.value) for word in words), error.value


@pytest.mark.parametrize("path", ["", "nowhere.jsonl", "*.jsonl", "."])
def test_nothing_there(tmp_path, monkeypatch, path):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(UserError):
        open_source(SourceConfig(path=path))


@pytest.fixture
def bucket(tmp_path):
    """`gs://bucket` is a folder here."""
    root = tmp_path / "bucket"
    root.mkdir()
    here = lambda path: str(path).replace("gs://bucket", str(root))
    there = lambda path: str(path).replace(str(root), "gs://bucket")
    plain = lambda function, path, *rest: function(here(path), *rest)
    with epath_testing.mock_epath(
        open=plain, exists=plain, isdir=plain, listdir=plain, stat=plain,
        glob=lambda function, path: [there(found) for found in function(here(path))],
    ):  # fmt: skip
        yield root


def test_buckets(bucket, tmp_path):
    write_jsonl(bucket / "a.jsonl", RECORDS[:2])
    pyarrow.parquet.write_table(pyarrow.Table.from_pylist(RECORDS[2:]), bucket / "b.parquet")
    assert read("gs://bucket/a.jsonl") == RECORDS[:2]
    assert read("gs://bucket") == RECORDS
    assert read("gs://bucket/*.jsonl") == RECORDS[:2]
    source = open_source(SourceConfig(path="gs://bucket/b.parquet"))
    assert next(source.records(0, 1))[1] == "gs://bucket/b.parquet, row 1"
    assert len(set(hash_files(source.files, tmp_path / "notes"))) == 1


def test_a_bucket_needs_its_package():
    if importlib.util.find_spec("gcsfs"):
        pytest.skip("gcsfs is installed")
    with pytest.raises(UserError, match=r"jaxsft\[gcs\]"):
        open_source(SourceConfig(path="gs://bucket/a.jsonl"))


WRITE_TFDS = """
import json, os, sys
import numpy
import tensorflow_datasets as tfds
from array_record.python import array_record_module
from tensorflow_datasets.core import example_serializer

folder = sys.argv[1]
turn = {"from": tfds.features.Text(), "value": tfds.features.Text()}
features = tfds.features.FeaturesDict({"conversations": tfds.features.Sequence(turn), "weight": numpy.float32})
os.makedirs(folder)
features.save_config(folder)
serializer = example_serializer.ExampleSerializer(features.get_serialized_info())
writer = array_record_module.ArrayRecordWriter(f"{folder}/tiny_chat-train.array_record-00000-of-00001", "group_size:1")
for i in range(3):
    turns = [{"from": "human", "value": f"q{i} ü"}, {"from": "gpt", "value": f"a{i}"}]
    writer.write(serializer.serialize_example(features.encode_example({"conversations": turns, "weight": 0.5})))
writer.close()
split = {"name": "train", "shardLengths": ["3"], "numBytes": "1",
         "filepathTemplate": "{DATASET}-{SPLIT}.{FILEFORMAT}-{SHARD_X_OF_Y}"}
info = {"fileFormat": "array_record", "name": "tiny_chat", "version": "1.0.0", "splits": [split]}
json.dump(info, open(f"{folder}/dataset_info.json", "w"))
"""


def test_tfds_is_read_without_tensorflow(tmp_path):
    folder = tmp_path / "tiny_chat" / "1.0.0"
    subprocess.run([sys.executable, "-c", WRITE_TFDS, str(folder)], check=True, capture_output=True)
    before = set(sys.modules)
    source = open_source(SourceConfig(path="tfds:tiny_chat:train[1:]", data_dir=str(tmp_path)))
    records = [record for record, _ in source.records(0, len(source))]
    assert records == [
        {"conversations": [{"from": "human", "value": f"q{i} ü"}, {"from": "gpt", "value": f"a{i}"}], "weight": 0.5}
        for i in (1, 2)
    ]
    assert [file.name for file in source.files] == ["tiny_chat-train.array_record-00000-of-00001"]
    assert "tensorflow" not in set(sys.modules) - before
    for path in ("tfds:tiny_chat:test", "tfds:absent"):
        with pytest.raises(UserError, match="cannot be read"):
            open_source(SourceConfig(path=path, data_dir=str(tmp_path)))
