"""Adapters of another revision for a pod that runs: fetched beside its server, which asks for them.

    python -m genai_core.store.adapter_fetch --container FOLDER --into FOLDER --socket FILE

A revision with the same `base` differs in adapters and use cases alone, so its manifest and what
lies below `adapters/` are all that a server needs. This program holds the store's credentials and
listens on a Unix socket in a volume of the pod; the server, which clients reach, holds none.

Each connection is one question and one answer, a line of JSON each: `AdapterQuestion`, then
`{"folder"}` or `{"error"}`. Questions are answered one after another.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import signal
import socketserver
import sys
import uuid
from collections.abc import Callable, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Annotated

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from genai_core.canonical import digest_file
from genai_core.container.adapters import ADAPTERS_FOLDER, INDEX_FILE
from genai_core.container.manifest import MANIFEST_FILE, Manifest, read_manifest
from genai_core.errors import BadInput, CorruptBlob, GenAIError, NoSpace
from genai_core.files.json_budgets import DOCUMENT
from genai_core.names import Key
from genai_core.store.delivery import check_container
from genai_core.store.pod_store import open_job_store
from genai_core.store.protocol import Store
from genai_core.tasks.record import Output, Record

__all__ = ["AdapterQuestion", "fetch_adapters", "main", "serve"]

_PACKAGE = "package"
_KEPT = 3
"""Revisions in their folders: the one that is served, the one before, the one that comes."""


class AdapterQuestion(BaseModel):
    """Which revision's adapters are wanted."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    record: Annotated[str, Field(pattern="^package/[0-9a-f]{64}$")]
    """Of its container, in the store."""
    revision: Annotated[str, Field(pattern="^sha256:[0-9a-f]{64}$")]
    """That it must be."""


def fetch_adapters(
    store: Store, question: AdapterQuestion, container: Path, into: Path, *, most_bytes: int
) -> Path:
    """Make a folder hold a revision's manifest and adapters, each file compared with its digest.

    Args:
        store: Where it lies.
        question: See there.
        container: The folder of the container that is served: what it has is not fetched.
        into: Where folders of revisions lie, on the same volume; older ones go.
        most_bytes: Of all of them together.

    Returns:
        The folder.

    Raises:
        GenAIError: There is no such record.
        BadInput: It has another base than the container, or no adapters.
        CorruptBlob: It is another revision, or bytes are wrong.
        NoSpace: Its adapters do not fit.
    """
    folder = into / question.revision.partition(":")[2]
    if folder.is_dir():
        os.utime(folder)
        return folder
    key = Key(question.record.partition("/")[2])
    where = f"{store.location}: {_PACKAGE}/{key[:12]}"
    stored = store.get_record(_PACKAGE, key)
    if stored is None:
        raise GenAIError("is not there", where=where, remedy="build it again")
    manifest = _manifest_of(stored.record, store, question.revision, where)
    _check_base(manifest, container, where)
    names = [name for name in manifest.files if name.startswith(f"{ADAPTERS_FOLDER}/")]
    files = {name: stored.record.outputs[name] for name in (*names, MANIFEST_FILE)}
    _make_room(into, sum(output.size for output in files.values()), most_bytes)
    draft = into / f".{uuid.uuid4().hex}"
    try:
        for name, output in files.items():
            dest = draft / name
            dest.parent.mkdir(parents=True, exist_ok=True)
            if not _linked(container / name, dest, output):
                store.fetch_blob(output, dest)
        draft.rename(folder)
    finally:
        shutil.rmtree(draft, ignore_errors=True)
    return folder


def _manifest_of(record: Record, store: Store, revision: str, where: str) -> Manifest:
    if MANIFEST_FILE not in record.outputs:
        raise CorruptBlob("it is no container: it has no manifest", where=where)
    check_container(record, store)
    manifest = read_manifest(store.read_blob(record.outputs[MANIFEST_FILE]), where=where)
    if manifest.revision() != revision:
        raise CorruptBlob(f"it is {manifest.revision()}, and {revision} is wanted", where=where)
    return manifest


def _check_base(manifest: Manifest, container: Path, where: str) -> None:
    own = read_manifest((container / MANIFEST_FILE).read_bytes(), where=MANIFEST_FILE)
    base = own.base or own.revision()
    if manifest.base != base or INDEX_FILE not in manifest.files:
        raise BadInput(
            f"its base is {manifest.base or manifest.revision()}, and {base} is served",
            where=where,
            remedy="start a server with that container",
        )


def _linked(near: Path, dest: Path, wanted: Output) -> bool:
    """Take a file of the container, which nobody else may write, where it is that very one."""
    try:
        if near.stat().st_size != wanted.size or digest_file(near) != wanted.sha256:
            return False
        os.link(near, dest)
    except OSError:
        return False
    return True


def _make_room(into: Path, size: int, most_bytes: int) -> None:
    """Remove folders that were not asked for longest, and what an earlier try left.

    Raises:
        NoSpace: It is larger than all of them may be together.
    """
    into.mkdir(parents=True, exist_ok=True)
    if size > most_bytes:
        raise NoSpace(
            f"its adapters have {size} bytes, and {most_bytes} are set apart in the pod for those "
            "that come while it runs",
            where="adapters",
        )
    for left in into.glob(".*"):
        shutil.rmtree(left, ignore_errors=True)
    folders = sorted(into.iterdir(), key=lambda folder: folder.stat().st_mtime)
    while folders and (len(folders) >= _KEPT or size + sum(map(_bytes_of, folders)) > most_bytes):
        shutil.rmtree(folders.pop(0), ignore_errors=True)


def _bytes_of(folder: Path) -> int:
    return sum(file.stat().st_size for file in folder.rglob("*") if file.is_file())


def serve(path: Path, answer: Callable[[AdapterQuestion], Path]) -> socketserver.UnixStreamServer:
    """A server on a Unix socket whose answers are folders; `serve_forever` runs it.

    Args:
        path: Of the socket; what an earlier process left there goes.
        answer: See `fetch_adapters`.
    """

    class Handler(socketserver.StreamRequestHandler):
        timeout = 10

        def handle(self) -> None:
            try:
                data = self.rfile.readline(DOCUMENT.most_bytes + 1)
                question = AdapterQuestion.model_validate(DOCUMENT.read(data))
                told: dict[str, object] = {"folder": str(answer(question))}
            except ValidationError as error:
                told = {"error": BadInput(f"no question: {error}").as_dict()}
            except GenAIError as error:
                told = {"error": error.as_dict()}
            except OSError as error:
                told = {"error": GenAIError(f"{type(error).__name__}: {error}").as_dict()}
            _say(json.dumps(told))
            self.wfile.write(json.dumps(told).encode() + b"\n")

    path.unlink(missing_ok=True)
    server = socketserver.UnixStreamServer(str(path), Handler)
    path.chmod(0o600)
    return server


def main(argv: Sequence[str] | None = None) -> int:
    """Answer until SIGTERM."""
    parser = argparse.ArgumentParser(prog="genai_core.store.adapter_fetch")
    parser.add_argument("--container", type=Path, required=True)
    parser.add_argument("--into", type=Path, required=True)
    parser.add_argument("--socket", type=Path, required=True)
    parser.add_argument("--most-bytes", type=int, required=True)
    given = parser.parse_args(argv)

    def answer(question: AdapterQuestion) -> Path:
        # Opened anew: a token of the pod's, or a certificate, may be another by now.
        return fetch_adapters(
            open_job_store(), question, given.container, given.into, most_bytes=given.most_bytes
        )

    signal.signal(signal.SIGTERM, lambda *_: sys.exit(0))
    with serve(given.socket, answer) as server:
        server.serve_forever()
    return 0


def _say(text: str) -> None:
    with suppress(OSError):
        sys.stderr.write(f"{text}{os.linesep}")


if __name__ == "__main__":
    raise SystemExit(main())
