"""Nothing of ONNX Runtime's telemetry is written to the user's home."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest


@pytest.mark.parametrize("package", ["genai_runtime", "genai_stages"])
def test_importing_onnxruntime_writes_nothing_to_the_home(tmp_path: Path, package: str) -> None:
    kept = {k: v for k, v in os.environ.items() if not k.startswith(("ORT_", "XDG_"))}
    subprocess.run(
        [sys.executable, "-c", f"import {package}, onnxruntime"],
        env=kept | {"HOME": str(tmp_path)},
        check=True,
    )
    assert list(tmp_path.rglob("*")) == []
