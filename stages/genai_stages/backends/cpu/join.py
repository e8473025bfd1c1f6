"""Fragments of a cpu model behind each other in one data file, bytes moved and never read.

Every tensor starts at a multiple of the alignment within its own file, and so does every file
within the whole: how the layers were grouped leaves no trace in the result.
"""

from __future__ import annotations

import shutil
from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path

from genai_core.errors import BadInput
from genai_core.names import Precision
from genai_stages.backends.cpu.fragment import (
    ALIGNMENT,
    DATA_FILE,
    Fragment,
    LinearWeights,
    StoredTensor,
    read_fragment,
)


@dataclass
class Joined:
    """All fragments of a model; offsets are those of the joined file."""

    tensors: list[StoredTensor] = field(default_factory=list)
    linears: dict[str, LinearWeights] = field(default_factory=dict)
    plain: dict[str, str] = field(default_factory=dict)


def join_fragments(folders: Iterable[Path], precision: Precision, out: Path) -> Joined:
    """Write the fragments of `folders` into the file `out`, embedding first and lm_head last.

    Raises:
        BadInput: A fragment is of another precision, or a file is shorter than its fragment says.
    """
    parts = sorted(((read_fragment(folder), folder) for folder in folders), key=_place)
    joined = Joined()
    with out.open("wb") as target:
        for fragment, folder in parts:
            if fragment.precision is not precision:
                raise BadInput(
                    f"weights converted for {fragment.precision.value} in a "
                    f"{precision.value} model",
                    where=str(folder),
                )
            target.write(b"\0" * (-target.tell() % ALIGNMENT))
            base = target.tell()
            with (folder / DATA_FILE).open("rb") as source:
                shutil.copyfileobj(source, target, 4 * 1024 * 1024)
            end = max((t.offset + t.length for t in fragment.tensors), default=0)
            if target.tell() - base < end:
                raise BadInput("is shorter than its fragment says", where=str(folder / DATA_FILE))
            joined.tensors += [
                tensor.model_copy(update={"offset": tensor.offset + base})
                for tensor in fragment.tensors
            ]
            joined.linears |= fragment.linears
            joined.plain |= fragment.plain
    return joined


def _place(part: tuple[Fragment, Path]) -> tuple[bool, int, int, bool]:
    fragment = part[0]
    return (not fragment.embedding, fragment.first, fragment.last, fragment.lm_head)
