"""Reads an adapter as AIMET exports it: matrices by the names of the model's LoRA inputs.

The model that it belongs to was exported with branches whose weights are inputs; ingest has taken
them off and recorded them (`ModelFacts.lora`). A and B lie in the graph's layout already, padded
with zeros to the graph's rank, the factor standing in the graph. Columns that are zero add nothing:
they are left out, so an adapter has its own rank, and a module without one costs nothing.

Encodings of an adapter (`<model>_<adapter>.encodings`: a bare object, name -> entry) are those of a
device's integers: the ranges of what is computed on its branches go on to binaries of its own. A
cpu container computes branches in float32; there they show that both files belong together.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np

from genai_core.errors import BadAdapter
from genai_core.facts import LoraBranch
from genai_core.files.foreign import read_json_object
from genai_core.sources.adapter_files import ADAPTER_ENCODINGS_ROLE, ADAPTER_WEIGHTS_ROLE
from genai_stages.lora.adapter import Adapter, AdapterBranch, Floats, branch_of
from genai_stages.lora.readers.aimet_widths import adapter_widths
from genai_stages.lora.readers.tensors import Tensors

__all__ = ["holds_aimet", "read_aimet"]

_SHOWN = 3


def holds_aimet(folder: Path) -> bool:
    """Whether a folder of roles holds an adapter in this form."""
    return (folder / ADAPTER_WEIGHTS_ROLE).is_file()


def read_aimet(folder: Path, branches: Sequence[LoraBranch], name: str) -> Adapter:
    """Read an adapter.

    Args:
        folder: Of roles: the weights, and their encodings where there are any.
        branches: That the model had.
        name: As users call it.

    Raises:
        BadAdapter: The model had no branches, the file names others, or sizes differ.
    """
    tensors = Tensors(folder / ADAPTER_WEIGHTS_ROLE)
    if not branches:
        raise BadAdapter(
            "it names LoRA inputs of its model, and the model's graph had none",
            where=name,
            remedy="give the model that AIMET exported with the adapter, or a PEFT folder",
        )
    inputs = {half for branch in branches for half in (branch.a, branch.b)}
    _check_names(tensors.names, inputs, where=name, what="tensors")
    found: dict[str, AdapterBranch] = {}
    for branch in branches:
        halves = [half for half in (branch.a, branch.b) if half in tensors.names]
        if len(halves) == 1:
            lost = branch.b if halves == [branch.a] else branch.a
            raise BadAdapter(
                f"it has {halves[0]} and not {lost}: both halves make a branch",
                where=name,
                remedy="export the adapter again",
            )
        if halves and (read := _branch(branch, tensors, name)) is not None:
            found[branch.linear] = read
    if not found:
        raise BadAdapter(
            "all of its branches are zero: it changes nothing",
            where=name,
            remedy="export the adapter after set_lora_weights",
        )
    entries = _encodings(folder / ADAPTER_ENCODINGS_ROLE, branches, name)
    widths = adapter_widths(entries, branches, where=f"{name}: its encodings")
    dressed = {
        linear: replace(branch, widths=widths.get(linear)) for linear, branch in found.items()
    }
    return Adapter(name, dressed)


def _check_names(given: Collection[str], known: Collection[str], *, where: str, what: str) -> None:
    """Refuse names that the model does not have: all, or only some of them."""
    lost = [name for name in given if name not in known]
    if lost:
        more = " ..." if len(lost) > _SHOWN else ""
        raise BadAdapter(
            f"{len(lost)} of its {len(given)} {what} are no LoRA tensors of the model: "
            + ", ".join(lost[:_SHOWN])
            + f"{more}; the model's are {', '.join(sorted(known)[:2])} ...",
            where=where,
            remedy="take model, adapter and encodings from one export",
        )


def _branch(branch: LoraBranch, tensors: Tensors, where: str) -> AdapterBranch | None:
    """A and B as PEFT orders them, without columns that add nothing; None where none is left."""
    a, b = tensors.read(branch.a), tensors.read(branch.b)
    kinds = ((branch.a, a, True), (branch.b, b, False))
    for key, array, first in kinds:
        _check_shape(branch, key, array, first=first, where=where)
    if branch.conv:
        a, b = a.reshape(a.shape[:2]), b.reshape(b.shape[:2])
    else:
        a, b = a.T, b.T
    if a.shape[0] == b.shape[1]:
        used = np.abs(a).any(axis=1) & np.abs(b).any(axis=0)
        a, b = a[used], b[:, used]
    made = branch_of(
        branch.a.removesuffix(".weight"),
        np.ascontiguousarray(a),
        np.ascontiguousarray(b),
        scale=branch.scale,
        where=where,
    )
    return made if made.rank else None


def _check_shape(branch: LoraBranch, key: str, array: Floats, *, first: bool, where: str) -> None:
    """Refuse a matrix that does not fit the model's input, with both sizes."""
    wide = branch.inputs if first else branch.outputs
    turned = first == branch.conv
    expected = (branch.rank, wide) if turned else (wide, branch.rank)
    shape = tuple(array.shape)
    fits = len(shape) == (4 if branch.conv else 2) and set(shape[2:]) <= {1}
    axis = 0 if turned else 1
    if not fits or shape[1 - axis] != wide or shape[axis] > branch.rank:
        raise BadAdapter(
            f"it is {' x '.join(map(str, shape))}, the model's input takes "
            f"{' x '.join(map(str, expected))}",
            where=f"{where}: {key}",
            remedy="take the model and the adapter from one export; its rank bounds the adapter's",
        )


def _encodings(path: Path, branches: Sequence[LoraBranch], where: str) -> Mapping[str, object]:
    """Entries by name; none where there is no file."""
    if not path.is_file():
        return {}
    entries: Mapping[str, object] = read_json_object(
        path, kind=BadAdapter, remedy="export the adapter's encodings again"
    )
    known = {half for branch in branches for half in (branch.a, branch.b, *branch.tensors)}
    _check_names(list(entries), known, where=f"{where}: its encodings", what="entries")
    return entries
