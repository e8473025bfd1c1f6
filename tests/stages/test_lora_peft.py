"""PEFT's folders: factors and ranks by module, and what is refused by its name."""

from __future__ import annotations

import math
import re
from contextlib import suppress
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np
import pytest
from adapter_files import write_peft
from hypothesis import given
from hypothesis import strategies as st
from safetensors.numpy import save

from genai_core.errors import BadAdapter, BadInput
from genai_stages import bounded_match
from genai_stages.lora.readers.peft import read_peft

Q, V = "model.layers.0.self_attn.q_proj", "model.layers.0.self_attn.v_proj"
DOWN = "model.layers.10.mlp.down_proj"
MODULES = {Q: (8, 8), V: (4, 8), DOWN: (8, 16)}
EXAMPLES = Path(__file__).parents[2] / "examples" / "tiny-llama" / "adapters"


def test_read_peft_keeps_matrices_and_scales_by_alpha_over_rank(tmp_path: Path) -> None:
    written = write_peft(tmp_path, MODULES, rank=4, lora_alpha=12)
    found = read_peft(tmp_path, "one")
    assert found.branches.keys() == MODULES.keys()
    assert found.base == "somebody/base"
    for module, branch in found.branches.items():
        np.testing.assert_array_equal(branch.a, written[module][0])
        np.testing.assert_array_equal(branch.b, written[module][1])
        assert branch.scale == 3.0


def test_read_peft_takes_patterns_of_the_module_that_they_fit(tmp_path: Path) -> None:
    ranks = {Q: 2, V: 4, DOWN: 6}
    write_peft(
        tmp_path, MODULES, rank=ranks, r=4, lora_alpha=8,
        rank_pattern={"q_proj": 2, "layers.10.mlp.down_proj": 6},
        alpha_pattern={"^model.layers.10.*": 3, "_proj": 99},
    )  # fmt: skip
    found = read_peft(tmp_path, "one").branches
    assert {m: b.rank for m, b in found.items()} == ranks
    assert found[Q].scale == 8 / 2, "a pattern starts at a dot: _proj fits no module"
    assert found[V].scale == 8 / 4
    assert found[DOWN].scale == 3 / 6


def test_read_peft_divides_by_the_root_when_rslora_is_used(tmp_path: Path) -> None:
    write_peft(tmp_path, MODULES, rank=4, lora_alpha=8, use_rslora=True)
    assert read_peft(tmp_path, "one").branches[Q].scale == 8 / math.sqrt(4)


@pytest.mark.parametrize("dtype", [np.float16, ml_dtypes.bfloat16, np.float64])
def test_read_peft_widens_weights_of_any_float_type(tmp_path: Path, dtype: Any) -> None:
    written = write_peft(tmp_path, {Q: (8, 8)}, dtype=dtype)
    np.testing.assert_array_equal(read_peft(tmp_path, "one").branches[Q].a, written[Q][0])


def test_read_peft_reads_what_peft_itself_saved() -> None:
    c, upper = (read_peft(EXAMPLES / name, name) for name in ("c-headers-r8", "uppercase-r16"))
    assert (len(c.branches), c.rank) == (12, 8)
    assert (len(upper.branches), upper.rank) == (24, 16)
    assert {b.scale for b in (*c.branches.values(), *upper.branches.values())} == {2.0}


@pytest.mark.parametrize(
    ("config", "words"),
    [
        ({"use_dora": True}, "DoRA"),
        ({"modules_to_save": ["lm_head"]}, "modules_to_save"),
        ({"bias": "lora_only"}, "biases"),
        ({"lora_bias": True}, "biases"),
        ({"peft_type": "IA3"}, "IA3"),
        ({"init_lora_weights": "pissa_niter_4"}, "changes the base's weights"),
        ({"init_lora_weights": "olora"}, "changes the base's weights"),
        ({"alora_invocation_tokens": [1]}, "activated LoRA"),
        ({"layer_replication": [[0, 2]]}, "repeats layers"),
        ({"r": 5}, "says rank 5, lora_A has 4 rows"),
        ({"lora_alpha": None}, "no positive number"),
        ({"lora_alpha": True}, "no positive number"),
        ({"rank_pattern": {"(": 4}}, "no pattern"),
        ({"rank_pattern": {"a{99999999999999999999}": 4}}, "no pattern"),
        ({"rank_pattern": {"q" * 1001: 4}}, "too long"),
        ({"rank_pattern": {f"q{i}": 4 for i in range(10_001)}}, "10000 are read"),
        ({"r": 10**400}, "no JSON number|no positive number|not JSON"),
        ({"lora_alpha": float("inf")}, "not JSON"),
        ({"lora_alpha": 1e300}, "no positive number"),
        ({"use_rslora": "false"}, "neither true nor false"),
        ({"rank_pattern": ["q_proj"]}, "no object"),
    ],
)
def test_read_peft_names_what_it_refuses(
    tmp_path: Path, config: dict[str, Any], words: str
) -> None:
    write_peft(tmp_path, MODULES, rank=4, **config)
    with pytest.raises(BadAdapter, match=words) as raised:
        read_peft(tmp_path, "one")
    assert raised.value.exit_code == 2


@pytest.mark.parametrize("field", ["rank_pattern", "alpha_pattern"])
def test_read_peft_gives_up_in_time_when_a_pattern_backtracks(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, field: str
) -> None:
    monkeypatch.setattr(bounded_match, "SECONDS", 1.0)
    module = "model.layers.0." + "a" * 40
    config: dict[str, Any] = {field: {"q_proj": 4, "(a+)+b": 4}}
    write_peft(tmp_path, {module: (8, 8)}, **config)
    with pytest.raises(BadAdapter, match="tries ever more ways to match") as raised:
        read_peft(tmp_path, "one")
    assert raised.value.where == f"adapter_config.json: {field}"


def test_read_peft_matches_as_peft_when_patterns_are_expressions(tmp_path: Path) -> None:
    alphas = {r"layers\.0\..*": 2, "^mod.*down_proj|nothing": 6, ".*": 8}
    write_peft(tmp_path, MODULES, rank=4, alpha_pattern=alphas)
    expected = {
        module: next(a for p, a in alphas.items() if re.match(rf"(.*\.)?({p})$", module)) / 4
        for module in MODULES
    }
    found = read_peft(tmp_path, "one").branches
    assert {module: branch.scale for module, branch in found.items()} == expected


def test_gaussian_and_eva_initializations_are_plain_adapters(tmp_path: Path) -> None:
    for initial in (True, False, "gaussian", "eva"):
        write_peft(tmp_path, MODULES, init_lora_weights=initial)
        assert len(read_peft(tmp_path, "one").branches) == 3


def rewrite(folder: Path, tensors: dict[str, Any]) -> None:
    (folder / "adapter_model.safetensors").write_bytes(save(tensors))


@pytest.mark.parametrize(
    ("tensors", "words"),
    [
        ({"base_model.model.x.lora_magnitude_vector": np.ones(3)}, "1 of 1 tensors are no LoRA"),
        ({"base_model.model.embed.lora_embedding_A": np.ones((3, 3))}, "no LoRA of a linear"),
        ({"x.lora_A.weight": np.ones((4, 8))}, "lora_A alone"),
        ({}, "empty"),
        (
            {"x.lora_A.weight": np.ones((4, 8)), "x.lora_B.weight": np.ones((8, 3))},
            "rank 4, lora_B has rank 3",
        ),
        (
            {"x.lora_A.weight": np.ones((4, 8, 1, 1)), "x.lora_B.weight": np.ones((8, 4, 1, 1))},
            "two matrices",
        ),
        (
            {"x.lora_A.weight": np.full((4, 8), np.nan), "x.lora_B.weight": np.ones((8, 4))},
            "no finite numbers",
        ),
        (
            {"x.lora_A.weight": np.full((4, 8), 1e20), "x.lora_B.weight": np.ones((8, 4))},
            "overflows",
        ),
        (
            {
                "x.lora_A.weight": np.ones((4, 8)),
                "x.lora_A.other.weight": np.ones((4, 8)),
                "x.lora_B.weight": np.ones((8, 4)),
            },
            "one half of the same branch",
        ),
        (
            {
                "x.lora_A.weight": np.ones((4, 8), np.int8),
                "x.lora_B.weight": np.ones((8, 4), np.int8),
            },
            "stored as I8",
        ),
    ],
)
def test_read_peft_says_what_is_wrong_with_weights(
    tmp_path: Path, tensors: dict[str, Any], words: str
) -> None:
    write_peft(tmp_path, MODULES, rank=4)
    rewrite(tmp_path, tensors)
    with pytest.raises(BadAdapter, match=words):
        read_peft(tmp_path, "one")


@pytest.mark.parametrize("alpha", [5e-324, 1e-300, 1e-46])
def test_read_peft_refuses_an_alpha_when_float32_cannot_multiply_by_it(
    tmp_path: Path, alpha: float
) -> None:
    write_peft(tmp_path, MODULES, rank=4, lora_alpha=alpha)
    with pytest.raises(BadAdapter, match=r"its factor .*lora_alpha / r.*float32") as caught:
        read_peft(tmp_path, "one")
    assert any(module in caught.value.where for module in MODULES)


def test_read_peft_refuses_an_alpha_when_its_product_with_b_overflows(tmp_path: Path) -> None:
    write_peft(tmp_path, MODULES, rank=4, lora_alpha=1e6)
    rewrite(
        tmp_path, {"x.lora_A.weight": np.ones((4, 8)), "x.lora_B.weight": np.full((8, 4), 1e14)}
    )
    with pytest.raises(BadAdapter, match=r"makes 2\.5e\+19 of the largest weight"):
        read_peft(tmp_path, "one")


def test_read_peft_takes_a_small_alpha_and_a_branch_that_was_never_trained(tmp_path: Path) -> None:
    write_peft(tmp_path, MODULES, rank=4, lora_alpha=1e-6)
    assert {branch.scale for branch in read_peft(tmp_path, "one").branches.values()} == {2.5e-7}
    rewrite(tmp_path, {"x.lora_A.weight": np.ones((4, 8)), "x.lora_B.weight": np.zeros((8, 4))})
    assert len(read_peft(tmp_path, "one").branches) == 1


def test_read_peft_opens_no_pickle_and_no_pointer(tmp_path: Path) -> None:
    write_peft(tmp_path, MODULES)
    weights = tmp_path / "adapter_model.safetensors"
    weights.write_bytes(b"version https://git-lfs.github.com/spec/v1\noid sha256:00\nsize 1\n")
    with pytest.raises(BadAdapter, match="Git LFS pointer"):
        read_peft(tmp_path, "one")
    weights.rename(tmp_path / "adapter_model.bin")
    with pytest.raises(BadAdapter, match="pickle"):
        read_peft(tmp_path, "one")


@given(data=st.data())
def test_a_mutated_file_is_read_or_refused(
    data: st.DataObject, tmp_path_factory: pytest.TempPathFactory
) -> None:
    folder = tmp_path_factory.mktemp("mutated")
    write_peft(folder, MODULES)
    file = folder / data.draw(st.sampled_from(["adapter_config.json", "adapter_model.safetensors"]))
    content = bytearray(file.read_bytes())
    for _ in range(data.draw(st.integers(1, 4))):
        content[data.draw(st.integers(0, min(len(content), 600) - 1))] = data.draw(
            st.integers(0, 255)
        )
    file.write_bytes(content[: data.draw(st.integers(0, len(content)))])
    with suppress(BadInput):
        read_peft(folder, "one")
