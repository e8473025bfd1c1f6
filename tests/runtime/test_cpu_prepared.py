"""Prepared graphs: one data file, a broken cache is a miss, nothing half-written is ever seen."""

from __future__ import annotations

import shutil
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime
import pytest
from conformance import alone
from models import random_model
from numpy.typing import NDArray

from genai_core.canonical import digest_file
from genai_core.files.digest_cache import FileCache
from genai_core.names import Precision
from genai_runtime import processor
from genai_runtime.cpu import prepared
from genai_runtime.cpu.executor import CpuExecutor
from genai_runtime.cpu.model import CpuModel, read_model
from genai_runtime.cpu.prepared import KEPT, PreparedSessions, prepare

FEATURES = processor.features()
EXACT = processor.saturates(FEATURES)
IDS = np.random.default_rng(0).integers(0, 512, 20)


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> CpuModel:
    return read_model(random_model(tmp_path_factory.mktemp("model"), Precision.INT8))


def ready(model: CpuModel, cache: Path, **changed: Any) -> Path:
    given: dict[str, Any] = {"identity": "sha256:1", "features": FEATURES, "exact": EXACT}
    return prepare(model, cache, **given | changed)


def logits(model: CpuModel, folder: Path) -> NDArray[np.float32]:
    sessions = PreparedSessions(folder, threads=1, exact=EXACT)
    return alone(CpuExecutor(model, sessions, context_length=32), IDS)


def test_prepare_writes_once_and_is_found_again(
    model: CpuModel, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    before = {p.name: p.read_bytes() for p in model.path.parent.iterdir()}
    folder = ready(model, tmp_path)
    assert {p.name: p.read_bytes() for p in model.path.parent.iterdir()} == before
    assert [p.name for p in tmp_path.iterdir()] == [folder.name]
    monkeypatch.setattr(prepared, "_write", lambda *_, **__: pytest.fail("made again"))
    assert ready(model, tmp_path) == folder


def test_all_graphs_share_one_data_file(model: CpuModel, tmp_path: Path) -> None:
    folder = ready(model, tmp_path)
    graphs = sorted(folder.glob("*.onnx"))
    assert len(graphs) == 8
    places = set()
    for path in graphs:
        proto = onnx.load(str(path), load_external_data=False)  # noqa: TID251 - weights outside
        for tensor in proto.graph.initializer:
            told = {e.key: e.value for e in tensor.external_data}
            if told:
                places.add((tensor.name, told["location"], told["offset"]))
    assert {location for _, location, _ in places} == {"weights.data"}
    assert len({name for name, _, _ in places}) == len(places)


@pytest.mark.parametrize("change", [{"identity": "sha256:2"}, {"features": frozenset({"avx2"})}])
def test_prepare_makes_another_folder_when_container_or_processor_differ(
    model: CpuModel, tmp_path: Path, change: dict[str, Any]
) -> None:
    assert ready(model, tmp_path) != ready(model, tmp_path, **change)


def test_prepare_makes_another_folder_when_onnxruntime_differs(
    model: CpuModel, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    first = ready(model, tmp_path)
    monkeypatch.setattr(onnxruntime, "__version__", "99.0")
    assert ready(model, tmp_path) != first


def spoil_byte(folder: Path) -> None:
    data = folder / "weights.data"
    raw = bytearray(data.read_bytes())
    raw[len(raw) // 2] ^= 1
    data.write_bytes(raw)


def replace_by_file(folder: Path) -> None:
    shutil.rmtree(folder)
    folder.write_text("")


SPOILT: dict[str, Callable[[Path], object]] = {
    "a bit of the weights": spoil_byte,
    "weights cut short": lambda f: (f / "weights.data").write_bytes(b"x"),
    "no index": lambda f: (f / "prepared.json").unlink(),
    "an index that is no JSON": lambda f: (f / "prepared.json").write_text("{"),
    "an empty index": lambda f: (f / "prepared.json").write_text('{"files": {}}'),
    "a graph gone": lambda f: (f / "rows4.onnx").unlink(),
    "another graph": lambda f: (f / "rows4.onnx").write_bytes((f / "rows2.onnx").read_bytes()),
    "a file in its place": replace_by_file,
}


@pytest.mark.parametrize("spoil", SPOILT.values(), ids=SPOILT.keys())
def test_a_broken_entry_is_a_miss_and_made_again(
    model: CpuModel, tmp_path: Path, spoil: Callable[[Path], object]
) -> None:
    folder = ready(model, tmp_path)
    expected = logits(model, folder)
    spoil(folder)
    assert ready(model, tmp_path) == folder
    np.testing.assert_array_equal(logits(model, folder), expected)
    assert [p.name for p in tmp_path.iterdir()] == [folder.name]


def test_a_failed_preparation_leaves_nothing(
    model: CpuModel, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*_: object, **__: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(prepared, "narrowed", fail)
    with pytest.raises(OSError, match="No space"):
        ready(model, tmp_path)
    assert list(tmp_path.iterdir()) == []


def test_several_starts_at_once_agree(model: CpuModel, tmp_path: Path) -> None:
    found = []
    threads = [
        threading.Thread(target=lambda: found.append(ready(model, tmp_path))) for _ in range(4)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(found) == 4
    assert len(set(found)) == 1
    assert [p.name for p in tmp_path.iterdir()] == [found[0].name]


def test_the_oldest_entries_go_when_there_are_too_many(model: CpuModel, tmp_path: Path) -> None:
    folders = [ready(model, tmp_path, identity=str(i)) for i in range(KEPT)]
    ready(model, tmp_path, identity="0")  # used again, so the second is the oldest now
    newest = ready(model, tmp_path, identity="more")
    assert newest.is_dir()
    assert [folder.is_dir() for folder in folders] == [True, False] + [True] * (KEPT - 2)


def test_a_file_cache_spares_reading_the_weights_again(model: CpuModel, tmp_path: Path) -> None:
    files = FileCache(tmp_path / "files.sqlite")
    folder = ready(model, tmp_path / "cache", digest_of=files.digest)
    spoil_byte(folder)
    ready(model, tmp_path / "cache", digest_of=files.digest)
    assert prepared._whole(folder, digest_file)
