"""Words that two rooms must write alike: labels and annotations of Jobs and pods."""

from __future__ import annotations

from genai_core.kinds.base import GROUP

__all__ = [
    "ATTEMPT",
    "CHAIN",
    "ENDING",
    "JOB_NAME",
    "KEY",
    "MANAGED",
    "MEMORY",
    "OPERATION",
    "RENDERING",
    "SCOPE",
    "SELECTOR",
    "TASK",
    "TTL",
]

MANAGED = "app.kubernetes.io/managed-by"
SELECTOR = f"{MANAGED}=genai-operator"
"""Of our Jobs and their pods."""
OPERATION = f"{GROUP}/operation"
SCOPE = f"{GROUP}/scope"
ATTEMPT = f"{GROUP}/attempt"
KEY = f"{GROUP}/key"
TASK = f"{GROUP}/task"
MEMORY = f"{GROUP}/memory"
TTL = f"{GROUP}/ttl-seconds"
CHAIN = f"{GROUP}/chain"
ENDING = f"{GROUP}/ending"
"""How a failed Job's pod ended: the pod may go long before the Job does."""
RENDERING = f"{GROUP}/rendering"
"""What its pod is given beside its tasks, and for whom it was written (`kube.job.Rendering`)."""
JOB_NAME = "batch.kubernetes.io/job-name"
