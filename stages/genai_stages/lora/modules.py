"""Which linear of the core graph a module of an adapter is.

An adapter names torch modules, `model.layers.3.self_attn.q_proj`. Exporters keep those names more
or less: in the path of a tensor (`/model/layers.3/self_attn/q_proj/MatMul_output_0`), in a weight's
name, or not at all (`linear_10`). So a module is looked for by its path first. Where no name tells,
the place does: the number of the layer, and what the module's last name means for the attention or
the feed-forward part around it.

A projection that the core graph has cut into parts (`qkv_proj` into query, key and value) takes the
same rows of B; parts that the source has fused and the adapter has not are found the same way.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import onnx_ir as ir

from genai_core.facts import ModelFacts, TensorSource
from genai_stages.graph.linear_sites import LinearSite, is_op, linear_sites

__all__ = ["BranchPart", "LinearPlace", "parts_of", "path_of", "places_of", "stands_for"]

_LAYER = re.compile(r"(?:^|\.)(?:layers|layer|h|blocks|block)\.(\d+)\.")
_GROUP = re.compile(r"layer_(\d+)\.data$")
_OPERATORS = re.compile(
    r"(?:\.(?:MatMul|Gemm|Conv|Add|Linear|Transpose|Cast|Reshape|Squeeze|Unsqueeze|base_layer))"
    r"(?:_\d+)?(?:_output_\d+)?$|_output_\d+$|\.weight$|\.kernel$|\.qweight$"
)
_KINDS: Mapping[str, Sequence[str]] = {
    "q_proj": ["query"], "query": ["query"], "wq": ["query"], "q": ["query"],
    "k_proj": ["key"], "key": ["key"], "wk": ["key"], "k": ["key"],
    "v_proj": ["value"], "value": ["value"], "wv": ["value"], "v": ["value"],
    "qkv_proj": ["query", "key", "value"], "qkv": ["query", "key", "value"],
    "wqkv": ["query", "key", "value"], "w_pack": ["query", "key", "value"],
    "query_key_value": ["query", "key", "value"], "c_attn": ["query", "key", "value"],
    "o_proj": ["out"], "wo": ["out"], "out_proj": ["out"], "dense": ["out"],
    "gate_proj": ["gate"], "w1": ["gate"],
    "up_proj": ["up"], "w3": ["up"], "fc1": ["up"], "dense_h_to_4h": ["up"], "c_fc": ["up"],
    "down_proj": ["down"], "w2": ["down"], "fc2": ["down"], "dense_4h_to_h": ["down"],
    "gate_up_proj": ["gate", "up"],
    "lm_head": ["head"], "embed_out": ["head"], "output": ["head"],
    "mlp.c_proj": ["down"], "attn.c_proj": ["out"],
}  # fmt: skip
"""Last name of a module, or its last two, in lower case -> what its output rows are, in order."""
_NO_DECODER = re.compile(
    r"(?:^|\.)(?:(?:vision|visual|image|audio|speech)\w*|cross_?attn|cross_?attention|encoder_attn)\.",
    re.IGNORECASE,
)
"""Modules of an encoder or of attention to one, whose sizes may be those of the decoder's own."""
_OF_SOME_ORDER = frozenset({"query_key_value", "qkv", "wqkv"})
"""Rows head by head in some models (GPT-NeoX, InternLM2), part by part in others (ChatGLM): where
the source was not one projection, so that its own rows do not tell, nothing does."""


@dataclass(frozen=True)
class LinearPlace:
    """One `genai.Linear` and everything that it may be called.

    Attributes:
        site: The linear.
        layer: Whose weights it has; None = the embedding's or the head's.
        kind: query, key, value, out, gate, up, down or head; empty where the place does not tell.
        paths: Names of the source, in torch's spelling.
        names: The same as the source has them, for adapters that name its tensors.
        rows: Of the source's projection; None = all of them.
    """

    site: LinearSite
    layer: int | None
    kind: str
    paths: frozenset[str]
    rows: tuple[int, ...] | None
    names: frozenset[str] = frozenset()


@dataclass(frozen=True)
class BranchPart:
    """A linear that a module's branch goes to, and the rows of B that it takes.

    Attributes:
        place: The linear.
        rows: Of B; None = all of them.
    """

    place: LinearPlace
    rows: tuple[int, ...] | None


def places_of(model: ir.Model, facts: ModelFacts) -> list[LinearPlace]:
    """Every linear of a core graph, in its order."""
    kinds = _kinds(model)
    layers = _layers(model)
    places = []
    for site in linear_sites(model):
        weight = facts.provenance.get(site.weight)
        output = facts.provenance.get(site.output)
        named = [site.weight, site.output, *(o.source for o in (weight, output) if o)]
        rows = _rows(weight) or _rows(output)
        places.append(
            LinearPlace(
                site=site,
                layer=layers.get(site.weight),
                kind=kinds.get(site.output, ""),
                paths=frozenset(filter(None, map(path_of, named))),
                rows=rows,
                names=frozenset(named),
            )
        )
    return places


def stands_for(module: str, place: LinearPlace) -> bool:
    """Whether a linear is, or is a part of, the modules of a last name, e.g. `q_proj`."""
    named = any(path.rpartition(".")[2] == module for path in place.paths)
    return named or (bool(place.kind) and place.kind in _KINDS.get(module.lower(), ()))


def parts_of(
    module: str, outputs: int, inputs: int, places: Sequence[LinearPlace]
) -> list[BranchPart]:
    """The linears that a module stands for; empty where nothing tells, or its sizes fit nothing.

    Args:
        module: As the adapter names it.
        outputs: Rows of its B.
        inputs: Columns of its A.
        places: See `places_of`.
    """
    fitting = [place for place in places if place.site.inputs == inputs]
    if _NO_DECODER.search(module):
        # Only a linear of exactly that name: what it ends with, and its place, are the decoder's.
        exact = [place for place in fitting if module in place.names | place.paths]
        return _cut(exact, outputs)
    named = [
        place
        for place in fitting
        if module in place.names or any(_ends(path, module) for path in place.paths)
    ]
    parts = _cut(named, outputs)
    return parts or _by_place(module, outputs, fitting)


def _cut(places: Sequence[LinearPlace], outputs: int) -> list[BranchPart]:
    """Parts of one projection; all of its rows must be there."""
    if len(places) == 1 and places[0].site.outputs == outputs:
        return [BranchPart(places[0], None)]
    if len(places) < 2 or any(place.rows is None for place in places):
        return []
    parts = [BranchPart(place, place.rows) for place in places]
    taken = sorted(row for part in parts for row in part.rows or ())
    return parts if taken == list(range(outputs)) else []


def _by_place(module: str, outputs: int, places: Sequence[LinearPlace]) -> list[BranchPart]:
    names = module.lower().split(".")
    kinds = _KINDS.get(".".join(names[-2:])) or _KINDS.get(names[-1], ())
    layer = _LAYER.search(f"{module}.")
    number = int(layer[1]) if layer else None
    chosen = []
    for kind in kinds:
        here = [p for p in places if p.kind == kind and p.layer == number]
        if len(here) != 1:
            return []
        chosen.append(here[0])
    if sum(place.site.outputs for place in chosen) != outputs:
        return []
    if len(chosen) == 1:
        return [BranchPart(chosen[0], None)]
    if all(place.rows is not None for place in chosen):
        return _cut(chosen, outputs)  # in the source's own order of rows
    if module.rpartition(".")[2].lower() in _OF_SOME_ORDER:
        return []
    ends = np.cumsum([place.site.outputs for place in chosen]).tolist()
    return [
        BranchPart(place, tuple(range(end - place.site.outputs, end)))
        for place, end in zip(chosen, ends, strict=True)
    ]


def _rows(origin: TensorSource | None) -> tuple[int, ...] | None:
    if origin is None or (origin.rows is None and origin.index is None):
        return None
    return tuple(range(*origin.rows)) if origin.rows is not None else origin.index


def path_of(name: str) -> str:
    """A tensor's name as torch would spell its module; empty where it is a mere number."""
    text = name.split("[", 1)[0].replace("::", "/").strip("/").replace("/", ".")
    before = ""
    while before != text:
        before, text = text, _OPERATORS.sub("", text)
    return text if "." in text or text in _KINDS else ""


def _ends(path: str, module: str) -> bool:
    """Whether a path and a module are one, whatever wrappers stand before them."""
    if path == module:
        return True
    longer, shorter = (path, module) if len(path) > len(module) else (module, path)
    layer = _LAYER.search(f"{shorter}.")
    anchored = layer is not None or shorter in {"lm_head", "embed_out"}
    return anchored and longer.endswith(f".{shorter}")


def _layers(model: ir.Model) -> dict[str, int]:
    """Weight of a linear -> its layer, by the file that it lies in: none for the head's."""
    numbers = {}
    for name, value in model.graph.initializers.items():
        tensor = value.const_value
        match = (
            _GROUP.search(str(tensor.location)) if isinstance(tensor, ir.ExternalTensor) else None
        )
        if match is not None:
            numbers[name] = int(match[1])
    return numbers


def _feeds_attention(model: ir.Model) -> dict[str, str]:
    """Output of a linear -> query, key or value: what the next attention takes it for."""
    makers = {str(out.name): node for node in model.graph for out in node.outputs}
    kinds: dict[str, str] = {}
    for node in model.graph:
        if not is_op(node, "Attention"):
            continue
        for kind, value in zip(("query", "key", "value"), node.inputs, strict=False):
            for linear in _linears_before(value, makers):
                kinds.setdefault(linear, kind)
    return kinds


def _linears_before(
    value: ir.Value | None, makers: Mapping[str, ir.Node], seen: set[str] | None = None
) -> Iterator[str]:
    """The nearest linears that a tensor is made of, each tensor on the way looked at once."""
    seen = set() if seen is None else seen
    if value is None or str(value.name) not in makers or str(value.name) in seen:
        return
    seen.add(str(value.name))
    node = makers[str(value.name)]
    if is_op(node, "Linear"):
        yield str(node.outputs[0].name)
    elif not is_op(node, "Attention"):
        for given in node.inputs:
            yield from _linears_before(given, makers, seen)


def _head(model: ir.Model) -> str | None:
    """The linear that makes the logits."""
    makers = {str(out.name): node for node in model.graph for out in node.outputs}
    linears = list(_linears_before(model.graph.outputs[0], makers))
    return linears[0] if len(linears) == 1 else None


def _kinds(model: ir.Model) -> dict[str, str]:
    """Output of a linear -> what its place says of it."""
    kinds = dict(_feeds_attention(model))
    head = _head(model)
    makers = {str(out.name): node for node in model.graph for out in node.outputs}
    for node in model.graph:
        if not is_op(node, "Linear") or str(node.outputs[0].name) in kinds:
            continue
        name = str(node.outputs[0].name)
        source = node.inputs[0]
        maker = makers.get(str(source.name)) if source is not None else None
        if name == head:
            kinds[name] = "head"
        elif maker is not None and is_op(maker, "Attention"):
            kinds[name] = "out"
        elif source is not None and any(_linears_before(source, makers)):
            kinds[name] = "down" if _is_gated(source, makers) else ""
    kinds.update(_feed_forward(model, kinds, makers))
    return {name: kind for name, kind in kinds.items() if kind}


def _is_gated(
    source: ir.Value, makers: Mapping[str, ir.Node], seen: set[str] | None = None
) -> bool:
    """Whether what a linear reads is made of linears without an attention or a norm between."""
    seen = set() if seen is None else seen
    node = makers.get(str(source.name)) if str(source.name) not in seen else None
    seen.add(str(source.name))
    if node is None or is_op(node, "Attention") or "Norm" in node.op_type:
        return False
    if is_op(node, "Linear"):
        return True
    return any(_is_gated(given, makers, seen) for given in node.inputs if given is not None)


def _feed_forward(
    model: ir.Model, kinds: Mapping[str, str], makers: Mapping[str, ir.Node]
) -> dict[str, str]:
    """Gate and up of each `down`: the gate goes through an activation, up is multiplied."""
    roles: dict[str, str] = {}
    for node in model.graph:
        name = str(node.outputs[0].name)
        if not is_op(node, "Linear") or kinds.get(name) != "down":
            continue
        source = node.inputs[0]
        assert source is not None
        product = makers[str(source.name)]
        read = list(dict.fromkeys(_linears_before(source, makers)))
        if len(read) == 1:
            roles[read[0]] = "up"
        if len(read) != 2 or product.op_type != "Mul":
            continue
        plain = [str(v.name) for v in product.inputs if v is not None and str(v.name) in read]
        if len(plain) == 1:
            roles[plain[0]] = "up"
            roles[next(linear for linear in read if linear != plain[0])] = "gate"
    return roles
