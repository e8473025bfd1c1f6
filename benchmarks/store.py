"""How fast a store moves blobs, each time next to a peer measured in the same run.

    python benchmarks/store.py [--mib 512] [--rounds 5] [--folder DIR] [--json FILE]

Directory store: against a plain loop that copies to the same disk and hashes (and fsyncs, where
something is put). S3 store (versitygw, or moto's server where there is no Go): against boto3's own
upload_file and download_file with default settings, which hash nothing. Then what two graphs that
share their weights cost. Rounds are interleaved and the best of each is taken: other work on the
machine only ever slows one down. Ends with exit code 1 where a ratio is below what is promised.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import os
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path

import boto3

from genai_core.store.directory.directory_store import DirectoryStore
from genai_core.testing import s3_server

MIB = 1 << 20


@dataclass(frozen=True)
class Row:
    """One comparison; rates in MiB/s."""

    what: str
    rate: float
    peer: str
    peer_rate: float
    ratio: float
    promised: float


class Timing:
    """Runs an action of ours and its peer by turns.

    Args:
        size: Bytes that each moves.
        rounds: How often.
    """

    def __init__(self, size: int, rounds: int) -> None:
        self.size = size
        self.rounds = rounds
        self.rows: list[Row] = []

    def compare(
        self,
        what: str,
        ours: Callable[[], object],
        *,
        peer: str,
        theirs: Callable[[], object],
        clean: Callable[[], object],
        promised: float,
    ) -> None:
        """Time both; `clean` runs before each and is not timed."""
        seconds = [float("inf")] * 2
        for _ in range(self.rounds):
            for index, action in enumerate((ours, theirs)):
                clean()
                os.sync()
                start = time.perf_counter()
                action()
                seconds[index] = min(seconds[index], time.perf_counter() - start)
        rate, peer_rate = (self.size / MIB / value for value in seconds)
        ratio = rate / peer_rate
        self.rows.append(Row(what, rate, peer, peer_rate, ratio, promised))
        print(f"{what:24} {rate:8.0f}   {peer:24} {peer_rate:8.0f} {ratio:6.2f} {promised:6.2f}")


def copy_and_hash(source: Path, target: Path, *, sync: bool) -> str:
    """The peer of a directory store: what one would write without thinking."""
    digest = hashlib.sha256()
    with source.open("rb") as reader, target.open("wb") as writer:
        while data := reader.read(MIB):
            digest.update(data)
            writer.write(data)
        if sync:
            writer.flush()
            os.fsync(writer.fileno())
    return digest.hexdigest()


def directory(folder: Path, source: Path, timing: Timing) -> None:
    store = DirectoryStore(folder / "store")
    blob = store.put_blob(source)
    copy, fetched, given = folder / "copy", folder / "fetched", folder / "given"

    def forget() -> None:
        store.delete_blob(blob.sha256)
        copy.unlink(missing_ok=True)

    def forget_and_give() -> None:
        forget()
        given.unlink(missing_ok=True)
        copy_and_hash(source, given, sync=False)

    def clear() -> None:
        copy.unlink(missing_ok=True)
        fetched.unlink(missing_ok=True)

    def raw_put() -> str:
        return copy_and_hash(source, copy, sync=True)

    def raw_fetch() -> str:
        return copy_and_hash(store.blob_path(blob.sha256), copy, sync=False)

    timing.compare(
        "directory put",
        lambda: store.put_blob(source),
        peer="copy, sha256, fsync",
        theirs=raw_put,
        clean=forget,
        promised=0.9,
    )
    timing.compare(
        "directory put, consumed",
        lambda: store.put_blob(given, consume=True),
        peer="copy, sha256, fsync",
        theirs=raw_put,
        clean=forget_and_give,
        promised=0.9,
    )
    store.put_blob(source)
    for what, shared in (("directory fetch", False), ("directory fetch, shared", True)):
        timing.compare(
            what,
            partial(store.fetch_blob, blob, fetched, shared=shared),
            peer="copy, sha256",
            theirs=raw_fetch,
            clean=clear,
            promised=0.9,
        )


def s3(folder: Path, source: Path, timing: Timing) -> str:
    with s3_server(folder) as server:
        store = server.store("bench")
        client = boto3.client(
            "s3",
            endpoint_url=server.endpoint,
            region_name="us-east-1",
            aws_access_key_id=server.credentials.access_key_id,
            aws_secret_access_key=server.credentials.secret_access_key,
        )
        copy, fetched = folder / "copy", folder / "fetched"
        blob = store.put_blob(source)
        client.upload_file(str(source), server.bucket, "peer/file")

        def forget() -> None:
            store.delete_blob(blob.sha256)
            client.delete_object(Bucket=server.bucket, Key="peer/file")

        def clear() -> None:
            copy.unlink(missing_ok=True)
            fetched.unlink(missing_ok=True)

        timing.compare(
            "s3 put",
            lambda: store.put_blob(source),
            peer="boto3 upload_file",
            theirs=lambda: client.upload_file(str(source), server.bucket, "peer/file"),
            clean=forget,
            promised=1.0,
        )
        store.put_blob(source)
        client.upload_file(str(source), server.bucket, "peer/file")
        timing.compare(
            "s3 fetch",
            lambda: store.fetch_blob(blob, fetched),
            peer="boto3 download_file",
            theirs=lambda: client.download_file(server.bucket, "peer/file", str(copy)),
            clean=clear,
            promised=1.0,
        )
        return server.name


def shared_weights(folder: Path) -> dict[str, int]:
    """Put two graphs with the same weights; return bytes named by records and bytes stored."""
    store = DirectoryStore(folder / "shared")
    named = 0
    for graph in ("ar1_cl4096", "ar128_cl4096"):
        for layer in range(4):
            weights = folder / "weights"
            weights.write_bytes(bytes([layer]) * (8 * MIB))
            named += store.put_blob(weights, consume=True).size
            weights.unlink()
        named += store.put_bytes(f"the graph {graph}".encode()).size
    blobs: Iterator[int] = (
        store.blob_path(stat.sha256).stat().st_blocks * 512 for stat in store.list_blobs()
    )
    return {"bytesNamed": named, "bytesOnDisk": sum(blobs)}


def main() -> int:
    arguments = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    arguments.add_argument("--mib", type=int, default=512)
    arguments.add_argument("--rounds", type=int, default=5)
    arguments.add_argument("--folder", type=Path, help="on the disk to measure")
    arguments.add_argument("--json", type=Path, help="write the figures there")
    given = arguments.parse_args()
    with tempfile.TemporaryDirectory(dir=given.folder, prefix="bench-store-") as name:
        folder = Path(name)
        source = folder / "source"
        source.write_bytes(os.urandom(MIB) * given.mib)
        timing = Timing(given.mib * MIB, given.rounds)
        print(f"{'':24} {'MiB/s':>8}   {'peer':24} {'MiB/s':>8} {'ratio':>6} {'least':>6}")
        directory(folder, source, timing)
        server = s3(folder, source, timing)
        shared = shared_weights(folder)
    print(f"two graphs, same weights: {shared['bytesNamed'] / MIB:.0f} MiB named,", end=" ")
    print(f"{shared['bytesOnDisk'] / MIB:.0f} MiB on disk; S3 server: {server}")
    figures = {"mib": given.mib, "server": server, "rows": list(map(asdict, timing.rows)), **shared}
    if given.json:
        given.json.write_text(json.dumps(figures, indent=2) + "\n")
    slow = [row.what for row in timing.rows if row.ratio < row.promised]
    if slow:
        print("slower than promised:", ", ".join(slow), file=sys.stderr)
    return 1 if slow or shared["bytesOnDisk"] > 0.6 * shared["bytesNamed"] else 0


if __name__ == "__main__":
    sys.exit(main())
