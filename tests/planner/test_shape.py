"""Sizes from config.json agree with the models' own weights, for every family at hand."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from pydantic import ValidationError

from genai_core.facts import ModelFacts, WeightsGroup
from genai_planner.shape import shape_from_config, shape_from_facts

ARCHITECTURES = Path(__file__).parents[1] / "fixtures" / "architectures"
FAMILIES = sorted(p.parent.name for p in ARCHITECTURES.glob("*/config.json"))


@pytest.mark.parametrize("family", FAMILIES)
def test_every_family_s_config_is_understood(family: str) -> None:
    config = json.loads((ARCHITECTURES / family / "config.json").read_text())
    found = shape_from_config(config)
    assert found is not None
    text = config.get("text_config", config)
    assert len(found.layers) == text["num_hidden_layers"]
    assert found.hidden_size == text["hidden_size"]
    assert found.vocab_size == text["vocab_size"]
    assert found.max_positions == text["max_position_embeddings"]


def test_numbers_of_llama_8b() -> None:
    config = {
        "model_type": "llama",
        "num_hidden_layers": 32,
        "hidden_size": 4096,
        "intermediate_size": 14336,
        "vocab_size": 128256,
        "num_attention_heads": 32,
        "num_key_value_heads": 8,
    }
    found = shape_from_config(config)
    assert found is not None
    assert found.parameters == 8_030_261_248  # as the model's card says
    assert found.kv_width == 1024


@pytest.mark.parametrize(
    "config",
    [
        {"n_layer": 12, "n_embd": 768, "n_head": 12, "vocab_size": 50257, "n_positions": 1024},
        {"num_layers": 12, "hidden_size": 768, "padded_vocab_size": 50257, "seq_length": 1024},
        {"n_layers": 12, "d_model": 768, "n_heads": 12, "vocab_size": 50257, "max_seq_len": 1024},
        {
            "text_config": {
                "num_hidden_layers": 12,
                "hidden_size": 768,
                "vocab_size": 50257,
                "max_position_embeddings": 1024,
            }
        },
    ],
)
def test_odd_and_nested_names_are_read(config: dict[str, Any]) -> None:
    found = shape_from_config(config)
    assert found is not None
    assert (len(found.layers), found.hidden_size, found.vocab_size) == (12, 768, 50257)
    assert found.max_positions == 1024


@pytest.mark.parametrize(
    "config",
    [{}, {"num_hidden_layers": 2}, {"num_hidden_layers": "2", "hidden_size": 4, "vocab_size": 8}],
)
def test_config_that_says_too_little_gives_nothing(config: dict[str, Any]) -> None:
    assert shape_from_config(config) is None


def test_facts_of_ingest_are_taken_as_they_are() -> None:
    groups = {
        "embed": WeightsGroup(file="weights/embed.data", size_bytes=4000, parameters=1000),
        "layer_000": WeightsGroup(file="weights/layer_000.data", size_bytes=80, parameters=20),
        "layer_001": WeightsGroup(file="weights/layer_001.data", size_bytes=120, parameters=30),
        "head": WeightsGroup(file="weights/head.data", size_bytes=40, parameters=10),
    }
    facts = ModelFacts(
        architecture="llama",
        layers=2,
        hidden_size=10,
        vocab_size=100,
        parameters=1060,
        rope={},
        attention=[],
        boundaries=["a", "b", "c"],
        groups=groups,
        tied_embedding=True,
    )
    found = shape_from_facts(facts)
    assert found.exact
    assert found.layers == (20, 30)
    assert found.head == 1010  # the tied matrix is in the binary of the head all the same
    assert found.parameters == 1060


def test_facts_of_a_million_layers_are_none() -> None:
    facts = {"architecture": "x", "hidden_size": 1, "vocab_size": 1, "parameters": 1}
    rest: dict[str, Any] = {"rope": {}, "attention": [], "boundaries": ["a"], "groups": {}}
    assert ModelFacts.model_validate({**facts, **rest, "layers": 2}).layers == 2
    with pytest.raises(ValidationError, match="layers"):
        ModelFacts.model_validate({**facts, **rest, "layers": 10**6})


@pytest.mark.parametrize("name", ["num_hidden_layers", "hidden_size", "vocab_size"])
def test_numbers_beyond_any_model_say_nothing(name: str) -> None:
    """The file is a tenant's, and the operator that plans is everybody's."""
    config = {"num_hidden_layers": 2, "hidden_size": 8, "vocab_size": 10}
    assert shape_from_config(config) is not None
    for number in (10**30, 2**31 + 1):
        assert shape_from_config({**config, name: number}) is None
    assert shape_from_config({**config, "num_hidden_layers": 513}) is None
    inner = shape_from_config({**config, "intermediate_size": 10**30})
    assert inner is not None
    assert inner.parameters < 10_000
