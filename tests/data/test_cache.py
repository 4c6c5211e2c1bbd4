import json
import multiprocessing
import os
import shutil
import signal
from pathlib import Path

import numpy as np
import pytest
from etils import epath

from jaxsft.config import DataConfig, SourceConfig
from jaxsft.data import cache as cache_module
from jaxsft.data.cache import Entry, cached, hash_files, writing
from jaxsft.data.dataset import prepare
from jaxsft.data.render import Example
from jaxsft.errors import UserError
from tests.data.conftest import write_jsonl


def examples(count: int):
    for i in range(count):
        ids = np.arange(i, 2 * i + 2, dtype=np.int32)
        example = Example(ids, (ids % 2).astype(np.float32), is_text=i == 1)
        yield Entry(example, f"s{i % 2}", "t", "odd" if i % 2 else "")


def never():
    raise AssertionError("built again")
    yield


def test_written_once_and_read_back(tmp_path):
    first = cached(str(tmp_path), {"a": 1}, examples(4))
    again = cached(str(tmp_path), {"a": 1}, never())
    for cache in (first, again):
        for i, (example, source, *_) in enumerate(examples(4)):
            span = slice(cache.starts[i], cache.starts[i + 1])
            assert (cache.ids[span] == example.ids).all()
            assert (cache.weights[span] == example.weights).all()
            assert cache.source_names[cache.sources[i]] == source
            assert cache.supervised[i] == (example.weights > 0).sum()
            assert not example.weights[: cache.firsts[i]].any()
            assert example.weights[cache.firsts[i]] or not cache.supervised[i]
        assert cache.is_text.tolist() == [False, True, False, False]
        assert cache.notices == {"odd": 2}
        assert isinstance(cache.ids, np.memmap)
    assert cached(str(tmp_path), {"a": 2}, examples(1)).fingerprint != first.fingerprint
    assert not list(tmp_path.glob("*.tmp"))


def killed_while_writing(folder: str) -> None:
    def stream():
        yield from examples(3)
        os.kill(os.getpid(), signal.SIGKILL)

    cached(folder, {"a": 1}, stream())


def test_a_half_written_cache_is_never_taken_for_whole(tmp_path):
    process = multiprocessing.get_context("spawn").Process(target=killed_while_writing, args=(str(tmp_path),))
    process.start()
    process.join()
    assert process.exitcode == -signal.SIGKILL
    assert len(cached(str(tmp_path), {"a": 1}, examples(5)).starts) == 6


def test_an_error_leaves_nothing(tmp_path):
    def stream():
        yield from examples(2)
        raise UserError("line 3 is bad")

    with pytest.raises(UserError, match="line 3"):
        cached(str(tmp_path), {"a": 1}, stream())
    assert not list(tmp_path.iterdir())


def build(folder: str, barrier, result) -> None:
    barrier.wait()
    result.put(len(cached(folder, {"a": 1}, examples(300)).starts))


def test_processes_that_build_at_once(tmp_path):
    context = multiprocessing.get_context("spawn")
    barrier, result = context.Barrier(3), context.Queue()
    processes = [context.Process(target=build, args=(str(tmp_path), barrier, result)) for _ in range(3)]
    for process in processes:
        process.start()
    assert [result.get(timeout=60) for _ in processes] == [301] * 3
    for process in processes:
        process.join()
    assert len(list(tmp_path.iterdir())) == 1


def test_a_full_disk(tmp_path, monkeypatch):
    def to_full_disk(path, stream):
        with open("/dev/full", "wb") as file:
            file.write(b"x")

    monkeypatch.setattr(cache_module, "_write", to_full_disk)
    with pytest.raises(UserError, match=r"disk is full.*cache_dir"):
        cached(str(tmp_path), {"a": 1}, examples(1))
    assert not list(tmp_path.iterdir())


def test_folders_that_cannot_be_written(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(UserError, match=r"cannot be written.*cache_dir"):
        cached(str(tmp_path / "file" / "cache"), {"a": 1}, examples(1))
    with pytest.raises(UserError, match="local folder"):
        cached("gs://bucket/cache", {"a": 1}, examples(1))
    with pytest.raises(OSError, match="not a disk's"), writing(tmp_path):
        raise OSError("not a disk's")


def test_hashes_are_of_bytes(tmp_path):
    one, two = epath.Path(tmp_path / "one.jsonl"), epath.Path(tmp_path / "two.jsonl")
    one.write_text("abc")
    two.write_text("abc")
    notes = Path(tmp_path / "notes")
    assert len(set(hash_files([one, two], notes))) == 1
    before = hash_files([one], notes)
    assert before == hash_files([one], notes)
    one.write_text("abd")
    os.utime(one, ns=(1, 1))  # the same size: only the time tells
    assert hash_files([one], notes) != before


@pytest.fixture
def data(tmp_path) -> DataConfig:
    path = write_jsonl(tmp_path / "a.jsonl", [{"prompt": f"q{i}", "completion": f"a{i}"} for i in range(6)])
    return DataConfig(path=path, template="chatml", max_length=64, cache_dir=str(tmp_path / "cache"))


def count_caches(config: DataConfig) -> int:
    return len([folder for folder in Path(config.cache_dir).iterdir() if folder.name != "hashes"])


def test_what_makes_a_new_cache(data, tokenizer, tmp_path):
    prepare(data, tokenizer)
    for config in (data, DataConfig(**{**vars(data), "max_length": 32, "packing": False, "truncation": "drop"})):
        prepare(config, tokenizer)
        assert count_caches(data) == 1
    moved = tmp_path / "elsewhere" / "a.jsonl"
    moved.parent.mkdir()
    shutil.copy(data.path, moved)
    prepare(DataConfig(**{**vars(data), "path": str(moved)}), tokenizer)
    assert count_caches(data) == 1
    changes = [
        {"template": "plain"},
        {"rows": ":-1"},
        {"supervise": "all"},
        {"sources": [SourceConfig(path=data.path, name="other")]},
        {"fields": {"prompt": "prompt"}},
    ]
    for i, change in enumerate(changes):
        prepare(DataConfig(**{**vars(data), **change}), tokenizer)
        assert count_caches(data) == 2 + i, change
    Path(data.path).write_text(json.dumps({"prompt": "new", "completion": "record"}))
    assert len(prepare(data, tokenizer)) == 1
