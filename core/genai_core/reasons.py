"""Reasons of conditions, each once, with what it means and what to do: docs/reasons.md comes of it.

Beside these the `code` of an error (`genai_core.errors`) is a reason: of a task that failed for
good, and of a spec that cannot be read. A reason never changes once published.
"""

from __future__ import annotations

from enum import StrEnum
from typing import Self

__all__ = ["Reason"]


class Reason(StrEnum):
    """A reason; as a string it is the word that stands in the condition.

    Attributes:
        of: Objects that show it.
        means: What is so.
        todo: What whoever reads it does; empty: nothing.
    """

    of: str
    means: str
    todo: str

    def __new__(cls, word: str, of: str, means: str, todo: str = "") -> Self:
        """Take a row in."""
        member = str.__new__(cls, word)
        member._value_ = word
        member.of, member.means, member.todo = of, means, todo
        return member

    # It goes well

    READY = "Ready", "store, target", "it can be used"
    BUILT = "Built", "build", "each target of this generation has its container"
    PROGRESSING = "Progressing", "build, store", "it is being worked on"
    SUSPENDED = "Suspended", "build", "spec.run.suspend is set"
    NEWER_TOOLCHAIN = (
        *("NewerToolchain", "build"),
        "operations or libraries have other versions than the build's container",
        "annotate the build with genai-operator.dev/requestedAt to rebuild it",
    )

    # Its Jobs do not begin

    WAITING_FOR_ADMISSION = (
        *("WaitingForAdmission", "build"),
        "a queue has not admitted its Jobs",
        "wait, or change spec.run.queueName",
    )
    NOT_ADMITTED = (
        *("NotAdmitted", "build, store"),
        "a policy, a webhook, a quota or a missing account: the message has the cluster's words",
        "what the message names; it is tried again every 15 to 60 s",
    )
    UNSCHEDULABLE = (
        *("Unschedulable", "build, store"),
        "no node takes a pod: the message has the scheduler's words",
        "the field that the message names; an edit reaches Jobs that have not started",
    )
    IMAGE_PULL_FAILED = (
        *("ImagePullFailed", "build, store, target"),
        "an image does not come: the message has the kubelet's words",
        "spec.image of the GenAITarget, or spec.run.imagePullSecrets of the build",
    )
    CONTAINER_NOT_CREATED = (
        *("ContainerNotCreated", "build, store"),
        "a container cannot be made: a Secret, or a key of it, is not there",
        "make it, or name another",
    )
    QUOTA_EXCEEDED = (
        *("QuotaExceeded", "build"),
        "the namespace's quota takes no further Job",
        "raise the quota, or lower spec.run.parallelism",
    )
    JOB_REFUSED = (
        *("JobRefused", "build"),
        "the apiserver finds a field of the Job wrong",
        "edit the field of spec.run that the message names",
    )
    JOB_NAME_TAKEN = (
        *("JobNameTaken", "build"),
        "a Job that the operator did not make has the name of one of its own",
        "delete that Job",
    )

    # What it refers to

    STORE_NOT_READY = (
        *("StoreNotReady", "build"),
        "its ArtifactStore is not there, or cannot be used",
        "what the ArtifactStore says",
    )
    TARGET_NOT_FOUND = (
        *("TargetNotFound", "build"),
        "a name in spec.targets is no GenAITarget",
        "correct it; kubectl get genaitargets lists them",
    )
    TARGET_NOT_READY = (
        *("TargetNotReady", "build"),
        "nothing can be built for a GenAITarget",
        "what the GenAITarget says",
    )
    SOURCE_NOT_READY = (
        *("SourceNotReady", "build"),
        "the server that holds a source does not answer",
        "the server; it is looked at again by itself",
    )
    SOURCE_UNREADABLE = (
        *("SourceUnreadable", "build"),
        "a source's server denies access",
        "spec.model.secretRef, or the server's permissions",
    )
    UNSUPPORTED_SOURCE = (
        *("UnsupportedSource", "build"),
        "an address that cannot be read from a cluster",
        "upload the files to a bucket",
    )
    TOOLCHAINS_DIFFER = (
        *("ToolchainsDiffer", "build"),
        "its targets declare different versions of a library that both use",
        "one build for each, or targets of one release",
    )
    NO_ANSWER = (
        *("NoAnswer", "build, store"),
        "a store or a source was waited for as long as a pass may",
        "the server; it is tried again by itself",
    )
    OPERATOR_ERROR = (
        *("OperatorError", "build"),
        "the operator failed at it: the message has the error",
        "the operator's log; a refusal of the apiserver names the right or the field",
    )

    # What tenants may name

    NAMESPACE_NOT_ENABLED = (
        *("NamespaceNotEnabled", "build, store"),
        "the operator has no rights in the namespace",
        "add it to enabledNamespaces, or bind the ClusterRole genai-operator-tenant in it",
    )
    NOT_ALLOWED = (
        *("NotAllowed", "build, store"),
        "the installation does not allow what a field names",
        "the value of the chart that the message names",
    )
    ENDPOINT_NOT_ALLOWED = (
        *("EndpointNotAllowed", "build, store"),
        "an endpoint that is not allowed; the node's and the apiserver's never are",
        "operator.allowedEndpoints of the chart",
    )
    SECRET_NOT_FOUND = "SecretNotFound", "build, store", "there is no such Secret", "make it"
    SECRET_NOT_LABELLED = (
        *("SecretNotLabelled", "build, store"),
        "a Secret without the label that lets stages use it",
        "kubectl label secret NAME genai-operator.dev/use=true",
    )
    SECRET_NOT_ALLOWED = (
        *("SecretNotAllowed", "build, store"),
        "a Secret that holds a token of a service account or a node",
        "make one of type Opaque",
    )
    SECRET_INCOMPLETE = (
        *("SecretIncomplete", "build, store"),
        "a Secret lacks a key",
        "the Secret with AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY",
    )

    # Stores, targets, deployments

    READ_FROM_NOT_FOUND = (
        *("ReadFromNotFound", "store"),
        "a name in spec.readFrom is no ArtifactStore",
        "correct it",
    )
    READ_FROM_NOT_READABLE = (
        *("ReadFromNotReadable", "store"),
        "a store of spec.readFrom is read by another service account",
        "use that account here too, or a Secret",
    )
    CERTIFICATES_TOO_LARGE = (
        *("CertificatesTooLarge", "store"),
        "spec.caBundle is longer than a pod's environment takes",
        "leave the certificates that are needed",
    )
    NO_IMAGE = (
        "NoImage",
        "store",
        "no GenAITarget has an image that a helper Job can run in",
        "a target",
    )
    IMAGE_NOT_CONFIGURED = (
        *("ImageNotConfigured", "target"),
        "spec.image is not set",
        "stages.image.digest of the chart; for htp make image-htp, stages.htpImage.digest",
    )
    TOOLCHAIN_NOT_DECLARED = (
        *("ToolchainNotDeclared", "target"),
        "spec.toolchain lacks a library of the image",
        "stages.toolchain of the chart, as docker run IMAGE toolchain prints it",
    )
    NOT_SERVED_YET = (
        *("NotServedYet", "deployment"),
        "nothing serves containers in a cluster yet",
        "genai pull, then genai serve",
    )
