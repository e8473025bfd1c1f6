"""Reading what a binary says of itself: what is none is said so, and a large one is not loaded."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from genai_core.errors import ToolFailed
from genai_runtime.htp import metadata
from genai_runtime.htp.vendor import qnn

pytestmark = [
    pytest.mark.qnn,
    pytest.mark.skipif(
        bool(qnn.why_unavailable()), reason=f"NO BINARY WAS READ: {qnn.why_unavailable()}"
    ),
]

SIZE = 1 << 30
READ = """
import resource, sys
from pathlib import Path
from genai_core.errors import ToolFailed
from genai_runtime.htp import metadata
try:
    metadata.read(Path(sys.argv[1]))
except ToolFailed as error:
    print(error.message)
print(resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss * 1024)
"""


def test_a_binary_of_gigabytes_is_mapped(tmp_path: Path) -> None:
    path = tmp_path / "part_1_of_1.bin"
    with path.open("wb") as file:
        file.truncate(SIZE)
    ran = subprocess.run(
        [sys.executable, "-c", READ, str(path)], capture_output=True, text=True, check=True
    )
    said, peak = ran.stdout.splitlines()
    assert "not a context binary" in said
    assert int(peak) < SIZE / 2


@pytest.mark.parametrize("content", [b"", b"nonsense", bytes(4096)])
def test_what_is_no_binary_is_said_to_be_none(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "part_1_of_1.bin"
    path.write_bytes(content)
    with pytest.raises(ToolFailed, match="not a context binary") as caught:
        metadata.read(path)
    assert caught.value.where == path.name
