"""Beginnings on disk: what is used is what was written for this very text, and nothing else."""

from __future__ import annotations

import errno
import os
import stat
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from heard import Heard, ask

from genai_core.errors import BadInput
from genai_runtime.executor.rows import AdapterUse, Row
from genai_runtime.generate import generate
from genai_runtime.prefixes.cache import Held
from genai_runtime.prefixes.prefix_files import BLOCK, PrefixFiles
from genai_runtime.session import SlotSession
from genai_runtime.testing import ScriptedExecutor
from genai_serving.engine import Engine, ServingLimits
from genai_serving.requests import Finish, Scope
from genai_serving.start.prefix_folder import scope_text

CONTENTS = {"a": "aa", "b": "bb", "a@1": "aa", "b@1": "cc"}
LIMITS = ServingLimits(sequences=3, tokens=16, waiting=8, cache_bytes=300, prefix_bytes=300)
LONG = [int(token) for token in np.random.default_rng(0).integers(0, 17, 3 * BLOCK + 5)]
BASE = Scope()


def executor_of() -> ScriptedExecutor:
    made = ScriptedExecutor(context_length=96)
    for name, content in CONTENTS.items():
        made.load_adapter(name, content)
    return made


class Disk:
    """A folder, and what was opened on it."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.opened: list[tuple[PrefixFiles, ScriptedExecutor]] = []

    def open(self, *, identity: str = "model", most: int = 1 << 20) -> PrefixFiles:
        executor = executor_of()
        files = PrefixFiles(
            self.folder,
            executor,
            identity=identity,
            most_bytes=most,
            scope_text=lambda scope: scope_text(scope, CONTENTS.get),
        )
        self.opened.append((files, executor))
        return files

    def write(self, tokens: list[int] = LONG, scope: Scope = BASE, **given: Any) -> None:
        """As a server does that ends then."""
        files = self.open(**given)
        executor = self.opened[-1][1]
        slot = executor.open()
        executor.forward([Row(slot, np.array(tokens), adapters=scope.adapters)])
        files.save(Held(slot, scope, np.array(tokens)))
        files.close()

    def found(
        self,
        tokens: list[int] = LONG,
        scope: Scope = BASE,
        files: PrefixFiles | None = None,
        **given: Any,
    ) -> int:
        """Tokens that another server begins with; its slot must hold what computing gives."""
        files = files or self.open(**given)
        executor = next(executor for one, executor in self.opened if one is files)
        slot = files.load(scope, np.array(tokens), beyond=0)
        if slot is None:
            assert executor.open_slots == frozenset()
            return 0
        length = executor.length(slot)
        other = executor.open()
        executor.forward([Row(other, np.array(tokens[:length]), adapters=scope.adapters)])
        (one,), (two,) = executor.keys_values(slot), executor.keys_values(other)
        assert one.tobytes() == two.tobytes()
        executor.free(slot)
        executor.free(other)
        return length

    def files(self) -> list[Path]:
        return sorted(self.folder.glob("kv-*/*"), key=lambda path: path.stat().st_mtime_ns)

    @property
    def bytes(self) -> int:
        return sum(path.stat().st_size for path in self.files())


@pytest.fixture
def disk(tmp_path: Path) -> Iterator[Disk]:
    made = Disk(tmp_path / "prefixes")
    yield made
    for files, _ in made.opened:
        files.close()


def test_load_gives_whole_blocks_but_the_last_token_when_another_wrote_them(disk: Disk) -> None:
    disk.write()
    assert disk.found() == 3 * BLOCK
    assert disk.found(LONG[: 2 * BLOCK]) == BLOCK, "the last one's logits are wanted"
    assert disk.found([*LONG[: 2 * BLOCK], 16, 16, 16]) == 2 * BLOCK
    assert disk.found([LONG[0] ^ 1, *LONG[1:]]) == 0
    for folder in (disk.folder, disk.files()[0].parent):
        assert stat.S_IMODE(folder.stat().st_mode) == 0o700
    files = disk.open()
    assert files.load(BASE, np.array(LONG), beyond=3 * BLOCK) is None


A, B = AdapterUse("a"), AdapterUse("b")


@pytest.mark.parametrize(
    ("written", "asked", "same"),
    [
        ((A,), (AdapterUse("a@1"),), True),  # the same content, loaded later
        ((B,), (AdapterUse("b@1"),), False),  # the same name, another content
        ((A,), (B,), False),
        ((A,), (), False),
        ((), (A,), False),
        ((A,), (AdapterUse("a", 0.5),), False),
        ((A, B), (B, A), False),
        ((A,), (AdapterUse("unknown"),), False),
    ],
)
def test_load_knows_adapters_by_content_and_alpha(
    disk: Disk, written: tuple[AdapterUse, ...], asked: tuple[AdapterUse, ...], same: bool
) -> None:
    disk.write(scope=Scope(written))
    files = disk.open()
    slot = files.load(Scope(asked), np.array(LONG), beyond=0)
    assert (slot is not None) == same


def test_load_meets_nothing_of_another_model_machine_or_salt(disk: Disk) -> None:
    disk.write(scope=Scope(salt="x"))
    assert disk.found(scope=Scope(salt="x")) == 3 * BLOCK
    assert disk.found() == 0
    assert disk.found(scope=Scope(salt="x"), identity="other") == 0
    for numerics in ({"threads": 2}, {"scripted": 1, "doubled": False}):
        executor = executor_of()
        executor.numerics = numerics
        files = PrefixFiles(
            disk.folder, executor, identity="model", most_bytes=9999, scope_text=lambda _: "x"
        )
        assert files.load(Scope(salt="x"), np.array(LONG), beyond=0) is None
        files.close()


def flip(path: Path, place: int) -> None:
    raw = bytearray(path.read_bytes())
    raw[place] ^= 1
    path.write_bytes(raw)


def swap(paths: list[Path]) -> None:
    one, other = paths[0].read_bytes(), paths[1].read_bytes()
    paths[0].write_bytes(other)
    paths[1].write_bytes(one)


def fifo(paths: list[Path]) -> None:
    paths[0].unlink()
    os.mkfifo(paths[0])


ATTACKS: dict[str, Any] = {
    "first byte": lambda paths: flip(paths[0], 0),
    "its name": lambda paths: flip(paths[0], 20),
    "a number": lambda paths: flip(paths[0], -40),
    "its digest": lambda paths: flip(paths[0], -1),
    "cut short": lambda paths: os.truncate(paths[0], paths[0].stat().st_size - 1),
    "empty": lambda paths: os.truncate(paths[0], 0),
    "longer": lambda paths: paths[0].write_bytes(paths[0].read_bytes() + b"x"),
    "two swapped": swap,
    "a FIFO": fifo,
    "a link to another": lambda paths: (paths[0].unlink(), paths[0].symlink_to(paths[1])),
}


@pytest.mark.parametrize("attack", ATTACKS)
def test_load_takes_nothing_from_a_file_that_is_not_what_it_says(disk: Disk, attack: str) -> None:
    disk.write()
    first = disk.files()[::-1]  # a beginning is touched behind what stands on it
    assert len(first) == 3
    ATTACKS[attack](first)
    assert disk.found() == 0
    assert not os.path.lexists(first[0]), "it is removed"
    disk.write()
    disk.found()  # of two that were swapped the other one is met now
    disk.write()
    assert disk.found() == 3 * BLOCK, "and written anew"


def test_load_uses_what_stands_before_a_damaged_block(disk: Disk) -> None:
    disk.write()
    flip(disk.files()[0], -40)
    assert disk.found() == 2 * BLOCK
    assert len(disk.files()) == 2


def test_files_stay_within_the_bound_and_the_longest_unused_go_first(disk: Disk) -> None:
    disk.write()
    size = disk.bytes // 3
    texts = [[one, *LONG[1 : 2 * BLOCK]] for one in range(5)]
    beginning = 2 * size
    for text in texts:
        disk.write(text, most=3 * beginning)
        assert disk.bytes <= 3 * beginning
        assert disk.found([*texts[0], 1], most=3 * beginning) == 2 * BLOCK, "used all the time"
    assert [disk.found([*text, 1]) > 0 for text in texts] == [True, False, False, True, True]


def test_save_writes_the_beginning_of_what_is_larger_than_the_bound(disk: Disk) -> None:
    disk.write()
    size = disk.bytes // 3
    other = LONG[::-1]
    disk.write(other, most=2 * size)
    assert disk.bytes <= 2 * size
    assert disk.found(other) == 2 * BLOCK


def test_nothing_of_others_in_the_folder_is_touched(disk: Disk) -> None:
    disk.folder.mkdir()
    kept = [disk.folder / "notes.kv", disk.folder / "mine" / "x.kv"]
    kept[1].parent.mkdir()
    for path in kept:
        path.write_bytes(b"x" * 4096)
        os.utime(path, (1, 1))
    disk.write(most=64)
    assert all(path.exists() for path in kept)


def test_a_part_of_a_killed_server_goes_when_it_is_old(disk: Disk) -> None:
    disk.write()
    old, fresh = (disk.files()[0].with_name(f"{name}.part") for name in ("old", "fresh"))
    for path in (old, fresh):
        path.write_bytes(b"x")
    os.utime(old, (1, 1))
    disk.write(LONG[::-1])
    assert (old.exists(), fresh.exists()) == (False, True)


def test_a_full_disk_is_said_once_and_leaves_no_half_file(
    disk: Disk, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    replace = Path.replace
    made: list[Path] = []

    def full(self: Path, target: Path) -> Path:
        if len(made) == 1:
            raise OSError(errno.ENOSPC, "No space left on device")
        made.append(target)
        return replace(self, target)

    monkeypatch.setattr(Path, "replace", full)
    files = disk.open()
    executor = disk.opened[-1][1]
    for text in (LONG, LONG[::-1]):
        slot = executor.open()
        executor.forward([Row(slot, np.array(text))])
        files.save(Held(slot, BASE, np.array(text)), wait=5)
        executor.free(slot)
    files.close()
    assert caplog.text.count("No space left") == 1
    assert [path.suffix for path in disk.files()] == [".kv"]
    assert disk.found() == BLOCK


def test_a_folder_that_may_only_be_read_is_read(
    disk: Disk, monkeypatch: pytest.MonkeyPatch
) -> None:
    disk.write()
    flip(disk.files()[0], -40)
    before = [path.name for path in disk.files()]

    def denied(*_: Any, **__: Any) -> None:
        raise OSError(errno.EROFS, "Read-only file system")

    for name in ("unlink", "replace", "mkdir"):  # the tests may run as root
        monkeypatch.setattr(Path, name, denied)
    monkeypatch.setattr(os, "utime", denied)
    monkeypatch.setattr(os, "unlink", denied)
    files = disk.open()
    assert disk.found(files=files) == 2 * BLOCK
    assert disk.found(files=files) == 2 * BLOCK
    assert {path.name for path in disk.files()} >= set(before)
    monkeypatch.undo()


def test_a_folder_that_cannot_be_made_is_refused_by_name(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("x")
    with pytest.raises(BadInput, match=r"prefix cache .*file/x: it cannot be made"):
        Disk(tmp_path / "file" / "x").open()


def test_two_servers_on_one_folder_do_each_other_no_harm(disk: Disk) -> None:
    texts = [[one, *LONG[1:]] for one in range(6)]
    disk.write()
    bound = 2 * disk.bytes
    errors: list[BaseException] = []

    def serve(number: int) -> None:
        try:
            mine = Disk(disk.folder)
            for text in texts * 4 if number else texts[::-1] * 4:
                mine.write(text, most=bound)
                mine.found(text, most=bound)
            for files, _ in mine.opened:
                files.close()
        except BaseException as error:  # noqa: BLE001 - told by the test
            errors.append(error)

    threads = [threading.Thread(target=serve, args=(number,)) for number in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not errors
    disk.write(LONG[::-1], most=bound)
    assert disk.bytes <= bound


def told(engine: Engine, prompt: list[int], most: int = 6, **given: Any) -> Heard:
    heard = Heard()
    engine.submit(ask(prompt, most, **given), heard)
    return heard.wait()


def alone(prompt: list[int], most: int, worn: tuple[AdapterUse, ...] = ()) -> list[int]:
    session = SlotSession(executor_of(), list(worn))
    return list(generate(session, np.asarray(prompt), max_tokens=most).tokens)


def engine_on(disk: Disk, limits: ServingLimits = LIMITS) -> Engine:
    files = disk.open()
    return Engine(disk.opened[-1][1], limits, prefix_files=files)


def test_an_engine_goes_on_where_another_left_when_it_was_restarted(disk: Disk) -> None:
    first = engine_on(disk)
    before = told(first, LONG, adapters=(A,))
    assert before.ended.cached_tokens == 0
    first.close()
    engine = engine_on(disk)
    heard = [Heard() for _ in range(3)]
    for one in heard:  # choices of one prompt: one reads the disk, the others its slot
        engine.submit(ask(LONG, 6, adapters=(AdapterUse("a@1"),)), one)
    for one in heard:
        assert (one.wait().ended.cached_tokens or 0) >= 3 * BLOCK
        assert one.tokens == before.tokens == alone(LONG, 6, (A,))
    assert told(engine, LONG).ended.cached_tokens == 0
    assert told(engine, LONG, prompt_logprobs=0).ended.cached_tokens is None
    engine.close()
    assert disk.opened[-1][1].open_slots == frozenset()


def test_an_engine_answers_from_damaged_files_as_without_any(disk: Disk) -> None:
    first = engine_on(disk)
    told(first, LONG)
    first.close()
    for path in disk.files():
        flip(path, -40)
    engine = engine_on(disk)
    found = told(engine, LONG)
    assert (found.ended.reason, found.ended.cached_tokens) == (Finish.LENGTH, 0)
    assert found.tokens == alone(LONG, 6)
    engine.close()


def test_an_engine_without_memory_for_idle_slots_uses_the_disk(disk: Disk) -> None:
    limits = ServingLimits(sequences=2, tokens=16, waiting=8, cache_bytes=70, prefix_bytes=1)
    engine = engine_on(disk, limits)
    told(engine, LONG)
    engine.close()
    engine = engine_on(disk, limits)
    for _ in range(2):
        found = told(engine, LONG)
        assert found.ended.cached_tokens == 3 * BLOCK
        assert found.tokens == alone(LONG, 6)
    engine.close()
