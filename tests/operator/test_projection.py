"""Of what the apiserver sends, only what is read stays, and no more than that is ever held."""

from __future__ import annotations

import asyncio
import json
import subprocess
import sys
import time
from collections.abc import AsyncIterator
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest
from aiohttp import web
from hypothesis import given, settings
from hypothesis import strategies as st
from large_builds import GROUP, LARGE, MIB, ByteListings, a_build

from genai_operator.kube.apiserver import session
from genai_operator.kube.apiserver.api import ApiError
from genai_operator.kube.apiserver.client import ApiClient
from genai_operator.kube.apiserver.projection import PARTIAL, Listing, lean, plural_of, whole
from genai_operator.kube.build import build_view

values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text(),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(), inner, max_size=4),
    max_leaves=12,
)
objects = st.dictionaries(st.text(), values, max_size=4)


@settings(max_examples=60)
@given(st.lists(objects, max_size=6), objects, st.integers(1, 40), st.booleans())
def test_listing_is_what_json_reads_when_it_comes_in_pieces(
    items: list[Any], metadata: dict[str, Any], size: int, first: bool
) -> None:
    named = {"kind": "PodList", "metadata": metadata}
    value = {"items": items} | named if first else named | {"items": items}
    data = json.dumps(value, ensure_ascii=False).encode("utf-8", "surrogatepass")
    try:
        data.decode()
    except UnicodeDecodeError:
        return  # JSON that no apiserver writes
    reader = Listing(lambda item: item)
    for start in range(0, len(data), size):
        reader.feed(data[start : start + size])
    assert reader.end() == value


@pytest.mark.parametrize("size", [1_000, 1 << 20])
def test_listing_is_read_when_an_object_is_deeper_than_readers_go(size: int) -> None:
    """One build of 46 kB, written in any namespace, ended every listing of every namespace."""
    fields = '{"f:data":' * 4000 + "{}" + "}" * 4000
    items = [a_build("one"), a_build("two")]
    items[0]["metadata"]["managedFields"] = [{"fieldsV1": "@"}]
    data = json.dumps({"items": items}).replace('"@"', fields).encode()
    reader = Listing(lambda item: lean("genaibuilds", item))
    for start in range(0, len(data), size):
        reader.feed(data[start : start + size])
    assert reader.end()["items"] == [lean("genaibuilds", a_build(n)) for n in ("one", "two")]


def test_watch_goes_on_when_an_object_is_deeper_than_readers_go() -> None:
    fields = '{"f:data":' * 4000 + "{}" + "}" * 4000
    deep = a_build("one")
    deep["metadata"]["managedFields"] = [{"fieldsV1": "@"}]
    events = [{"type": "ADDED", "object": one} for one in (deep, a_build("two"))]
    lines = "".join(json.dumps(event) + "\n" for event in events).replace('"@"', fields)

    class Stream:
        async def iter_chunked(self, n: int) -> AsyncIterator[bytes]:
            for start in range(0, len(lines), n):
                yield lines[start : start + n].encode()

    async def told() -> list[Any]:
        lean_lines = session._LeanLines(Stream(), "genaibuilds")  # type: ignore[arg-type]
        return [json.loads(line)["object"] async for line in lean_lines.iter_chunked(1000)]

    assert asyncio.run(told()) == [lean("genaibuilds", a_build(n)) for n in ("one", "two")]


@pytest.mark.parametrize("text", ['{"items": [{"a": 1}', '{"items": [{"a": 1}]', "", "[]", "{"])
def test_listing_is_refused_when_it_is_cut_short(text: str) -> None:
    reader = Listing(lambda item: item)
    reader.feed(text.encode())
    with pytest.raises(ValueError, match="cut short"):
        reader.end()


def test_listing_reads_null_as_no_items() -> None:
    reader = Listing(lambda item: item)
    reader.feed(b'{"kind":"PodList","metadata":{"resourceVersion":"7"},"items":null}\n')
    assert reader.end()["items"] == []


def test_listing_is_refused_when_an_object_has_no_end() -> None:
    reader = Listing(lambda item: item)
    reader.feed(b'{"items":[{"a":"')
    reader.feed(b"x" * (8 * MIB))
    with pytest.raises(ValueError, match="more than 16 MiB"):
        reader.feed(b"x" * (9 * MIB))


@pytest.mark.parametrize(
    ("path", "plural"),
    [
        (f"{GROUP}/genaibuilds", "genaibuilds"),
        (f"{GROUP}/namespaces/n/artifactstores", "artifactstores"),
        ("/apis/batch/v1/jobs", "jobs"),
        ("/api/v1/namespaces/n/pods", "pods"),
        ("/api/v1/namespaces/n/pods/p", None),
        ("/api/v1/namespaces/n/pods/p/log", None),
        (f"{GROUP}/namespaces/n/genaibuilds/b/status", None),
        (GROUP, None),
        ("/api/v1/secrets", None),
    ],
)
def test_plural_of_knows_listings_alone(path: str, plural: str | None) -> None:
    assert plural_of(path) == plural


def test_lean_keeps_of_an_object_what_is_read() -> None:
    small = a_build("b", annotations={"genai-operator.dev/requestedAt": "now"})
    kept = lean("genaibuilds", a_build("b", **LARGE))
    assert kept == small
    assert lean("genaibuilds", kept) == kept, "once more changes nothing"
    assert build_view(kept).value == small


def test_lean_marks_a_build_whose_spec_is_large_and_names_what_it_waits_for() -> None:
    value = a_build("b")
    value["spec"]["golden"] = {"prompts": ["p" * 4000] * 4}
    kept = lean("genaibuilds", value)
    assert kept[PARTIAL] is True
    assert kept["spec"] == {"targets": ["cpu"], "store": {"name": "own"}}
    assert len(json.dumps(kept)) < 1000
    seen = build_view(kept)
    assert (seen.targets, seen.store, seen.value[PARTIAL]) == (("cpu",), "own", True)
    read = whole(value | {"metadata": value["metadata"] | LARGE})
    assert (read["spec"], PARTIAL in read) == (value["spec"], False)
    assert len(json.dumps(read["metadata"])) < 1000


def test_lean_keeps_of_a_job_our_own_notes_and_bounds_them() -> None:
    ours, pods = "genai-operator.dev/", {"batch.kubernetes.io/job-name": "j"}
    value = {
        "metadata": {
            "name": "j",
            "namespace": "n",
            "uid": "u",
            "annotations": {f"{ours}key": "k", f"{ours}ending": "e" * 200_000, "x": "y"},
            "labels": {f"{ours}operation": "convert", "other": "z", **pods},
            "ownerReferences": [{"uid": f"o{n}", "kind": "x" * 50} for n in range(5000)],
        },
        "spec": {
            "suspend": True,
            "template": {"spec": {"containers": [{}] * 1000, "activeDeadlineSeconds": 60}},
        },
        "status": {"active": 1, "startTime": "2026-01-01T00:00:00Z"},
    }
    kept = lean("jobs", value)
    assert kept["metadata"]["annotations"] == {f"{ours}key": "k"}
    assert kept["metadata"]["labels"] == {f"{ours}operation": "convert", **pods}
    assert kept["spec"] == {"suspend": True, "template": {"spec": {"activeDeadlineSeconds": 60}}}
    assert kept["status"] == value["status"]
    assert len(kept["metadata"]["ownerReferences"]) == 2000


@pytest.mark.parametrize("count", [10, pytest.param(200, marks=pytest.mark.long)])
def test_operator_stays_small_when_others_write_builds_of_megabytes(count: int) -> None:
    """As listed, as watched and as listed once more, by kopf and by ourselves."""
    script = Path(__file__).with_name("large_builds.py")
    command = [sys.executable, "-W", "ignore", str(script), str(count)]
    done = subprocess.run(command, check=False, capture_output=True, text=True, timeout=600)
    assert done.returncode == 0, done.stderr[-2000:]
    told = json.loads(done.stdout)
    assert told["builds"] == [2 * count, count]
    assert told["listings"] == 2
    assert told["peakMiB"] < 64


def test_whole_build_is_read_when_it_is_worked_on() -> None:
    value = a_build("b", **LARGE)
    value["spec"]["golden"] = {"prompts": ["p" * 4000] * 4}

    async def scenario() -> None:
        server = ByteListings(lambda plural: [json.dumps(value).encode()])
        async with server.serving() as to, ApiClient(to) as api:
            found, version = await api.list("genaibuilds", namespace="any", name="b", fresh=True)
            assert (found[0]["spec"], version) == (value["spec"], 9)
            assert set(found[0]["metadata"]["annotations"]) == {"genai-operator.dev/requestedAt"}
            found, _ = await api.list("genaibuilds")
            assert found[0][PARTIAL] is True

    asyncio.run(scenario())


def test_answer_without_end_is_refused() -> None:
    async def endless(request: web.Request) -> web.StreamResponse:
        stream = web.StreamResponse(status=200 if request.path.endswith("good") else 500)
        await stream.prepare(request)
        with suppress(ConnectionError):
            while True:
                await stream.write(b"x" * MIB)
        return stream

    async def scenario() -> None:
        server = ByteListings(lambda plural: [])
        monkey = pytest.MonkeyPatch()
        with monkey.context() as patched:
            patched.setattr(server, "answer", endless)
            async with server.serving() as to, ApiClient(to) as api:
                for name in ("good", "bad"):
                    with pytest.raises(ApiError, match="without end"):
                        await api.get("secrets", name, namespace="n")

    asyncio.run(scenario())


@pytest.mark.parametrize("begun", [False, True])
def test_listing_is_given_up_when_the_apiserver_falls_silent(
    monkeypatch: pytest.MonkeyPatch, *, begun: bool
) -> None:
    """A listing as a whole may take minutes; a dead connection may not."""
    monkeypatch.setattr(session, "_SILENT_SECONDS", 1.0)

    async def silent(request: web.Request) -> web.StreamResponse:
        stream = web.StreamResponse()
        if begun:
            await stream.prepare(request)
            for number in range(5):  # longer in all than what may be silent
                await stream.write(b'{"items": [' if number == 0 else b" ")
                await asyncio.sleep(0.3)
        await asyncio.sleep(30)
        return stream

    async def scenario() -> None:
        server = ByteListings(lambda plural: [])
        monkeypatch.setattr(server, "answer", silent)
        async with server.serving() as to, ApiClient(to) as api:
            began = time.monotonic()
            with pytest.raises(TimeoutError):
                await api.list("genaibuilds")
            assert (2.0 if begun else 0.9) < time.monotonic() - began < 10

    asyncio.run(scenario())
