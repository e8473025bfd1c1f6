"""Genie's configuration: our values, and the verdict of the vendor's own parser."""

from __future__ import annotations

import copy
import json
from dataclasses import replace

import pytest

from genai_core import chips
from genai_core.errors import BadModel, InvalidSpec
from genai_core.facts import RopeTable
from genai_runtime.htp.vendor import genie, qnn
from genai_stages.backends.htp.genie_config import (
    GenieFacts,
    genie_config,
    htp_backend_ext_config,
    positional_encoding,
    sampler,
)

needs_genie = pytest.mark.skipif(
    bool(qnn.why_unavailable()), reason=f"GENIE WAS NOT ASKED: {qnn.why_unavailable()}"
)

FACTS = GenieFacts(
    context_length=4096,
    vocab_size=32000,
    head_dim=64,
    rope=RopeTable(rotary_dim=64, inv_freq=[1.0] * 32, theta=500000.0),
    bos_token=1,
    eos_tokens=[2],
    binaries=["part_1_of_2.bin", "part_2_of_2.bin"],
)


def _scaled(**scaling: object) -> GenieFacts:
    return replace(FACTS, rope=FACTS.rope.model_copy(update={"scaling": scaling}))


LLAMA3 = _scaled(
    rope_type="llama3",
    factor=8.0,
    low_freq_factor=1.0,
    high_freq_factor=4.0,
    original_max_position_embeddings=8192,
)
LONGROPE = replace(
    _scaled(type="longrope", long_factor=[2.0] * 32, short_factor=[1.0] * 32),
    max_positions=131072,
    original_max_positions=4096,
)
ADAPTERS = replace(FACTS, adapters=["c", "py"])
SEVERAL_ENDS = replace(FACTS, eos_tokens=[2, 6])


def test_basic_dialog() -> None:
    dialog = genie_config(FACTS)["dialog"]
    assert dialog["type"] == "basic"
    assert dialog["context"] == {
        "version": 1,
        "size": 4096,
        "n-vocab": 32000,
        "bos-token": 1,
        "eos-token": 2,
    }
    engine = dialog["engine"]
    assert engine["backend"]["QnnHtp"]["kv-dim"] == 64
    assert engine["backend"]["extensions"] == "htp_backend_ext_config.json"
    assert engine["model"]["binary"]["ctx-bins"] == ["part_1_of_2.bin", "part_2_of_2.bin"]
    assert engine["model"]["positional-encoding"] == {
        "type": "rope",
        "rope-dim": 32,
        "rope-theta": 500000,
    }


def test_rotary_scaling() -> None:
    assert positional_encoding(LLAMA3)["rope-scaling"] == {
        "rope-type": "llama3",
        "factor": 8.0,
        "low-freq-factor": 1.0,
        "high-freq-factor": 4.0,
        "original-max-position-embeddings": 8192,
    }
    long = positional_encoding(LONGROPE)["rope-scaling"]
    assert (long["factor"], long["original-max-position-embeddings"]) == (32.0, 4096)
    assert positional_encoding(_scaled(rope_type="linear", factor=2))["rope-scaling"] == {
        "rope-type": "linear",
        "factor": 2.0,
    }
    assert "rope-scaling" not in positional_encoding(_scaled(rope_type="default"))


def test_rotary_tables_that_genie_cannot_compute() -> None:
    with pytest.raises(BadModel, match="scaling of type yarn"):
        positional_encoding(_scaled(rope_type="yarn", factor=4.0))
    with pytest.raises(BadModel, match="llama3 lacks factor"):
        positional_encoding(_scaled(rope_type="llama3"))
    unknown = replace(FACTS, rope=FACTS.rope.model_copy(update={"theta": None}))
    with pytest.raises(BadModel, match="base of the rotary frequencies"):
        positional_encoding(unknown)


@pytest.mark.parametrize("path", ["/abs/part.bin", "../part.bin", "a/../../part.bin"])
def test_paths_stay_relative_and_inside(path: str) -> None:
    with pytest.raises(InvalidSpec, match="relative"):
        genie_config(replace(FACTS, binaries=[path]))
    with pytest.raises(InvalidSpec, match="relative"):
        genie_config(replace(FACTS, tokenizer=path))


def test_sampler_follows_the_models_defaults() -> None:
    assert sampler({})["top-k"] == 1, "greedy unless the model says otherwise"
    assert sampler({"temperature": 0.6})["top-k"] == 1
    given = {"do_sample": True, "temperature": 0.6, "top_p": 0.9}
    assert sampler(given) == {"version": 1, "seed": 42, "temp": 0.6, "top-k": 50, "top-p": 0.9}


def test_backend_extensions_name_the_chip() -> None:
    made = htp_backend_ext_config(chips.parse("sm8650"))
    assert made["devices"][0]["soc_model"] == 57
    assert made["devices"][0]["dsp_arch"] == "v75"
    assert made["context"] == {"weight_sharing_enabled": True}


def test_the_emulations_binaries_take_the_places_of_the_devices() -> None:
    config = genie_config(FACTS)
    before = copy.deepcopy(config)
    made = genie.emulated(config)
    engine = made["dialog"]["engine"]
    assert engine["model"]["binary"]["ctx-bins"] == [
        "emulation/part_1_of_2.bin",
        "emulation/part_2_of_2.bin",
    ]
    assert "extensions" not in engine["backend"]
    assert config == before


@needs_genie
@pytest.mark.qnn
@pytest.mark.parametrize(
    "facts",
    [FACTS, LLAMA3, LONGROPE, ADAPTERS, SEVERAL_ENDS, _scaled(rope_type="linear", factor=2.0)],
    ids=["plain", "llama3", "longrope", "adapters", "several ends", "linear"],
)
def test_genies_parser_accepts_it(facts: GenieFacts) -> None:
    config = genie_config(facts, generation={"do_sample": True, "temperature": 0.7})
    verdict = genie.check_config(json.dumps(config))
    assert verdict.accepted, verdict.message
    emulated = genie.check_config(json.dumps(genie.emulated(config)))
    assert emulated.accepted, emulated.message


@needs_genie
@pytest.mark.qnn
def test_genies_parser_says_where_it_stopped() -> None:
    config = genie_config(FACTS)
    config["dialog"]["context"]["size"] = "large"
    verdict = genie.check_config(json.dumps(config))
    assert (verdict.accepted, verdict.where) == (False, "/context/size")
    assert "unexpected instance type" in verdict.message
    broken = genie.check_config("{nonsense")
    assert not broken.accepted
    assert "parse error at line 1" in broken.message
