"""A container of the example, and a server for it, as a user starts both."""

from __future__ import annotations

import contextlib
import json
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from judges.environments import FOLDER, ROOT

EXAMPLE = ROOT / "examples" / "tiny-llama"
GENAI = Path(sys.executable).parent / "genai"


def genai(*arguments: str | Path) -> Any:
    """What a command tells with --json."""
    ran = subprocess.run(
        [GENAI, *arguments, "--json"], check=True, stdout=subprocess.PIPE, text=True
    )
    return json.loads(ran.stdout)


def example_container() -> Path:
    """The example built for the CPU; a second time from the store."""
    out, store = FOLDER / "out", FOLDER / "store"
    told = genai("build", "-f", EXAMPLE / "build.yaml", "--target", "cpu",
                 "--store", store, "--output", out)  # fmt: skip
    return Path(told["containers"]["cpu"]["path"])


@contextlib.contextmanager
def served(container: Path, *arguments: str) -> Iterator[str]:
    """Serve a container on a free port of this machine; yields its address."""
    command = [str(GENAI), "serve", str(container), "--port", "0", *arguments]
    process = subprocess.Popen(command, stderr=subprocess.PIPE, text=True)
    try:
        assert process.stderr is not None
        address = None
        for line in process.stderr:
            if address := re.search(r"http://127\.0\.0\.1:\d+", line):
                break
        if address is None:
            raise SystemExit(f"the server ended with {process.wait()}")
        yield address[0]
    finally:
        process.terminate()
        process.wait(60)
