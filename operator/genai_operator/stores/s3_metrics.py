"""Counts what is asked of S3 servers: one hook on boto3's session, which all clients come from.

botocore asks after every attempt whether it is to be repeated, so this sees what a retry hides: a
server that answers 503 twice before it answers, or a connection that was cut.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from genai_operator.metric_labels import code_label
from genai_operator.metrics import S3_REQUESTS

if TYPE_CHECKING:
    from boto3.session import Session

__all__ = ["count_requests"]

_NO_ANSWER = "none"


def count_requests(session: Session) -> None:
    """Count the requests of every client that this session makes from now on."""
    session.events.register("needs-retry.s3", _count, unique_id="genai-operator-metrics")


def _count(operation: Any, response: Any, **_: object) -> None:
    code = _NO_ANSWER if response is None else code_label(response[0].status_code)
    S3_REQUESTS.labels(operation=operation.name, code=code).inc()
