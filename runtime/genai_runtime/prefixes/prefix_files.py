"""Keys and values of beginnings of texts on disk: they outlive a server, several may share them.

    <folder>/kv-<identity>/<name>.kv    keys and values of BLOCK tokens

A text is cut into blocks. A block's name is a digest of all that its numbers depend on: the
identity (model, machine, way of computing), the scope (adapters by content, alphas, salt), and
every token and picture up to its end. So a name means one content for ever, texts that begin alike
share their first blocks, and nothing has to be looked up but names.

A file carries its own name and a digest of all its bytes, and both are compared before one number
is used: what was cut short, damaged, renamed or put there by somebody else is a miss, and removed.
Files appear as a whole, by a rename. All files together stay within a bound: those that were used
longest ago go first. Whoever cannot write, reads on; nothing here ever fails a request.
"""

from __future__ import annotations

import contextlib
import hashlib
import logging
import os
import queue
import secrets
import threading
import time
from collections.abc import Callable, Hashable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from genai_core.canonical import digest_json
from genai_core.errors import BadInput
from genai_core.files.regular import read_regular
from genai_runtime.executor.executor import Executor, KeyValueHost
from genai_runtime.prefixes.cache import Held, Pictures

__all__ = ["BLOCK", "PrefixFiles", "ScopeText"]

BLOCK = 16
"""Tokens of a file."""

_FORMAT = 1
_MAGIC = b"genai kv 1\n"
_DIGEST = 32
_PART_SECONDS = 3600
"""A part that is older was left by a server that was killed."""
_STEP = 1000
"""Nanoseconds between the times of blocks that were used together: the last ones go first."""
_WAITING = 2
"""Texts that may wait to be written: their memory is held so long."""

_LOG = logging.getLogger("genai_runtime")

ScopeText = Callable[[Hashable], str | None]
"""A scope as text that means the same in every process; None = it is not to be written."""


@dataclass(frozen=True)
class _Text:
    """What is to be written."""

    names: list[str]
    values: list[NDArray[np.float32]]


class PrefixFiles:
    """See the module's docstring. Of one thread; a thread of its own writes.

    Args:
        folder: This user's own; made where absent.
        executor: Whose keys and values they are.
        identity: Of the model: its container's base.
        most_bytes: Of all files in the folder, those of other models included.
        scope_text: See there.

    Raises:
        BadInput: The folder cannot be made.
        TypeError: The executor gives no keys and values out.
    """

    def __init__(
        self,
        folder: Path,
        executor: Executor,
        *,
        identity: str,
        most_bytes: int,
        scope_text: ScopeText,
    ) -> None:
        if not isinstance(executor, KeyValueHost):
            raise TypeError("it gives no keys and values out")
        self._executor = executor
        self._host: KeyValueHost = executor
        self._shapes = _shapes(executor)
        described: Mapping[str, Any] = {
            "format": _FORMAT,
            "block": BLOCK,
            "model": identity,
            "numerics": dict(executor.numerics),
            "shapes": [list(shape) for shape in self._shapes],
        }
        self._identity = digest_json(described)
        self._root = folder
        self._folder = folder / f"kv-{self._identity[:32]}"
        self._most = most_bytes
        self._scope_text = scope_text
        self._bad: set[str] = set()
        """Files that are of no use and could not be removed."""
        self._said = False
        try:
            folder.mkdir(parents=True, exist_ok=True, mode=0o700)
            self._folder.mkdir(exist_ok=True, mode=0o700)
        except OSError as error:
            if not folder.is_dir():
                raise BadInput(
                    f"it cannot be made: {error.strerror}", where=f"prefix cache {folder}"
                ) from error
            self._say(error)
        self._queue: queue.Queue[_Text | None] = queue.Queue(_WAITING)
        self._thread = threading.Thread(target=self._write_all, name="prefix files", daemon=True)
        self._thread.start()

    def load(
        self,
        scope: Hashable,
        prompt: NDArray[np.int64],
        *,
        beyond: int,
        pictures: Pictures = (),
    ) -> int | None:
        """A new slot that begins as a prompt does; None where no file says more than is known.

        Args:
            scope: Of the prompt.
            prompt: [T]; its last token is left out, since its logits are wanted.
            beyond: Fewer tokens, or as many, are of no use.
            pictures: Of the prompt.
        """
        names = self._names(scope, prompt[:-1], pictures)
        there = 0
        while there < len(names) and self._there(names[there]):
            there += 1
        if there * BLOCK <= beyond:
            return None
        slot = self._executor.open()
        self._executor.grow(slot, prompt.size)
        for name in names[:there]:
            values = self._read(name)
            if values is None:
                break
            self._host.lay_in(slot, values)
        read = self._executor.length(slot) // BLOCK
        self._touch(names[:read])
        if read * BLOCK <= beyond:
            self._executor.free(slot)
            return None
        return slot

    def save(self, held: Held, *, wait: float = 0.0) -> None:
        """Write what a slot holds, soon; not at all where the disk is slower than texts come.

        Args:
            held: The slot goes on at its length, or is freed: what it holds stays as it is.
            wait: Seconds for its turn.
        """
        names = self._names(held.scope, held.tokens, held.pictures)
        if all(self._there(name) for name in names):
            self._touch(names)
            return
        text = _Text(names, self._host.keys_values(held.slot))
        with contextlib.suppress(queue.Full):
            self._queue.put(text, block=wait > 0, timeout=wait or None)

    def close(self, *, seconds: float = 10.0) -> None:
        """Write what waits, and end."""
        with contextlib.suppress(queue.Full):
            self._queue.put(None, timeout=seconds)
            self._thread.join(seconds)

    def _names(self, scope: Hashable, tokens: NDArray[np.int64], pictures: Pictures) -> list[str]:
        """Of the whole blocks of a text; those before the first picture as without it."""
        text = self._scope_text(scope)
        if text is None:
            return []
        name = hashlib.sha256(f"{self._identity}\n{text}".encode()).hexdigest()
        names = []
        for start in range(0, tokens.size - tokens.size % BLOCK, BLOCK):
            block = tokens[start : start + BLOCK].astype("<i8").tobytes()
            begun = [p for p in pictures if start <= p[0] < start + BLOCK]
            block += "".join(f"\n{place} {digest}" for place, digest in begun).encode()
            name = hashlib.sha256(name.encode() + block).hexdigest()
            names.append(name)
        return names

    def _path(self, name: str) -> Path:
        return self._folder / f"{name}.kv"

    def _there(self, name: str) -> bool:
        return name not in self._bad and self._path(name).exists()

    def _read(self, name: str) -> list[NDArray[np.float32]] | None:
        """Keys and values of a block; None, and the file removed, where it is not what it says."""
        size = _file_bytes(self._shapes)
        try:
            raw = read_regular(self._path(name), size)
        except FileNotFoundError:  # another server removed it
            return None
        except OSError as error:
            _LOG.warning("%s is of no use: %s", self._path(name), error)
            self._remove(name)
            return None
        head = _head(name)
        body, digest = memoryview(raw)[:-_DIGEST], raw[-_DIGEST:]
        if len(raw) != size or raw[: len(head)] != head or hashlib.sha256(body).digest() != digest:
            _LOG.warning("%s is damaged, or another's: it is not used", self._path(name))
            self._remove(name)
            return None
        numbers = np.frombuffer(body[len(head) :], "<f4")
        values, start = [], 0
        for heads, width in self._shapes:
            end = start + heads * BLOCK * width
            values.append(numbers[start:end].reshape(heads, BLOCK, width))
            start = end
        return values

    def _remove(self, name: str) -> None:
        try:
            self._path(name).unlink()
        except FileNotFoundError:
            pass
        except OSError:
            self._bad.add(name)

    def _touch(self, names: Sequence[str]) -> None:
        """They were used just now: a block a little earlier than those that it stands on."""
        now = time.time_ns()
        for number, name in enumerate(names):
            with contextlib.suppress(OSError):
                os.utime(self._path(name), ns=(now - number * _STEP, now - number * _STEP))

    def _write_all(self) -> None:
        while (text := self._queue.get()) is not None:
            try:
                self._write(text)
            except OSError as error:
                self._say(error)
            except Exception:  # noqa: BLE001 - later texts must not wait for ever
                _LOG.exception("a beginning was not written")

    def _write(self, text: _Text) -> None:
        size = _file_bytes(self._shapes)
        missing = [n for n, name in enumerate(text.names) if not self._path(name).exists()]
        if not missing:
            return
        room = max(0, self._make_room(size * len(missing), kept=set(text.names)))
        for number in missing[: room // size]:
            start = number * BLOCK
            values = [part[:, start : start + BLOCK] for part in text.values]
            self._put(text.names[number], values)
        self._touch(text.names)

    def _put(self, name: str, values: Sequence[NDArray[np.float32]]) -> None:
        digest = hashlib.sha256()
        part = self._folder / f"{secrets.token_hex(8)}.part"
        pieces = [_head(name), *(np.ascontiguousarray(v, "<f4").tobytes() for v in values)]
        try:
            with part.open("xb") as stream:
                for piece in pieces:
                    digest.update(piece)
                    stream.write(piece)
                stream.write(digest.digest())
            part.replace(self._path(name))
        except OSError:
            with contextlib.suppress(OSError):
                part.unlink()
            raise

    def _make_room(self, wanted: int, *, kept: set[str]) -> int:
        """Remove files until so many bytes more are within the bound, or only `kept` ones are left.

        Returns:
            Bytes that may be written now.
        """
        now = time.time()  # noqa: TID251 - compared with times of files
        found, total = [], 0
        for entry in _own_files(self._root):
            with contextlib.suppress(OSError):  # another server removed it
                stat = entry.stat(follow_symlinks=False)
                if entry.name.endswith(".part") and now - stat.st_mtime > _PART_SECONDS:
                    os.unlink(entry.path)
                    continue
                total += stat.st_size
                if entry.name.endswith(".kv") and entry.name[:-3] not in kept:
                    found.append((stat.st_mtime_ns, stat.st_size, entry.path))
        for _, size, path in sorted(found):
            if total + wanted <= self._most:
                break
            with contextlib.suppress(OSError):
                os.unlink(path)
                total -= size
        return self._most - total

    def _say(self, error: OSError) -> None:
        if not self._said:
            self._said = True
            _LOG.warning(
                "prefix cache %s: %s; what was written before is read, nothing new may be kept",
                self._root,
                error.strerror or error,
            )


def _shapes(executor: Executor) -> list[tuple[int, int]]:
    """Heads and width of each cache tensor."""
    assert isinstance(executor, KeyValueHost)
    slot = executor.open()
    try:
        return [(part.shape[0], part.shape[2]) for part in executor.keys_values(slot)]
    finally:
        executor.free(slot)


def _head(name: str) -> bytes:
    return _MAGIC + name.encode("ascii") + b"\n"


def _file_bytes(shapes: Sequence[tuple[int, int]]) -> int:
    numbers = sum(heads * width for heads, width in shapes) * BLOCK
    return len(_head("0" * 64)) + 4 * numbers + _DIGEST


def _own_files(root: Path) -> Iterator[os.DirEntry[str]]:
    """Files that servers made here; whatever else lies in the folder is nobody's business."""
    with contextlib.suppress(OSError), os.scandir(root) as folders:
        for folder in folders:
            if folder.name.startswith("kv-") and folder.is_dir(follow_symlinks=False):
                with contextlib.suppress(OSError), os.scandir(folder) as files:
                    yield from (e for e in files if e.name.endswith((".kv", ".part")))
