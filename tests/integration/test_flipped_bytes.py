"""A byte that a disk or a copy changes is noticed, whichever file of a container it is in."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
from builds import Built

from genai_cli.testing import InProcess
from genai_core.errors import GenAIError
from genai_runtime.container import container
from genai_runtime.container.backend import open_session

pytestmark = pytest.mark.qnn


@pytest.mark.parametrize("target", ["cpu", "sm8750"])
def test_a_flipped_byte_is_noticed_when_it_is_in_any_file_of_a_container(
    built: Built, tmp_path: Path, target: str
) -> None:
    """By verify in all of them; by what reads a file, before it is used."""
    box = shutil.copytree(built.container(target), tmp_path / target)
    call = InProcess(tmp_path)
    clean = call("verify", box, "--json")
    assert clean.code == 0
    assert clean.json["outsideCompared"]
    named = json.loads((box / "manifest.json").read_bytes())["files"]
    files = sorted(path for path in box.rglob("*") if path.is_file())
    assert {path.suffix for path in files} >= {".json"}
    assert target == "cpu" or {".bin", ".onnx"} <= {p.suffix for p in (box / "emulation").iterdir()}
    for path in files:
        name = path.relative_to(box).as_posix()
        data = path.read_bytes()
        place = len(data) * 2 // 3
        path.write_bytes(data[:place] + bytes([data[place] ^ 0x04]) + data[place + 1 :])
        ran = call("verify", box, "--json")
        if name == "manifest.json" and ran.code == 2:
            assert name in ran.errors[0]  # it is no manifest any more
        else:
            assert ran.code == 1, name
            assert name in [fault["file"] for fault in ran.json["faults"]]
        reads: Callable[[container.Container], object]
        if name == "golden.json":
            reads = container.Container.golden
        elif name in named or name in {"manifest.json", "report.json"}:
            reads = container.Container.verify  # load compares them itself
        else:
            assert name.startswith("emulation/")
            reads = open_session
        with pytest.raises(GenAIError, match=path.name):
            reads(container.load(box))
        path.write_bytes(data)
    assert call("verify", box).code == 0
