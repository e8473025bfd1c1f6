"""`genai build --remote`: what is applied, how it is followed, how it ends."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from genai_cli.cluster.remote import followed_build
from genai_cli.cluster.remote.remote_build import manifest
from genai_cli.cluster.remote.uploaded_spec import with_upload
from genai_cli.cluster.remote.uploads import inspected
from genai_cli.cluster.testing import Apiserver, apiserver, build, job, pod
from genai_cli.testing import InProcess, Ran
from genai_core.kinds.base import ObjectMeta
from genai_core.kinds.build import BuildSpec, GenAIBuild
from genai_core.kinds.documents.reading import read_model
from genai_core.names import (
    DRAFT,
    FORECAST,
    MODEL,
    VISION,
    SourceName,
    adapter_source,
    child_source,
)
from genai_core.sources.build_sources import BuildSource
from genai_core.wire import REQUESTED_AT

REVISION = "sha256:" + "ab" * 32
ARTIFACT = {
    "target": "cpu",
    "revision": REVISION,
    "url": "s3://genai/team/records/package/00.json",
    "sizeBytes": 3_790_000,
    "builtAt": "2026-01-01T12:00:30Z",
    "verified": "Cpu",
}
DONE = [{"operation": "ingest", "waiting": 0, "running": 0, "cached": 1, "done": 2, "failed": 0}]


@pytest.fixture
def server(monkeypatch: pytest.MonkeyPatch) -> Iterator[Apiserver]:
    monkeypatch.setattr(followed_build, "_EVERY", 0.05)
    with apiserver() as found:
        found.add("namespaces", {"metadata": {"name": "team"}})
        found.add("genaitargets", {"metadata": {"name": "cpu"}}, {"metadata": {"name": "sm8750"}})
        yield found


@pytest.fixture
def remote(server: Apiserver, tmp_path: Path) -> Callable[..., Ran]:
    """`genai build -f build.yaml --remote`."""
    run = InProcess(tmp_path)
    config = str(server.kubeconfig(tmp_path / "config"))
    document = {
        "apiVersion": "genai-operator.dev/v1alpha1",
        "kind": "GenAIBuild",
        "metadata": {"name": "tiny"},
        "spec": {"model": {"source": "s3://models/tiny"}, "targets": ["cpu"]},
    }
    (tmp_path / "build.yaml").write_text(json.dumps(document))
    return lambda *more: run(
        "build", "-f", "build.yaml", "--remote", *more, env={"KUBECONFIG": config}
    )


def become(server: Apiserver, **status: Any) -> Callable[[], None]:
    """The operator reports."""

    def report() -> None:
        value = server.objects["genaibuilds", "team", "tiny"]
        meta = value["metadata"]
        asked = (meta.get("annotations") or {}).get(REQUESTED_AT)
        request = {"requestedAt": asked} if asked else {}
        seen = {"observedGeneration": meta["generation"], **request, **status}
        server.objects["genaibuilds", "team", "tiny"] = {**value, "status": seen}

    return report


def nothing() -> None:
    """Nobody does anything."""


def condition(status: str, reason: str, message: str = "", kind: str = "Ready") -> dict[str, str]:
    return {"type": kind, "status": status, "reason": reason, "message": message}


def built(server: Apiserver) -> Callable[[], None]:
    return become(
        server,
        phase="Ready",
        progress="3/3",
        cached=1,
        stages=DONE,
        conditions=[condition("True", "Built")],
        artifacts=[ARTIFACT],
    )


def failed(server: Apiserver, reason: str, message: str = "why; what to do") -> Callable[[], None]:
    failure = {"task": "ingest", "reason": reason, "message": message, "log": "s3://genai/x"}
    ready = condition("False", reason, message)
    stalled = condition("True", reason, message, "Stalled")
    return become(
        server, phase="Failed", progress="0/3", conditions=[ready, stalled], failures=[failure]
    )


def test_a_build_is_applied_followed_and_reported_as_a_local_one(
    server: Apiserver, remote: Callable[..., Ran]
) -> None:
    one = job("ingest", "tiny")
    running: dict[str, Any] = {"running": {"startedAt": "2026-01-01T12:00:10Z"}}
    said = json.dumps({"outcome": "run", "peakMemoryBytes": 178 * 10**6})
    ended = {"startedAt": "2026-01-01T12:00:10Z", "finishedAt": "2026-01-01T12:00:14Z"}

    def starts() -> None:
        become(server, phase="Building", progress="0/3", plan=["1 split: as given"])()
        server.add("jobs", one)
        server.add("pods", pod(one, **running))

    def ends() -> None:
        built(server)()
        server.add("jobs", job("ingest", "tiny", state="Complete"))
        server.add("pods", pod(one, terminated=ended | {"message": said}))

    server.acts = [nothing, nothing, starts, ends]
    ran = remote("--json")
    assert ran.code == 0, ran.err
    assert ran.json["containers"] == {
        "cpu": {
            "path": ARTIFACT["url"],
            "revision": REVISION,
            "sizeBytes": 3_790_000,
            "changed": True,
        }
    }
    assert ran.json["tasks"] == {"total": 3, "run": 2, "cached": 1, "failed": 0}
    assert ran.json["peakMemoryBytes"] == 178 * 10**6
    lines = ran.err.splitlines()
    assert "start    ingest (node1)" in lines
    assert "done     ingest (4.0 s, 178 MB)" in lines
    assert "         1 split: as given" in lines


def test_a_build_that_stands_is_cached(server: Apiserver, remote: Callable[..., Ran]) -> None:
    server.add("genaibuilds", build("tiny"))
    built(server)()
    ran = remote("--json")
    assert ran.json["tasks"] == {"total": 3, "run": 0, "cached": 3, "failed": 0}
    assert ran.json["containers"]["cpu"]["changed"] is False
    assert len(server.applied) == 1


@pytest.mark.parametrize(
    ("reason", "code"), [("BadEncodings", 2), ("OverBudget", 2), ("OOMKilled", 1), ("Drift", 1)]
)
def test_the_exit_code_is_that_of_the_failed_task(
    server: Apiserver, remote: Callable[..., Ran], reason: str, code: int
) -> None:
    server.acts = [nothing, failed(server, reason)]
    ran = remote("--json")
    assert ran.code == code
    assert ran.json["error"]["message"] == "why; what to do"
    assert ran.json["failures"][0]["log"] == "s3://genai/x"
    assert ran.errors == ["error: ingest: why; what to do"]


def test_what_was_given_up_is_tried_again_once_asked(
    server: Apiserver, remote: Callable[..., Ran]
) -> None:
    server.add("genaibuilds", build("tiny"))
    failed(server, "BadEncodings")()
    server.acts = [nothing, nothing, built(server)]
    ran = remote()
    assert ran.code == 0, ran.err
    asked = [body["metadata"].get("annotations", {}) for body, _ in server.applied]
    assert REQUESTED_AT not in asked[0]
    assert REQUESTED_AT in asked[1]

    # The next command keeps the request: without it a finished build would start anew.
    remote()
    assert server.applied[-1][0]["metadata"]["annotations"] == asked[1]


def test_a_build_that_nobody_takes_up(
    server: Apiserver, remote: Callable[..., Ran], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(followed_build, "_PATIENCE", 0.1)
    monkeypatch.setattr(followed_build, "_UNTAKEN", 0.5)
    ran = remote()
    assert ran.code == 1
    assert "has not taken it up" in ran.errors[0]
    assert "kubectl get pods" in ran.errors[0]
    assert ran.err.count("waiting ") == 1


def test_a_restarting_apiserver_is_waited_for(
    server: Apiserver, remote: Callable[..., Ran]
) -> None:
    def restarts() -> None:
        built(server)()
        server.down = 4

    server.acts = [nothing, nothing, restarts]
    ran = remote()
    assert ran.code == 0, ran.err
    assert "503" in ran.err


def test_a_build_that_is_deleted_meanwhile(server: Apiserver, remote: Callable[..., Ran]) -> None:
    server.acts = [nothing, nothing, server.objects.clear]
    ran = remote()
    assert ran.code == 2
    assert "no such" in ran.errors[0]


def test_waiting_says_what_for_and_goes_on(server: Apiserver, remote: Callable[..., Ran]) -> None:
    ready = condition("Unknown", "StoreNotReady", "ArtifactStore default: there is no Secret s3")
    server.acts = [nothing, nothing, become(server, phase="Waiting", conditions=[ready])]
    server.acts += [nothing, built(server)]
    ran = remote()
    assert ran.code == 0
    assert ran.err.count("StoreNotReady: ArtifactStore default: there is no Secret s3") == 1


def test_suspended_is_not_built(server: Apiserver, remote: Callable[..., Ran]) -> None:
    ready = condition("Unknown", "Suspended", "spec.run.suspend is set")
    server.acts = [nothing, nothing, become(server, phase="Suspended", conditions=[ready])]
    ran = remote()
    assert ran.code == 1
    assert "spec.run.suspend is set" in ran.errors[0]


def test_refusals_of_the_apiserver(server: Apiserver, remote: Callable[..., Ran]) -> None:
    ran = remote("-n", "tema")
    assert (ran.code, "no such namespace" in ran.errors[0]) == (2, True)
    ran = remote("--target", "sm8570")
    assert (ran.code, "did you mean sm8750?" in ran.errors[0]) == (2, True)
    server.owner = "argocd-controller"
    ran = remote()
    assert ran.code == 2
    assert "argocd-controller set spec.targets" in ran.errors[0]
    assert "--force" in ran.errors[0]
    server.acts = [nothing, nothing, built(server)]
    assert remote("--force").code == 0
    assert server.applied[-1][1]["force"] == "true"


def test_options_of_the_other_kind_of_build_are_refused(tmp_path: Path) -> None:
    run = InProcess(tmp_path)
    (tmp_path / "build.yaml").write_text(
        json.dumps(
            {
                "apiVersion": "genai-operator.dev/v1alpha1",
                "kind": "GenAIBuild",
                "metadata": {"name": "a"},
                "spec": {"model": {"source": "s3://m/x"}, "targets": ["cpu"]},
            }
        )
    )
    for option in (["--detach"], ["-n", "team"], ["--force"], ["--context", "x"]):
        ran = run("build", "-f", "build.yaml", *option)
        assert (ran.code, "add --remote" in ran.errors[0]) == (2, True), option
    for option in (["--jobs", "2"], ["-o", "x"], ["--read-from", "y"]):
        ran = run("build", "-f", "build.yaml", "--remote", *option)
        assert (ran.code, "does not have it" in ran.errors[0]) == (2, True), option


# What is applied, without any server


def parsed(**spec: Any) -> BuildSpec:
    return read_model(BuildSpec, {"model": {"source": "/m"}, "targets": ["cpu"], **spec})


def test_only_what_the_user_wrote_is_applied() -> None:
    meta = ObjectMeta(name="a", labels={"x": "y"}, annotations={"note": "mine"})
    one = GenAIBuild(metadata=meta, spec=parsed(graphs={"autoRegression": [1]}))
    body = manifest(one, "team", None)
    assert body["spec"] == {
        "model": {"source": "/m"},
        "targets": ["cpu"],
        "graphs": {"autoRegression": [1]},
    }
    assert body["metadata"] == {
        "name": "a",
        "namespace": "team",
        "labels": {"x": "y"},
        "annotations": {"note": "mine"},
    }
    standing = {"metadata": {"annotations": {REQUESTED_AT: "then", "other": "tool"}}}
    kept = manifest(one, "team", standing)["metadata"]["annotations"]
    assert kept == {"note": "mine", REQUESTED_AT: "then"}


UPLOAD = "s3://b/sources/sha256-00"


def source_called(name: SourceName) -> BuildSource:
    return BuildSource(name, "/here", f"spec.{name}")


def test_an_uploaded_models_files_are_called_by_their_roles() -> None:
    quantization = {
        "gaps": "Calibrate",
        "calibration": "texts/Some.TXT",
        "fidelity": {"tokens": "eval.npy", "budgetNats": 0.02},
    }
    model = {
        "source": "/m",
        "onnx": "base/x.onnx",
        "encodings": "x.encodings",
        "secretRef": {"name": "s"},
        "architecture": "llama",
    }
    spec = parsed(model=model, quantization=quantization)
    written = {"model": model, "targets": ["cpu"], "quantization": quantization}
    before = json.dumps(written)
    applied = with_upload(spec, written, source_called(MODEL), UPLOAD, digest="sha256:00")
    assert applied["model"] == {
        "source": "s3://b/sources/sha256-00",
        "digest": "sha256:00",
        "onnx": "model.onnx",
        "encodings": "model.encodings",
        "architecture": "llama",
    }
    assert applied["quantization"] == {
        "gaps": "Calibrate",
        "calibration": "calibration.txt",
        "fidelity": {"tokens": "tokens.npy", "budgetNats": 0.02},
    }
    assert json.dumps(written) == before


def test_an_uploaded_draft_is_pinned_and_its_files_are_called_by_their_roles() -> None:
    written: dict[str, Any] = {
        "model": {"source": "s3://m"},
        "speculation": [
            {
                "method": "DraftModel",
                "source": "./draft",
                "onnx": "d.onnx",
                "secretRef": {"name": "s"},
            }
        ],
    }  # fmt: skip
    applied = with_upload(parsed(), written, source_called(DRAFT), UPLOAD, digest="sha256:00")
    assert applied["model"] == written["model"]
    assert applied["speculation"] == [
        {"method": "DraftModel", "source": "s3://b/sources/sha256-00", "digest": "sha256:00",
         "onnx": "model.onnx"}
    ]  # fmt: skip
    assert written["speculation"][0]["source"] == "./draft", "what was given stays"
    part = {"method": "Ssd", "source": "./ssd", "tensorFile": "ssd_params.safetensors"}
    written = {"speculation": [part]}
    applied = with_upload(parsed(), written, source_called(FORECAST), UPLOAD, digest="sha256:00")
    assert applied["speculation"] == [
        {"method": "Ssd", "source": "s3://b/sources/sha256-00", "digest": "sha256:00",
         "tensorFile": "forecast.safetensors"}
    ]  # fmt: skip


def test_an_uploaded_child_is_pinned_and_the_others_stay_as_they_are() -> None:
    children = [
        {"arn": 1, "source": "s3://m/decode", "name": "decode", "secretRef": {"name": "s"}},
        {"arn": 8, "source": "./verify", "onnx": "v.onnx", "encodings": "v.encodings",
         "gaps": "Calibrate", "calibration": "texts/Some.TXT", "secretRef": {"name": "s"}},
    ]  # fmt: skip
    spec = parsed(children=children)
    written = {"model": {"source": "s3://m"}, "children": children}
    before = json.dumps(written)
    source = source_called(child_source("attached_ar8"))
    applied = with_upload(spec, written, source, UPLOAD, digest="sha256:00")
    assert applied["model"] == written["model"]
    assert applied["children"] == [
        children[0],
        {"arn": 8, "source": "s3://b/sources/sha256-00", "digest": "sha256:00",
         "onnx": "model.onnx", "encodings": "model.encodings", "gaps": "Calibrate",
         "calibration": "calibration.txt"},
    ]  # fmt: skip
    assert json.dumps(written) == before


def test_an_uploaded_encoder_is_pinned_and_called_by_its_role() -> None:
    part = {"source": "./vit", "onnx": "vit.onnx", "imageToken": "<i>", "secretRef": {"name": "s"}}
    applied = with_upload(
        parsed(), {"vision": part}, source_called(VISION), UPLOAD, digest="sha256:00"
    )
    assert applied["vision"] == {
        "source": "s3://b/sources/sha256-00", "digest": "sha256:00", "imageToken": "<i>",
        "onnx": "vision_encoder.onnx",
    }  # fmt: skip


def test_inspected_finds_the_files_of_an_adapter_that_its_spec_names(tmp_path: Path) -> None:
    """They are what is sent: without the names PEFT's two files were looked for."""
    (tmp_path / "w.safetensors").write_bytes(b"w")
    (tmp_path / "e.encodings").write_bytes(b"{}")
    source = BuildSource(
        adapter_source("a"),
        str(tmp_path),
        "spec.lora.adapters[0].source",
        files={"weights": "w.safetensors", "encodings": "e.encodings"},
    )
    spec = BuildSpec.model_validate({"model": {"source": "model"}, "targets": ["cpu"]})
    facts = inspected(spec, source)
    assert {file.path.name for file in facts.files.values()} == {"w.safetensors", "e.encodings"}

    written = {"lora": {"adapters": [{"name": "a", "source": "a", **source.files}]}}
    sent = with_upload(spec, written, source, "s3://b/up", digest="sha256:1")
    (adapter,) = sent["lora"]["adapters"]
    assert {adapter["weights"], adapter["encodings"]} == set(facts.files)
    assert "graph" not in adapter
