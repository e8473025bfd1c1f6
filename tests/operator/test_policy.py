"""What tenants may name is what the installation lets them, and no Secret or token of others."""

from __future__ import annotations

import asyncio
import base64
import json
import shlex
import ssl
from dataclasses import replace
from typing import Any

import pytest
from fake_apiserver import FakeApiserver

from genai_core.kinds.artifact_store import WebIdentity
from genai_core.kinds.build import Run
from genai_operator.errors import Stalled, Waiting
from genai_operator.kube.apiserver.connection import Connection, audiences
from genai_operator.policy import Policy
from genai_operator.settings import SecretLabel, Settings, read_settings
from genai_operator.stores.open_stores import Stores

LABEL = {"genai-operator.dev/use": "true"}
KEYS = {"AWS_ACCESS_KEY_ID": "a", "AWS_SECRET_ACCESS_KEY": "s"}


def run(**fields: Any) -> Run:
    return Run.model_validate(fields)


def toleration(**fields: Any) -> Run:
    return run(tolerations=[{"key": "fine"}, fields])


@pytest.mark.parametrize(
    ("settings", "asked", "field"),
    [
        ({}, run(priority_class_name="system-node-critical"), "priorityClassName"),
        ({"allowed_priority_classes": ("low",)}, run(priority_class_name="high"), "priorityCl"),
        ({"allowed_priority_classes": ()}, run(priority_class_name="low"), "priorityClassName"),
        ({"allowed_service_accounts": ("b*",)}, run(service_account_name="deployer"), "serviceAc"),
        ({"allowed_tolerations": ("fine",)}, toleration(operator="Exists"), "tolerations[1]"),
        ({"allowed_tolerations": ("fine",)}, toleration(key="gpu"), "tolerations[1]"),
    ],
)
def test_check_run_names_the_field_when_something_is_not_allowed(
    settings: dict[str, Any], asked: Run, field: str
) -> None:
    with pytest.raises(Stalled) as error:
        Policy(Settings(**settings)).check_run(asked)
    assert error.value.reason == "NotAllowed"
    assert f"spec.run.{field}" in error.value.message
    assert "chart: operator.allowed" in error.value.message


@pytest.mark.parametrize(
    ("settings", "asked"),
    [
        ({}, run()),
        ({}, run(priority_class_name="low", service_account_name="any")),
        ({}, toleration(operator="Exists")),
        (
            {"allowed_priority_classes": ("system-node-critical",)},
            run(priority_class_name="system-node-critical"),
        ),
        ({"allowed_tolerations": ("fine", "gpu*")}, toleration(key="gpu-a", value="x")),
        ({"allowed_priority_classes": (), "allowed_service_accounts": ()}, run()),
    ],
)
def test_check_run_lets_pass_what_is_allowed(settings: dict[str, Any], asked: Run) -> None:
    Policy(Settings(**settings)).check_run(asked)


@pytest.mark.parametrize(
    "audience",
    [
        "https://kubernetes.default.svc.cluster.local",
        "https://kubernetes.default.svc",
        "HTTPS://KUBERNETES.DEFAULT.SVC",
        "kubernetes.default.svc",
        "kubernetes",
        "api",
        "https://issuer.example/cluster-7",
    ],
)
def test_check_audience_refuses_the_apiserver_whatever_is_allowed(audience: str) -> None:
    own = frozenset(["https://issuer.example/cluster-7"])
    policy = Policy(Settings(allowed_audiences=("*",), own_audiences=own))
    with pytest.raises(Stalled, match="the apiserver's"):
        policy.check_audience(WebIdentity(role_arn="r", audience=audience))


def test_check_audience_lets_aws_pass_and_others_when_they_are_named() -> None:
    Policy(Settings()).check_audience(WebIdentity(role_arn="r"))
    vault = WebIdentity(role_arn="r", audience="vault")
    with pytest.raises(Stalled, match=r"vault is not among .*sts.amazonaws.com"):
        Policy(Settings()).check_audience(vault)
    Policy(Settings(allowed_audiences=("va*",))).check_audience(vault)


def token(payload: object) -> str:
    body = base64.urlsafe_b64encode(json.dumps(payload).encode()).decode().rstrip("=")
    return f"e30.{body}.c2ln"


@pytest.mark.parametrize(
    ("text", "found"),
    [
        (token({"aud": ["https://issuer.example", "k3s"]}), {"https://issuer.example", "k3s"}),
        (token({"aud": "one"}), {"one"}),
        (token({}), set()),
        (token([1]), set()),
        ("opaque", set()),
        ("a.b.c", set()),
        ("", set()),
    ],
)
def test_audiences_are_those_of_our_own_token(text: str, found: set[str]) -> None:
    assert audiences(Connection("https://x", ssl.create_default_context(), token=text)) == found


def secret(labels: dict[str, str] | None = None, kind: str = "Opaque") -> dict[str, Any]:
    data = {name: base64.b64encode(text.encode()).decode() for name, text in KEYS.items()}
    return {"metadata": {"labels": labels or {}}, "type": kind, "data": data}


def holding(value: dict[str, Any]) -> FakeApiserver:
    """The Secret under each name that is asked for here."""
    api = FakeApiserver()
    for namespace, name in (("team", "s3"), ("t", "s")):
        meta = {"namespace": namespace, "name": name, "uid": "u", **value["metadata"]}
        api.put("secrets", {**value, "metadata": meta})
    return api


def stores(api: FakeApiserver, settings: Settings | None = None) -> Stores:
    return Stores(api, settings or Settings())


def test_secret_is_refused_with_the_line_that_labels_it_when_it_has_no_label() -> None:
    for labels in ({}, {"genai-operator.dev/use": "false"}, {"use": "true"}):
        api = holding(secret(labels))
        with pytest.raises(Waiting) as error:
            asyncio.run(stores(api).credentials("team", "s3"))
        assert error.value.reason == "SecretNotLabelled"
        line = error.value.message.partition(": ")[2]
        assert shlex.split(line) == [
            *("kubectl", "-n", "team", "label", "secret", "s3", "genai-operator.dev/use=true"),
        ]
        assert api.events == []
    found = asyncio.run(stores(holding(secret(LABEL))).credentials("team", "s3"))
    assert found.access_key_id == "a"


def test_secret_is_used_and_an_event_says_what_to_do_when_the_label_is_only_advised() -> None:
    api = holding(secret())
    opened = stores(api, Settings(secret_label=SecretLabel.WARN))

    async def often() -> None:
        for _ in range(3):
            opened.secrets._known.clear()  # as after a while
            assert (await opened.credentials("team", "s3")).access_key_id == "a"

    asyncio.run(often())
    (event,) = api.events
    assert (event["type"], event["reason"]) == ("Warning", "SecretNotLabelled")
    assert "kubectl -n team label secret s3 genai-operator.dev/use=true" in event["message"]
    about = event["involvedObject"]
    assert (about["apiVersion"], about["kind"], about["name"]) == ("v1", "Secret", "s3")


@pytest.mark.parametrize("label", list(SecretLabel))
@pytest.mark.parametrize(
    "kind", ["kubernetes.io/service-account-token", "bootstrap.kubernetes.io/token"]
)
def test_secret_with_a_token_of_the_cluster_is_refused_whatever_its_label(
    label: SecretLabel, kind: str
) -> None:
    with pytest.raises(Waiting) as error:
        asyncio.run(
            stores(holding(secret(LABEL, kind)), Settings(secret_label=label)).credentials("t", "s")
        )
    assert error.value.reason == "SecretNotAllowed"


def a_store(**identity: Any) -> dict[str, Any]:
    spec = {"bucket": "abc", "serviceAccountName": "builder"}
    if identity:
        spec |= {"webIdentity": {"roleArn": "r", **identity}}  # type: ignore[dict-item]
    return {"metadata": {"name": "s", "namespace": "team"}, "spec": spec}


@pytest.mark.parametrize(
    ("identity", "said"),
    [
        ({"audience": "https://kubernetes.default.svc"}, "spec.webIdentity.audience"),
        ({"stsEndpoint": "https://sts.example"}, "spec.webIdentity.stsEndpoint"),
        ({"stsEndpoint": "https://10.96.0.1"}, "spec.webIdentity.stsEndpoint"),
        ({"stsEndpoint": "http://169.254.169.254"}, "spec.webIdentity.stsEndpoint"),
    ],
)
def test_store_is_refused_when_a_token_would_go_where_it_should_not(
    identity: dict[str, Any], said: str
) -> None:
    settings = Settings()
    if "10.96" in identity.get("stsEndpoint", "") or "169" in identity.get("stsEndpoint", ""):
        settings = replace(settings, allowed_sts_endpoints=("*",))
    with pytest.raises(Stalled, match=said):
        asyncio.run(stores(holding(secret()), settings).open(a_store(**identity)))


def test_store_is_opened_when_its_identity_is_allowed() -> None:
    for identity in ({}, {"audience": "sts.amazonaws.com"}):
        opened = asyncio.run(stores(holding(secret())).open(a_store(**identity)))
        assert opened.access.service_account == "builder"
    named = Settings(allowed_service_accounts=("other",))
    with pytest.raises(Stalled, match=r"spec.serviceAccountName: builder is not among"):
        asyncio.run(stores(holding(secret()), named).open(a_store()))


def test_settings_tell_unset_lists_from_empty_ones() -> None:
    base = {"GENAI_OPERATOR_NAMESPACE": "x"}
    unset = read_settings(base)
    assert unset.allowed_tolerations == ("*",)
    empty = read_settings(base | {"GENAI_ALLOWED_TOLERATIONS": "", "GENAI_SECRET_LABEL": "Warn"})
    assert (empty.allowed_tolerations, empty.secret_label) == ((), SecretLabel.WARN)
    with pytest.raises(ValueError, match="Maybe"):
        read_settings(base | {"GENAI_SECRET_LABEL": "Maybe"})
