"""spec.lora: the adapters that a container carries."""

from __future__ import annotations

from enum import StrEnum
from typing import Annotated, Self

from pydantic import Field, StringConstraints, model_validator

from genai_core.files.paths import FileName
from genai_core.kinds.base import (
    DigestText,
    KindModel,
    SecretRef,
    ShortText,
    Uri,
    either_case,
)

__all__ = [
    "AdapterName",
    "AdapterSource",
    "Lora",
    "QuantUpdatableMode",
    "UseCase",
    "WornAdapter",
]

AdapterName = Annotated[
    str, StringConstraints(min_length=1, max_length=63, pattern=r"^[a-z0-9]([-a-z0-9.]*[a-z0-9])?$")
]
"""Requests choose it by this name, so it is one word: small letters, digits, dashes and dots."""

Alpha = Annotated[str, StringConstraints(max_length=16, pattern=r"^-?[0-9]{1,4}(\.[0-9]{1,8})?$")]
"""A number as text, since an apiserver rounds others: "1.0"."""

BASE = "base"
"""The name by which requests mean the model without adapters."""


class AdapterSource(KindModel):
    """A LoRA adapter and where it lies."""

    name: AdapterName
    """By which requests choose it."""
    source: Uri
    """PEFT's folder: s3://bucket/prefix, https:// (an archive), pvc://claim/path; on the command
    line a folder."""
    weights: FileName | None = None
    """With createGraph: false, the adapter's .safetensors below the source, by the names of the
    model's LoRA inputs, as AIMET exports it; left out: PEFT's two files."""
    graph: FileName | None = None
    """The model's ONNX with this adapter's branches in it, below the source: one graph for each use
    case, as the vendor's third form has them. Its base must equal the model."""
    encodings: FileName | None = None
    """AIMET's encodings of these weights, below the source."""
    secret_ref: SecretRef | None = None
    """Credentials of the source; left out: the store's."""
    digest: DigestText | None = None
    """Pins the content, as status.sources shows it."""

    @model_validator(mode="after")
    def _encodings_of_weights(self) -> Self:
        if self.encodings is not None and self.weights is None:
            raise ValueError("encodings are those of weights: name the .safetensors file there")
        if self.graph is not None and self.weights is not None:
            raise ValueError("weights and graph are two forms of an adapter: keep one")
        return self


class WornAdapter(KindModel):
    """An adapter of a use case, and how strongly it counts."""

    name: AdapterName
    """One of spec.lora.adapters."""
    alpha: Alpha = "1.0"
    """What its branches are multiplied by."""


class UseCase(KindModel):
    """Adapters that are used together under a name."""

    name: AdapterName
    """By which requests choose it."""
    adapters: Annotated[list[WornAdapter], Field(min_length=1, max_length=16)]
    """All of them at once, each with its alpha."""


class QuantUpdatableMode(StrEnum):
    """What an adapter may change in a Snapdragon container, as the vendor's tools name it."""

    NONE = "None"
    ADAPTER_ONLY = "AdapterOnly"
    ALL = "All"


class Lora(KindModel):
    """LoRA adapters of a container: they are chosen per request, without a reload."""

    adapters: Annotated[list[AdapterSource], Field(max_length=64)] = Field(default_factory=list)
    """Each is imported by a task of its own, so one that changes leaves all others cached."""
    use_cases: Annotated[list[UseCase], Field(max_length=64)] = Field(default_factory=list)
    """Combinations under names of their own."""
    max_rank: Annotated[int, Field(ge=1, le=1024)] | None = None
    """No branch may have a larger rank, of adapters that come later either. On htp it is reserved;
    on cpu it is a bound alone: each adapter has its own rank."""
    target_modules: Annotated[list[ShortText], Field(max_length=64)] = Field(default_factory=list)
    """Last names of the modules that adapters may touch, e.g. q_proj; empty: all. On htp these get
    a branch, for adapters that come later too; without any, the modules of the adapters do."""
    quant_updatable_mode: Annotated[QuantUpdatableMode, either_case(QuantUpdatableMode)] = (
        QuantUpdatableMode.ADAPTER_ONLY
    )
    """Of htp targets. None: adapters are inputs of the graphs, in every binary. AdapterOnly and
    All: each adapter and each use case has binaries of its own. AdapterOnly keeps the base's
    encodings; All widens them to what the model reaches that wears it. On cpu all mean the same."""
    max_merged_gi_b: Annotated[int, Field(ge=1, le=65536, alias="maxMergedGiB")] = 32
    """Bound of these binaries of all htp targets together, as predicted, in GiB."""
    reserve_range: Annotated[
        str, StringConstraints(max_length=8, pattern=r"^[1-9][0-9]{0,2}(\.[0-9]{1,4})?$")
    ] = "1.0"
    """Factor on the ranges of the adapters' values (htp), so that later ones may be larger."""
    alpha_tensor_name: Annotated[
        str, StringConstraints(max_length=63, pattern=r"^[A-Za-z_][A-Za-z0-9_]{0,62}$")
    ] = "lora_alpha"
    """The graphs' input that scales all branches (htp)."""
    config: FileName | None = None
    """The vendor's lora_config.yaml below the model's source, a folder, on the command line: it
    stands for adapters and useCases."""
    create_graph: bool = True
    """False: the model carries LoRA branches already, whose weights are its inputs, as AIMET
    exports it; the base is the model without them."""

    @model_validator(mode="after")
    def _one_way(self) -> Self:
        if self.config is not None and (self.adapters or self.use_cases):
            raise ValueError("config stands for adapters and useCases: leave them or it out")
        if self.config is None and not self.adapters:
            raise ValueError("there are no adapters: list some, or name a config")
        return self

    @model_validator(mode="after")
    def _names(self) -> Self:
        names = [adapter.name for adapter in self.adapters]
        for name in [*names, *(case.name for case in self.use_cases)]:
            if name == BASE:
                raise ValueError(f"{BASE} means the model without adapters: choose another name")
        every = [*names, *(case.name for case in self.use_cases)]
        twice = next((name for i, name in enumerate(every) if name in every[:i]), None)
        if twice is not None:
            raise ValueError(f"two adapters or use cases are called {twice}: rename one of them")
        for case in self.use_cases:
            worn = [adapter.name for adapter in case.adapters]
            lost = next((name for name in worn if name not in names), None)
            if lost is not None:
                raise ValueError(
                    f"the use case {case.name} names the adapter {lost}, which is not among "
                    f"adapters: {', '.join(names)}"
                )
            if len(set(worn)) != len(worn):
                raise ValueError(f"the use case {case.name} holds an adapter twice: keep one")
        return self._forms()

    def _forms(self) -> Self:
        given = next((adapter for adapter in self.adapters if adapter.weights is not None), None)
        if given is not None and self.create_graph:
            raise ValueError(
                f"the adapter {given.name} has weights by the names of LoRA inputs, which the "
                "model has with createGraph: false alone: set it, or name a PEFT folder"
            )
        return self
