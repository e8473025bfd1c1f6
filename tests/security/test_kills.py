"""Writers and builds that are killed at any moment: what stands is whole, and the next one ends."""

from __future__ import annotations

import json
import os
import random
import shutil
import signal
import subprocess
import sys
import textwrap
import time
from pathlib import Path

import pytest
from small_build import prepared

from genai_cli.testing import Program, environment
from genai_core.store.directory.directory_store import DirectoryStore
from genai_core.store.protocol import Hit
from genai_core.store.verify import verify

COMMITS = """
import sys
from datetime import UTC, datetime
from pathlib import Path
from genai_core.tasks.keys import task_key, toolchain_id
from genai_core.operations import operation_of
from genai_core.tasks.record import Output, Record, ToolchainUsed
from genai_core.store.directory.directory_store import DirectoryStore
from genai_core.store.lookup import publish

store, tools = DirectoryStore(Path(sys.argv[1])), toolchain_id({})
version = operation_of("ingest").code_version
print("ready", flush=True)
for n in range(int(sys.argv[2]), 1_000_000):
    blobs = [store.put_bytes(f"{n} {i}".encode() * 5000) for i in range(3)]
    publish(store, Record(
        operation="ingest", config={"n": n},
        key=task_key("ingest", version, toolchain_id=tools, config={"n": n}, inputs={}),
        outputs={f"d/{i}": Output(sha256=b.sha256, size=b.size) for i, b in enumerate(blobs)},
        toolchain=ToolchainUsed(id=tools), created_at=datetime.now(UTC),
    ))
"""


@pytest.mark.parametrize("kills", [8, pytest.param(200, marks=pytest.mark.long)])
def test_what_stands_is_whole_when_committing_writers_are_killed(
    tmp_path: Path, kills: int
) -> None:
    chance, store = random.Random(kills), DirectoryStore(tmp_path / "store")
    for kill in range(0, kills, 4):
        writers = [
            subprocess.Popen(
                [sys.executable, "-c", textwrap.dedent(COMMITS), str(store.root), str(start)],
                stdout=subprocess.PIPE,
            )
            # Two write the same keys, two write their own.
            for start in (0, 0, 1000 * kill + 1000, 1000 * kill + 500_000)
        ]
        for writer in writers:
            assert writer.stdout is not None
            assert writer.stdout.readline() == b"ready\n"
        for writer in writers:
            time.sleep(chance.uniform(0.02, 0.3))
            writer.send_signal(signal.SIGKILL)
        for writer in writers:
            assert writer.wait() == -signal.SIGKILL
            assert writer.stdout is not None
            writer.stdout.close()
    refs = list(store.list_records())
    assert len(refs) >= kills // 2, "some had time to commit"
    for ref in refs:
        assert isinstance(store.lookup(ref.operation, ref.key), Hit)
    assert verify(store).clean
    assert store.delete_drafts(store.now()) <= 2 * kills
    assert [path.name for path in (store.root / "tmp").iterdir()] in ([], ["locks"])


@pytest.mark.parametrize(
    ("kills", "longest"), [(2, 4.0), pytest.param(32, 7.5, marks=pytest.mark.long)]
)
def test_the_same_container_comes_out_when_builds_were_killed(
    tmp_path: Path, kills: int, longest: float
) -> None:
    chance, folder = random.Random(kills), prepared(tmp_path)
    arguments = ("build", "-f", "b.yaml", "--json", "--output", "out")
    whole = Program(folder).ok(*arguments, "--store", "whole").json["containers"]["cpu"]
    shutil.rmtree(folder / "out")
    for kill in range(kills):
        store = folder / f"store{kill // 2}"
        with subprocess.Popen(
            [sys.executable, "-m", "genai_cli", *arguments, "--store", str(store)],
            cwd=folder,
            env=environment(folder),
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            start_new_session=True,
        ) as process:
            try:
                process.wait(chance.uniform(0.3, longest))
            except subprocess.TimeoutExpired:
                os.kill(process.pid, signal.SIGKILL)  # its workers have to notice by themselves
        if kill % 2:
            container = folder / "out" / "small" / "cpu"
            if container.exists():
                assert (container / "manifest.json").is_file(), "never half a container"
            ran = Program(folder).ok(*arguments, "--store", store)
            assert ran.json["containers"]["cpu"]["revision"] == whole["revision"]
            checked = Program(folder)("cache", "verify", "--store", store, "--json")
            assert checked.code == 0
            assert json.loads(checked.out)["faults"] == []
            shutil.rmtree(folder / "out")
