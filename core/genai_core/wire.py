"""Words that two rooms must write alike: labels, annotations, variables and files of a stage's pod.

The operator writes them, stages and the command line read them.
"""

from __future__ import annotations

from enum import StrEnum

__all__ = [
    "ATTEMPT",
    "CHAIN",
    "DEPLOYMENT",
    "ENDING",
    "GROUP",
    "JOB_NAME",
    "KEY",
    "MANAGED",
    "MEMORY",
    "OPERATION",
    "RENDERING",
    "REQUESTED_AT",
    "REVISION",
    "SCOPE",
    "SELECTOR",
    "SOURCE_KEYS",
    "STAGE_CONTAINER",
    "TASK",
    "TERMINATION_LOG",
    "TTL",
    "USE_LABEL",
    "VERSION",
    "Variable",
    "reader_keys",
]


GROUP = "genai-operator.dev"
VERSION = "v1alpha1"
REQUESTED_AT = f"{GROUP}/requestedAt"
"""Annotation with which a user asks for a rebuild with the current toolchain."""
USE_LABEL = f"{GROUP}/use"
"""Label, "true" on Secrets that builds and stores may use."""
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
DEPLOYMENT = f"{GROUP}/deployment"
"""Label of a server's pod: the GenAIDeployment's name."""
REVISION = f"{GROUP}/revision"
"""Annotation of a server's pod: the container that it serves."""

STAGE_CONTAINER = "stage"
"""The container of a stage's pod."""
TERMINATION_LOG = "/dev/termination-log"
"""Where a container leaves its outcome, error, peak memory and the log's digest."""


class Variable(StrEnum):
    """Variables of a stage's container."""

    STORE = "GENAI_STORE"
    """Address of the store; on a laptop, the store where no option names one."""
    STORE_CA = "GENAI_STORE_CA"
    """PEM certificates of its endpoint."""
    READ_FROM = "GENAI_READ_FROM"
    """JSON: stores that are looked into besides."""
    SOURCE_ROOT = "GENAI_SOURCE_ROOT"
    """Folder at which a claim that holds a source is mounted."""
    SOURCE_HOSTS = "GENAI_SOURCE_HOSTS"
    """Patterns of the servers that a source may be downloaded from."""
    SOURCE_TOKEN = "GENAI_SOURCE_TOKEN"  # noqa: S105 - a name
    """Sent to the server of a source."""
    SCRATCH = "GENAI_SCRATCH"
    """Folder for what a task writes before it is stored."""
    TASK = "GENAI_TASK"
    """What the pod is to do: see `genai_core.tasks.task_file`."""
    TASK_SECONDS = "GENAI_TASK_SECONDS"
    """Longest that one task of a chain may take."""
    TELL = "GENAI_TELL"
    """Set where the operator cannot read the store: what a Job found goes to its log."""


SOURCE_KEYS = "GENAI_SOURCE_"
"""Before the names of a source's own credentials (`AWS_...` without the `AWS_`)."""


def reader_keys(number: int) -> str:
    """The same of a store that is looked into besides, by its place in READ_FROM."""
    return f"GENAI_READ_{number}_"
