"""Write recognized drafts as a core graph, weights group by group."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence

import numpy as np
import onnx_ir as ir

from genai_core.facts import AttentionFacts, ModelFacts, RopeTable, TensorSource
from genai_stages.graph.core_graph import DOMAIN, CoreWriter, layer_group
from genai_stages.ingest.recognition.attention.found_attention import FoundAttention
from genai_stages.ingest.recognition.drafts import DraftNode, DraftWeight, IndexArray
from genai_stages.ingest.recognition.find_boundaries import Cuts
from genai_stages.ingest.source.source_model import Array

_BLOCK_BYTES = 64 << 20


@dataclasses.dataclass(frozen=True)
class Identity:
    """What the facts say beyond the graph itself."""

    architecture: str
    source_form: str
    native: tuple[int, int] | None
    max_positions: int | None
    warnings: tuple[str, ...]


def write_core(
    writer: CoreWriter,
    cuts: Cuts,
    attentions: Sequence[FoundAttention],
    ropes: Mapping[int, str],
    *,
    tables: Mapping[str, RopeTable],
    identity: Identity,
    outputs: Sequence[DraftNode] = (),
) -> ModelFacts:
    """Write the core graph and its facts.

    Args:
        writer: Of an empty folder.
        cuts: Live drafts and boundaries.
        attentions: In the order of the layers.
        ropes: Layer -> name of its table, "" = none.
        tables: The tables.
        identity: Architecture and form.
        outputs: What the graph gives out beside the logits; among the live drafts.
    """
    return _Writing(writer, cuts, attentions, ropes, tables).run(identity, outputs)


class _Writing:
    def __init__(
        self,
        writer: CoreWriter,
        cuts: Cuts,
        attentions: Sequence[FoundAttention],
        ropes: Mapping[int, str],
        tables: Mapping[str, RopeTable],
    ) -> None:
        self.writer = writer
        self.cuts = cuts
        self.attentions = {id(attention.draft): attention for attention in attentions}
        self.ropes = ropes
        self.tables = tables
        self.names: dict[int, str] = {}
        self.provenance: dict[str, TensorSource] = {}
        self.group = "embed"
        self.embedding: tuple[str, DraftWeight] | None = None
        self.tied = False
        self.written: dict[tuple[str, bool, bytes], str] = {}

    def run(self, identity: Identity, outputs: Sequence[DraftNode]) -> ModelFacts:
        self.writer.input("input_ids", [1, "T"], ir.DataType.INT64)
        layers = len(self.attentions)
        final = self.cuts.order[-1]
        for draft, group in zip(self.cuts.order, self.cuts.groups, strict=True):
            self.group = "embed" if group < 0 else "head" if group == layers else layer_group(group)
            name = "logits" if draft is final else self.unused(draft.name)
            self.names[id(draft)] = name
            if draft.source is not None:
                self.provenance[name] = _source(*draft.source)
            elif name != draft.name:
                self.provenance[name] = TensorSource(source=draft.name)
            self.node(draft, name)
        embedding = self.embedding
        assert embedding is not None
        native = identity.native
        facts = ModelFacts(
            architecture=identity.architecture,
            layers=layers,
            hidden_size=embedding[1].constant.shape[1],
            vocab_size=final.width,
            parameters=0,
            rope=dict(self.tables),
            attention=[self.attention_facts(attention) for attention in self.attentions.values()],
            boundaries=[self.names[id(draft)] for draft in self.cuts.boundaries],
            groups={},
            tied_embedding=self.tied,
            provenance=dict(sorted(self.provenance.items())),
            source_form="static" if native else "dynamic",
            native_ar=native[0] if native else None,
            native_cl=native[1] if native else None,
            max_positions=identity.max_positions,
            warnings=list(identity.warnings),
        )
        names = [self.names[id(draft)] for draft in outputs]
        return self.writer.finish(["logits", *names], facts)

    def unused(self, name: str) -> str:
        """A name that no tensor bears yet."""
        candidate, count = name, 1
        while candidate in self.writer:
            count += 1
            candidate = f"{name}.{count}"
        return candidate

    def attention_facts(self, attention: FoundAttention) -> AttentionFacts:
        return AttentionFacts(
            layer=attention.layer,
            num_heads=attention.num_heads,
            kv_heads=attention.kv_heads,
            head_dim=attention.head_dim,
            window=attention.window,
            rope=self.ropes[attention.layer],
            roles={role: attention.roles[role] for role in sorted(attention.roles)},
        )

    def node(self, draft: DraftNode, name: str) -> None:
        shape = (1, "T", draft.width)
        inputs = [self.names[id(source)] for source in draft.inputs]
        match draft.op_type:
            case "Embedding":
                (weight,) = draft.weights
                assert weight is not None
                table = self.matrix(weight)
                self.embedding = (table, weight)
                self.writer.node(
                    "Gather", [table, "input_ids"], [name], shapes=[shape], attributes={"axis": 0}
                )
            case "Linear":
                weight, *rest = draft.weights
                assert weight is not None
                matrix = self.matrix(weight)
                bias = self.vector(rest[0]) if rest and rest[0] is not None else None
                self.writer.linear(inputs[0], matrix, name, bias=bias, width=draft.width)
            case "Attention":
                norms = [
                    None if weight is None else self.vector(weight) for weight in draft.weights
                ]
                self.writer.node(
                    "Attention", [*inputs, *norms], [name], shapes=[shape], domain=DOMAIN,
                    attributes=self.attention_attributes(draft),
                )  # fmt: skip
            case "Input":
                self.writer.input(name, list(shape), ir.DataType.FLOAT)
            case "Slice":
                ends = [draft.attributes["start"], draft.attributes["stop"], 2]
                ints = [self.integer(value) for value in ends]
                self.writer.node("Slice", [*inputs, *ints], [name], shapes=[shape])
            case _:
                constants = [
                    None if weight is None else self.vector(weight) for weight in draft.weights
                ]
                both = [*constants, *inputs] if draft.constant_first else [*inputs, *constants]
                self.writer.node(
                    draft.op_type, both, [name], shapes=[shape], attributes=draft.attributes
                )

    def attention_attributes(self, draft: DraftNode) -> dict[str, int | float | str]:
        attention = self.attentions[id(draft)]
        return {
            "layer": attention.layer,
            "num_heads": attention.num_heads,
            "kv_heads": attention.kv_heads,
            "head_dim": attention.head_dim,
            "scale": float(attention.scale),
            "softcap": float(attention.softcap),
            "window": attention.window,
            "rope": self.ropes[attention.layer],
            "rotary_dim": attention.rotation.rotary_dim,
            "interleaved": int(attention.rotation.interleaved),
            "qk_norm_epsilon": draft.attributes["qk_norm_epsilon"],
        }

    def integer(self, value: int) -> str:
        name = f"integer_{value}"
        if name not in self.writer:
            self.writer.constant(name, np.array([value], np.int64))
        return name

    def vector(self, weight: DraftWeight) -> str:
        """A norm weight, bias or scalar."""
        values = weight.values() if weight.vector is None or weight.vector.ndim else weight.vector
        key = (weight.name, False, np.ascontiguousarray(values).tobytes()[:64])
        if key in self.written:
            return self.written[key]
        name = self.unused(weight.name)
        if values.ndim == 0:
            self.writer.constant(name, np.array(values, np.float32))
        else:
            self.writer.weight(name, values, group=self.group)
        self.remember(name, weight)
        self.written[key] = name
        return name

    def matrix(self, weight: DraftWeight) -> str:
        """A projection's weight, [out, in]."""
        rows = b"" if weight.rows is None else np.asarray(weight.rows).tobytes()
        key = (weight.source, weight.turned, rows)
        if self.embedding is not None and self.is_tied(weight):
            self.tied = True
            own = weight.source if weight.source != self.embedding[1].source else None
            name = self.unused(own or weight.constant.name)
            name = "lm_head.weight" if name.startswith(self.embedding[0] + ".") else name
            self.writer.alias(name, self.embedding[0])
            if own is None:
                self.provenance[name] = TensorSource(source=weight.source)
            return name
        if key in self.written:
            return self.written[key]
        name = self.unused(weight.name)
        self.writer.weight(name, weight.matrix(), group=self.group)
        self.remember(name, weight)
        self.written[key] = name
        return name

    def is_tied(self, weight: DraftWeight) -> bool:
        """Whether a projection has the embedding's values."""
        assert self.embedding is not None
        table = self.embedding[1]
        if weight.rows is not None or self.group != "head":
            return False
        first, second = weight.matrix(), table.matrix()
        return first.shape == second.shape and (
            weight.source == table.source or _equal(first, second)
        )

    def remember(self, name: str, weight: DraftWeight) -> None:
        if weight.rows is None:
            if name != weight.source:
                self.provenance[name] = TensorSource(source=weight.source)
            return
        rows = weight.rows
        if isinstance(rows, tuple):
            self.provenance[name] = TensorSource(source=weight.source, rows=rows)
        else:
            self.provenance[name] = _source(weight.source, rows)


def _source(name: str, rows: IndexArray) -> TensorSource:
    if bool(np.all(np.diff(rows) == 1)):
        return TensorSource(source=name, rows=(int(rows[0]), int(rows[-1]) + 1))
    return TensorSource(source=name, index=tuple(int(row) for row in rows))


def _equal(first: Array, second: Array) -> bool:
    """Whether two matrices have the same values, compared in blocks of rows."""
    step = max(1, _BLOCK_BYTES // max(1, first.shape[1] * 4))
    return all(
        np.array_equal(first[start : start + step], second[start : start + step])
        for start in range(0, len(first), step)
    )
