"""Adapters in a container: `adapters/<name>.safetensors`, listed in `adapters/index.json`.

A file holds for each linear that the adapter touches two float32 tensors, `<linear>.A` [in, rank]
and `<linear>.B` [rank, out], named by the output tensor of that linear in the container's model;
the adapter's own factor (PEFT's lora_alpha / r) is in B. A linear computes y + alpha * (x A) B.

The index is the only place where adapters have names: the file of one says nothing of it.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import (
    BaseModel,
    ConfigDict,
    Field,
    FiniteFloat,
    SerializerFunctionWrapHandler,
    model_serializer,
)

from genai_core.container.versions import read_versioned
from genai_core.errors import BadInput
from genai_core.files.json_budgets import ADAPTERS
from genai_core.files.paths import RelativePath

__all__ = [
    "ADAPTERS_FOLDER",
    "ADAPTER_FILE",
    "INDEX_FILE",
    "LARGEST_WEIGHT",
    "AdapterEntry",
    "AdapterIndex",
    "UseCaseEntry",
    "WornEntry",
    "file_of",
    "merged_folder",
    "read_index",
]

ADAPTERS_FOLDER = "adapters"
INDEX_FILE = f"{ADAPTERS_FOLDER}/index.json"
ADAPTER_FILE = "adapter.safetensors"
"""What the import of an adapter leaves; in a container it is called by the adapter's name."""

LARGEST_WEIGHT = 1e15
"""Adapters share a pass: in rows without one, (x A) is multiplied by 0, so it must be finite."""

INDEX_VERSION = 3
"""The newest version of the index that this program reads."""
_BOUNDS_VERSION = 2
_MERGED_VERSION = 3
_FROZEN = ConfigDict(frozen=True, extra="forbid")


def file_of(name: str) -> str:
    """Where an adapter of this name lies below a container's folder."""
    return f"{ADAPTERS_FOLDER}/{name}.safetensors"


def merged_folder(name: str) -> str:
    """Where the binaries of an adapter or a use case lie below a container's folder."""
    return f"{ADAPTERS_FOLDER}/merged/{name}"


class AdapterEntry(BaseModel):
    """One adapter."""

    model_config = _FROZEN

    file: RelativePath
    """Below the container's folder."""
    sha256: Annotated[str, Field(pattern="^[0-9a-f]{64}$")]
    """Of the file: what the adapter is, whatever its name."""
    rank: int
    """The largest of its branches."""
    linears: int
    """How many linears it touches."""


class WornEntry(BaseModel):
    """An adapter of a use case."""

    model_config = _FROZEN

    name: str
    alpha: FiniteFloat = 1.0


class UseCaseEntry(BaseModel):
    """Adapters that are used together."""

    model_config = _FROZEN

    adapters: tuple[WornEntry, ...]


class AdapterIndex(BaseModel):
    """`adapters/index.json`."""

    model_config = _FROZEN

    schema_version: int = Field(default=1, ge=1)
    adapters: dict[str, AdapterEntry] = Field(default_factory=dict)
    use_cases: dict[str, UseCaseEntry] = Field(default_factory=dict)
    max_rank: int | None = None
    """No branch of an adapter may have a larger rank. Since version 2, as the next one."""
    target_modules: tuple[str, ...] = ()
    """Last names of the modules that adapters may touch; empty = all."""
    merged: Literal["AdapterOnly", "All"] | None = None
    """Each adapter and use case has binaries of its own, below `merged_folder` (htp). Since version
    3."""

    @model_serializer(mode="wrap")
    def _without_unused(self, serialize: SerializerFunctionWrapHandler) -> dict[str, Any]:
        found: dict[str, Any] = serialize(self)
        for name in ("max_rank", "target_modules", "merged"):
            if not getattr(self, name):
                found.pop(name, None)
        return found

    @classmethod
    def bounded(cls, max_rank: int | None, target_modules: tuple[str, ...]) -> AdapterIndex:
        """An empty index with bounds, of the oldest version that has its fields."""
        version = _BOUNDS_VERSION if max_rank or target_modules else 1
        return cls(schema_version=version, max_rank=max_rank, target_modules=target_modules)

    def with_merged(self, mode: Literal["AdapterOnly", "All"]) -> AdapterIndex:
        """The index of a container whose adapters and use cases have binaries of their own."""
        return self.model_copy(update={"merged": mode, "schema_version": _MERGED_VERSION})

    @property
    def names(self) -> tuple[str, ...]:
        """What can be worn: adapters, then use cases."""
        return (*self.adapters, *self.use_cases)

    def check_changeable(self, where: str) -> None:
        """Refuse to add or remove an adapter where each has binaries of its own.

        Args:
            where: The container, for the message.

        Raises:
            BadInput: Each has.
        """
        if self.merged is not None:
            raise BadInput(
                f"each adapter and use case has binaries of its own (quantUpdatableMode "
                f"{self.merged}), which a build alone makes",
                where=where,
                remedy="change spec.lora and build again, which compiles what is new alone; or "
                "build with quantUpdatableMode: None, whose graphs take later adapters",
            )

    def merged_name(self, worn: Mapping[str, float]) -> str | None:
        """The adapter or use case whose binaries wear this; None = the base's own.

        Args:
            worn: Adapter -> alpha; 0 counts as not worn.

        Raises:
            BadInput: No binary was built for it.
        """
        wanted = {name: alpha for name, alpha in worn.items() if alpha}
        if not wanted:
            return None
        for name in self.names:
            if {entry.name: entry.alpha for entry in self.worn(name)} == wanted:
                return name
        raise BadInput(
            "no binaries were built for it, and adapters cannot be combined freely in this "
            "container",
            where=" + ".join(f"{alpha:g} {name}" for name, alpha in wanted.items()),
            remedy=f"use {', '.join(self.names)}, or build it as a use case",
        )

    def check_free(self, name: str) -> None:
        """Refuse a name that an adapter or a use case has.

        Raises:
            BadInput: It is taken.
        """
        taken = "an adapter" if name in self.adapters else "a use case"
        if name in self.adapters or name in self.use_cases:
            raise BadInput(
                f"the container has {taken} {name} already",
                where=f"adapter {name}",
                remedy="give it another --name, or remove that one first: genai adapter remove",
            )

    def with_adapter(self, name: str, entry: AdapterEntry) -> AdapterIndex:
        """The index with one adapter more, behind the others.

        Raises:
            BadInput: The name is taken.
        """
        self.check_free(name)
        return self.model_copy(update={"adapters": {**self.adapters, name: entry}})

    def without_adapter(self, name: str) -> AdapterIndex:
        """The index with one adapter less.

        Raises:
            BadInput: There is none of that name, or a use case wears it.
        """
        if name not in self.adapters:
            known = ", ".join(self.adapters)
            raise BadInput(
                f"the container has no adapter {name}",
                where=f"adapter {name}",
                remedy=f"use one of {known}" if known else "it carries none",
            )
        for case, entry in self.use_cases.items():
            if name in {worn.name for worn in entry.adapters}:
                raise BadInput(
                    f"the use case {case} wears it",
                    where=f"adapter {name}",
                    remedy=f"build the container without {case}",
                )
        rest = {key: entry for key, entry in self.adapters.items() if key != name}
        return self.model_copy(update={"adapters": rest})

    def to_bytes(self) -> bytes:
        """What stands in `adapters/index.json`."""
        return f"{self.model_dump_json(indent=1)}\n".encode()

    def worn(self, name: str) -> tuple[WornEntry, ...]:
        """The adapters that a name stands for: one, or those of a use case.

        Raises:
            BadInput: There is none of that name.
        """
        if name in self.adapters:
            return (WornEntry(name=name),)
        if name in self.use_cases:
            return self.use_cases[name].adapters
        known = ", ".join([*self.adapters, *self.use_cases])
        raise BadInput(
            f"there is no adapter or use case {name}",
            where="adapter",
            remedy=f"use one of {known}" if known else "build the container with spec.lora",
        )


def read_index(folder: Path) -> AdapterIndex:
    """The index of a container's folder; empty where it has no adapters.

    Raises:
        BadInput: The file is not one, or a newer version wrote it.
    """
    path = folder / INDEX_FILE
    if not path.is_file():
        return AdapterIndex()
    return read_versioned(
        AdapterIndex, path.read_bytes(), newest=INDEX_VERSION, where=str(path), budget=ADAPTERS
    )
