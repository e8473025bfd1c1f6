"""A server that goes over to another revision of its base: all adapters change at once."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import threading
from collections.abc import Iterator
from http.client import HTTPConnection
from pathlib import Path
from typing import Any

import pytest
import yaml
from served import Served, answer

from genai_cli.testing import Program, environment
from genai_core.canonical import digest_json
from genai_core.container.manifest import read_manifest
from genai_core.errors import BadInput, CorruptBlob, GenAIError, NoSpace, StoreUnavailable
from genai_core.names import Key
from genai_core.store.adapter_fetch import AdapterQuestion, fetch_adapters
from genai_core.store.directory.directory_store import DirectoryStore
from genai_core.tasks.record import Output
from genai_serving.adapters.later import fetch_by
from genai_serving.api.admin_port.declaration import Declarations, DeclareBody

EXAMPLE = Path(__file__).parents[2] / "examples" / "tiny-llama"
TOKEN = "of the port"
PROMPT = "THIS SOFTWARE IS "
C, U = "c-headers-r8", "uppercase-r16"


class Revision:
    """A container, and where it lies in the store."""

    def __init__(self, path: Path, store: DirectoryStore) -> None:
        self.path = path
        built = json.loads((path / "adapters" / "index.json").read_bytes())["adapters"]
        self.digests = {name: f"sha256:{one['sha256']}" for name, one in built.items()}
        for ref in store.list_records("package"):
            stored = store.get_record("package", ref.key)
            manifest = (path / "manifest.json").read_bytes()
            if stored and store.read_blob(stored.record.outputs["manifest.json"]) == manifest:
                self.record = f"package/{ref.key}"
                self.revision = str(stored.record.facts["revision"])

    def declared(self, *names: str) -> dict[str, Any]:
        listed = [{"lora_name": name, "lora_path": name} for name in names or self.digests]
        container = {"record": self.record, "revision": self.revision}
        return {"adapters": listed, "container": container}

    @property
    def question(self) -> AdapterQuestion:
        return AdapterQuestion(record=self.record, revision=self.revision)


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("home")


@pytest.fixture(scope="module")
def store(home: Path) -> DirectoryStore:
    return DirectoryStore(home / "store")


def build(home: Path, store: DirectoryStore, number: int, **lora: Any) -> Revision:
    spec = yaml.safe_load((EXAMPLE / "adapters.yaml").read_text())
    spec["spec"]["model"]["source"] = str(EXAMPLE / "model")
    del spec["spec"]["golden"]
    spec["spec"]["lora"] = {
        "adapters": [
            {"name": name, "source": str(EXAMPLE / "adapters" / folder)}
            for name, folder in lora["adapters"].items()
        ],
        "useCases": [
            {"name": "both", "adapters": [{"name": n, "alpha": a} for n, a in lora["both"].items()]}
        ],
    }
    file = home / f"build-{number}.yaml"
    file.write_text(yaml.safe_dump(spec))
    out = home / f"out-{number}"
    told = Program(home).ok(
        "build", "-f", file, "--store", home / "store", "--output", out, "--json"
    )
    return Revision(Path(told.json["containers"]["cpu"]["path"]), store)


@pytest.fixture(scope="module")
def first(home: Path, store: DirectoryStore) -> Revision:
    adapters = {"c": C, "u": U, "x": C}
    return build(home, store, 1, adapters=adapters, both={"c": "0.5", "u": "0.5"})


@pytest.fixture(scope="module")
def second(home: Path, store: DirectoryStore) -> Revision:
    """`x` is another adapter, `u` has gone, `new` has come, `both` is of others."""
    adapters = {"c": C, "x": U, "new": U}
    return build(home, store, 2, adapters=adapters, both={"c": "1.0", "new": "0.25"})


def test_two_revisions_of_one_base(first: Revision, second: Revision) -> None:
    bases = [json.loads((one.path / "manifest.json").read_bytes()) for one in (first, second)]
    assert bases[0]["base"] == bases[1]["base"]
    assert first.revision != second.revision


class Pod:
    """A server, and beside it the program that holds the store's credentials."""

    def __init__(self, home: Path, first: Revision, place: Path, declared: Any = None) -> None:
        self.home, self.first, self.place = home, first, place
        self.socket, self.file = place / "fetch.sock", place / "declared.json"
        if declared is not None:
            self.file.write_text(json.dumps(declared))
        command = [
            *(sys.executable, "-m", "genai_core.store.adapter_fetch"),
            *("--container", first.path, "--into", place / "revisions"),
            *("--socket", self.socket, "--most-bytes", str(1 << 24)),
        ]
        env = environment(home) | {"GENAI_STORE": str(home / "store")}
        self.fetcher = subprocess.Popen(list(map(str, command)), env=env)
        self.served = self.start()

    def start(self) -> Served:
        self.served = Served(
            self.home,
            self.first.path,
            *("--threads", "1", "--admin-port", "0", "--fetch-socket", self.socket),
            *("--declared-adapters", self.file, "--model-name", "m"),
            *("--cache", self.place / "cache"),
            pod=True,
            GENAI_ADMIN_TOKEN=TOKEN,
        )
        assert self.served.process.stderr is not None
        line = self.served.process.stderr.readline()
        self.admin_port = int(line.rpartition(" ")[2])
        return self.served

    def declare(self, body: Any) -> dict[str, Any]:
        connection = HTTPConnection("127.0.0.1", self.admin_port, timeout=60)
        try:
            headers = {"Authorization": f"Bearer {TOKEN}"}
            connection.request("PUT", "/v1/adapters", json.dumps(body), headers)
            told: dict[str, Any] = json.loads(connection.getresponse().read())
            return told
        finally:
            connection.close()

    def models(self) -> set[str]:
        return {m["id"] for m in json.loads(self.served.get("/v1/models")[1])["data"]}

    def told(self, name: str) -> list[int]:
        tokens: list[int] = answer(self.served, PROMPT, 12, model=name)["token_ids"]
        return tokens

    def stop(self) -> str:
        code, told = self.served.stop()
        assert code == 0, told
        return told

    def end(self) -> None:
        self.stop()
        self.fetcher.terminate()
        assert self.fetcher.wait(30) == 0


@pytest.fixture(scope="module")
def pod(home: Path, first: Revision, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Pod]:
    made = Pod(home, first, tmp_path_factory.mktemp("p"))
    yield made
    made.end()


def run(home: Path, revision: Revision, *worn: str) -> list[int]:
    told = ["--prompt", PROMPT, "--max-tokens", "12", "--threads", "1", "--json"]
    tokens: list[int] = Program(home).ok("run", revision.path, *told, *worn).json["tokens"]
    return tokens


def test_a_running_server_goes_over_to_a_revision_without_a_refused_request(
    pod: Pod, home: Path, first: Revision, second: Revision
) -> None:
    """Answers of a name are of one revision or of the other, never refused, never of a mixture."""
    assert pod.models() == {"m", "c", "u", "x", "both"}
    own = {name: pod.told(name) for name in ("m", "c", "x", "both")}
    going, problems, seen = threading.Event(), [], {name: {tuple(own[name])} for name in own}

    def ask() -> None:
        while not going.is_set():
            for name in own:
                try:
                    seen[name].add(tuple(pod.told(name)))
                except AssertionError as error:
                    problems.append(error)

    asking = threading.Thread(target=ask)
    asking.start()
    try:
        standing = pod.declare(second.declared())
    finally:
        going.set()
        asking.join()
    assert not problems
    assert standing["revision"] == second.revision
    states = {one["name"]: (one["state"], one["digest"]) for one in standing["adapters"]}
    assert states == {name: ("Loaded", digest) for name, digest in second.digests.items()}
    assert pod.models() == {"m", "c", "x", "new", "both"}
    listed = json.loads(pod.served.get("/v1/models")[1])["data"]
    assert {model["revision"] for model in listed} == {second.revision}
    now = {name: pod.told(name) for name in ("m", "c", "x", "both", "new")}
    assert now["x"] == now["new"] == run(home, second, "--adapter", "x")
    assert now["both"] == run(home, second, "--use-case", "both")
    assert (now["m"], now["c"]) == (own["m"], own["c"])
    assert now["x"] != own["x"]
    assert all(seen[name] <= {tuple(own[name]), tuple(now[name])} for name in own)
    # And back to what it was started with, for which nothing is fetched.
    listing = {"adapters": first.declared()["adapters"]}
    assert pod.declare(listing)["revision"] == first.revision
    assert {name: pod.told(name) for name in own} == own


def of_another_base(store: DirectoryStore, like: Revision) -> dict[str, str]:
    """A container with the same adapters, of which a server of the other must wear none."""
    stored = store.get_record("package", Key(like.question.record.partition("/")[2]))
    assert stored is not None
    kept = json.loads((like.path / "manifest.json").read_bytes())
    kept["model"]["other"] = True
    manifest = read_manifest(json.dumps(kept | {"base": None})).with_base()
    blob = store.put_bytes(manifest.to_bytes())
    outputs = {**stored.record.outputs, "manifest.json": Output(sha256=blob.sha256, size=blob.size)}
    key = Key(digest_json({"other": like.revision}))
    update = {"key": key, "outputs": outputs, "facts": {"revision": manifest.revision()}}
    store.commit(stored.record.model_copy(update=update))
    return {"record": f"package/{key}", "revision": manifest.revision()}


def test_what_cannot_be_had_leaves_everything_as_it_is(
    pod: Pod, home: Path, store: DirectoryStore, first: Revision
) -> None:
    before = pod.models()
    body = first.declared() | {
        "container": {"record": f"package/{'0' * 64}", "revision": f"sha256:{'0' * 64}"}
    }
    told = pod.declare(body)
    assert "is not there" in told["problem"]
    assert told["revision"] == first.revision
    told = pod.declare(first.declared("c") | {"container": of_another_base(store, first)})
    (failed,) = [one for one in told["adapters"] if one["name"] == "c"]
    assert (failed["state"], "its base is" in failed["reason"]) == ("Failed", True)
    assert pod.models() == before


def test_a_server_that_starts_anew_has_what_was_declared_to_it(
    home: Path, first: Revision, second: Revision, tmp_path: Path
) -> None:
    pod = Pod(home, first, tmp_path, declared=second.declared("x"))
    try:
        assert pod.models() == {"m", "x"}, "before its first request"
        pod.declare(second.declared("new"))
        pod.stop()
        pod.start()
        assert pod.models() == {"m", "new"}
    finally:
        pod.end()


def test_declarations_count_until_the_file_beside_them_changes(tmp_path: Path) -> None:
    def of(name: str) -> DeclareBody:
        return DeclareBody.model_validate({"adapters": [{"lora_name": name, "lora_path": name}]})

    file, kept = tmp_path / "declared.json", tmp_path / "kept.json"
    assert Declarations(file, kept).read() is None
    for name in ("a", "b"):
        file.write_text(of(name).model_dump_json())
        assert Declarations(file, kept).read() == of(name)
        Declarations(file, kept).keep(of(f"{name}-later"))
        assert Declarations(file, kept).read() == of(f"{name}-later")
    kept.write_text("{")  # half of one
    assert Declarations(file, kept).read() == of("b")
    file.write_text("{")
    with pytest.raises(BadInput, match="no declaration"):
        Declarations(file, kept).read()


def test_fetch_by_tells_that_nobody_is_there(tmp_path: Path) -> None:
    with pytest.raises(StoreUnavailable, match="is not there"):
        fetch_by(tmp_path / "none", "package/x", "sha256:x", patience=0)


def test_fetch_adapters_keeps_few_and_takes_what_the_container_has(
    store: DirectoryStore, first: Revision, second: Revision, tmp_path: Path
) -> None:
    container = tmp_path / "container"
    (container / "adapters").mkdir(parents=True)
    for name in ("manifest.json", "adapters/c.safetensors"):
        os.link(first.path / name, container / name)
    into = tmp_path / "into"
    for number in range(4):
        (into / f"old-{number}").mkdir(parents=True)
        os.utime(into / f"old-{number}", (number, number))
    found = fetch_adapters(store, second.question, container, into, most_bytes=1 << 24)
    assert {path.name for path in into.iterdir()} == {"old-2", "old-3", found.name}
    names = {str(path.relative_to(found)) for path in found.rglob("*") if path.is_file()}
    listed = {f"adapters/{name}.safetensors" for name in second.digests}
    assert names == {"manifest.json", "adapters/index.json", *listed}
    assert (found / "adapters/c.safetensors").samefile(container / "adapters/c.safetensors")
    assert fetch_adapters(store, second.question, container, into, most_bytes=1) == found
    with pytest.raises(NoSpace, match="are set apart"):
        fetch_adapters(store, second.question, container, tmp_path / "small", most_bytes=9)


@pytest.mark.parametrize(
    ("change", "kind", "words"),
    [
        ({"record": f"package/{'1' * 64}"}, GenAIError, "is not there"),
        ({"revision": f"sha256:{'1' * 64}"}, CorruptBlob, "is wanted"),
    ],
)
def test_fetch_adapters_refuses_what_is_not_what_was_asked_for(
    store: DirectoryStore,
    first: Revision,
    second: Revision,
    tmp_path: Path,
    change: dict[str, str],
    kind: type[GenAIError],
    words: str,
) -> None:
    question = second.question.model_copy(update=change)
    with pytest.raises(kind, match=words):
        fetch_adapters(store, question, first.path, tmp_path / "into", most_bytes=1 << 24)
    assert not list((tmp_path / "into").glob("*"))


def test_fetch_adapters_takes_no_bytes_that_the_manifest_does_not_vouch_for(
    store: DirectoryStore, first: Revision, second: Revision, tmp_path: Path
) -> None:
    stored = store.get_record("package", Key(second.record.partition("/")[2]))
    assert stored is not None
    outputs = dict(stored.record.outputs)
    forged = {**outputs, "adapters/x.safetensors": outputs["adapters/c.safetensors"]}
    key = Key(digest_json({"forged": second.revision}))
    store.commit(stored.record.model_copy(update={"key": key, "outputs": forged}))
    question = second.question.model_copy(update={"record": f"package/{key}"})
    with pytest.raises(CorruptBlob, match="is another file than its manifest says"):
        fetch_adapters(store, question, first.path, tmp_path / "into", most_bytes=1 << 24)


def test_fetch_adapters_refuses_another_base(
    home: Path, store: DirectoryStore, second: Revision, tmp_path: Path
) -> None:
    manifest = json.loads((second.path / "manifest.json").read_bytes())
    manifest["model"]["other"] = True
    (tmp_path / "manifest.json").write_text(json.dumps(manifest | {"base": None}))
    with pytest.raises(BadInput, match="its base is"):
        fetch_adapters(store, second.question, tmp_path, tmp_path / "into", most_bytes=1 << 24)
