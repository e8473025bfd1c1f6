"""The forms that adapters come in, told by the files that are there."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from genai_core.facts import LoraBranch
from genai_stages.lora.adapter import Adapter
from genai_stages.lora.readers.aimet_adapter import holds_aimet, read_aimet
from genai_stages.lora.readers.peft import read_peft

__all__ = ["read_adapter"]


def read_adapter(folder: Path, branches: Sequence[LoraBranch], name: str) -> Adapter:
    """Read an adapter of either form.

    Args:
        folder: Of roles, see `genai_core.sources.adapter_files`.
        branches: That ingest took off the model; AIMET's form names their inputs.
        name: As users call it.

    Raises:
        BadAdapter: It is broken, of a kind that cannot be had here, or of another model.
    """
    if holds_aimet(folder):
        return read_aimet(folder, branches, name)
    return read_peft(folder, name)
