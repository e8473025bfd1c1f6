"""What is counted; no label holds the name of an object, so the number of series is bounded."""

from __future__ import annotations

from prometheus_client import Counter, Gauge, Histogram

__all__ = [
    "API_REQUESTS",
    "BUILDS",
    "JOBS_ACTIVE",
    "LEASE_HELD",
    "QUEUE_DEPTH",
    "RECONCILE_SECONDS",
    "TASKS",
    "WATCH_MISSED",
]

API_REQUESTS = Counter("genai_api_requests", "Requests to the apiserver", ("verb", "code"))
TASKS = Counter("genai_build_tasks", "Tasks that ended", ("operation", "result"))
RECONCILE_SECONDS = Histogram(
    "genai_reconcile_seconds",
    "One pass over an object",
    ("kind", "result"),
    buckets=(0.005, 0.02, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30),
)
QUEUE_DEPTH = Gauge("genai_queue_depth", "Objects that wait for a pass")
JOBS_ACTIVE = Gauge("genai_jobs_active", "Jobs that have not ended")
BUILDS = Gauge("genai_builds", "Builds by state", ("state",))
WATCH_MISSED = Counter(
    "genai_watch_missed", "Changes that a listing showed and the watch had not delivered", ("kind",)
)
LEASE_HELD = Gauge("genai_lease_held", "1 on the replica that works")
