"""Commands that a newcomer types in a clone."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parents[2]


def test_cluster_up_names_the_script_when_packages_are_missing(tmp_path: Path) -> None:
    """One line, and no traceback; `go` and Python are found, nothing else."""
    ran = subprocess.run(
        [sys.executable, "-m", "harness", "up", "--folder", str(tmp_path)],
        cwd=ROOT / "tests" / "cluster",
        env={**os.environ, "PATH": str(tmp_path)},
        capture_output=True,
        text=True,
        check=False,
    )
    assert ran.returncode == 1
    assert len(ran.stderr.splitlines()) == 1
    assert ran.stderr.startswith("error: no cluster can be made here: it lacks ")
    assert "run tools/cluster_packages.sh as root" in ran.stderr


def test_the_demo_numbers_each_step_once() -> None:
    text = (ROOT / "examples" / "tiny-llama" / "demo.sh").read_text()
    script = "out=x; show() { :; }\n" + _without_building(text)
    ran = subprocess.run(["bash", "-c", script], capture_output=True, text=True, check=True)
    numbers = [int(number) for number in re.findall(r"\x1b\[1m(\d+)\. ", ran.stdout)]
    assert numbers == list(range(1, len(numbers) + 1))
    assert len(numbers) >= 5


def _without_building(text: str) -> str:
    """The script with commands that are only named."""
    lines = [line for line in text.splitlines() if not line.startswith(("cd ", "out=", "show()"))]
    return "\n".join(lines)
