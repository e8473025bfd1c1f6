"""The directory store's own promises: its view, its failures, its writers that die."""

from __future__ import annotations

import errno
import json
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import textwrap
import time
from collections.abc import Callable
from datetime import UTC, datetime
from pathlib import Path

import pytest
from other_processes import PROCESSES, commit_in_process

from genai_core.canonical import digest_bytes
from genai_core.errors import CorruptBlob, NoSpace, StoreUnreadable
from genai_core.store.directory.directory_store import DirectoryStore
from genai_core.store.lookup import publish
from genai_core.store.protocol import Committed, Existing, Hit, Miss, RecordRef
from genai_core.tasks.record import SIDECAR_NAME, Blob, Record, entry_folder, record_of_sidecar

MakeRecord = Callable[..., Record]


@pytest.fixture
def store(tmp_path: Path) -> DirectoryStore:
    return DirectoryStore(tmp_path / "store")


def commit(store: DirectoryStore, record: Record) -> Path:
    assert publish(store, record) == Committed(record)
    return store.root / entry_folder(record)


def test_view_shows_how_far_a_build_came(store: DirectoryStore, make_record: MakeRecord) -> None:
    for number in (1, 3):
        blob = store.put_bytes(b"context binary %d" % number)
        record = make_record({f"part_{number}_of_3.bin": blob}, seed=number, operation="compile")
        folder = commit(store, record)
        assert folder.name == f"compile_{record.key[:32]}"
        assert folder.parent.name == "tiny-llama"
        assert (folder / f"part_{number}_of_3.bin").read_bytes() == b"context binary %d" % number
    found = subprocess.run(
        ["find", str(store.root), "-name", "*.bin"], capture_output=True, text=True, check=True
    )
    assert sorted(Path(line).name for line in found.stdout.split()) == [
        "part_1_of_3.bin",
        "part_3_of_3.bin",
    ]


def test_sidecar_is_the_vendors_and_holds_the_record(
    store: DirectoryStore, make_record: MakeRecord
) -> None:
    record = make_record({"graphs/a.onnx": store.put_bytes(b"x")}, facts={"layers": 4})
    data = (commit(store, record) / SIDECAR_NAME).read_bytes()
    seen = json.loads(data)
    assert seen["operation"] == "convert"
    assert seen["source"] == "s3://models/tiny-llama"
    assert seen["config"] == {"graph.ar": "32", "graph.cl": "256", "seed": "0"}
    assert seen["hash"] == record.key
    assert datetime.fromisoformat(seen["created_at"]) == datetime(2026, 1, 2, 3, 4, 5, tzinfo=UTC)
    assert record_of_sidecar(data) == record


def test_deleting_a_stage_folder_invalidates_it_alone(
    store: DirectoryStore, make_record: MakeRecord
) -> None:
    one = make_record({"a.bin": store.put_bytes(b"1")}, seed=1)
    two = make_record({"b.bin": store.put_bytes(b"2")}, seed=2)
    folder = commit(store, one)
    commit(store, two)
    shutil.rmtree(folder)
    missed = store.lookup(one.operation, one.key)
    assert isinstance(missed, Miss)
    assert missed.reason == "its folder was deleted"
    assert isinstance(store.lookup(two.operation, two.key), Hit)
    # The task runs again; its record, not the one that the user threw away, stands now.
    again = make_record({"a.bin": store.put_bytes(b"1")}, seed=1, source="second run")
    assert commit(store, again) == folder
    hit = store.lookup(one.operation, one.key)
    assert isinstance(hit, Hit)
    assert hit.record.source == "second run"
    assert hit.record.outputs == one.outputs
    assert (folder / "a.bin").read_bytes() == b"1"


def test_deleting_a_model_folder_and_a_new_root(
    store: DirectoryStore, make_record: MakeRecord, tmp_path: Path
) -> None:
    record = make_record({"a.bin": store.put_bytes(b"1")})
    folder = commit(store, record)
    moved = DirectoryStore(store.root.rename(tmp_path / "moved"))
    assert isinstance(moved.lookup(record.operation, record.key), Hit)
    assert DirectoryStore(tmp_path / "new").lookup(record.operation, record.key) == Miss(
        "no record"
    )
    shutil.rmtree(moved.root / folder.parent.name)
    assert isinstance(moved.lookup(record.operation, record.key), Miss)


def test_file_lost_from_a_folder_comes_back_with_the_next_hit(
    store: DirectoryStore, make_record: MakeRecord
) -> None:
    record = make_record({"a.bin": store.put_bytes(b"1"), "b.bin": store.put_bytes(b"2")})
    folder = commit(store, record)
    (folder / "a.bin").unlink()
    (folder / "b.bin").unlink()
    (folder / "b.bin").write_bytes(b"not the task's")
    assert isinstance(store.lookup(record.operation, record.key), Hit)
    assert (folder / "a.bin").read_bytes() == b"1"
    assert (folder / "b.bin").read_bytes() == b"2"


def test_deleting_a_record_removes_its_folder(
    store: DirectoryStore, make_record: MakeRecord
) -> None:
    record = make_record({"a.bin": store.put_bytes(b"1")})
    folder = commit(store, record)
    store.delete_record(RecordRef(record.operation, record.key))
    assert not folder.parent.exists()


@pytest.mark.parametrize("links", ["too many", "none at all"])
def test_a_file_system_without_hard_links_is_enough(
    store: DirectoryStore,
    make_record: MakeRecord,
    monkeypatch: pytest.MonkeyPatch,
    tmp_path: Path,
    links: str,
) -> None:
    real = os.link

    def refuse(source: Path, target: Path, **options: bool) -> None:
        if links == "none at all":
            raise PermissionError(errno.EPERM, os.strerror(errno.EPERM))
        if "blobs" in Path(source).parts:
            raise OSError(errno.EMLINK, os.strerror(errno.EMLINK))
        real(source, target, **options)

    monkeypatch.setattr(os, "link", refuse)
    output = tmp_path / "out"
    output.write_bytes(b"1")
    blob = store.put_blob(output, consume=True)
    record = make_record({"deep/er/a.bin": blob})
    file = commit(store, record) / "deep/er/a.bin"
    assert file.is_symlink()
    assert file.read_bytes() == b"1"
    assert not os.path.isabs(os.readlink(file)), "a store can be moved"
    store.fetch_blob(blob, tmp_path / "fetched", shared=True)
    assert (tmp_path / "fetched").read_bytes() == b"1"
    other = make_record({"deep/er/a.bin": blob}, source="a later writer")
    assert isinstance(publish(store, other), Existing)


@pytest.mark.parametrize("restore_times", [False, True])
@pytest.mark.parametrize("reader", ["fetch", "shared", "open", "read"])
def test_flipped_byte_is_never_served_and_heals(
    store: DirectoryStore,
    make_record: MakeRecord,
    tmp_path: Path,
    reader: str,
    restore_times: bool,
) -> None:
    source = tmp_path / "a"
    source.write_bytes(b"weights" * 1_000_000)
    blob = store.put_blob(source)
    record = make_record({"a.bin": blob})
    folder = commit(store, record)
    path = store.blob_path(blob.sha256)
    times = path.stat()
    path.chmod(0o644)
    with path.open("r+b") as stream:
        stream.seek(4_000_000)
        stream.write(b"\0")
    if restore_times:
        os.utime(path, ns=(times.st_atime_ns, times.st_mtime_ns))
    assert "has bytes of digest" in str(store.check_blob(blob))
    dest = tmp_path / "dest"
    read: dict[str, Callable[[], object]] = {
        "fetch": lambda: store.fetch_blob(blob, dest),
        "shared": lambda: store.fetch_blob(blob, dest, shared=True),
        "open": lambda: store.open_blob(blob).__enter__(),
        "read": lambda: store.read_blob(blob),
    }
    with pytest.raises(CorruptBlob, match=blob.sha256[:12]):
        read[reader]()
    assert not dest.exists()
    missed = store.lookup(record.operation, record.key)
    assert isinstance(missed, Miss), "found wrong once, it is a miss for everybody"
    assert store.put_blob(source) == blob
    # The record names the same digest, so it is good again; its folder is put right as well.
    assert isinstance(publish(store, make_record({"a.bin": blob}, source="again")), Existing)
    store.fetch_blob(blob, dest)
    assert dest.read_bytes() == source.read_bytes() == (folder / "a.bin").read_bytes()


def test_putting_right_bytes_over_wrong_ones_heals(store: DirectoryStore, tmp_path: Path) -> None:
    source = tmp_path / "a"
    source.write_bytes(b"right")
    blob = store.put_blob(source)
    ways: list[Callable[[], Blob]] = [
        lambda: store.put_bytes(b"right"),
        lambda: store.put_blob(source),
        lambda: store.put_blob(source, digest=blob.sha256),
        lambda: store.put_blob(source, consume=True),
    ]
    for put in ways:
        path = store.blob_path(blob.sha256)
        path.unlink()
        path.write_bytes(b"wrong")
        assert put() == blob
        assert store.read_blob(blob) == b"right"


def test_shared_fetch_costs_no_bytes_and_is_read_only(
    store: DirectoryStore, tmp_path: Path
) -> None:
    blob = store.put_bytes(b"x" * 100)
    store.fetch_blob(blob, tmp_path / "shared", shared=True)
    store.fetch_blob(blob, tmp_path / "private")
    inode = store.blob_path(blob.sha256).stat().st_ino
    assert (tmp_path / "shared").stat().st_ino == inode
    assert (tmp_path / "shared").stat().st_mode & 0o777 == 0o444
    assert (tmp_path / "private").stat().st_ino != inode
    (tmp_path / "private").write_bytes(b"mine to change")
    assert store.check_blob(blob) is None


def test_consume_takes_the_file_over(store: DirectoryStore, tmp_path: Path) -> None:
    source = tmp_path / "out.bin"
    source.write_bytes(b"x" * 5_000_000)
    os.utime(source, (0, 0))
    inode = source.stat().st_ino
    blob = store.put_blob(source, consume=True)
    assert store.blob_path(blob.sha256).stat().st_ino == inode
    stat = store.head_blob(blob.sha256)
    assert stat is not None
    assert stat.modified.year >= 2026, "gc's grace counts from now, not from the file's own time"
    assert store.put_blob(source, consume=True) == blob
    assert list((store.root / "tmp").iterdir()) == []
    link = tmp_path / "link"
    link.symlink_to(source)
    assert store.put_blob(link, consume=True) == blob
    assert store.check_blob(blob) is None


def test_a_file_with_a_second_name_is_not_taken_over(store: DirectoryStore, tmp_path: Path) -> None:
    """A stage may pass the user's own file on by a link."""
    model = tmp_path / "tokenizer.json"
    model.write_bytes(b"the user's")
    (tmp_path / "out").hardlink_to(model)
    blob = store.put_blob(tmp_path / "out", consume=True)
    model.write_bytes(b"edited in place, and writable")
    assert store.read_blob(blob) == b"the user's"


def test_an_input_passed_on_costs_no_bytes(store: DirectoryStore, tmp_path: Path) -> None:
    blob = store.put_bytes(b"weights")
    inode = store.blob_path(blob.sha256).stat().st_ino
    store.fetch_blob(blob, tmp_path / "input", shared=True)
    os.link(tmp_path / "input", tmp_path / "out")
    assert store.put_blob(tmp_path / "out", consume=True) == blob
    (tmp_path / "same bytes").write_bytes(b"weights")
    (tmp_path / "other").hardlink_to(tmp_path / "same bytes")
    assert store.put_blob(tmp_path / "other", consume=True) == blob
    assert store.blob_path(blob.sha256).stat().st_ino == inode
    assert list((store.root / "tmp").iterdir()) == []


def test_store_is_a_file(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(StoreUnreadable, match="it is a file"):
        DirectoryStore(tmp_path / "file")
    below = DirectoryStore(tmp_path / "file" / "store")
    with pytest.raises(StoreUnreadable, match="Not a directory"):
        below.put_bytes(b"x")


def as_nobody(action: Callable[[], object]) -> str:
    """Call it without root's rights; return the error's text."""
    groups, root = os.getgroups(), os.geteuid() == 0
    if root:
        os.setgroups([])
        os.setegid(65534)
        os.seteuid(65534)
    try:
        return f"nothing was raised, but {action()}"
    except Exception as error:  # noqa: BLE001
        return f"{type(error).__name__}: {error}"
    finally:
        if root:
            os.seteuid(0)
            os.setegid(0)
            os.setgroups(groups)


def test_folder_without_permission(tmp_path: Path, make_record: MakeRecord) -> None:
    shared = Path(tempfile.gettempdir())
    for folder in (tmp_path, *tmp_path.parents):
        if shared in folder.parents:
            folder.chmod(0o755)
    store = DirectoryStore(tmp_path / "store")
    blob = store.put_bytes(b"x")
    record = make_record({"a.bin": blob})
    commit(store, record)
    store.root.chmod(0o555)
    (store.root / "tmp").chmod(0o555)
    try:
        # Readable and not writable: hits go on, writing says what is wrong and where.
        assert "Hit(" in as_nobody(lambda: store.lookup(record.operation, record.key))
        refused = as_nobody(lambda: store.put_bytes(b"y"))
        assert refused.startswith(f"StoreUnreadable: {store.root}/tmp/")
        assert "Permission denied" in refused
        (store.root / "records").chmod(0)
        (store.root / "leases").mkdir()
        (store.root / "leases").chmod(0)
        for action in (
            lambda: store.lookup(record.operation, record.key),
            lambda: list(store.list_records()),
            store.list_leases,
        ):
            assert "StoreUnreadable" in as_nobody(action), "never taken for empty"
    finally:
        for folder in (store.root, *(p for p in store.root.iterdir() if p.is_dir())):
            folder.chmod(0o755)


_FULL_DISK = """
import sys
from pathlib import Path
from genai_core.errors import NoSpace
from genai_core.store.directory.directory_store import DirectoryStore

disk, source = Path(sys.argv[1]), Path(sys.argv[2])
store = DirectoryStore(disk / "store")
small = store.put_bytes(b"fits")
try:
    store.put_blob(source)
except NoSpace as error:
    print(error)
left = sorted(p.name for p in (disk / "store").rglob("*") if p.is_file())
assert left == [small.sha256], left
assert store.read_blob(small) == b"fits"
other = DirectoryStore(source.parent / "other")
big = other.put_blob(source)
try:
    other.fetch_blob(big, disk / "fetched")
except NoSpace as error:
    print(error)
assert sorted(p.name for p in disk.iterdir()) == ["store"], list(disk.iterdir())
"""


def test_full_disk(tmp_path: Path) -> None:
    disk = tmp_path / "disk"
    disk.mkdir()
    (tmp_path / "big").write_bytes(b"x" * 3_000_000)
    script = tmp_path / "script.py"
    script.write_text(_FULL_DISK)
    shell = 'mount -t tmpfs -o size=1m none "$1" && exec "$2" "$3" "$1" "$4"'
    words = [str(disk), sys.executable, str(script), str(tmp_path / "big")]
    command = ["unshare", "--mount", "--map-root-user", "sh", "-c", shell, "sh", *words]
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)
    except FileNotFoundError:
        pytest.skip("no unshare(1)")
    if "unshare" in done.stderr or "mount:" in done.stderr:
        pytest.skip(f"no file system can be mounted here: {done.stderr.strip()}")
    assert done.returncode == 0, done.stderr
    stored, fetched = done.stdout.splitlines()
    assert stored.startswith(f"{disk}/store: 3000000 bytes are needed, ")
    assert "No space left on device" in stored
    assert "make room there" in stored
    assert fetched.startswith(f"{disk}/fetched: 3000000 bytes are needed, ")


def test_file_size_limit_is_no_space(tmp_path: Path) -> None:
    """The same from a limit of the process, where nothing can be mounted."""
    import resource

    store = DirectoryStore(tmp_path / "store")
    (tmp_path / "big").write_bytes(b"x" * 200_000)
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    ignored = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, before[1]))
    try:
        with pytest.raises(NoSpace, match="200000 bytes are needed"):
            store.put_blob(tmp_path / "big")
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
        signal.signal(signal.SIGXFSZ, ignored)
    assert [p for p in store.root.rglob("*") if p.is_file()] == []


_KILLED = """
import sys
from pathlib import Path
from genai_core.store.directory.directory_store import DirectoryStore
DirectoryStore(Path(sys.argv[1])).put_blob(Path(sys.argv[2]))
"""


def test_writer_killed_in_the_middle_of_a_put(tmp_path: Path) -> None:
    source = tmp_path / "fifo-fed"
    with source.open("wb") as stream:
        stream.truncate(400_000_000)
    store = DirectoryStore(tmp_path / "store")
    writer = subprocess.Popen(
        [sys.executable, "-c", textwrap.dedent(_KILLED), str(store.root), str(source)]
    )
    deadline = time.monotonic() + 30
    try:
        while not any(path.stat().st_size > 4_000_000 for path, _ in store.leftovers()):
            assert time.monotonic() < deadline
            assert writer.poll() is None, "it ended before it could be killed"
            time.sleep(0.001)
    finally:
        writer.send_signal(signal.SIGKILL)
        writer.wait()
    assert list(store.list_blobs()) == []
    assert len(list(store.leftovers())) == 1
    source.write_bytes(b"short")
    blob = store.put_blob(source)
    assert [stat.sha256 for stat in store.list_blobs()] == [blob.sha256]


def test_processes_that_commit_the_same_key(tmp_path: Path, make_record: MakeRecord) -> None:
    record = make_record()
    with PROCESSES.Manager() as manager, PROCESSES.Pool(4) as pool:
        start = manager.Barrier(4)
        answers = pool.starmap(
            commit_in_process, [(tmp_path, record, number, start) for number in range(4)]
        )
    kinds, digests = zip(*(answer.split() for answer in answers), strict=True)
    assert sorted(kinds) == ["Committed", "Existing", "Existing", "Existing"]
    assert len(set(digests)) == 1
    store = DirectoryStore(tmp_path)
    hit = store.lookup(record.operation, record.key)
    assert isinstance(hit, Hit)
    assert hit.record.outputs["a.bin"].sha256 == digests[0]
    seen = (store.root / entry_folder(hit.record) / "a.bin").read_bytes()
    assert store.read_blob(hit.record.outputs["a.bin"]) == seen


def test_unreadable_record_is_a_miss_and_is_replaced(
    store: DirectoryStore, make_record: MakeRecord
) -> None:
    record = make_record({"a.bin": store.put_bytes(b"1")})
    commit(store, record)
    path = store.root / "records" / record.operation / f"{record.key}.json"
    for damage in (b"", b"{", b'{"schema": "genai.record/99"}'):
        path.write_bytes(damage)
        missed = store.lookup(record.operation, record.key)
        assert isinstance(missed, Miss)
        assert missed.reason == "its record cannot be read"
        with pytest.raises(CorruptBlob):
            store.get_record(record.operation, record.key)
        commit(store, record)
        assert isinstance(store.lookup(record.operation, record.key), Hit)
    other = make_record({"a.bin": store.put_bytes(b"1")}, seed=7)
    path.write_bytes(other.to_bytes())
    missed = store.lookup(record.operation, record.key)
    assert isinstance(missed, Miss)
    assert missed.reason == "its record is another task's"
    assert isinstance(publish(store, record), Committed | Existing)
    assert isinstance(store.lookup(record.operation, record.key), Hit)


def test_an_entry_healed_under_another_name_leaves_no_folder_behind(
    store: DirectoryStore, make_record: MakeRecord
) -> None:
    blob = store.put_bytes(b"a")
    before = commit(store, make_record({"a.bin": blob}, model="first"))
    store.delete_blob(blob.sha256)
    again = make_record({"a.bin": store.put_bytes(b"with a clock in it")}, model="second")
    after = commit(store, again)
    assert (after / "a.bin").read_bytes() == b"with a clock in it"
    assert not before.exists(), "nobody would ever remove it, and it keeps its bytes"
    assert not before.parent.exists()


def test_a_store_that_is_only_read_is_never_written(
    tmp_path: Path, make_record: MakeRecord
) -> None:
    owner = DirectoryStore(tmp_path / "store")
    record = make_record({"a": owner.put_bytes(b"a")})
    owner.commit(record)
    before = sorted(tmp_path.rglob("*"))
    reader = DirectoryStore(tmp_path / "store", read_only=True)
    other = make_record({"a": Blob(sha256=digest_bytes(b"a"), size=1)}, seed=1, operation="arcl")
    ref = RecordRef(record.operation, record.key)
    writes: list[Callable[[], object]] = [
        lambda: reader.commit(other),
        lambda: reader.heal(record, "tag"),
        lambda: reader.delete_record(ref),
        lambda: reader.delete_blob(digest_bytes(b"a")),
        lambda: reader.delete_lease("l"),
        lambda: reader.delete_sweep("s"),
        lambda: reader.delete_drafts(datetime.now(UTC)),
        lambda: reader.put_bytes(b"b"),
    ]
    for write in writes:
        with pytest.raises(StoreUnreadable, match="it is only read"):
            write()
    assert sorted(tmp_path.rglob("*")) == before


def test_read_only_store_removes_nothing(tmp_path: Path) -> None:
    store = DirectoryStore(tmp_path)
    blob = store.put_bytes(b"x")
    path = store.blob_path(blob.sha256)
    path.unlink()
    path.write_bytes(b"y")
    reader = DirectoryStore(tmp_path, read_only=True)
    with pytest.raises(CorruptBlob):
        reader.read_blob(blob)
    assert path.read_bytes() == b"y"
    with pytest.raises(StoreUnreadable, match="only read"):
        reader.put_bytes(b"z")
