"""Which source tensor each tensor of a graph stands for: `provenance.json` beside the graph.

Rewrites rename, slice and reshape, but encodings, attach points and error messages speak of the
source's tensors. The map holds a tensor only where its own name is not the source's; a tensor made
by a rewrite with no counterpart in the source (a rotary product, say) is not in it either.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path

from genai_core.facts import TensorSource

PROVENANCE_FILE = "provenance.json"

Provenance = Mapping[str, TensorSource]


def source_of(name: str, provenance: Provenance) -> TensorSource:
    """The source of a tensor; a tensor that is not in the map is its own."""
    return provenance.get(name) or TensorSource(source=name)


def head_of(
    parent: TensorSource, head: int, *, rows: tuple[int, int] | None = None
) -> TensorSource:
    """The source of one head's part of a tensor.

    Args:
        parent: Source of the whole.
        head: Which head, from 0.
        rows: The head's rows of the whole, for a weight; counted on from the parent's rows.
    """
    if rows is not None and parent.index is not None:
        index = parent.index[rows[0] : rows[1]]
        if index == tuple(range(index[0], index[0] + len(index))):
            return TensorSource(
                source=parent.source, head=head, rows=(index[0], index[0] + len(index))
            )
        return parent.model_copy(update={"head": head, "index": index})
    if rows is not None and parent.rows is not None:
        rows = (parent.rows[0] + rows[0], parent.rows[0] + rows[1])
    return parent.model_copy(update={"head": head, "rows": rows or parent.rows})


def write_provenance(folder: Path, provenance: Provenance) -> None:
    """Write the map, sorted by tensor; entries that say nothing new are left out."""
    content = {
        name: source.model_dump(exclude_none=True)
        for name, source in sorted(provenance.items())
        if source != TensorSource(source=name)
    }
    text = json.dumps(content, indent=1, ensure_ascii=False)
    (folder / PROVENANCE_FILE).write_text(text + "\n", encoding="utf-8")


def read_provenance(folder: Path) -> dict[str, TensorSource]:
    """Read the map of a stage's output."""
    content = json.loads((folder / PROVENANCE_FILE).read_text(encoding="utf-8"))
    return {name: TensorSource.model_validate(source) for name, source in content.items()}
