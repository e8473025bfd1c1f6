"""maxRank and targetModules: of a build's adapters, and of those that come later."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from genai_core.container.adapters import AdapterEntry, AdapterIndex, read_index
from genai_core.errors import BadAdapter, BadInput
from genai_stages.lora.adapter import Adapter, AdapterBranch
from genai_stages.lora.bounds import check_bounds

ADAPTER = Adapter(
    "one",
    {
        "model.layers.0.self_attn.q_proj": AdapterBranch(
            np.ones((8, 4), "f4"), np.ones((4, 8), "f4")
        ),
        "/model/layers.1/mlp/up_proj/base_layer/MatMul_output_0": AdapterBranch(
            np.ones((2, 4), "f4"), np.ones((4, 2), "f4")
        ),
    },
)


def test_check_bounds_passes_what_is_within() -> None:
    check_bounds(ADAPTER, max_rank=None, target_modules=())
    check_bounds(ADAPTER, max_rank=8, target_modules=("q_proj", "up_proj"))


@pytest.mark.parametrize(
    ("rank", "modules", "words"),
    [
        (7, (), "q_proj: its rank is 8, lora.maxRank allows 7"),
        (8, ("up_proj",), "1 of its 2 modules are none of lora.targetModules \\(up_proj\\)"),
        (8, ("o_proj", "k_proj"), "2 of its 2 modules are none of"),
    ],
)
def test_check_bounds_refuses_with_both_numbers(
    rank: int, modules: tuple[str, ...], words: str
) -> None:
    with pytest.raises(BadAdapter, match=words):
        check_bounds(ADAPTER, max_rank=rank, target_modules=modules)


def test_index_with_bounds_is_a_version_that_older_programs_refuse(tmp_path: Path) -> None:
    entry = AdapterEntry(file="adapters/a.safetensors", sha256="0" * 64, rank=1, linears=1)
    (tmp_path / "adapters").mkdir()
    path = tmp_path / "adapters" / "index.json"
    for index, version, word in (
        (AdapterIndex.bounded(None, ()), 1, False),
        (AdapterIndex.bounded(16, ("q_proj",)), 2, True),
    ):
        grown = index.with_adapter("a", entry)
        path.write_bytes(grown.to_bytes())
        assert read_index(tmp_path) == grown
        assert grown.schema_version == version
        assert (b"max_rank" in grown.to_bytes()) == word
        assert grown.without_adapter("a").max_rank == index.max_rank
    path.write_bytes(grown.to_bytes().replace(b'"schema_version": 2', b'"schema_version": 4'))
    with pytest.raises(BadInput, match="reads up to 3"):
        read_index(tmp_path)
