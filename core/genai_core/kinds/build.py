"""GenAIBuild: a quantized model and the targets that it is to be built for."""

from __future__ import annotations

from enum import StrEnum
from typing import Annotated, Literal, Self

from pydantic import (
    BeforeValidator,
    Field,
    StringConstraints,
    field_validator,
    model_validator,
)

from genai_core.files.paths import FileName
from genai_core.kinds.affinity import Affinity
from genai_core.kinds.base import (
    DigestText,
    KindModel,
    KindObject,
    Name,
    Options,
    Quantity,
    Resources,
    SecretRef,
    ShortText,
    Text,
    Toleration,
    Uri,
    either_case,
)
from genai_core.kinds.child_model import Child
from genai_core.kinds.dotted_options import with_dotted_options
from genai_core.kinds.lora import Lora
from genai_core.kinds.speculation import SpeculationPart
from genai_core.kinds.transformation import Conversion, Transformation
from genai_core.kinds.vision_part import Vision
from genai_core.names import Gaps, Precision

MULTI_CONTEXT_LENGTHS = (512, 1024, 2048, 3072, 4096)
"""The context lengths that `multiContext` stands for (the vendor builder's multi_graph)."""


class CpuPrecision(StrEnum):
    """How a cpu container's linears compute; Auto takes the first within the budget."""

    AUTO = "Auto"
    INT8 = "Int8"
    INT4 = "Int4"
    FLOAT = "Float"

    def candidates(self) -> tuple[Precision, ...]:
        """The precisions to try, in order."""
        if self is CpuPrecision.AUTO:
            return (Precision.INT8, Precision.INT4, Precision.FLOAT)
        return (Precision(self.value),)


class Placement(StrEnum):
    """Whether a part is a split of its own."""

    AUTO = "Auto"
    APART = "Apart"
    JOINED = "Joined"


class ModelSource(KindModel):
    """Where the model comes from."""

    source: Uri
    """s3://bucket/prefix, https:// (an archive), pvc://claim/path; on the command line a folder."""
    secret_ref: SecretRef | None = None
    """Credentials of the source; left out: the store's."""
    digest: DigestText | None = None
    """Pins the content, as status.sources shows it; left out: whatever the source holds when a
    generation, or a new requestedAt, is first looked at."""
    onnx: FileName | None = None
    """File of the model, below the source; left out: the only one."""
    encodings: FileName | None = None
    """File of AIMET's encodings, below the source; left out: the only one, if any."""
    architecture: ShortText | None = None
    """e.g. llama; left out: what config.json says."""


class Graphs(KindModel):
    """The static graphs of an htp container: every AR x every CL."""

    auto_regression: Annotated[
        list[Annotated[int, Field(ge=1, le=65536)]], Field(max_length=16)
    ] = Field(default_factory=list)
    """Tokens in one pass: 1 decodes, the largest reads prompts. Empty: 1 and 128, or 1 and as many
    as the shortest context holds four times."""
    context_lengths: Annotated[
        list[Annotated[int, Field(ge=2, le=1048576)]], Field(max_length=16)
    ] = Field(default_factory=list)
    """Empty: 4096, or the model's own limit where that is smaller."""
    multi_context: bool = False
    """512, 1024, 2048, 3072 and 4096 instead of a list."""

    @model_validator(mode="after")
    def _one_way(self) -> Self:
        if self.multi_context and self.context_lengths:
            raise ValueError("multiContext and contextLengths exclude each other: keep one")
        for name, values in (
            ("autoRegression", self.auto_regression),
            ("contextLengths", self.context_lengths),
        ):
            if len(set(values)) != len(values):
                raise ValueError(f"{name} holds a number twice: keep one of them")
        return self


class Splits(KindModel):
    """How an htp container is cut into context binaries."""

    count: Annotated[
        Annotated[int, Field(ge=1)] | Literal["auto"],
        BeforeValidator(lambda value: value.lower() if isinstance(value, str) else value),
    ] = "auto"
    """A number, or auto: as many as keep every part below 2 GB."""
    embedding: Annotated[Placement, either_case(Placement)] = Placement.AUTO
    """Apart: the embedding is a split of its own; Joined: it goes with the first layers."""
    lm_head: Annotated[Placement, either_case(Placement)] = Placement.AUTO
    """Apart: the head is a split of its own; Joined: it goes with the last layers."""


class Fidelity(KindModel):
    """How much worse a built model may be than its source with the encodings simulated."""

    budget_nats: Annotated[float, Field(ge=0, le=100)] = 0.01
    """Allowed rise of the loss, nats a token; over it the build fails."""
    tokens: FileName | None = None
    """A file of the model's source: a .npy of integers [pieces, length], or text, which its
    tokenizer cuts; left out: scored on text that the float model writes."""


class Quantization(KindModel):
    """How encodings become integers."""

    activation_bits: Literal[16] = 16
    """Bits of activations on htp."""
    bias_bits: Literal[32] = 32
    """Bits of biases on htp."""
    gaps: Annotated[Gaps, either_case(Gaps)] = Gaps.ERROR
    """Tensors without an encoding: Error refuses the model, Float keeps them in float16,
    Calibrate measures them."""
    calibration: FileName | None = None
    """With gaps: Calibrate, a .npy of tokens or a text file of the model's source."""
    cpu_precision: Annotated[CpuPrecision, either_case(CpuPrecision)] = CpuPrecision.AUTO
    """Of a cpu container's linears; Auto: the first of Int8, Int4, Float within the budget."""
    fidelity: Fidelity = Field(default_factory=Fidelity)

    @model_validator(mode="after")
    def _calibration_is_used(self) -> Self:
        if self.calibration and self.gaps is not Gaps.CALIBRATE:
            raise ValueError("calibration is read only with gaps: Calibrate")
        if self.gaps is Gaps.CALIBRATE and not self.calibration:
            raise ValueError("gaps: Calibrate needs calibration: a .npy or text file of the source")
        return self


class Compilation(KindModel):
    """How context binaries are compiled (htp)."""

    weight_sharing: bool = True
    """One copy of the weights for all graphs of a split."""
    native_kv: Annotated[bool, Field(alias="nativeKV")] = False
    """The cache in the processor's own layout; every AR must be 32, 64, 128 or 256."""
    options: Options = Field(default_factory=dict)
    """The vendor's compile options, e.g. `graphs.vtcm_size_in_mb: "8"`; values are text."""


class GoldenPrompts(KindModel):
    """Prompts whose answers are recorded at build and replayed before a rollout."""

    prompts: Annotated[list[Text], Field(max_length=32)] = Field(default_factory=list)
    """Texts that the container continues once it is built."""
    max_tokens: Annotated[int, Field(ge=1, le=1024)] = 16
    """Tokens that are recorded for each prompt."""


class StoreRef(KindModel):
    """An ArtifactStore of the same namespace."""

    name: Name = "default"
    """Of the ArtifactStore."""


class Scratch(KindModel):
    """Disk that a stage works on."""

    size: Quantity | None = None
    """e.g. 20Gi; left out: 20Gi and sixteen times what a task reads. A pod that takes more of its
    node is evicted."""
    storage_class_name: ShortText = ""
    """Of the volume; empty: the cluster's default."""


class Run(KindModel):
    """How tasks run; never part of a key."""

    parallelism: Annotated[int, Field(ge=1, le=1000)] = 8
    """Tasks of this build at once."""
    suspend: bool = False
    """Start nothing new; what runs is stopped."""
    priority_class_name: ShortText = ""
    """PriorityClass of the stages' pods."""
    queue_name: ShortText = ""
    """Kueue's LocalQueue that admits the Jobs."""
    service_account_name: ShortText = ""
    """Service account of the stages' pods; empty: the store's, else the namespace's default."""
    image_pull_secrets: Annotated[list[SecretRef], Field(max_length=16)] = Field(
        default_factory=list
    )
    """Secrets that the stages' image is pulled with."""
    retries: Annotated[int, Field(ge=0, le=10)] = 2
    """Further attempts of a task that failed for no fault of its input."""
    active_deadline_seconds: Annotated[int, Field(ge=1, le=2**31 - 1)] = 3600
    """Longest that one task may run."""
    ttl_seconds_after_finished: Annotated[int, Field(ge=0)] = 600
    """How long a finished Job can still be looked at."""
    scratch: Scratch = Field(default_factory=Scratch)
    resources: Resources = Field(default_factory=Resources)
    node_selector: Annotated[dict[ShortText, ShortText], Field(max_length=32)] = Field(
        default_factory=dict
    )
    """Labels of the nodes that stages run on."""
    tolerations: Annotated[list[Toleration], Field(max_length=32)] = Field(default_factory=list)
    """Taints that the stages' pods bear."""
    affinity: Affinity = Field(default_factory=Affinity)
    """Affinity of the stages' pods, as in a pod."""
    topology_spread: bool = True
    """Spread a build's tasks over the nodes."""


class BuildSpec(KindModel):
    """What is built, for which targets, and how.

    Tasks whose result is in the store already do not run again, whoever built it.
    """

    model: ModelSource
    targets: Annotated[
        list[Annotated[str, StringConstraints(min_length=1, max_length=128)]],
        Field(min_length=1, max_length=32),
    ]
    """Names of GenAITargets, each once; on the command line also `chipset:SM8750`."""
    graphs: Graphs = Field(default_factory=Graphs)
    splits: Splits = Field(default_factory=Splits)
    transformation: Transformation = Field(default_factory=Transformation)
    conversion: Conversion = Field(default_factory=Conversion)
    quantization: Quantization = Field(default_factory=Quantization)
    compilation: Compilation = Field(default_factory=Compilation)
    children: Annotated[list[Child], Field(max_length=16)] = Field(default_factory=list)
    """Models of their own for the graphs of one AR each (htp): the vendor's
    attach_model_for_arn."""
    golden: GoldenPrompts = Field(default_factory=GoldenPrompts)
    lora: Lora | None = None
    """Adapters that the container carries."""
    speculation: Annotated[list[SpeculationPart], Field(max_length=1)] = Field(default_factory=list)
    """What guesses tokens, carried by the container (cpu): a draft model, an EAGLE head, or what
    the model itself forecasts with (SSD)."""
    vision: Vision | None = None
    """What lets the container read pictures (cpu)."""
    store: StoreRef = Field(default_factory=StoreRef)
    run: Run = Field(default_factory=Run)

    @model_validator(mode="before")
    @classmethod
    def _dotted_options(cls, spec: object) -> object:
        return with_dotted_options(spec)

    @field_validator("targets")
    @classmethod
    def _each_once(cls, targets: list[str]) -> list[str]:
        for number, name in enumerate(targets):
            if name in targets[:number]:
                raise ValueError(f"it holds {name} twice: keep one of them")
        return targets

    @field_validator("children")
    @classmethod
    def _one_child_each(cls, children: list[Child]) -> list[Child]:
        for number, child in enumerate(children):
            for other, earlier in enumerate(children[:number]):
                both = f"children {other} and {number}"
                if earlier.arn == child.arn:
                    raise ValueError(f"{both} are both of AR {child.arn}: keep one of them")
                if earlier.label == child.label:
                    raise ValueError(f"{both} are both called {child.label}: rename one of them")
        return children

    @model_validator(mode="after")
    def _children_alone(self) -> Self:
        if self.children and self.lora is not None:
            raise ValueError("children and lora exclude each other: adapters fit one model's graph")
        return self


class GenAIBuild(KindObject):
    """A build as it stands in a file or in the apiserver."""

    kind: Literal["GenAIBuild"] = "GenAIBuild"
    spec: BuildSpec
