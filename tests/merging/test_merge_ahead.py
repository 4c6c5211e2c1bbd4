"""Reading ahead: the same arrays in the same order, no more of them than the largest tensor takes, no error lost."""

import itertools
import threading

import pytest

from jaxsft.errors import UserError
from jaxsft.merging.ahead import ReadAhead
from jaxsft.models.decoder import Decoder
from jaxsft.models.weights import tensors
from tests.tiny import llama

WANTED = tensors(Decoder(llama(vocab_size=512)))
SOURCES, ARRAYS = 2, 4


def test_the_next_is_read_in_a_thread_where_both_have_room():
    beside = {}

    def load(tensor):
        beside[tensor.name] = threading.current_thread() is not threading.main_thread()
        return [tensor.name] * SOURCES

    threads = threading.active_count()
    with ReadAhead(WANTED, load, SOURCES, ARRAYS) as ahead:
        taken = [ahead.take() for _ in WANTED]
    assert taken == [[tensor.name] * SOURCES for tensor in WANTED] and threading.active_count() == threads
    room = ARRAYS * max(tensor.size for tensor in WANTED)
    fits = [ARRAYS * now.size + SOURCES * then.size <= room for now, then in itertools.pairwise(WANTED)]
    assert [beside[tensor.name] for tensor in WANTED] == [False, *fits]
    assert any(fits) and not all(fits), "the embedding, the largest, has nothing beside it"


def test_an_error_is_raised_where_the_tensor_is_taken():
    def load(tensor):
        if tensor == WANTED[2]:
            raise UserError("broken")
        return [tensor.name]

    with ReadAhead(WANTED, load, SOURCES, ARRAYS) as ahead:
        assert ahead.take() == [WANTED[0].name] and ahead.take() == [WANTED[1].name]
        with pytest.raises(UserError, match="broken"):
            ahead.take()


def test_several_processes_read_in_one_order(monkeypatch):
    """What they compute together must start in the same order in all of them, which a thread would not keep to."""
    monkeypatch.setattr("jax.process_count", lambda: 2)
    threads = []
    load = lambda tensor: threads.append(threading.current_thread()) or [tensor.name] * SOURCES
    with ReadAhead(WANTED, load, SOURCES, ARRAYS) as ahead:
        assert [ahead.take()[0] for _ in WANTED] == [tensor.name for tensor in WANTED]
    assert set(threads) == {threading.main_thread()}
