"""What is counted; no label holds the name of an object, so the number of series is bounded.

Every replica watches, so gauges of what is seen (builds, stores, targets, Jobs) stand on each of
them and are read with `max`; work (tasks, builds, passes, requests) is counted by the replica that
holds the Lease, and is read with `sum`.
"""

from __future__ import annotations

from prometheus_client import Counter, Gauge, Histogram

__all__ = [
    "API_REQUESTS",
    "API_SECONDS",
    "BUILDS",
    "BUILDS_BLOCKED",
    "BUILDS_ENDED",
    "BUILD_SECONDS",
    "DEPLOYMENTS",
    "JOBS_ACTIVE",
    "LEASE_HELD",
    "QUEUE_DEPTH",
    "QUEUE_SECONDS",
    "RECONCILE_SECONDS",
    "S3_REQUESTS",
    "STORES",
    "TARGETS",
    "TASKS",
    "TASK_RETRIES",
    "TASK_SECONDS",
    "WATCH_COMPARED",
    "WATCH_DEAF",
    "WATCH_EVENT",
    "WATCH_MISSED",
]

_QUICK = (0.005, 0.02, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30)
_LONG = (1, 2, 5, 10, 20, 60, 120, 300, 600, 1200, 3600, 7200, 14400)

# Builds
BUILDS = Gauge("genai_builds", "Builds by state", ("state",))
BUILDS_BLOCKED = Gauge(
    "genai_builds_blocked", "Builds whose Jobs the cluster does not start, by why", ("reason",)
)
BUILDS_ENDED = Counter(
    "genai_builds_ended", "Generations of builds that were built or need the user", ("reason",)
)
BUILD_SECONDS = Histogram(
    "genai_build_seconds",
    "From a build's first pass, or its last failure, to Built; waiting and suspension included",
    buckets=_LONG,
)

# Deployments
DEPLOYMENTS = Gauge("genai_deployments", "Deployments by state", ("state",))

# Tasks and Jobs
TASKS = Counter(
    "genai_build_tasks",
    "Attempts of tasks that ended (succeeded, failed), and tasks of finished builds whose result "
    "was in the store (cached)",
    ("operation", "result"),
)
TASK_SECONDS = Histogram(
    "genai_build_task_seconds",
    "From a Job's creation to its end: scheduling and image pulls included; a Job of several "
    "tasks is operation `chain`",
    ("operation", "result"),
    buckets=_LONG,
)
TASK_RETRIES = Counter(
    "genai_build_task_retries", "Further attempts of tasks, by why", ("operation", "reason")
)
JOBS_ACTIVE = Gauge("genai_jobs_active", "Jobs that have not ended")

# What builds refer to
STORES = Gauge("genai_stores", "ArtifactStores by status of Ready", ("ready",))
TARGETS = Gauge("genai_targets", "GenAITargets by status of Ready", ("ready",))

# The operator itself
RECONCILE_SECONDS = Histogram(
    "genai_reconcile_seconds", "One pass over an object", ("kind", "result"), buckets=_QUICK
)
QUEUE_DEPTH = Gauge(
    "genai_queue_depth", "Objects that are due and wait for a worker, on the replica that works"
)
QUEUE_SECONDS = Histogram(
    "genai_queue_wait_seconds",
    "How long a due object waited for a worker",
    ("kind",),
    buckets=(*_QUICK, 60, 120, 300),
)
WATCH_EVENT = Gauge(
    "genai_watch_event_timestamp_seconds", "When a watch delivered something last", ("kind",)
)
WATCH_COMPARED = Gauge(
    "genai_watch_compared_timestamp_seconds",
    "When all that the watches delivered was last compared with a listing",
)
WATCH_MISSED = Counter(
    "genai_watch_missed", "Changes that a listing showed and the watch had not delivered", ("kind",)
)
WATCH_DEAF = Gauge(
    "genai_watch_deaf",
    "1 where several comparisons found changes and the watch delivered nothing",
    ("kind",),
)
LEASE_HELD = Gauge("genai_lease_held", "1 on the replica that works")

# What the operator asks
API_REQUESTS = Counter("genai_api_requests", "Requests to the apiserver", ("verb", "code"))
API_SECONDS = Histogram(
    "genai_api_request_seconds", "Requests to the apiserver", ("verb",), buckets=_QUICK
)
S3_REQUESTS = Counter(
    "genai_s3_requests",
    "Requests to stores and sources, every attempt; code `none` = no answer",
    ("operation", "code"),
)
