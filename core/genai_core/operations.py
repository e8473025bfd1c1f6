"""The table of operations: what a task of each kind reads, and what enters its key.

Planner and stages never import each other; both read this table. The planner fills a config model
and lists inputs; `genai-stage` validates the same model and calls the operation's module. A config
holds exactly what changes the operation's output: no names of builds, no paths, no clocks.

`code_version` is raised by whoever changes what an operation writes for the same input: every
cached result of that operation is then a miss.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Annotated, Any, ClassVar, Literal

from pydantic import (
    BaseModel,
    ConfigDict,
    Field,
    SerializerFunctionWrapHandler,
    model_serializer,
)

from genai_core.names import Backend, Digest, Gaps, Precision

__all__ = [
    "OPERATIONS",
    "ArclConfig",
    "ChipConfig",
    "CompileCpuConfig",
    "CompileHtpConfig",
    "ConvertCpuConfig",
    "ConvertHtpConfig",
    "FidelityConfig",
    "ForecastImportConfig",
    "GraphConfig",
    "HeadConfig",
    "IngestConfig",
    "LoraGraphConfig",
    "LoraImportConfig",
    "LoraRangesConfig",
    "Operation",
    "OperationConfig",
    "PackageConfig",
    "SplitConfig",
    "StartPoint",
    "TransformConfig",
    "UseCaseConfig",
    "VisionImportConfig",
    "WornConfig",
    "operation_of",
]


class OperationConfig(BaseModel):
    """Base of the configs: frozen, and an unknown field is an error.

    A field that was added after a version was released is named in `added`: while it has its
    default it is left out of the JSON, so that keys of builds which do not use it stay the same.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    added: ClassVar[frozenset[str]] = frozenset()

    @model_serializer(mode="wrap")
    def _without_unused(self, serialize: SerializerFunctionWrapHandler) -> dict[str, Any]:
        found: dict[str, Any] = serialize(self)
        for name in self.added:
            if getattr(self, name) == type(self).model_fields[name].get_default(
                call_default_factory=True
            ):
                found.pop(name, None)
        return found


class GraphConfig(OperationConfig):
    """One static graph."""

    ar: Annotated[int, Field(ge=1)]
    """Auto-regression length: tokens in one pass."""
    cl: Annotated[int, Field(ge=2)]
    """Context length: past and new tokens together."""


class SplitConfig(OperationConfig):
    """Which part of the model a split holds; layers are [first, last)."""

    index: Annotated[int, Field(ge=1)]
    """k of `k_of_N`, from 1."""
    count: Annotated[int, Field(ge=1)]
    first: int
    last: int
    embedding: bool
    lm_head: bool


class StartPoint(OperationConfig):
    """A further place from which heads are split: a pattern for a tensor's name."""

    tensor: str


class ChipConfig(OperationConfig):
    """A Snapdragon chip as the vendor's tools number them."""

    soc_model: int
    """The vendor's number of the SoC, e.g. 69 for SM8750."""
    dsp_arch: int
    """Hexagon version, e.g. 79."""


class IngestConfig(OperationConfig):
    """Read a source model into the core graph."""

    added: ClassVar[frozenset[str]] = frozenset({"branches", "head"})

    architecture: str | None = None
    """Overrides config.json's; None = detected."""
    branches: bool = False
    """The graph has LoRA branches whose weights are its inputs: they are taken off and recorded."""
    head: bool = False
    """It is an EAGLE head: it reads hidden states of another model beside token ids."""


class ArclConfig(OperationConfig):
    """Static shapes for one AR x CL."""

    graph: GraphConfig


class TransformConfig(OperationConfig):
    """One split of one graph, heads split."""

    graph: GraphConfig
    split: SplitConfig
    mha2sha: bool = True
    start_points: tuple[StartPoint, ...] = ()


class ConvertHtpConfig(OperationConfig):
    """Encodings onto one split of one graph; QDQ ONNX and DLC."""

    added: ClassVar[frozenset[str]] = frozenset({"worn"})

    backend: Literal[Backend.HTP] = Backend.HTP
    graph: GraphConfig
    split: SplitConfig
    activation_bits: Literal[16] = 16
    bias_bits: Literal[32] = 32
    kv_bits: Literal[8] = 8
    gaps: Gaps = Gaps.ERROR
    worn: tuple[str, ...] = ()
    """Adapters that become part of the graph: alpha, as text, of each input `adapter_<number>`."""


class ConvertCpuConfig(OperationConfig):
    """Weights of one range of layers in the form that the CPU model reads."""

    backend: Literal[Backend.CPU] = Backend.CPU
    precision: Precision
    first: int
    last: int
    embedding: bool
    lm_head: bool
    gaps: Gaps = Gaps.ERROR
    block_size: int = 32


class CompileHtpConfig(OperationConfig):
    """All graphs of one split into one context binary."""

    added: ClassVar[frozenset[str]] = frozenset({"own_options"})

    backend: Literal[Backend.HTP] = Backend.HTP
    chip: ChipConfig
    split: SplitConfig
    graphs: tuple[GraphConfig, ...]
    weight_sharing: bool = True
    native_kv: bool = False
    """The cache's inputs and outputs in the processor's own layout."""
    options: Mapping[str, str] = Field(default_factory=dict)
    """`graphs.vtcm_size_in_mb`, `graphs.O` ... -> value."""
    own_options: Mapping[str, Mapping[str, str]] = Field(default_factory=dict)
    """AR, as text -> all options of its graphs, where they are others."""
    float16: bool = False
    """The graphs are float; computed in float16."""
    emulation: bool = False
    """Also an unshared twin that the emulator can load."""


class CompileCpuConfig(OperationConfig):
    """One dynamic-T ONNX Runtime model."""

    added: ClassVar[frozenset[str]] = frozenset({"hidden_states"})

    backend: Literal[Backend.CPU] = Backend.CPU
    precision: Precision
    gaps: Gaps = Gaps.ERROR
    hidden_states: tuple[int, ...] = ()
    """Given out by name, for an EAGLE head: after so many layers, or -1 = behind the final norm,
    what the output layer reads."""


class HeadConfig(OperationConfig):
    """An EAGLE head among a container's parts."""

    version: Literal[1, 3]
    hidden_states: tuple[int, ...]
    """Of the model, that it reads, as in `CompileCpuConfig`."""


class FidelityConfig(OperationConfig):
    """Loss of a compiled model against its source with the encodings simulated."""

    added: ClassVar[frozenset[str]] = frozenset({"children"})

    backend: Backend
    precision: Precision | None = None
    budget_nats: float = 0.01
    pieces: int = 12
    """Rows of the tokens that are scored; 0 = all."""
    length: int = 96
    """Tokens of a row that are scored; 0 = all."""
    children: tuple[int, ...] = ()
    """ARs whose graphs have a source of their own (the inputs `child_<AR>_core`): they are held
    against it, and the others against the model's."""


class LoraImportConfig(OperationConfig):
    """An adapter in the layout of the core graph."""

    added: ClassVar[frozenset[str]] = frozenset({"max_rank", "target_modules"})

    max_rank: int | None = None
    """That no branch may exceed; None = any."""
    target_modules: tuple[str, ...] = ()
    """Last names of the modules that it may touch; empty = all."""


class LoraGraphConfig(OperationConfig):
    """The inputs of static graphs that take adapters."""

    added: ClassVar[frozenset[str]] = frozenset({"every"})

    alpha: str = "lora_alpha"
    """Name of the input that scales all branches."""
    max_rank: int | None = None
    """Reserved for adapters that come later."""
    target_modules: tuple[str, ...] = ()
    """The same: last names of modules that get a branch, whether an adapter has one or not."""
    together: tuple[tuple[int, ...], ...] = ()
    """Adapters that are used at once, by the numbers of their inputs: their ranks add up."""
    every: bool = False
    """A branch at every linear, whatever the adapters: for graphs that adapters become part of."""


class LoraRangesConfig(OperationConfig):
    """The widest values of those inputs, and of what is computed from them."""

    added: ClassVar[frozenset[str]] = frozenset({"alone", "reached"})

    together: tuple[tuple[tuple[int, str], ...], ...] = ()
    """Adapters that are used at once: number of the input, alpha as text."""
    reserve: str = "1.0"
    """Factor on all ranges, as text, for adapters that come later."""
    alone: bool = True
    """Each adapter is used by itself too."""
    reached: bool = False
    """Also how far each tensor of the model goes that wears the (one) combination."""


class WornConfig(OperationConfig):
    """An adapter of a use case."""

    name: str
    alpha: str
    """A number as text, as the user wrote it."""


class UseCaseConfig(OperationConfig):
    """Adapters that are used together."""

    name: str
    adapters: tuple[WornConfig, ...]


class ForecastImportConfig(OperationConfig):
    """What a model was trained to forecast with, held against the model."""

    tokens: int | None = None
    """That there must be; None = any number."""
    prefix: int | None = None
    """Places of keys and values that there must be; 0 = none; None = some."""


class VisionImportConfig(OperationConfig):
    """An encoder of pictures, held against the model that reads its embeddings."""

    image_token: str
    """Stands in a prompt for a picture."""
    dynamic: bool = False
    """The encoder takes pictures of any size."""


class PackageConfig(OperationConfig):
    """The container."""

    added: ClassVar[frozenset[str]] = frozenset(
        {
            "adapters", "child_weights", "children", "use_cases", "max_rank", "target_modules",
            "head", "merged",
        }
    )  # fmt: skip

    target: str
    backend: Backend
    chip: ChipConfig | None = None
    graphs: tuple[GraphConfig, ...] = ()
    splits: tuple[SplitConfig, ...] = ()
    context_length: int
    """The longest context that the container serves."""
    golden_prompts: tuple[str, ...] = ()
    golden_max_tokens: int = 16
    adapters: tuple[str, ...] = ()
    """Names; the input `adapter_<number>` holds each, in this order."""
    use_cases: tuple[UseCaseConfig, ...] = ()
    max_rank: int | None = None
    """Bounds of adapters that come later, as those of the build have kept them."""
    target_modules: tuple[str, ...] = ()
    children: tuple[int, ...] = ()
    """ARs whose graphs have a source of their own; the inputs `child_<AR>` are its core graph."""
    child_weights: dict[str, Digest] = Field(default_factory=dict)
    """AR of a child -> digest of its files of weights, which the core graph leaves out."""
    head: HeadConfig | None = None
    """The container is an EAGLE head's, which another one holds."""
    merged: Literal["AdapterOnly", "All"] | None = None
    """Adapters and use cases have binaries of their own: the inputs `case_<number>_part_<split>`,
    adapters first, then use cases."""


@dataclass(frozen=True)
class Operation:
    """One row of the table.

    Attributes:
        name: As it stands in keys, records and folder names.
        backend: Set where two backends do the same operation differently.
        module: Below `genai_stages.operations`, imported only by `genai-stage`.
        config: The model of its configuration.
        code_version: Part of the key.
        libraries: Distributions whose versions enter the toolchain id: those that compute the
            output, not those that only check it.
    """

    name: str
    module: str
    config: type[OperationConfig]
    code_version: int
    libraries: tuple[str, ...]
    backend: Backend | None = None


_GRAPH = ("onnx", "onnx-ir", "numpy")

OPERATIONS: tuple[Operation, ...] = (
    Operation("ingest", "ingest", IngestConfig, 3, _GRAPH),
    Operation("arcl", "arcl", ArclConfig, 1, _GRAPH),
    Operation("transform", "transform", TransformConfig, 1, _GRAPH),
    Operation(
        "convert",
        "convert_htp",
        ConvertHtpConfig,
        3,
        (*_GRAPH, "onnxruntime", "onnxruntime-qnn"),
        Backend.HTP,
    ),
    Operation("convert", "convert_cpu", ConvertCpuConfig, 2, _GRAPH, Backend.CPU),
    Operation(
        "compile",
        "compile_htp",
        CompileHtpConfig,
        1,
        (*_GRAPH, "onnxruntime", "onnxruntime-qnn"),
        Backend.HTP,
    ),
    Operation("compile", "compile_cpu", CompileCpuConfig, 1, _GRAPH, Backend.CPU),
    Operation("fidelity", "fidelity", FidelityConfig, 5, (*_GRAPH, "onnxruntime")),
    Operation("lora_import", "lora_import", LoraImportConfig, 2, _GRAPH),
    Operation("lora_graph", "lora_graph", LoraGraphConfig, 1, _GRAPH),
    Operation("lora_ranges", "lora_ranges", LoraRangesConfig, 1, (*_GRAPH, "onnxruntime")),
    Operation("forecast_import", "forecast_import", ForecastImportConfig, 1, _GRAPH),
    Operation("vision_import", "vision_import", VisionImportConfig, 1, ("onnx", "tokenizers")),
    Operation("package", "package", PackageConfig, 3, (*_GRAPH, "onnxruntime", "tokenizers")),
)


def operation_of(name: str, backend: Backend | None = None) -> Operation:
    """The row for an operation, of one backend where both have their own.

    Raises:
        KeyError: There is no such operation.
    """
    for row in OPERATIONS:
        if row.name == name and row.backend in (None, backend):
            return row
    raise KeyError((name, backend))
