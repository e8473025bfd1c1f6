"""What tasks measured travels with their outputs, to the container's report."""

from __future__ import annotations

import json
from pathlib import Path

from genai_stages.measured import MEASURED_FILE, note_measurements, read_measurements
from genai_stages.stage import StageResult


def test_measurements_travel_with_the_outputs_and_never_change_a_key(tmp_path: Path) -> None:
    folders = [tmp_path / name for name in ("one", "two", "last")]
    for folder in folders:
        folder.mkdir()
    one = note_measurements(
        "arcl/a", {}, folders[0], result=StageResult(notes={"drift": 1e-5}), cost={"seconds": 1}
    )
    two = note_measurements(
        "arcl/b", {}, folders[1], result=StageResult(notes={"drift": 2e-5}), cost={"seconds": 2}
    )
    assert one.semantic == two.semantic
    assert folders[0].joinpath(MEASURED_FILE).read_bytes() != (
        folders[1].joinpath(MEASURED_FILE).read_bytes()
    )
    inputs = {"a": folders[0], "b": folders[1]}
    note_measurements("compile", inputs, folders[2], result=StageResult(), cost={"seconds": 3})
    assert json.loads(folders[2].joinpath(MEASURED_FILE).read_bytes()) == {
        "arcl/a": {"seconds": 1, "drift": 1e-5},
        "arcl/b": {"seconds": 2, "drift": 2e-5},
        "compile": {"seconds": 3},
    }
    assert read_measurements({"x": tmp_path}) == {}
