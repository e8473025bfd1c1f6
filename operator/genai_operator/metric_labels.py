"""Values of metrics' labels: from closed sets, so that nobody makes series at will."""

from __future__ import annotations

from http import HTTPStatus

from genai_core.operations import OPERATIONS

__all__ = ["OPERATION_LABELS", "code_label", "operation_label"]

_OTHER = "other"
_CODES = frozenset(int(code) for code in HTTPStatus)
OPERATION_LABELS = frozenset(row.name for row in OPERATIONS) | {
    *("resolve", "look", "lease", "probe", "collect"),
    "chain",
}
"""Of tasks, of the questions that the operator puts to stores, and of a Job of several tasks."""


def operation_label(name: str) -> str:
    """An operation as a label: whoever may create Jobs may write any other name on them."""
    return name if name in OPERATION_LABELS else _OTHER


def code_label(code: int) -> str:
    """An HTTP status as a label: a tenant's server may answer with any number."""
    return str(code) if code in _CODES else _OTHER
