"""The sources that a build's spec names: its model, and each adapter.

Each has an address, credentials and a pin of its own, and is resolved by itself. Whoever plans, on
a laptop or in a cluster, goes through this list; nothing else knows which fields name sources.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from dataclasses import field as dataclass_field

from genai_core.kinds.build import BuildSpec
from genai_core.names import MODEL, SourceName, adapter_source

__all__ = ["BuildSource", "sources_of"]


@dataclass(frozen=True)
class BuildSource:
    """One source.

    Attributes:
        name: `model`, `adapter:c-headers`.
        address: As the spec has it.
        field: That names it, for messages.
        secret: Name of the Secret with its credentials; empty: the store's.
        pin: `sha256:...` that its content must have; None = any.
        files: Of an adapter, what the spec names in it: `weights`, `encodings` -> file.
    """

    name: SourceName
    address: str
    field: str
    secret: str = ""
    pin: str | None = None
    files: Mapping[str, str] = dataclass_field(default_factory=dict)

    @property
    def pin_field(self) -> str:
        """The field that pins it."""
        return f"{self.field.removesuffix('.source')}.digest"


def sources_of(spec: BuildSpec) -> tuple[BuildSource, ...]:
    """All of a build's, the model first."""
    model = spec.model
    secret = model.secret_ref.name if model.secret_ref is not None else ""
    found = [BuildSource(MODEL, model.source, "spec.model.source", secret, model.digest)]
    for number, adapter in enumerate(spec.lora.adapters if spec.lora is not None else ()):
        found.append(
            BuildSource(
                adapter_source(adapter.name),
                adapter.source,
                f"spec.lora.adapters[{number}].source",
                adapter.secret_ref.name if adapter.secret_ref is not None else "",
                adapter.digest,
                {
                    name: file
                    for name in ("weights", "encodings")
                    if (file := getattr(adapter, name)) is not None
                },
            )
        )
    return tuple(found)
