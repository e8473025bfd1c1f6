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
    PROGRESSING = "Progressing", "build, store, deployment", "it is being worked on"
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
        *("NotAdmitted", "build, store, deployment"),
        "a policy, a webhook, a quota or a missing account: the message has the cluster's words",
        "what the message names; it is tried again every 15 to 60 s",
    )
    UNSCHEDULABLE = (
        *("Unschedulable", "build, store, deployment"),
        "no node takes a pod: the message has the scheduler's words",
        "the field that the message names; an edit reaches Jobs that have not started",
    )
    IMAGE_PULL_FAILED = (
        *("ImagePullFailed", "build, store, target, deployment"),
        "an image does not come: the message has the kubelet's words",
        "spec.image of the GenAITarget, or spec.run.imagePullSecrets of the build",
    )
    CONTAINER_NOT_CREATED = (
        *("ContainerNotCreated", "build, store, deployment"),
        "a container cannot be made: a Secret, or a key of it, is not there",
        "make it, or name another",
    )
    QUOTA_EXCEEDED = (
        *("QuotaExceeded", "build, deployment"),
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
        *("StoreNotReady", "build, deployment"),
        "its ArtifactStore is not there, or cannot be used",
        "what the ArtifactStore says",
    )
    TARGET_NOT_FOUND = (
        *("TargetNotFound", "build, deployment"),
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
        *("NoAnswer", "build, store, deployment"),
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
        *("NamespaceNotEnabled", "build, store, deployment"),
        "the operator has no rights in the namespace",
        "add it to enabledNamespaces, or bind the ClusterRole genai-operator-tenant in it",
    )
    NOT_ALLOWED = (
        *("NotAllowed", "build, store, deployment"),
        "the installation does not allow what a field names",
        "the value of the chart that the message names",
    )
    ENDPOINT_NOT_ALLOWED = (
        *("EndpointNotAllowed", "build, store"),
        "an endpoint that is not allowed; the node's and the apiserver's never are",
        "operator.allowedEndpoints of the chart",
    )
    SECRET_NOT_FOUND = (
        "SecretNotFound",
        "build, store, deployment",
        "there is no such Secret",
        "make it",
    )
    SECRET_NOT_LABELLED = (
        *("SecretNotLabelled", "build, store, deployment"),
        "a Secret without the label that lets stages use it",
        "kubectl label secret NAME genai-operator.dev/use=true",
    )
    SECRET_NOT_ALLOWED = (
        *("SecretNotAllowed", "build, store, deployment"),
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
        "a field that servers in a cluster do not know yet",
        "leave it out; genai serve may know it",
    )
    SERVING = "Serving", "deployment", "every pod answers with the container that is wanted"
    SCALED_TO_ZERO = "ScaledToZero", "deployment", "no pod is wanted"
    PODS_READY = "PodsReady", "deployment", "at least one pod answers"
    NO_POD_READY = (
        *("NoPodReady", "deployment"),
        "no pod answers: the message has the pods' words",
        "what the message names; it comes back by itself when one does",
    )
    ROLLOUT_FAILED = (
        *("RolloutFailed", "deployment"),
        "what was to be rolled out never answers; an earlier container goes on answering",
        "what the message names, then build again, edit the spec, or annotate requestedAt",
    )
    NEWER_SERVER = (
        *("NewerServer", "deployment"),
        "the GenAITarget names another image of the server than the pods run",
        "annotate the deployment with genai-operator.dev/requestedAt to roll it out",
    )
    BUILD_NOT_FOUND = (
        *("BuildNotFound", "deployment"),
        "spec.from.build is no GenAIBuild of the namespace",
        "apply it; the deployment goes on by itself",
    )
    BUILD_NOT_READY = (
        *("BuildNotReady", "deployment"),
        "the GenAIBuild has no container for spec.from.target yet",
        "wait, or see what the GenAIBuild says",
    )
    CONTAINER_NOT_FOUND = (
        *("ContainerNotFound", "deployment"),
        "the store holds no container of the revision that is named",
        "build it again, or name another revision",
    )
    ADAPTER_NOT_FOUND = (
        *("AdapterNotFound", "deployment"),
        "the container carries no adapter of that name",
        "spec.adapters, or spec.lora of the build",
    )
    ADAPTERS_LOADING = (
        *("AdaptersLoading", "deployment"),
        "pods take in adapters; status.adapters says how many have each",
    )
    ADAPTER_FAILED = (
        *("AdapterFailed", "deployment"),
        "pods cannot serve an adapter: status.adapters has the reason; all else is served",
        "what the reason names, then edit spec.adapters",
    )
    MODEL_NAME_SHARED = (
        *("ModelNameShared", "deployment"),
        "a condition: another deployment of the namespace serves a model of the same name",
        "spec.server.modelName of one of them",
    )
    TARGET_NOT_SERVABLE = (
        *("TargetNotServable", "deployment"),
        "containers of the target run on devices, not on nodes",
        "serve the cpu target, or set spec.server.emulate to try a small one",
    )
    SERVING_IMAGE_NOT_CONFIGURED = (
        *("ServingImageNotConfigured", "deployment"),
        "the GenAITarget has no spec.servingImage",
        "serving.image.digest of the chart; for htp make image-serving-htp",
    )
    NAME_TAKEN = (
        *("NameTaken", "deployment"),
        "a Deployment, Service or another object of a name that it uses is somebody else's",
        "remove that, or give the deployment another name",
    )
    REFUSED = (
        *("Refused", "deployment"),
        "the apiserver finds a field of an object wrong that the deployment consists of",
        "edit the field that the message names",
    )
    STORE_WRITABLE = (
        *("StoreWritable", "deployment"),
        "an Event: pods that serve hold keys that may write the store",
        "spec.readSecretRef of the ArtifactStore",
    )
