"""Our reading of encodings held against AIMET's own, tensor by tensor.

`tests/fixtures/encodings/judged-by-aimet.json.gz` is what AIMET's `encodings_to_onnx_qdq`
(aimet-onnx 2.42.0) made of every fixture; `make judge-aimet` writes it.
"""

from __future__ import annotations

import gzip
import hashlib
import json
from pathlib import Path
from typing import Any

import numpy as np
import onnx_ir as ir
import pytest

from genai_core.operations import IngestConfig
from genai_stages.aimet.arithmetic import quantize
from genai_stages.aimet.model import Encoding
from genai_stages.aimet.read import read_encodings
from genai_stages.graph.core_graph import mapped, read_core
from genai_stages.operations import ingest
from genai_stages.quantize.encoding_lookup import core_lookup
from genai_stages.stage import Context
from genai_stages.testing import assemble_step1

ROOT = Path(__file__).parents[2]
EXAMPLE = ROOT / "examples" / "tiny-llama" / "model"
FIXTURES = ROOT / "tests" / "fixtures"
JUDGED: dict[str, dict[str, list[Any]]] = json.loads(
    gzip.decompress((FIXTURES / "encodings" / "judged-by-aimet.json.gz").read_bytes())
)
STATIC = [f"{form}-{width}" for form in ("left-pad", "right-pad") for width in ("w4a16", "w8a16")]


def digest(array: Any, kind: str) -> str:
    return hashlib.sha256(np.ascontiguousarray(array, dtype=kind).tobytes()).hexdigest()[:16]


def encodings_of(case: str, scratch: Path) -> Path:
    """The file of a case, as the judge was given it."""
    folder = FIXTURES / "encodings"
    file = scratch / case
    if case == "model.encodings":
        return EXAMPLE / case
    if case == "w4a16-0.6.1.encodings":
        file.write_bytes(gzip.decompress((folder / f"{case}.gz").read_bytes()))
    elif case == "w4a16-2.1.0.encodings":
        text = (folder / "w4a16-2.0.0.encodings").read_text()
        file.write_text(json.dumps(json.loads(text) | {"version": "2.1.0"}))
    elif case in STATIC:
        form, width = case.rsplit("-", 1)
        packed = FIXTURES / "step1" / form / f"{width}.encodings.gz"
        file.write_bytes(gzip.decompress(packed.read_bytes()))
    else:
        return folder / case
    return file


def bits_of(kind: str) -> int:
    return int(kind.lstrip("uint"))


@pytest.mark.parametrize("case", sorted(JUDGED))
def test_scales_and_zero_points_are_those_that_aimet_applies(case: str, tmp_path: Path) -> None:
    ours = read_encodings(encodings_of(case, tmp_path))
    judged = JUDGED[case]
    assert ours.keys() <= judged.keys()
    assert all(encoding.dtype == "int" for encoding in ours.values())
    apart = {}
    for name, found in ours.items():
        kind, _, size, shape, scale, zero, _ = judged[name]
        told = [found.bits, found.block_size or 0, list(found.scale.shape),
                digest(found.scale, "<f4"),
                digest(found.zero_point(signed=kind.startswith("int")), "<i4")]  # fmt: skip
        if told != [bits_of(kind), size, shape, scale, zero]:
            apart[name] = (told, judged[name])
    assert not apart


def test_moved_tensors_have_what_aimet_derives_for_them() -> None:
    """1.0.0 leaves them out; the 2.x file of the same simulation, equal above, lists them all."""
    derived, listed = JUDGED["w4a16.encodings"], JUDGED["w4a16-2.0.0.encodings"]
    assert derived == listed
    newest = read_encodings(FIXTURES / "encodings" / "w4a16-2.0.0.encodings")
    older = read_encodings(FIXTURES / "encodings" / "w4a16.encodings")
    assert len(newest.keys() - older.keys()) == 117


def grid_of(encoding: Encoding, array: np.ndarray, kind: str) -> np.ndarray:
    """Our integers of a weight, on the grid that AIMET names."""
    grid = quantize(array, encoding).astype(np.int64)
    half = 2 ** (encoding.bits - 1)
    unsigned = grid + half * encoding.signed
    signed: np.ndarray = unsigned - half * kind.startswith("int")
    return signed


@pytest.fixture(scope="module")
def cores(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """The core graph of the example and of both static forms."""
    made = {}
    for form in ("example", "left-pad", "right-pad"):
        scratch, core = tmp_path_factory.mktemp("scratch"), tmp_path_factory.mktemp("core")
        source = EXAMPLE if form == "example" else scratch / "source"
        if form != "example":
            assemble_step1(FIXTURES / "step1" / form, EXAMPLE, source, encodings="w8a16")
        ingest.run({"source": source}, IngestConfig(), core, Context(scratch=scratch))
        made[form] = core
    return made


@pytest.mark.parametrize("case", sorted(JUDGED))
def test_integers_of_weights_are_those_that_aimet_applies(
    case: str, cores: dict[str, Path], tmp_path: Path
) -> None:
    """So a scale stands at the channel at which AIMET's axis puts it, square weights too."""
    model, facts = read_core(cores[case.rsplit("-", 1)[0] if case in STATIC else "example"])
    ours = read_encodings(encodings_of(case, tmp_path))
    lookup = core_lookup(ours, facts)
    held = 0
    for name, value in model.graph.initializers.items():
        tensor = value.const_value
        source = lookup.source(name)
        if not isinstance(tensor, ir.ExternalTensor) or source not in JUDGED[case]:
            continue
        array = np.array(mapped(tensor))
        kind, axis, _, _, _, _, integers = JUDGED[case][source]
        encoding = lookup.weight(name, inputs=array.shape[-1])
        assert encoding is not None
        grid = grid_of(encoding, array, kind)
        # AIMET's is in the source's layout: [in, out] where the axis of channels is the second.
        layout = grid.T if axis == 1 and grid.ndim == 2 else grid
        assert digest(layout, "<i4") == integers, name
        held += 1
    assert held >= 56
