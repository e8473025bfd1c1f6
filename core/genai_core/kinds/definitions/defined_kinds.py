"""What each kind's definition says beside its schema: names, columns of `kubectl get`, CEL rules.

What two fields say together is a rule; the models' own validators say the same to `genai build`.
"""

from __future__ import annotations

from dataclasses import dataclass

from pydantic import BaseModel

from genai_core.kinds.artifact_store import ArtifactStoreSpec, ArtifactStoreStatus
from genai_core.kinds.build import BuildSpec
from genai_core.kinds.build_status import BuildStatus
from genai_core.kinds.definitions.structural_schema import Schema
from genai_core.kinds.deployment import DeploymentSpec
from genai_core.kinds.deployment_status import DeploymentStatus
from genai_core.kinds.target import TargetSpec, TargetStatus


@dataclass(frozen=True)
class Column:
    """A column of `kubectl get`; priority 1 = only with `-o wide`."""

    name: str
    path: str
    type: str = "string"
    priority: int = 0

    def as_json(self) -> Schema:
        """In the form of additionalPrinterColumns."""
        column: Schema = {"name": self.name, "type": self.type, "jsonPath": self.path}
        return column | ({"priority": self.priority} if self.priority else {})


@dataclass(frozen=True)
class Rule:
    """A CEL rule on the object at `path` (dotted, below the root)."""

    path: str
    rule: str
    message: str


@dataclass(frozen=True)
class DefinedKind:
    """What a CRD says beside its schema."""

    kind: str
    plural: str
    singular: str
    short: tuple[str, ...]
    scope: str
    spec: type[BaseModel]
    status: type[BaseModel]
    columns: tuple[Column, ...]
    rules: tuple[Rule, ...] = ()
    scale: bool = False


def _condition(kind: str, member: str) -> str:
    return f'.status.conditions[?(@.type=="{kind}")].{member}'


_READY = Column("Ready", _condition("Ready", "status"))
_REASON = Column("Reason", _condition("Ready", "reason"))
_AGE = Column("Age", ".metadata.creationTimestamp", "date")

KINDS: tuple[DefinedKind, ...] = (
    DefinedKind(
        "GenAIBuild",
        "genaibuilds",
        "genaibuild",
        ("gb", "gbs"),
        "Namespaced",
        BuildSpec,
        BuildStatus,
        (
            _READY,
            _REASON,
            Column("Progress", ".status.progress"),
            Column("Cached", ".status.cached", "integer"),
            _AGE,
            Column("Targets", ".spec.targets", priority=1),
            Column("Revision", ".status.artifacts[*].revision", priority=1),
        ),
        (
            Rule(
                "spec.graphs",
                "!(self.multiContext && size(self.contextLengths) > 0)",
                "multiContext and contextLengths exclude each other: keep one",
            ),
            *(
                Rule(
                    path,
                    "self.all(one, self.exists_one(other, other == one))",
                    "it holds an entry twice: keep one of them",
                )
                for path in (
                    "spec.targets",
                    "spec.graphs.autoRegression",
                    "spec.graphs.contextLengths",
                )
            ),
            Rule(
                "spec.splits",
                "type(self.count) == int ? self.count >= 1 : self.count == 'auto'",
                "splits.count is a number from 1 on, or auto",
            ),
            Rule(
                "spec.model",
                "self.source.startsWith('s3://') || self.source.startsWith('https://') "
                "|| self.source.startsWith('pvc://')",
                "a cluster reads models from s3://, https:// or pvc://; genai build --remote "
                "uploads a folder and applies the build",
            ),
            Rule(
                "spec.lora.adapters",
                "self.all(one, one.source.startsWith('s3://') "
                "|| one.source.startsWith('https://') || one.source.startsWith('pvc://'))",
                "a cluster reads adapters from s3://, https:// or pvc://; genai build --remote "
                "uploads folders and applies the build",
            ),
            Rule(
                "spec.children",
                "self.all(one, one.source.startsWith('s3://') "
                "|| one.source.startsWith('https://') || one.source.startsWith('pvc://'))",
                "a cluster reads children from s3://, https:// or pvc://; genai build --remote "
                "uploads folders and applies the build",
            ),
            Rule(
                "spec.children",
                "self.all(one, self.exists_one(other, other.arn == one.arn))",
                "two children are of one AR: keep one of them",
            ),
            Rule(
                "spec.speculation",
                "self.all(one, one.source.startsWith('s3://') "
                "|| one.source.startsWith('https://') || one.source.startsWith('pvc://'))",
                "a cluster reads draft models from s3://, https:// or pvc://; genai build --remote "
                "uploads folders and applies the build",
            ),
            Rule(
                "spec.speculation",
                "self.all(one, one.method == 'Eagle' "
                "|| (!has(one.version) && !has(one.draftTokenMap)))",
                "version and draftTokenMap are of an EAGLE head",
            ),
            Rule(
                "spec.speculation",
                "self.all(one, one.method == 'Ssd' ? !has(one.onnx) && !has(one.encodings) "
                ": !has(one.tensorFile) && !has(one.forecastTokenCount) "
                "&& !has(one.forecastPrefix))",
                "tensorFile, forecastTokenCount and forecastPrefix are of SSD, onnx and encodings "
                "of a model of its own",
            ),
            Rule(
                "spec.vision",
                "self.source.startsWith('s3://') || self.source.startsWith('https://') "
                "|| self.source.startsWith('pvc://')",
                "a cluster reads encoders of pictures from s3://, https:// or pvc://; genai build "
                "--remote uploads folders and applies the build",
            ),
            Rule(
                "spec.lora",
                "self.adapters.all(one, self.adapters.exists_one(other, other.name == one.name) "
                "&& one.name != 'base' && (!has(self.useCases) "
                "|| self.useCases.all(useCase, useCase.name != one.name)))",
                "adapters and use cases are called by names of their own, none of them base",
            ),
            Rule(
                "spec.quantization",
                "(self.gaps == 'Calibrate') == has(self.calibration)",
                "gaps: Calibrate goes with calibration: a .npy or text file of the source",
            ),
        ),
    ),
    DefinedKind(
        "GenAIDeployment",
        "genaideployments",
        "genaideployment",
        ("gd", "gds"),
        "Namespaced",
        DeploymentSpec,
        DeploymentStatus,
        (
            _READY,
            _REASON,
            Column("Replicas", ".status.readyReplicas", "integer"),
            Column("URL", ".status.url"),
            _AGE,
            Column("Build", ".spec.from.build", priority=1),
            Column("Target", ".spec.from.target", priority=1),
            Column("Revision", ".status.revision.current", priority=1),
        ),
        (
            Rule(
                "spec.rollout",
                "self.strategy != 'RollingUpdate' || self.maxSurge > 0 || self.maxUnavailable > 0",
                "maxSurge and maxUnavailable cannot both be 0",
            ),
        ),
        scale=True,
    ),
    DefinedKind(
        "GenAITarget",
        "genaitargets",
        "genaitarget",
        ("gt",),
        "Cluster",
        TargetSpec,
        TargetStatus,
        (
            _READY,
            _REASON,
            Column("Backend", ".spec.backend"),
            Column("Chip", ".spec.chipset"),
            _AGE,
        ),
        (
            Rule(
                "spec",
                "self.backend != 'Htp' || (has(self.chipset) != "
                "(has(self.dspArch) && has(self.socModel)))",
                "an Htp target needs chipset, or dspArch with socModel, and not both",
            ),
            Rule(
                "spec",
                "self.backend != 'Cpu' || !(has(self.chipset) || has(self.dspArch) "
                "|| has(self.socModel))",
                "a Cpu target has no chipset, dspArch or socModel",
            ),
        ),
    ),
    DefinedKind(
        "ArtifactStore",
        "artifactstores",
        "artifactstore",
        ("gas",),
        "Namespaced",
        ArtifactStoreSpec,
        ArtifactStoreStatus,
        (_READY, _REASON, Column("Bucket", ".spec.bucket"), _AGE),
        (
            Rule(
                "spec",
                "has(self.secretRef) != has(self.serviceAccountName)",
                "give secretRef or serviceAccountName, and not both",
            ),
            Rule(
                "spec",
                "!has(self.webIdentity) || has(self.serviceAccountName)",
                "webIdentity goes with serviceAccountName",
            ),
            Rule(
                "spec",
                "!has(self.readSecretRef) || has(self.secretRef)",
                "readSecretRef goes with secretRef",
            ),
        ),
    ),
)
