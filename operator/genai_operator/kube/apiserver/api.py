"""The apiserver as the operator needs it, and how it refuses.

Whoever reads or writes objects takes an `Api`; `client` is the one that sends requests.
"""

from __future__ import annotations

from typing import Protocol

from genai_operator.kube.values import Json

__all__ = ["MANAGER", "Api", "ApiError", "NotLeading"]

MANAGER = "genai-operator"
"""Our field manager."""


class ApiError(Exception):
    """The apiserver refused.

    Attributes:
        code: HTTP status.
        reason: Its word for it, e.g. `AlreadyExists`.
        fields: Of the object, that it finds wrong. A policy that denies names none.
    """

    def __init__(
        self, code: int, reason: str, message: str, *, fields: tuple[str, ...] = ()
    ) -> None:
        super().__init__(f"{code} {reason}: {message}")
        self.code = code
        self.reason = reason
        self.message = message
        self.fields = fields


class NotLeading(ApiError):
    """This replica must not write: its Lease has run out, and another may have taken it."""

    def __init__(self) -> None:
        super().__init__(
            0, "NotLeading", "this replica did not renew its Lease in time, another may work by now"
        )


class Api(Protocol):
    """Requests to the apiserver; each may raise `ApiError`, a client's error or `TimeoutError`."""

    @property
    def server(self) -> str:
        """The apiserver's address."""
        ...

    async def served(self) -> set[str]:
        """Resources of our own group that the apiserver serves, e.g. `genaibuilds/status`."""
        ...

    async def get(self, plural: str, name: str, *, namespace: str = "") -> Json | None:
        """One object; None where there is none."""
        ...

    async def read(self, plural: str, pod: str, *, namespace: str, most_bytes: int) -> str | None:
        """What a pod's container wrote (`pods/log`); None where the pod is gone."""
        ...

    async def create(self, plural: str, value: Json, *, namespace: str) -> Json:
        """Create.

        Raises:
            ApiError: Among others 409, it is there already.
        """
        ...

    async def replace(self, plural: str, value: Json, *, namespace: str) -> Json:
        """Update; refused with 409 where the object changed since it was read."""
        ...

    async def apply(self, plural: str, value: Json, *, namespace: str) -> Json:
        """Server-side apply of an object of ours; it is created where it is not there."""
        ...

    async def apply_status(self, plural: str, value: Json, *, namespace: str = "") -> Json:
        """Server-side apply of a status: what we no longer say is removed."""
        ...

    async def merge_lists(self, plural: str, name: str, value: Json, *, namespace: str) -> Json:
        """Strategic merge: entries of lists are added or dropped by their keys."""
        ...

    async def delete(
        self, plural: str, name: str, *, namespace: str, uid: str, grace: int | None = None
    ) -> bool:
        """Delete exactly that object, its children in the background; False where it is gone."""
        ...

    async def list(
        self,
        plural: str,
        *,
        namespace: str = "",
        name: str = "",
        labels: str = "",
        about: str = "",
        most: int = 0,
        fresh: bool = False,
        names_only: bool = False,
    ) -> tuple[list[Json], int]:
        """All objects, projected, and the version of the whole listing; one by its name is whole.

        Args:
            plural: Of the kind.
            namespace: Empty = all.
            name: Only the one of that name.
            labels: Selector.
            about: Of events: only those about the object with that UID.
            most: So many at most; 0: all.
            fresh: Ask etcd, not the apiserver's cache.
            names_only: Their metadata alone.
        """
        ...
