"""What changes a key and what does not."""

from __future__ import annotations

import json
import subprocess
import sys
from typing import Any

import pytest

from genai_core.names import Digest
from genai_core.tasks.keys import short_key, task_key, toolchain_id

A, B = Digest("a" * 64), Digest("b" * 64)
BASE: dict[str, Any] = {
    "toolchain_id": toolchain_id({"numpy": "2.1", "onnx-ir": "0.1.12"}),
    "config": {"graph": {"ar": 32, "cl": 256}, "mha2sha": True, "scale": 1.0},
    "inputs": {"graph": {"model.onnx": A, "facts.json": B}, "encodings": {"w.encodings": A}},
}


def key(operation: str = "convert", version: int | str = 1, **changes: Any) -> str:
    return task_key(operation, version, **(BASE | changes))


def test_key_is_the_same_in_another_process_and_order() -> None:
    script = (
        "import json, sys; from genai_core.tasks.keys import task_key, toolchain_id\n"
        "given = json.load(sys.stdin); print(task_key('convert', 1, **given))"
    )
    reordered = {
        "inputs": {k: dict(reversed(v.items())) for k, v in reversed(BASE["inputs"].items())},
        "config": dict(reversed(BASE["config"].items())) | {"scale": 1},
        "toolchain_id": toolchain_id({"onnx-ir": "0.1.12", "numpy": "2.1"}),
    }
    done = subprocess.run(
        [sys.executable, "-c", script],
        input=json.dumps(reordered),
        capture_output=True,
        text=True,
        check=True,
        env={"PYTHONHASHSEED": "77"},
    )
    assert done.stdout.strip() == key()


def test_everything_that_counts_changes_the_key() -> None:
    keys = [
        key(),
        key("transform"),
        key("convert", 2),
        key(toolchain_id=toolchain_id({"numpy": "2.2", "onnx-ir": "0.1.12"})),
        key(config={**BASE["config"], "mha2sha": False}),
        key(config={"graph.ar": 32}),
        key(inputs={**BASE["inputs"], "encodings": {"w.encodings": B}}),
        key(inputs={**BASE["inputs"], "encodings": {"other.encodings": A}}),
        key(inputs={**BASE["inputs"], "adapter": {}}),
        key(inputs={"graph": {**BASE["inputs"]["graph"], "w.encodings": A}}),
    ]
    assert len(set(keys)) == len(keys)
    assert all(len(found) == 64 for found in keys)
    assert key("convert", "1") == key("convert", 1)


def test_a_key_never_changes_unseen() -> None:
    """A golden value: another one means that every store in the field is a miss."""
    assert key() == "f0cc65e103fbae796e91701e6422f9151260d4cdd2e3d00dd912d756f4e0f8b1"
    assert short_key(key()) == key()[:32]  # type: ignore[arg-type]


def test_digests_are_checked() -> None:
    for wrong in ("sha256:" + "a" * 64, "A" * 64, ""):
        with pytest.raises(ValueError, match=r"input graph, file model\.onnx"):
            key(inputs={"graph": {"model.onnx": wrong}})
    with pytest.raises(ValueError, match=r"\$\.config\.x"):
        key(config={"x": float("nan")})
