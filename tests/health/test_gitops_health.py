"""What Argo CD and Flux say of each state that the operator writes: asked of their own code.

tests/health/checks is a Go program of Argo CD's Lua runtime, kstatus, and Flux' CEL. It gets the
statuses that `status.py` makes for every row of the contract's table, and the scripts that are
shipped.
"""

from __future__ import annotations

import asyncio
import json
import subprocess
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import yaml
from fake_apiserver import FakeApiserver
from harness import programs

from genai_core.errors import StoreUnavailable, StoreUnreadable
from genai_core.kinds.definitions.crd import crd
from genai_core.kinds.definitions.defined_kinds import KINDS
from genai_core.names import Digest, Key
from genai_core.store.address import StoreAddress
from genai_core.tasks.record import Record, ToolchainUsed
from genai_operator.builds.status import Outcome, build_status
from genai_operator.errors import Waiting
from genai_operator.kube.status.conditions import condition, conditions
from genai_operator.kube.status.status_phase import Phase
from genai_operator.kube.watch.observed import Observed
from genai_operator.stores.reconciler import StoreReconciler
from genai_operator.targets.reconciler import TargetReconciler

ROOT = Path(__file__).parents[2]
HEALTH = ROOT / "deploy" / "health"
GROUP = "genai-operator.dev"
NOW = datetime(2026, 1, 1, tzinfo=UTC)
STORE = StoreAddress("bucket", "ns", "http://s3:7070")
RECORD = Record(
    operation="package", key=Key("b" * 64), toolchain=ToolchainUsed(id=Digest("c" * 64)),
    created_at=NOW, facts={"revision": "sha256:" + "a" * 64, "sizeBytes": 12, "verified": "Cpu"},
)  # fmt: skip
NOT_SEEN = {"observedGeneration": -1}


@pytest.fixture(scope="module")
def checks() -> Path:
    """The Go program."""
    found = programs.pinned("health-checks", Path(__file__).parent / "checks")
    if found is None:
        pytest.skip("ARGO CD AND FLUX WERE NOT ASKED: `make test-health` compiles their code")
    return found


@dataclass(frozen=True)
class Row:
    """A state, and what each of the three makes of it; None: it has no rule of its own."""

    name: str
    object: dict[str, Any]
    argocd: str
    kstatus: str
    flux: str = ""
    says: str = ""


def thing(kind: str, status: Any, generation: int = 1, **meta: Any) -> dict[str, Any]:
    found = {
        "apiVersion": f"{GROUP}/v1alpha1",
        "kind": kind,
        "metadata": {"name": "x", "namespace": "n", "generation": generation} | meta,
        "spec": {},
    }
    return found if status is None else found | {"status": status}


def built(state: Phase, reason: str, *, message: str = "", **more: Any) -> dict[str, Any]:
    """A build's status, where an earlier generation was built if `earlier`."""
    earlier = more.pop("earlier", False)
    before = Outcome(Phase.READY, "Built", containers={"cpu": RECORD}, targets=["cpu"], store=STORE)
    previous = build_status(before, {}, generation=1, now=NOW) if earlier else {}
    outcome = Outcome(state, reason, message, targets=["cpu"], store=STORE, **more)
    return build_status(outcome, previous, generation=2 if earlier else 1, now=NOW)


def build_rows() -> list[Row]:
    def row(name: str, status: Any, wanted: tuple[str, str, str], **more: Any) -> Row:
        generation = more.pop("generation", (status or {}).get("observedGeneration", 1))
        says = more.pop("says", "")
        if generation == -1:
            generation = 1
        found = thing("GenAIBuild", status, generation, **more)
        return Row(name, found, *wanted, says=says)

    going = ("Progressing", "InProgress", "InProgress")
    done = ("Healthy", "Current", "Current")
    bad = ("Degraded", "Failed", "Failed")
    return [
        row("nobody looked yet", NOT_SEEN, going),
        row("the first look is not over", NOT_SEEN | {"conditions": []}, going),
        row(
            "building", built(Phase.BUILDING, "Progressing", message="14/19: compile/2"), going,
            says="14/19: compile/2",
        ),
        row("building anew", built(Phase.BUILDING, "Progressing", earlier=True), going),
        row("built", built(Phase.READY, "Built", message="built cpu", containers={"cpu": RECORD}),
            done, says="Built: built cpu"),
        row("built before, edited since", built(Phase.READY, "Built"), going, generation=2),
        row(
            "built, the toolchain is newer", built(Phase.READY, "Built", outdated="numpy is newer"),
            done, says="set the annotation",
        ),
        row("the user must act", built(Phase.STALLED, "BadModel", message="no layers"), bad,
            says="BadModel: no layers"),
        row("the user must act, the last one is good",
            built(Phase.STALLED, "InvalidSpec", earlier=True), bad),
        row("failed before, mended since", built(Phase.STALLED, "BadModel"), going, generation=2),
        row("waiting for its store", built(Phase.WAITING, "StoreNotReady", message="no Secret"),
            going, says="StoreNotReady: no Secret"),
        row("waiting for a target", built(Phase.WAITING, "TargetNotFound", earlier=True), going),
        row("suspended", built(Phase.SUSPENDED, "Suspended"),
            ("Suspended", "InProgress", "Current"), says="Suspended"),
        row("suspended, the last one is good", built(Phase.SUSPENDED, "Suspended", earlier=True),
            ("Suspended", "InProgress", "Current")),
        row("being deleted", built(Phase.READY, "Built"),
            ("Progressing", "Terminating", "Current"), deletionTimestamp="2026-01-01T00:00:00Z"),
    ]  # fmt: skip


def last_status(api: FakeApiserver) -> dict[str, Any]:
    status: dict[str, Any] = api.statuses[-1]["status"]
    return status


def target_status(**spec: Any) -> dict[str, Any]:
    api, observed = FakeApiserver(), Observed()
    value = thing("GenAITarget", None) | {"spec": {"backend": "Cpu"} | spec}
    value["metadata"] |= {"namespace": "", "uid": "u"}
    api.put("genaitargets", value)
    observed.targets.put(value, value)
    asyncio.run(TargetReconciler(api, observed).reconcile("", "x"))
    return last_status(api)


def store_status(problem: Exception | None) -> dict[str, Any]:
    class Stores:
        async def open(self, _value: Any) -> Any:
            if isinstance(problem, Waiting):
                raise problem
            return SimpleNamespace(store=self, access=SimpleNamespace(address="s3://bucket/n"))

        def probe(self) -> Any:
            if problem is not None:
                raise problem
            return SimpleNamespace(conditional_create=True)

    api, observed = FakeApiserver(), Observed()
    value = thing("ArtifactStore", None)
    value["metadata"]["uid"] = "u"
    api.put("artifactstores", value)
    observed.stores.put(value, value)
    asyncio.run(StoreReconciler(api, observed, Stores()).reconcile("n", "x"))  # type: ignore[arg-type]
    return last_status(api)


def other_rows() -> list[Row]:
    going = ("Progressing", "InProgress")
    image = "example.org/stages@sha256:" + "1" * 64
    return [
        Row("target that nobody looked at", thing("GenAITarget", NOT_SEEN), *going, "InProgress"),
        Row("store that nobody looked at", thing("ArtifactStore", NOT_SEEN), *going),
        Row("target without an image", thing("GenAITarget", target_status()),
            "Suspended", "Failed", "Current", "ImageNotConfigured"),
        Row("target without a toolchain", thing("GenAITarget", target_status(image=image)),
            "Degraded", "Failed", "Failed", "ToolchainNotDeclared"),
        Row("target of a chip that is none",
            thing("GenAITarget", target_status(backend="Htp", chipset="SM0", image=image)),
            "Degraded", "Failed", "Failed"),
        Row("store that works", thing("ArtifactStore", store_status(None)),
            "Healthy", "Current", says="s3://bucket/n can be written"),
        Row("store whose Secret is to come",
            thing("ArtifactStore", store_status(Waiting("SecretNotFound", "there is no Secret s"))),
            *going, says="there is no Secret s"),
        Row("store that does not answer",
            thing("ArtifactStore", store_status(StoreUnavailable("no route"))), *going,
            says="no route"),
        Row("store that refuses", thing("ArtifactStore", store_status(StoreUnreadable("denied"))),
            "Degraded", "Failed", says="denied"),
        Row("store that works, edited since", thing("ArtifactStore", store_status(None), 2),
            *going),
    ]  # fmt: skip


def deployment_rows() -> list[Row]:
    """The contract's own words on deployments: their conditions have the builds' convention."""

    def row(
        name: str, wanted: tuple[str, str], *shown: tuple[str, str, str], says: str = ""
    ) -> Row:
        made = [condition(*one, message="so", generation=1) for one in shown]
        status = {"observedGeneration": 1, "conditions": conditions(made, (), NOW)}
        return Row(name, thing("GenAIDeployment", status), *wanted, says=says)

    return [
        row("rolling out", ("Progressing", "InProgress"),
            ("Ready", "Unknown", "Progressing"), ("Reconciling", "True", "Progressing")),
        row("serving", ("Healthy", "Current"),
            ("Ready", "True", "Serving"), ("Available", "True", "Serving")),
        row("rolled back", ("Degraded", "Failed"), ("Ready", "False", "RolledBack"),
            ("Stalled", "True", "RolledBack"), ("Available", "True", "Serving"),
            says="RolledBack: so; the last good revision serves"),
        row("cannot serve", ("Degraded", "Failed"), ("Ready", "False", "TargetNotServable"),
            ("Stalled", "True", "TargetNotServable"), says="TargetNotServable: so"),
    ]  # fmt: skip


ROWS = [*build_rows(), *other_rows(), *deployment_rows()]


def overrides() -> dict[str, str]:
    """As Argo CD reads its ConfigMap: resource.customizations.health.<group>_<kind>."""
    text = (HEALTH / "argocd" / "argocd-cm.yaml").read_text()
    data = yaml.safe_load(text)["data"]
    prefix = "resource.customizations.health."
    assert all(key.startswith(prefix) for key in data)
    return {key.removeprefix(prefix).replace("_", "/"): script for key, script in data.items()}


def expressions() -> dict[str, Any]:
    patch = yaml.safe_load((HEALTH / "flux" / "kustomization-patch.yaml").read_text())
    return {
        entry["kind"]: {k: v for k, v in entry.items() if k not in {"apiVersion", "kind"}}
        for entry in patch["spec"]["healthCheckExprs"]
    }


def ask(
    checks: Path, objects: list[dict[str, Any]], scripts: dict[str, str]
) -> list[dict[str, Any]]:
    question = {"overrides": scripts, "expressions": expressions(), "objects": objects}
    ran = subprocess.run(
        [str(checks)], input=json.dumps(question), capture_output=True, text=True, check=False
    )
    assert ran.returncode == 0, ran.stderr
    found: list[dict[str, Any]] = json.loads(ran.stdout)
    return found


@pytest.fixture(scope="module")
def answers(checks: Path) -> dict[str, dict[str, Any]]:
    found = ask(checks, [row.object for row in ROWS], overrides())
    return dict(zip([row.name for row in ROWS], found, strict=True))


@pytest.mark.parametrize("row", ROWS, ids=lambda row: row.name.replace(" ", "-"))
def test_argo_cd_and_flux_read_each_state_as_it_is_meant(
    row: Row, answers: dict[str, dict[str, Any]]
) -> None:
    found = answers[row.name]
    assert found["argocd"]["status"] == row.argocd, found
    assert found["kstatus"]["status"] == row.kstatus, found
    assert found["flux"]["status"] == row.flux, found
    assert row.says in found["argocd"]["message"], found


def test_an_apiserver_with_our_crds_never_shows_an_object_without_a_status(
    checks: Path,
) -> None:
    """Without the CRDs' default kstatus takes what nobody has looked at for finished."""
    objects = []
    for kind in KINDS:
        schema = crd(kind)["spec"]["versions"][0]["schema"]["openAPIV3Schema"]
        status = schema["properties"]["status"]["default"]
        objects += [thing(kind.kind, status), thing(kind.kind, None)]
    found = ask(checks, objects, overrides())
    assert {answer["kstatus"]["status"] for answer in found[::2]} == {"InProgress"}
    assert {answer["kstatus"]["status"] for answer in found[1::2]} == {"Current"}
    assert {answer["argocd"]["status"] for answer in found} == {"Progressing"}


def test_a_wrong_script_and_a_kind_without_one_are_told(checks: Path) -> None:
    """So that the tests above cannot pass by asking nothing."""
    objects = [thing("GenAIBuild", NOT_SEEN), thing("ArtifactStore", NOT_SEEN)]
    first, second = ask(checks, objects, {f"{GROUP}/GenAIBuild": "return {status = 'Splendid'}"})
    assert first["argocd"]["status"] == "Unknown"
    assert second["argocd"]["status"] == ""


def test_every_kind_has_its_script_and_the_configmap_holds_the_same() -> None:
    folder = HEALTH / "argocd" / GROUP
    scripts = {f"{GROUP}/{p.parent.name}": p.read_text() for p in folder.glob("*/health.lua")}
    assert set(scripts) == {f"{GROUP}/{kind.kind}" for kind in KINDS}
    assert overrides() == scripts
