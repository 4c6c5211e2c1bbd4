"""Kinds of adapters by name, and what they refuse before anything is loaded."""

import dataclasses

import pytest

from jaxsft.adapters.registry import METHODS, make_method
from jaxsft.config import AdapterConfig, TrainConfig
from jaxsft.errors import UserError
from jaxsft.models.architecture import NEW_IDS
from tests.tiny import llama


def test_every_kind_makes_its_own_method_from_its_own_settings():
    kinds = {field.name for field in dataclasses.fields(AdapterConfig)} - {"kind", "start"}
    assert kinds | {"none"} == set(METHODS)
    arch = llama(**{NEW_IDS: {"<new>": 63}})
    made = {kind: make_method(TrainConfig(adapter=AdapterConfig(kind)), arch, 10) for kind in METHODS}
    assert len({type(method) for method in made.values()}) == len(METHODS)
    for kind in kinds:
        assert made[kind].config is not None and made[kind].patterns[0] == f"config.adapter.{kind}.targets"


def test_an_unknown_kind():
    with pytest.raises(UserError, match=r"config\.adapter\.kind is 'lorra'; the kinds are: none, .*'lora'\?"):
        make_method(TrainConfig(adapter=AdapterConfig("lorra")), llama(), 1)


def test_settings_of_another_kind_are_refused():
    config = TrainConfig()
    config.adapter.lora.rank = 3
    with pytest.raises(UserError, match=r"config\.adapter\.lora is set, but config\.adapter\.kind is 'none'"):
        make_method(config, llama(), 1)
