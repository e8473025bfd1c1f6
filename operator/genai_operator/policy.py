"""What an installation lets tenants name: accounts, classes, taints, identities, Secrets. Pure.

A tenant who may write builds need not be one who may write pods; what only the latter could choose
is chosen here by whoever installs the operator. Patterns are those of file names (`team-*`).
"""

from __future__ import annotations

import shlex
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from fnmatch import fnmatchcase
from typing import Any

from genai_core.kinds.artifact_store import WebIdentity
from genai_core.kinds.build import Run
from genai_core.kinds.deployment import Pods
from genai_core.reasons import Reason
from genai_core.wire import USE_LABEL
from genai_operator.errors import Stalled, Waiting
from genai_operator.settings import SecretLabel, Settings

__all__ = ["Policy"]

_TOKENS = {
    "kubernetes.io/service-account-token": "a service account's token",
    "bootstrap.kubernetes.io/token": "a bootstrap token",
}
_APISERVER = ("kubernetes.default*", "kubernetes", "api")
_AGAIN = 15.0


@dataclass(frozen=True)
class Policy:
    """See the module's docstring."""

    settings: Settings

    def check_run(self, run: Run | Pods, where: str = "spec.run") -> None:
        """Judge how a build's pods, or a deployment's, are to run.

        Args:
            run: What their owner asks for.
            where: The field that it stands in.

        Raises:
            Stalled: Names the field, and what is allowed.
        """
        allowed = self.settings
        name = run.priority_class_name
        if name:
            # A class of the system's goes before every other pod: `*` does not mean it.
            patterns = allowed.allowed_priority_classes
            if name.startswith("system-"):
                patterns = tuple(p for p in patterns if p.startswith("system-"))
                patterns = patterns or ("* without system-...",)
            _check(f"{where}.priorityClassName", name, patterns, "allowedPriorityClasses")
        if run.service_account_name:
            self.check_account(f"{where}.serviceAccountName", run.service_account_name)
        for index, toleration in enumerate(run.tolerations):
            _check(
                f"{where}.tolerations[{index}]",
                toleration.key or "*",
                allowed.allowed_tolerations,
                "allowedTolerations",
            )

    def check_account(self, where: str, name: str) -> None:
        """Judge the service account that pods run under.

        Raises:
            Stalled: Says what is allowed.
        """
        _check(where, name, self.settings.allowed_service_accounts, "allowedServiceAccounts")

    def check_audience(self, identity: WebIdentity) -> None:
        """Judge whom a service account's token is made for; where it is sent is checked apart.

        Raises:
            Stalled: It would be good for the apiserver, or is not allowed.
        """
        where, audience = "spec.webIdentity.audience", identity.audience
        plain = audience.lower().partition("://")[2] or audience.lower()
        own = self.settings.own_audiences
        if audience in own or any(fnmatchcase(plain, pattern) for pattern in _APISERVER):
            raise Stalled(
                Reason.NOT_ALLOWED,
                f"{where}: {audience} is the apiserver's: no pod sends its token away",
            )
        _check(where, audience, self.settings.allowed_audiences, "allowedAudiences")

    def judge_secret(self, secret: Mapping[str, Any]) -> str | None:
        """Judge a Secret that is read, or given to a pod.

        Returns:
            What should be mended about it all the same.

        Raises:
            Waiting: It is not for that.
        """
        meta = secret["metadata"]
        namespace, name = meta["namespace"], meta["name"]
        if (kind := _TOKENS.get(secret.get("type", ""))) is not None:
            raise Waiting(
                Reason.SECRET_NOT_ALLOWED,
                f"Secret {name} is {kind}: name one that holds the store's or the source's keys",
                after=_AGAIN,
            )
        if (meta.get("labels") or {}).get(USE_LABEL) == "true":
            return None
        label = ["kubectl", "-n", namespace, "label", "secret", name, f"{USE_LABEL}=true"]
        why = f"Secret {name} is not labelled for use by builds: {shlex.join(label)}"
        if self.settings.secret_label is SecretLabel.WARN:
            return why
        raise Waiting(Reason.SECRET_NOT_LABELLED, why, after=_AGAIN)


def _check(where: str, name: str, patterns: Sequence[str], value: str) -> None:
    if not any(fnmatchcase(name, pattern) for pattern in patterns):
        what = "a toleration of every taint" if name == "*" else name
        raise Stalled(
            Reason.NOT_ALLOWED,
            f"{where}: {what} is not among those that the operator allows "
            f"({', '.join(patterns) or 'none'}; chart: operator.{value})",
        )
