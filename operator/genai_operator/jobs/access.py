"""What a stage's pod is given so that it reaches the store and the source. Pure.

Credentials are never copied: a Secret's keys come by reference, a service account's token by a
projected volume, a claim by its name. What the operator may not read, it can still hand on.
"""

from __future__ import annotations

import json
from dataclasses import dataclass, field

from genai_core.kinds.artifact_store import WebIdentity
from genai_core.reasons import Reason
from genai_core.sources.source_address import is_archive
from genai_core.wire import SOURCE_KEYS, Variable, reader_keys
from genai_operator.errors import Stalled
from genai_operator.kube.values import Json

__all__ = [
    "ReadAccess",
    "StoreAccess",
    "check_certificates",
    "environment_of",
    "mounts_of",
    "volumes_of",
]

_TOKEN_FOLDER = "/var/run/secrets/genai-operator.dev"  # noqa: S105 - a folder
_TOKEN_SECONDS = 3600
_SOURCE_ROOT = "/source"
_MOST_VARIABLE_BYTES = 120_000
"""Linux takes no environment variable over 128 KiB."""
_KEYS = ("ACCESS_KEY_ID", "SECRET_ACCESS_KEY", "SESSION_TOKEN")


@dataclass(frozen=True)
class ReadAccess:
    """A further store that a pod may read.

    Attributes:
        address: Without credentials.
        secret: Name of the Secret with its credentials; empty: the service account's.
        ca: Certificates (PEM), or empty.
    """

    address: str
    secret: str = ""
    ca: str = ""


@dataclass(frozen=True)
class StoreAccess:
    """How a stage's pod reaches the store and the source.

    Attributes:
        address: Of the store, without credentials.
        secret: Name of the Secret with its credentials; empty: the service account's.
        service_account: Of the pod; empty: the namespace's default.
        ca: Certificates (PEM), or empty.
        web_identity: How the service account's token becomes credentials, where the cluster does
            not see to that itself.
        read_from: Stores that are looked into besides.
        source: Address of the model.
        source_secret: Name of the Secret for the source, where it has its own.
        source_claim: The PersistentVolumeClaim that the source lies in, if it does.
        source_hosts: Patterns of the hosts that archives may come from.
    """

    address: str
    secret: str = ""
    service_account: str = ""
    ca: str = ""
    web_identity: WebIdentity | None = None
    read_from: tuple[ReadAccess, ...] = ()
    source: str = ""
    source_secret: str = ""
    source_claim: str = ""
    source_hosts: tuple[str, ...] = field(default=("*",))


def check_certificates(access: StoreAccess) -> None:
    """Refuse certificates that no pod could be given.

    Raises:
        Stalled: They are too many.
    """
    for entry in environment_of(access, reads_source=False):
        size = len(entry.get("value", "").encode())
        if size > _MOST_VARIABLE_BYTES:
            raise Stalled(
                Reason.CERTIFICATES_TOO_LARGE,
                f"spec.caBundle, with those of spec.readFrom, takes {size} bytes, and a pod can be "
                f"given {_MOST_VARIABLE_BYTES}: leave out certificates that the endpoints do not "
                "need",
            )


def environment_of(access: StoreAccess, *, reads_source: bool) -> list[Json]:
    """Variables of the container, which core's `pod_store` and `source_access` read."""
    variables: list[Json] = [{"name": Variable.STORE, "value": access.address}]
    if access.ca:
        variables.append({"name": Variable.STORE_CA, "value": access.ca})
    if access.secret:
        variables += _from_secret(access.secret, "AWS_")
    else:
        variables.append({"name": Variable.TELL, "value": "1"})
        if access.web_identity is not None:
            variables += _web_identity(access.web_identity)
    if access.read_from:
        entries = [
            {"address": r.address} | ({"ca": r.ca} if r.ca else {}) for r in access.read_from
        ]
        variables.append({"name": Variable.READ_FROM, "value": json.dumps(entries)})
        for number, reader in enumerate(access.read_from):
            if reader.secret:
                variables += _from_secret(reader.secret, reader_keys(number))
    if reads_source:
        variables += _of_source(access)
    return variables


def _of_source(access: StoreAccess) -> list[Json]:
    if access.source_claim:
        return [{"name": Variable.SOURCE_ROOT, "value": _SOURCE_ROOT}]
    if not is_archive(access.source):
        return _from_secret(access.source_secret, SOURCE_KEYS) if access.source_secret else []
    variables: list[Json] = [
        {"name": Variable.SOURCE_HOSTS, "value": ",".join(access.source_hosts)}
    ]
    if access.source_secret:
        variables.append(_secret_key(Variable.SOURCE_TOKEN, access.source_secret, "token"))
    return variables


def volumes_of(access: StoreAccess, *, reads_source: bool) -> list[Json]:
    """Volumes of the pod."""
    volumes: list[Json] = []
    if access.web_identity is not None and not access.secret:
        token = {
            "audience": access.web_identity.audience,
            "expirationSeconds": _TOKEN_SECONDS,
            "path": "token",
        }
        volumes.append(
            {"name": "identity", "projected": {"sources": [{"serviceAccountToken": token}]}}
        )
    if reads_source and access.source_claim:
        claim = {"claimName": access.source_claim, "readOnly": True}
        volumes.append({"name": "source", "persistentVolumeClaim": claim})
    return volumes


def mounts_of(access: StoreAccess, *, reads_source: bool) -> list[Json]:
    """Where the container has them."""
    places = {"identity": _TOKEN_FOLDER, "source": _SOURCE_ROOT}
    return [
        {"name": volume["name"], "mountPath": places[volume["name"]], "readOnly": True}
        for volume in volumes_of(access, reads_source=reads_source)
    ]


def _web_identity(identity: WebIdentity) -> list[Json]:
    values = {
        "AWS_WEB_IDENTITY_TOKEN_FILE": f"{_TOKEN_FOLDER}/token",
        "AWS_ROLE_ARN": identity.role_arn,
        "AWS_ROLE_SESSION_NAME": "genai-operator",
    }
    if identity.sts_endpoint is not None:
        values["AWS_ENDPOINT_URL_STS"] = identity.sts_endpoint
    return [{"name": name, "value": value} for name, value in values.items()]


def _from_secret(name: str, prefix: str) -> list[Json]:
    return [
        _secret_key(f"{prefix}{key}", name, f"AWS_{key}", optional=key == "SESSION_TOKEN")
        for key in _KEYS
    ]


def _secret_key(variable: str, secret: str, key: str, *, optional: bool = False) -> Json:
    reference = {"name": secret, "key": key, "optional": optional}
    return {"name": variable, "valueFrom": {"secretKeyRef": reference}}
