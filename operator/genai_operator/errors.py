"""Three kinds of failure, and what each means to a user.

Stalled    the user must act                     Ready=False, Stalled=True
Waiting    something else must happen first      Ready=Unknown, Reconciling=True, tried again
(others)   ours or the apiserver's               logged, tried again with growing pauses
"""

from __future__ import annotations

from typing import TypeAlias

from genai_core.errors import BadInput, GenAIError, SourceNotFound, StoreUnreadable
from genai_core.names import TaskId
from genai_core.reasons import Reason

__all__ = ["Failure", "Stalled", "Waiting", "not_enabled", "of_error"]


Failure: TypeAlias = tuple[TaskId, GenAIError, str]
"""Task, error, digest of the log."""


class Stalled(Exception):
    """The user must act.

    Args:
        reason: CamelCase, as in a condition.
        message: For people.
        failure: Of the task that failed for good, if one did, with the digest of its log.
    """

    def __init__(self, reason: str, message: str, *, failure: Failure | None = None) -> None:
        super().__init__(message)
        self.reason = reason
        self.message = message
        self.failure = failure


class Waiting(Exception):
    """Something else must happen first.

    Args:
        reason: CamelCase, as in a condition.
        message: For people.
        after: Seconds until it is looked at again.
        most: Seconds that this grows to while nothing changes; 0: it does not grow.
    """

    def __init__(
        self, reason: str, message: str, *, after: float = 10.0, most: float = 0.0
    ) -> None:
        super().__init__(message)
        self.reason = reason
        self.message = message
        self.after = after
        self.most = most


def not_enabled(what: str, namespace: str) -> Waiting:
    """The namespace does not let the operator do that yet."""
    return Waiting(
        Reason.NAMESPACE_NOT_ENABLED,
        f"the operator may not {what} in namespace {namespace}; enable the namespace by a "
        "RoleBinding to the operator's tenant role (chart: enabledNamespaces)",
    )


def of_error(error: GenAIError) -> Stalled | Waiting:
    """What an error of ours means.

    A store that denies access is waited for: credentials are mended without touching the build.
    """
    if isinstance(error, SourceNotFound):
        return Waiting(error.code, str(error), after=15.0, most=300.0)
    if isinstance(error, StoreUnreadable):
        return Waiting(Reason.STORE_NOT_READY, str(error), after=5.0)
    if isinstance(error, BadInput):
        return Stalled(error.code, str(error))
    return Waiting(error.code, str(error), after=5.0)
