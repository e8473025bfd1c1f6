"""Builds on disks that are full at one write after another: one line, and nothing half."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest
from small_build import prepared

from genai_cli.testing import environment

SCRIPT = """
import json, shutil, subprocess, sys
from pathlib import Path

disk, sizes = Path(sys.argv[1]), json.loads(sys.argv[2])

def genai(*arguments):
    done = subprocess.run(
        [sys.executable, "-m", "genai_cli", *arguments], capture_output=True, text=True, timeout=300
    )
    assert "Traceback" not in done.stderr, done.stderr[-2000:]
    return done

def mount(*options):
    subprocess.run(["mount", "-t", "tmpfs", *options, "none", str(disk)], check=True)

for number, size in enumerate(sizes):
    mount("-o", f"size={size}k")
    out = disk / "out" if number % 2 else Path("out")
    shutil.rmtree(out, ignore_errors=True)
    places = ["--store", str(disk / "store"), "--output", str(out)]
    build = ["build", "-f", "b.yaml", "--json", *places]
    done = genai(*build)
    error = json.loads(done.stdout or "{}").get("error") or {}
    assert done.returncode == 0 or (done.returncode, error.get("code")) == (2, "NoSpace"), (
        size, done.returncode, error, done.stderr[-1000:])
    if done.returncode:
        assert not (out / "small" / "cpu").exists(), "half a container"
    if (disk / "store").exists():
        assert genai("cache", "verify", "--store", str(disk / "store")).returncode == 0
    mount("-o", "remount,size=400m")
    again = genai(*build)
    assert again.returncode == 0, again.stderr[-1000:]
    print(size, done.returncode, json.loads(again.stdout)["containers"]["cpu"]["revision"])
    subprocess.run(["umount", str(disk)], check=True)
"""


@pytest.mark.parametrize(
    "sizes",
    [
        [400, 512],
        pytest.param([2**n * k for n in range(3, 10) for k in (2, 3, 5)], marks=pytest.mark.long),
    ],
    ids=["two", "many"],
)
def test_build_says_no_space_and_goes_on_when_its_disk_is_full(
    tmp_path: Path, sizes: list[int]
) -> None:
    prepared(tmp_path)
    (tmp_path / "disk").mkdir()
    (tmp_path / "script.py").write_text(SCRIPT)
    command = [
        *("unshare", "--mount", "--map-root-user", sys.executable),
        *("script.py", str(tmp_path / "disk"), json.dumps(sizes)),
    ]
    try:
        done = subprocess.run(
            command,
            cwd=tmp_path,
            env=environment(tmp_path),
            capture_output=True,
            text=True,
            check=False,
        )
    except FileNotFoundError:
        pytest.skip("no unshare(1)")
    if "unshare" in done.stderr or "mount" in done.stderr:
        pytest.skip(f"no file system can be mounted here: {done.stderr.strip()[-200:]}")
    assert done.returncode == 0, done.stderr
    rows = [line.split() for line in done.stdout.splitlines()]
    assert [int(row[0]) for row in rows] == sizes
    assert len({row[2] for row in rows}) == 1, "the same container whatever was full"
    assert {row[1] for row in rows} >= {"2"}, "some of these disks are too small"
