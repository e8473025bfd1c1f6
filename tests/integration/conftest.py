"""tiny-llama, built once for all of this folder's tests."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest
from builds import EXAMPLE, Built

from genai_cli.testing import Program
from genai_runtime.htp.vendor import qnn


@pytest.fixture(scope="session")
def built(tmp_path_factory: pytest.TempPathFactory) -> Built:
    """Both containers where the vendor's wheel is at hand, else the test is skipped."""
    if not qnn.available():
        pytest.skip("needs the vendor's wheel: Linux x86-64, glibc 2.35")
    folder = tmp_path_factory.mktemp("tiny-llama")
    program = Program(folder)
    store, output = folder / "store", folder / "containers"
    ran = program.ok(
        "build", "-f", EXAMPLE / "build.yaml", "--store", store, "--output", output, "--json"
    )
    return Built(program, store, output, ran.json)


@pytest.fixture
def model(tmp_path: Path) -> Path:
    """A private copy of the example's model."""
    return Path(shutil.copytree(EXAMPLE / "model", tmp_path / "model"))
