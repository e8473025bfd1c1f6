"""Weights stay in the file, and the rest is what a whole parse gives."""

from __future__ import annotations

import random
from pathlib import Path

import numpy as np
import onnx
import pytest
from google.protobuf.message import DecodeError
from onnx import numpy_helper
from onnx.external_data_helper import load_external_data_for_tensor

from genai_core.operations import IngestConfig
from genai_stages.ingest.source.stripped_proto import INSIDE, read_stripped
from genai_stages.operations.ingest import run
from genai_stages.stage import Context
from genai_stages.testing_sources import write_source


def test_reading_back_gives_the_same_model(tmp_path: Path) -> None:
    write_source(tmp_path, half=True)
    path = tmp_path / "model.onnx"
    whole = onnx.load(path)  # noqa: TID251 - a tiny model
    stripped = read_stripped(path)
    outside = [one for one in stripped.graph.initializer if one.external_data]
    assert {one.name for one in outside} == {
        one.name for one in whole.graph.initializer if len(one.raw_data) >= INSIDE
    }
    assert len(outside) > 5
    assert stripped.ByteSize() < path.stat().st_size / 3
    for tensor in outside:
        load_external_data_for_tensor(tensor, str(tmp_path))
        tensor.ClearField("data_location")
        tensor.ClearField("external_data")
    names = {one.name: numpy_helper.to_array(one) for one in whole.graph.initializer}
    for tensor in stripped.graph.initializer:
        np.testing.assert_array_equal(numpy_helper.to_array(tensor), names[tensor.name])
    for model in (whole, stripped):
        del model.graph.initializer[:]
    assert whole == stripped


def test_any_cut_or_flipped_file_is_refused_or_parsed(tmp_path: Path) -> None:
    """Never another exception, never an endless loop."""
    write_source(tmp_path)
    data = (tmp_path / "model.onnx").read_bytes()
    pick = random.Random(3)
    refused = 0
    for _ in range(200):
        broken = bytearray(data[: pick.randrange(len(data))])
        for _ in range(pick.randrange(3)):
            if broken:
                broken[pick.randrange(len(broken))] = pick.randrange(256)
        path = tmp_path / "broken.onnx"
        path.write_bytes(broken)
        try:
            read_stripped(path)
        except DecodeError:
            refused += 1
    assert refused > 150


def test_ingest_reads_through_links(tmp_path: Path) -> None:
    """A stage's inputs may be links into a store, each to another folder and name."""
    write_source(tmp_path / "made", external=True)
    source = tmp_path / "source"
    source.mkdir()
    for index, name in enumerate(("model.onnx", "model.data", "config.json")):
        blob = tmp_path / "store" / f"{index}" / f"{index}abc"
        blob.parent.mkdir(parents=True)
        (tmp_path / "made" / name).rename(blob)
        (source / name).symlink_to(blob)
    out = tmp_path / "out"
    out.mkdir()
    result = run({"source": source}, IngestConfig(), out, Context(tmp_path / "scratch"))
    assert result.notes["drift"] < 5e-6


@pytest.mark.parametrize("size", [0, 1])
def test_tiny_files_are_refused(tmp_path: Path, size: int) -> None:
    path = tmp_path / "model.onnx"
    path.write_bytes(b"\x0a" * size)
    with pytest.raises(DecodeError):
        read_stripped(path)
