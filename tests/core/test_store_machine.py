"""A directory store under random use and damage: whatever happens, no wrong byte is served."""

from __future__ import annotations

import shutil
import tempfile
from datetime import UTC, datetime, timedelta
from pathlib import Path

from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import (
    RuleBasedStateMachine,
    initialize,
    invariant,
    rule,
)

from genai_core.canonical import digest_bytes
from genai_core.errors import CorruptBlob
from genai_core.store.collection.collect import collect
from genai_core.store.directory.directory_store import DirectoryStore
from genai_core.store.lookup import publish
from genai_core.store.protocol import Hit, RecordRef
from genai_core.store.verify import verify
from genai_core.tasks.keys import task_key, toolchain_id
from genai_core.tasks.record import Blob, Output, Record, ToolchainUsed, entry_folder

CONTENTS = [b"a", b"bb" * 500, b"ccc" * 5000]
BLOBS = [Blob(sha256=digest_bytes(data), size=len(data)) for data in CONTENTS]
TOOLS = toolchain_id({})
contents = st.integers(0, len(CONTENTS) - 1)
tasks = st.integers(0, 2)


def record_of(task: int) -> Record:
    """Task n writes content n and the one before it: neighbours share a blob."""
    key = task_key("convert", 1, toolchain_id=TOOLS, config={"task": task}, inputs={})
    outputs = {
        f"{name}.bin": Output(sha256=BLOBS[index].sha256, size=BLOBS[index].size)
        for name, index in (("own", task), ("shared", max(task - 1, 0)))
    }
    return Record(
        operation="convert",
        key=key,
        config={"task": task},
        outputs=outputs,
        toolchain=ToolchainUsed(id=TOOLS),
        created_at=datetime(2026, 1, 1, tzinfo=UTC),
    )


class Machine(RuleBasedStateMachine):
    @initialize()
    def start(self) -> None:
        self.folder = Path(tempfile.mkdtemp(prefix="store-machine-"))
        self.store = DirectoryStore(self.folder / "store")
        self.damaged: set[int] = set()

    def teardown(self) -> None:
        shutil.rmtree(self.folder, ignore_errors=True)

    @rule(task=tasks, consume=st.booleans())
    def run(self, task: int, consume: bool) -> None:
        """A worker runs a task: afterwards it is a hit, whatever stood before."""
        for index in {task, max(task - 1, 0)}:
            path = self.folder / "out"
            path.write_bytes(CONTENTS[index])
            assert self.store.put_blob(path, consume=consume) == BLOBS[index]
            path.unlink()
            self.damaged.discard(index)
        publish(self.store, record_of(task))
        assert self.hit(task)

    @rule(index=contents, shared=st.booleans())
    def fetch(self, index: int, shared: bool) -> None:
        dest = self.folder / "fetched"
        stood = self.store.head_blob(BLOBS[index].sha256) is not None
        try:
            self.store.fetch_blob(BLOBS[index], dest, shared=shared)
        except CorruptBlob:
            assert index in self.damaged or not stood
            assert not dest.exists()
            assert self.store.head_blob(BLOBS[index].sha256) is None
            self.damaged.discard(index)
        else:
            assert dest.read_bytes() == CONTENTS[index]
            dest.unlink()

    @rule(index=contents, cut=st.booleans())
    def damage(self, index: int, cut: bool) -> None:
        path = self.store.blob_path(BLOBS[index].sha256)
        if not path.exists():
            return
        path.chmod(0o644)
        data = CONTENTS[index][:-1] if cut else b"\xff" + CONTENTS[index][1:]
        path.write_bytes(data)
        self.damaged.add(index)

    @rule(index=contents)
    def lose(self, index: int) -> None:
        self.store.delete_blob(BLOBS[index].sha256)
        self.damaged.discard(index)

    @rule(task=tasks)
    def delete_folder(self, task: int) -> None:
        shutil.rmtree(self.store.root / entry_folder(record_of(task)), ignore_errors=True)
        assert not self.hit(task)

    @rule(root=tasks)
    def gc(self, root: int) -> None:
        kept = self.hit(root)
        ref = RecordRef("convert", record_of(root).key)
        later = datetime.now(UTC) + timedelta(days=30)
        collect(self.store, now=later, roots=[ref])
        assert self.hit(root) == kept
        self.damaged &= {root, max(root - 1, 0)}
        assert all(not self.hit(task) for task in range(3) if task != root)

    @rule()
    def check(self) -> None:
        verify(self.store, remove=True)
        for task in range(3):
            if self.hit(task):
                assert not {task, max(task - 1, 0)} & self.damaged

    def hit(self, task: int) -> bool:
        return isinstance(self.store.lookup("convert", record_of(task).key), Hit)

    @invariant()
    def hits_are_whole_unless_damaged(self) -> None:
        for task in range(3):
            if not self.hit(task):
                continue
            folder = self.store.root / entry_folder(record_of(task))
            for name, index in (("own", task), ("shared", max(task - 1, 0))):
                if index not in self.damaged:
                    assert self.store.read_blob(BLOBS[index]) == CONTENTS[index]
                    assert (folder / f"{name}.bin").read_bytes() == CONTENTS[index]

    @invariant()
    def nothing_is_left_half_written(self) -> None:
        assert [path for path, _ in self.store.leftovers()] == []


TestMachine = Machine.TestCase
TestMachine.settings = settings(max_examples=50, stateful_step_count=25, deadline=None)
