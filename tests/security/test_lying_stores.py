"""A store whose writers lie: the honest container, or a refusal that names the record or the blob.

What nobody can see is another result under a task's own key (docs/stores.md); everything else is.
"""

from __future__ import annotations

import json
import random
import shutil
import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
from small_build import prepared

from genai_cli.testing import Program, Ran
from genai_core.canonical import digest_file

Lie = Callable[[Path, Path], None]


@pytest.fixture(scope="module")
def honest(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a model, its container in `out` and all that led there in `store`."""
    folder = prepared(tmp_path_factory.mktemp("honest"))
    assert built(folder).code == 0
    return folder


def built(folder: Path, *, out: str = "out") -> Ran:
    return Program(folder)("build", "-f", "b.yaml", "--store", "store", "--output", out)


def container(folder: Path, out: str = "out") -> dict[str, str]:
    """The container's files, but for its report: that has times."""
    root = folder / out / "small" / "cpu"
    return {
        path.relative_to(root).as_posix(): digest_file(path)
        for path in sorted(root.rglob("*"))
        if path.is_file() and path.name != "report.json"
    }


def record_of(store: Path, operation: str) -> Path:
    [path] = (store / "records" / operation).glob("*.json")
    return path


def rewrite(path: Path, data: bytes) -> None:
    path.chmod(0o644)
    path.write_bytes(data)


def edited(record: Path, change: Callable[[dict[str, Any]], None]) -> None:
    value = json.loads(record.read_bytes())
    change(value)
    rewrite(record, json.dumps(value, sort_keys=True, separators=(",", ":")).encode())


def cut_off(store: Path, record: Path) -> None:
    rewrite(record, record.read_bytes()[:-40])


def of_another_task(store: Path, record: Path) -> None:
    other = record_of(store, "ingest" if record.parent.name != "ingest" else "convert")
    rewrite(record, other.read_bytes())


def names_nothing(store: Path, record: Path) -> None:
    edited(record, lambda value: value.update(outputs={}))


def names_its_outputs_crosswise(store: Path, record: Path) -> None:
    def cross(value: dict[str, Any]) -> None:
        names, files = list(value["outputs"]), list(value["outputs"].values())
        value["outputs"] = dict(zip(names, files[1:] + files[:1], strict=True))

    edited(record, cross)


def all_blobs_are_others(store: Path, record: Path) -> None:
    for output in json.loads(record.read_bytes())["outputs"].values():
        path = store / "blobs" / output["sha256"][:2] / output["sha256"]
        data = bytearray(path.read_bytes())
        data[len(data) // 2] ^= 1
        path.unlink()  # a hard link of it is what people look at
        path.write_bytes(data)


@pytest.mark.parametrize(
    ("operation", "lie", "refused"),
    [
        ("package", names_nothing, "it is no container: it has no manifest"),
        ("package", names_its_outputs_crosswise, ""),
        pytest.param(*("package", all_blobs_are_others, ""), marks=pytest.mark.long),
        ("convert", all_blobs_are_others, ""),
        pytest.param(*("convert", cut_off, ""), marks=pytest.mark.long),
        pytest.param(*("convert", of_another_task, ""), marks=pytest.mark.long),
        pytest.param(*("ingest", all_blobs_are_others, ""), marks=pytest.mark.long),
        ("ingest", names_nothing, "the record of an ingest is not as ingest wrote it"),
        ("ingest", names_its_outputs_crosswise, "the record of an ingest is not as ingest"),
    ],
)
def test_build_gives_the_honest_container_or_names_the_lie(
    honest: Path, tmp_path: Path, operation: str, lie: Lie, refused: str
) -> None:
    shutil.copytree(honest, tmp_path, dirs_exist_ok=True, ignore=shutil.ignore_patterns("out"))
    store = tmp_path / "store"
    order = ["ingest", "convert", "compile", "fidelity", "package"]
    lie(store, record_of(store, operation))
    for later in order[order.index(operation) + 1 :]:
        record_of(store, later).unlink()  # so that the lie is read
    ran = built(tmp_path)
    if refused:
        assert ran.code in {1, 2}, ran.err
        assert refused in ran.errors[0]
        assert not (tmp_path / "out" / "small" / "cpu").exists()
    else:
        assert ran.code == 0, ran.err
        assert container(tmp_path) == container(honest)


def _lies_for_ever(store: Path, chance: random.Random, stop: threading.Event) -> None:
    """Cut records off, put one for the other, and change bytes of blobs, while builds run."""
    lies: list[Lie] = [cut_off, of_another_task, all_blobs_are_others]
    while not stop.wait(chance.uniform(0.0, 0.05)):
        records = sorted(store.glob("records/*/*.json"))
        try:
            chance.choice(lies)(store, chance.choice(records or [store]))
        except (OSError, ValueError, KeyError):  # it is being written at this moment
            continue


@pytest.mark.parametrize("rounds", [1, pytest.param(20, marks=pytest.mark.long)])
def test_builds_of_one_store_give_the_honest_container_or_none_while_another_writer_lies(
    honest: Path, tmp_path: Path, rounds: int
) -> None:
    shutil.copytree(honest, tmp_path, dirs_exist_ok=True, ignore=shutil.ignore_patterns("out"))
    want, stop = container(honest), threading.Event()
    liar = threading.Thread(
        target=_lies_for_ever, args=(tmp_path / "store", random.Random(rounds), stop)
    )
    liar.start()
    try:
        for number in range(rounds):
            outs = [f"out-{number}-{n}" for n in range(2)]
            with ThreadPoolExecutor(len(outs)) as pool:
                rans = dict(
                    zip(outs, pool.map(lambda out: built(tmp_path, out=out), outs), strict=True)
                )
            for out, ran in rans.items():
                assert "defect" not in ran.err, ran.err
                if ran.code == 0:
                    assert container(tmp_path, out) == want
                else:
                    assert not (tmp_path / out / "small" / "cpu").exists()
    finally:
        stop.set()
        liar.join()
    assert built(tmp_path).code == 0, "it mends itself when the liar has gone"
    assert container(tmp_path) == want
