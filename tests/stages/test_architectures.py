"""What each family's config.json means, by the words of the models' own documentation."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from genai_core.errors import BadModel
from genai_stages.architectures.detect import FAMILIES, detect
from genai_stages.architectures.rope import ropes_of

WINDOWS: list[tuple[dict[str, Any], int, list[int]]] = [
    ({"model_type": "llama"}, 3, [0, 0, 0]),
    ({"model_type": "mistral", "sliding_window": 4096}, 2, [4096, 4096]),
    ({"model_type": "mistral", "sliding_window": None}, 2, [0, 0]),
    ({"model_type": "qwen2", "sliding_window": 32768, "use_sliding_window": False}, 2, [0, 0]),
    (
        {
            "model_type": "qwen2",
            "sliding_window": 64,
            "use_sliding_window": True,
            "max_window_layers": 2,
        },
        4,
        [0, 0, 64, 64],
    ),
    ({"model_type": "gemma2", "sliding_window": 4096}, 4, [4096, 0, 4096, 0]),
    (
        {"model_type": "gemma3_text", "sliding_window": 512, "sliding_window_pattern": 6},
        7,
        [512, 512, 512, 512, 512, 0, 512],
    ),
    (
        {
            "model_type": "gemma3_text",
            "sliding_window": 8,
            "layer_types": ["full_attention", "sliding_attention"],
        },
        2,
        [0, 8],
    ),
    ({"model_type": "phi3", "sliding_window": 262144}, 1, [262144]),
    ({"model_type": "other", "sliding_window": 16}, 2, [16, 16]),
]


@pytest.mark.parametrize(("config", "layers", "windows"), WINDOWS)
def test_windows_of_layers(config: dict[str, Any], layers: int, windows: list[int]) -> None:
    assert detect(config)[0].windows(config, layers) == windows


@pytest.mark.parametrize("family", FAMILIES, ids=lambda family: family.name)
def test_every_family_is_found_by_each_of_its_names(family: Any) -> None:
    for name in family.architectures:
        assert detect({"architectures": [name]}) == (family, None)
        assert detect({}, name) == (family, None)
    for kind in family.model_types:
        assert detect({"model_type": kind}) == (family, None)


def test_architectures_count_more_than_the_model_type() -> None:
    family, warning = detect({"architectures": ["FooForCausalLM"], "model_type": "llama"})
    assert family.name == "generic"
    assert warning is not None
    assert "FooForCausalLM" in warning


def test_linear_scaling_divides_the_frequencies() -> None:
    config = {"hidden_size": 64, "num_attention_heads": 4, "rope_theta": 100.0}
    family = detect({"model_type": "llama"})[0]
    plain = ropes_of(config, family)["default"]
    scaled = ropes_of({**config, "rope_scaling": {"type": "linear", "factor": 4.0}}, family)
    np.testing.assert_allclose(plain.inv_freq, 100.0 ** (-np.arange(8) / 8), rtol=1e-6)
    np.testing.assert_allclose(np.array(plain.inv_freq) / 4, scaled["default"].inv_freq, rtol=1e-6)
    assert scaled["default"].scaling == {"type": "linear", "factor": 4.0}


def test_transformers_5_has_a_table_for_each_type_of_layer() -> None:
    """Gemma 3's config.json as that version writes it, and as the one before did."""
    sizes: dict[str, Any] = {"model_type": "gemma3_text", "head_dim": 8}
    full = {"rope_theta": 1e6, "rope_type": "linear", "factor": 8.0}
    sliding = {"rope_theta": 10000.0, "rope_type": "default"}
    new = {"rope_parameters": {"full_attention": full, "sliding_attention": sliding}}
    old = {
        "rope_theta": 1e6,
        "rope_local_base_freq": 10000.0,
        "rope_scaling": {"rope_type": "linear", "factor": 8.0},
    }
    for family in (detect(sizes)[0], detect({"model_type": "other"})[0]):
        found = ropes_of(sizes | new, family)
        assert found.keys() == {"default", "local"}
        np.testing.assert_allclose(found["default"].inv_freq, 1e6 ** (-np.arange(4) / 4) / 8)
        np.testing.assert_allclose(found["local"].inv_freq, 10000.0 ** (-np.arange(4) / 4))
        assert (found["default"].theta, found["local"].theta) == (1e6, 10000.0)
    before = ropes_of(sizes | old, detect(sizes)[0])
    assert {name: table.inv_freq for name, table in before.items()} == {
        name: table.inv_freq for name, table in found.items()
    }
    only = ropes_of(sizes | {"rope_parameters": {"sliding_attention": sliding}}, detect(sizes)[0])
    assert {name: table.theta for name, table in only.items()} == {"default": 10000.0}


def test_transformers_5_has_the_rotated_fraction_beside_the_base() -> None:
    config = {
        "head_dim": 16,
        "rope_parameters": {"rope_theta": 5e5, "partial_rotary_factor": 0.25},
    }
    (table,) = ropes_of(config, detect({"model_type": "glm"})[0]).values()
    assert (table.rotary_dim, table.theta) == (4, 5e5)


@pytest.mark.parametrize("beside", [True, False])
def test_longrope_says_how_far_its_short_factors_hold(beside: bool) -> None:
    """Phi-3 has the original length beside rope_scaling, others inside."""
    original = {"original_max_position_embeddings": 4096}
    scaling = {"type": "longrope", "short_factor": [1.0, 1.5], "long_factor": [2.0, 9.0]}
    config: dict[str, Any] = {"head_dim": 4, "max_position_embeddings": 131072}
    config["rope_scaling"] = scaling if beside else scaling | original
    table = ropes_of(config | (original if beside else {}), detect({"model_type": "phi3"})[0])
    (found,) = table.values()
    assert found.scaling == scaling | original
    np.testing.assert_allclose(found.inv_freq, [1.0, 10000.0**-0.5 / 1.5], rtol=1e-6)
    assert found.attention_factor == pytest.approx(1.190238, rel=1e-6)


def test_incomplete_scaling_names_the_key() -> None:
    config = {"head_dim": 16, "rope_scaling": {"rope_type": "llama3", "factor": 8.0}}
    with pytest.raises(BadModel, match="low_freq_factor"):
        ropes_of(config, detect({"model_type": "llama"})[0])


def test_unknown_scaling_names_the_known_types() -> None:
    config = {"head_dim": 16, "rope_scaling": {"rope_type": "spiral", "factor": 2}}
    with pytest.raises(BadModel, match=r"spiral.*llama3"):
        ropes_of(config, detect({"model_type": "llama"})[0])


def test_mrope_of_text_is_the_plain_table() -> None:
    config = {"head_dim": 16, "rope_scaling": {"type": "mrope", "mrope_section": [2, 3, 3]}}
    table = ropes_of(config, detect({"model_type": "qwen2_vl"})[0])["default"]
    plain = ropes_of({"head_dim": 16}, detect({"model_type": "qwen2_vl"})[0])["default"]
    assert table == plain


def test_proportional_table_covers_the_head_and_turns_a_fraction_of_it() -> None:
    """Gemma 4's full layers: a quarter of the pairs, their frequencies those of the whole head."""
    full = {"rope_type": "proportional", "partial_rotary_factor": 0.25, "rope_theta": 1e6}
    sliding = {"rope_type": "default", "rope_theta": 10000.0}
    config = {
        "head_dim": 16,
        "rope_parameters": {"full_attention": full, "sliding_attention": sliding},
    }
    tables = ropes_of(config, detect({"model_type": "gemma4_text"})[0])
    whole = 1e6 ** (-np.arange(8) / 8)
    np.testing.assert_allclose(tables["default"].inv_freq, [*whole[:2], *[0.0] * 6], rtol=1e-6)
    assert (tables["default"].rotary_dim, tables["local"].rotary_dim) == (16, 16)
    assert tables["default"].scaling == full


def test_without_head_sizes_there_is_no_table() -> None:
    assert ropes_of({}, detect({})[0]) == {}
