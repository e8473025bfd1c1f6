"""The `emulation/` folder of a container: a twin of its graphs that x86 can run.

    emulation/
      metadata.json               this module's model: chip, rotary tables, graphs with their I/O
      part_1_of_3.bin             context binary, no shared weights, flat cache
      part_1_of_3.json            what the vendor's library reads in it
      prompt_ar32_cl256_1_of_3.onnx, token_ar1_cl256_1_of_3.onnx ...   wrappers for ONNX Runtime

The compile stage writes the files of one split (`genai_stages.backends.htp.compile.twin`);
packaging puts the splits into one folder and calls `describe`.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from pydantic import BaseModel, ConfigDict, ValidationError

from genai_core.errors import BadModel, NotRunnableHere
from genai_core.facts import RopeTable
from genai_core.files.paths import RelativePath
from genai_core.graphs import parse_name
from genai_runtime.htp.metadata import BinaryMetadata

METADATA = "metadata.json"

_FROZEN = ConfigDict(frozen=True, extra="forbid")
_PART = re.compile(r"^part_(\d+)_of_(\d+)\.json$")


@dataclass(frozen=True)
class GraphKey:
    """What a graph's name says: `prompt_ar32_cl256_2_of_3`."""

    ar: int
    cl: int
    split: int
    splits: int


class EmulatedPart(BaseModel):
    """One split."""

    model_config = _FROZEN

    file: RelativePath
    """The binary, relative to the folder; each graph's wrapper is `<graph>.onnx` beside it."""
    binary: BinaryMetadata


class Emulation(BaseModel):
    """All that the executor needs to drive the graphs."""

    model_config = _FROZEN

    schema_version: Literal[1] = 1
    soc_model: int
    rope: dict[str, RopeTable]
    """The inputs `position_ids_cos|sin` take `default` (or the first); `..._<name>` take `name`."""
    parts: tuple[EmulatedPart, ...]
    """In split order."""


def graph_key(name: str) -> GraphKey:
    """AR, CL and split of a graph.

    Raises:
        BadModel: The name does not say them.
    """
    try:
        found = parse_name(name)
    except ValueError:
        found = None
    if found is None or not found.count:
        raise BadModel(
            "the graph's name does not tell AR, CL and split",
            where=name,
            remedy="name graphs like prompt_ar128_cl4096_1_of_5",
        )
    return GraphKey(found.ar, found.cl, found.index, found.count)


def describe(folder: Path, rope: Mapping[str, RopeTable]) -> Emulation:
    """Write `metadata.json` for the parts that lie in a folder.

    Args:
        folder: Holds `part_k_of_N.bin` and `.json` for each split, and the wrappers.
        rope: The model's rotary tables.

    Raises:
        BadModel: A split is missing, or the parts are of different chips.
    """
    numbered: dict[int, tuple[int, Path]] = {}
    for path in sorted(folder.iterdir()):
        found = _PART.match(path.name)
        if found:
            numbered[int(found[1])] = (int(found[2]), path)
    count = len(numbered)
    if not numbered or sorted(numbered) != list(range(1, count + 1)) or count != numbered[1][0]:
        raise BadModel(f"splits {sorted(numbered)} are not the whole model", where=folder.name)
    parts = []
    for index in range(1, count + 1):
        path = numbered[index][1]
        binary = BinaryMetadata.model_validate_json(path.read_bytes())
        parts.append(EmulatedPart(file=path.with_suffix(".bin").name, binary=binary))
    chips = {part.binary.soc_model for part in parts}
    if len(chips) > 1:
        raise BadModel(f"the parts are of different chips: {sorted(chips)}", where=folder.name)
    made = Emulation(soc_model=chips.pop(), rope=dict(rope), parts=tuple(parts))
    (folder / METADATA).write_text(made.model_dump_json(indent=1) + "\n", encoding="utf-8")
    return made


def load(folder: Path) -> Emulation:
    """Read `metadata.json`.

    Raises:
        NotRunnableHere: The container has no emulation folder.
        BadModel: The file cannot be read.
    """
    path = folder / METADATA
    if not path.is_file():
        raise NotRunnableHere(
            "the container has no twin that x86 can run",
            where=str(folder),
            remedy="run it on the device, or build the cpu target",
        )
    try:
        return Emulation.model_validate_json(path.read_bytes())
    except ValidationError as error:
        first = error.errors()[0]
        raise BadModel(
            f"{'.'.join(str(part) for part in first['loc'])}: {first['msg']}", where=str(path)
        ) from error
