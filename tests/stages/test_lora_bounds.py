"""maxRank and targetModules: of a build's adapters, and of those that come later."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from genai_core.container.adapters import (
    AdapterEntry,
    AdapterIndex,
    UseCaseEntry,
    WornEntry,
    read_index,
)
from genai_core.container.manifest import Manifest, ManifestFile, ManifestTarget
from genai_core.errors import BadAdapter, BadInput
from genai_core.names import Backend
from genai_runtime.container.verification import index_fault
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


def with_binaries() -> AdapterIndex:
    entries = {
        name: AdapterEntry(file=f"adapters/{name}.safetensors", sha256="0" * 64, rank=1, linears=1)
        for name in ("a", "b")
    }
    worn = (WornEntry(name="a", alpha=0.5), WornEntry(name="b"))
    index = AdapterIndex(adapters=entries, use_cases={"both": UseCaseEntry(adapters=worn)})
    return index.with_merged("AdapterOnly")


@pytest.mark.parametrize(
    ("worn", "name"),
    [
        ({}, None),
        ({"a": 0.0}, None),
        ({"a": 1.0}, "a"),
        ({"b": 1.0, "a": 0.5}, "both"),
        ({"b": 1.0, "a": 0.0}, "b"),
    ],
)
def test_merged_name_is_whose_binaries_wear_exactly_this(
    worn: dict[str, float], name: str | None
) -> None:
    assert with_binaries().merged_name(worn) == name


@pytest.mark.parametrize("worn", [{"a": 0.5}, {"a": 1.0, "b": 1.0}, {"a": -1.0}])
def test_merged_name_refuses_what_was_not_built(worn: dict[str, float]) -> None:
    with pytest.raises(BadInput, match="no binaries were built") as raised:
        with_binaries().merged_name(worn)
    assert "use a, b, both, or build it as a use case" in str(raised.value.remedy)


def test_index_with_binaries_is_a_version_of_its_own_and_only_a_build_changes_it(
    tmp_path: Path,
) -> None:
    index = with_binaries()
    (tmp_path / "adapters").mkdir()
    (tmp_path / "adapters" / "index.json").write_bytes(index.to_bytes())
    assert read_index(tmp_path) == index
    assert index.schema_version == 3
    with pytest.raises(BadInput, match="quantUpdatableMode AdapterOnly") as raised:
        index.check_changeable("box")
    assert "quantUpdatableMode: None" in str(raised.value.remedy)
    AdapterIndex().check_changeable("box")


def test_index_fault_names_binaries_that_the_manifest_lacks() -> None:
    index = with_binaries()
    names = [entry.file for entry in index.adapters.values()]
    names += [f"adapters/merged/{name}/metadata.json" for name in ("a", "both")]
    files = {name: ManifestFile(sha256="0" * 64, size=1) for name in names}
    target = ManifestTarget(name="sm8750", backend=Backend.HTP)
    manifest = Manifest(
        model={}, architecture="llama", target=target, context_length=8, files=files
    )
    assert index_fault(index, manifest) == "b has no binaries below adapters/merged/b"
