"""Binaries of each adapter and use case, below `adapters/merged/<name>/` of a container.

Such a folder has what the base has beside its binaries: metadata.json, with tensors and scales as
these binaries have them, and Genie's configuration, whose paths start from the container's folder.
The twins lie below `emulation/merged/<name>/`.
"""

from __future__ import annotations

from pathlib import Path

from genai_core.container.adapters import merged_folder, read_index
from genai_core.container.container_metadata import Metadata
from genai_core.container.manifest import EMULATION_FOLDER, METADATA_FILE
from genai_core.facts import ModelFacts
from genai_core.names import Backend
from genai_core.operations import PackageConfig
from genai_runtime.container.container import merged_twin
from genai_stages.package.container_htp import collect_parts
from genai_stages.stage import Inputs
from genai_stages.twin_folder import gather_twin

__all__ = ["CASE", "of_base", "place_merged"]

CASE = "case_"
"""What the names of the inputs begin with that are binaries of use cases."""


def of_base(inputs: Inputs) -> Inputs:
    """The inputs without binaries of use cases."""
    return {name: path for name, path in inputs.items() if not name.startswith(CASE)}


def place_merged(
    inputs: Inputs, config: PackageConfig, out: Path, *, facts: ModelFacts, base: Metadata
) -> tuple[str, ...]:
    """Write the folders of all adapters and use cases.

    Args:
        inputs: `case_<number>_part_<split>` has a binary, adapters first, then use cases.
        config: Names splits and chip.
        out: The container's folder, with its index.
        facts: The model's facts.
        base: The container's metadata, but for its files.

    Returns:
        Warnings.

    Raises:
        BadModel: A split is missing, or for another chip.
    """
    assert config.backend is Backend.HTP
    warnings: dict[str, None] = {}
    for number, name in enumerate(read_index(out).names):
        mine = {
            key: path for key, path in inputs.items() if key.startswith(f"{CASE}{number}_part_")
        }
        below = merged_folder(name)
        (out / below).mkdir(parents=True)
        parts = collect_parts(mine, config, out, facts=facts, below=below)
        warnings |= dict.fromkeys(parts.warnings)
        own = base.model_copy(update={"model_files": parts.files})
        text = own.model_dump_json(indent=1, exclude_none=True)
        (out / below / METADATA_FILE).write_text(f"{text}\n", encoding="utf-8")
        gather_twin(mine, out / EMULATION_FOLDER / merged_twin(name), base.rope)
    return tuple(warnings)
