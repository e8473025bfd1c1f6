"""Reads an adapter that stands in a graph of its own: the model's, with branches in it.

The vendor's third form has one ONNX without branches and one for each use case, whose LoRA weights
are initializers (several adapters beside one another along the rank). What is left when the
branches are taken off must be the model itself: it is made into a core graph as the model was, and
both are compared, weight by weight.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray

from genai_core.errors import BadAdapter
from genai_core.facts import LoraBranch, ModelFacts
from genai_core.files.foreign import boundary
from genai_core.sources.adapter_files import ADAPTER_GRAPH_ROLE
from genai_stages.architectures.detect import detect
from genai_stages.graph.core_graph import mapped, read_core
from genai_stages.ingest.admission.refuse_source import refuse_source
from genai_stages.ingest.source.lora_branches import find_stored_branches, take_off
from genai_stages.ingest.source.source_model import (
    SourceModel,
    constant_of,
    read_config,
    read_source,
)
from genai_stages.ingest.source_to_core import source_to_core
from genai_stages.lora.adapter import Adapter, AdapterBranch, branch_of
from genai_stages.lora.modules import parts_of, places_of

__all__ = ["holds_graph", "read_graph_adapter"]

_FORM = "its graph has a form that is not known here"
_REMEDY = "export the model and the graph of the use case from one base"


def holds_graph(folder: Path) -> bool:
    """Whether a folder of roles holds an adapter in this form."""
    return (folder / ADAPTER_GRAPH_ROLE).is_file()


def read_graph_adapter(
    folder: Path, core: Path, config: Path | None, scratch: Path, name: str
) -> Adapter:
    """Read an adapter.

    Args:
        folder: Of roles: the graph and its data.
        core: Folder of the model's core graph, with its weights.
        config: Folder of the model's config.json; None = it has none.
        scratch: An empty folder.
        name: As users call it.

    Raises:
        BadAdapter: The graph has no branches, or another base, named by its tensor.
    """
    model, facts = read_core(core)
    settings = {} if config is None else read_config(config)
    source = read_source(folder / ADAPTER_GRAPH_ROLE, settings)
    with boundary(name, kind=BadAdapter, what=_FORM, remedy=_REMEDY, detailed=True):
        branches = find_stored_branches(source.stripped())
        if not branches:
            raise BadAdapter(
                "its graph has no LoRA branches: no product of two matrices is added to a linear",
                where=name,
                remedy="name the graph of the use case, not the base's",
            )
        base = source.changed(partial(take_off, branches=branches))
        refuse_source(base)
        known = None if facts.architecture == "generic" else facts.architecture
        family, _ = detect(settings, known)
        (scratch / "core").mkdir(parents=True)
        source_to_core(base, family, scratch / "core")
    own, own_facts = read_core(scratch / "core")
    _check_base((model, facts), (own, own_facts), name)
    return Adapter(name, dict(_placed(source, branches, (model, facts), (own, own_facts), name)))


def _check_base(
    model: tuple[ir.Model, ModelFacts], own: tuple[ir.Model, ModelFacts], name: str
) -> None:
    """Refuse a base that is not the model's, with the tensor that differs."""
    ours, theirs = ([_kind(node) for node in one[0].graph] for one in (model, own))
    if ours == theirs:
        _check_wiring(model, own, name)
    else:
        at = next((i for i, (a, b) in enumerate(zip(ours, theirs, strict=False)) if a != b), -1)
        what = f"at node {at} {theirs[at]} stands for {ours[at]}" if at >= 0 else (
            f"it has {len(theirs)} nodes, the model has {len(ours)}"
        )  # fmt: skip
        raise BadAdapter(
            f"without its branches its graph is not the model's: {what}", where=name, remedy=_REMEDY
        )
    for ours_value, value in zip(_weights(model[0]), _weights(own[0]), strict=True):
        a, b = _array(ours_value), _array(value)
        if a.shape == b.shape and np.array_equal(a, b):
            continue
        origin = own[1].provenance.get(str(value.name))
        tensor = str(value.name) if origin is None else origin.source
        differ = (
            f"{int((a != b).sum())} of {a.size} values"
            if a.shape == b.shape
            else f"its shape is {list(b.shape)}, the model's {list(a.shape)}"
        )
        raise BadAdapter(
            f"its base differs from the model in {tensor}: {differ}", where=name, remedy=_REMEDY
        )


def _check_wiring(
    model: tuple[ir.Model, ModelFacts], own: tuple[ir.Model, ModelFacts], name: str
) -> None:
    """Refuse a base of the same operators that computes something else with them."""
    wired = zip(model[0].graph, *(_wiring(one[0]) for one in (model, own)), strict=True)
    for node, (attributes, inputs), (other_attributes, other_inputs) in wired:
        if inputs == other_inputs and attributes == other_attributes:
            continue
        at = str(node.outputs[0].name)
        source = model[1].provenance.get(at)
        differ = [
            f"{key} is {other_attributes.get(key)}, the model's {attributes.get(key)}"
            for key in sorted({*attributes, *other_attributes})
            if attributes.get(key) != other_attributes.get(key)
        ]
        raise BadAdapter(
            f"its base differs from the model at {at if source is None else source.source} "
            f"({_kind(node)}): {differ[0] if differ else 'it reads other tensors'}",
            where=name,
            remedy=_REMEDY,
        )
    ours, theirs = model[1], own[1]
    if ours.rope != theirs.rope:
        raise BadAdapter(
            "its base differs from the model in its rotary tables", where=name, remedy=_REMEDY
        )
    for layer, other in zip(ours.attention, theirs.attention, strict=True):
        # Names of tensors may be others.
        if layer.model_copy(update={"roles": {}}) != other.model_copy(update={"roles": {}}):
            raise BadAdapter(
                f"its base differs from the model in the attention of layer {layer.layer}",
                where=name,
                remedy=_REMEDY,
            )


def _wiring(model: ir.Model) -> list[tuple[dict[str, Any], list[object]]]:
    """Of each node its attributes and what it reads, whatever the names are.

    Nodes count by their place, known values by the order in which they are read, inputs by name.
    """
    places: dict[str, object] = {"": None}
    weights = {str(value.name): index for index, value in enumerate(_weights(model))}
    found = []
    for index, node in enumerate(model.graph):
        names = ["" if value is None else str(value.name) for value in node.inputs]
        inputs = [
            ("known", weights[name]) if name in weights else places.get(name, name)
            for name in names
        ]
        attributes = {key: attribute.value for key, attribute in node.attributes.items()}
        found.append((attributes, inputs))
        for output, value in enumerate(node.outputs):
            places[str(value.name)] = (index, output)
    return found


def _kind(node: ir.Node) -> str:
    return f"{node.domain}.{node.op_type}" if node.domain else node.op_type


def _weights(model: ir.Model) -> list[ir.Value]:
    """What nodes read that is known, in the order in which it is read."""
    found: dict[str, ir.Value] = {}
    for node in model.graph:
        for value in node.inputs:
            if value is not None and value.const_value is not None:
                found.setdefault(str(value.name), value)
    return list(found.values())


def _array(value: ir.Value) -> NDArray[Any]:
    tensor = value.const_value
    assert tensor is not None
    return mapped(tensor)


def _placed(
    source: SourceModel,
    branches: Sequence[LoraBranch],
    model: tuple[ir.Model, ModelFacts],
    own: tuple[ir.Model, ModelFacts],
    name: str,
) -> Iterator[tuple[str, AdapterBranch]]:
    """Linear of the model's core graph -> its branch, by the place in the graph."""
    here, there = places_of(*own), places_of(*model)
    same: Mapping[str, str] = {
        a.site.output: b.site.output for a, b in zip(here, there, strict=True)
    }
    for branch in branches:
        a, b = (_stored(source, half) for half in (branch.a, branch.b))
        if branch.conv:
            a, b = a.reshape(a.shape[:2]), b.reshape(b.shape[:2])
        else:
            a, b = a.T, b.T
        parts = parts_of(branch.linear, branch.outputs, branch.inputs, here)
        if not parts:
            raise BadAdapter(
                f"its branch at {branch.linear} belongs to no linear of the model",
                where=name,
                remedy=_REMEDY,
            )
        for part in parts:
            rows = slice(None) if part.rows is None else list(part.rows)
            linear = same[part.place.site.output]
            yield (
                linear,
                branch_of(
                    linear,
                    np.ascontiguousarray(a, np.float32),
                    np.ascontiguousarray(b[rows], np.float32),
                    scale=branch.scale,
                    where=name,
                ),
            )


def _stored(source: SourceModel, name: str) -> NDArray[Any]:
    tensor = source.model.graph.initializers[name].const_value
    assert tensor is not None
    return constant_of(source.path, name, tensor).array()
