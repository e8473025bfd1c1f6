"""`python -m genai_core.store.fetch package/KEY --revision sha256:... --into FOLDER`.

What runs before a server in its pod: a container out of the pod's store, every file verified while
it is written, and taken for nothing but the revision that was asked for. The server behind it gets
a folder and never the store's credentials. A container that lies there already, byte for byte, is
left as it is, so a pod whose containers start anew fetches nothing.

The store comes from the environment, see `pod_store`. Why it failed stands in the termination
message, as a stage's does.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import sys
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path

from genai_core.canonical import is_digest
from genai_core.errors import BadInput, CorruptBlob, GenAIError, NoSpace
from genai_core.names import Key
from genai_core.store.delivery import Delivered, deliver
from genai_core.store.pod_store import open_job_store
from genai_core.store.protocol import Store
from genai_core.wire import TERMINATION_LOG

__all__ = ["fetch", "main"]

_PACKAGE = "package"
_MOST_TEXT = 1500


def fetch(store: Store, ref: str, revision: str, folder: Path) -> Delivered:
    """Make a folder hold a container.

    Args:
        store: Where it lies.
        ref: `package/<key>` of its record.
        revision: `sha256:...` that it must be.
        folder: Its place; what an earlier try left beside it is removed, so no other program may
            write there.

    Raises:
        BadInput: `ref` is no record of a container.
        GenAIError: There is no such record.
        CorruptBlob: It is another revision, or bytes are wrong.
        NoSpace: It does not fit; said before the first byte is written.
    """
    operation, _, key = ref.partition("/")
    if operation != _PACKAGE or not is_digest(key):
        raise BadInput("is not package/<64 hex>", where=f"record {ref[:100]}")
    folder.parent.mkdir(parents=True, exist_ok=True)
    for left in folder.parent.glob(f".{folder.name}.*"):
        shutil.rmtree(left, ignore_errors=True)
    stored = store.get_record(operation, Key(key))
    if stored is None:
        raise GenAIError(
            "is not there",
            where=f"{store.location}: {operation}/{key[:12]}",
            remedy="build it again, or serve a revision that is kept",
        )
    if not folder.exists():
        need = sum(output.size for output in stored.record.outputs.values())
        free = shutil.disk_usage(folder.parent).free
        if need > free:
            raise NoSpace(f"{need} bytes are needed, {free} are free", where=str(folder.parent))
    found = deliver(stored.record, store, folder, target="")
    if found.revision != revision:
        shutil.rmtree(folder, ignore_errors=True)
        raise CorruptBlob(
            f"it is {found.revision}, and {revision} is to be served",
            where=f"{store.location}: {operation}/{key[:12]}",
        )
    return found


def main(argv: Sequence[str] | None = None) -> int:
    """Fetch what the arguments name; returns the exit code."""
    parser = argparse.ArgumentParser(prog="genai_core.store.fetch")
    parser.add_argument("record")
    parser.add_argument("--revision", required=True)
    parser.add_argument("--into", type=Path, required=True)
    parser.add_argument("--termination-log", type=Path, default=Path(TERMINATION_LOG))
    given = parser.parse_args(argv)
    try:
        found = fetch(open_job_store(), given.record, given.revision, given.into)
    except GenAIError as error:
        _say(str(error))
        cut = {name: text[:_MOST_TEXT] for name, text in error.as_dict().items()}
        with suppress(OSError):
            given.termination_log.write_text(json.dumps({"error": cut}), encoding="utf-8")
        return error.exit_code
    _say(f"{found.revision}: {found.size_bytes} bytes, {'fetched' if found.changed else 'there'}")
    return 0


def _say(text: str) -> None:
    sys.stderr.write(f"{text}{os.linesep}")


if __name__ == "__main__":
    raise SystemExit(main())
