"""Which source tensors stand for an attention's inner values.

Encodings of a quantized model hang on tensor names, and `genai.Attention` has no inner tensors. So
for each role the source's tensor is found: by its values where an exporter may have arranged them
in any way, by its place where the graph leaves no choice.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from genai_core.facts import Role
from genai_stages.ingest.folding.folded_graph import FoldedGraph, StaticNode
from genai_stages.ingest.recognition.drafts import Data, DraftNode
from genai_stages.ingest.recognition.evaluate_region import region_of
from genai_stages.ingest.recognition.recognise_layers import MOVEMENTS
from genai_stages.ingest.source.source_model import Array

Wanted = Mapping[Role, tuple[npt.NDArray[np.floating[Any]], list[StaticNode]] | None]
"""Role -> its values and the nodes among whose outputs it is; None = there is no such role."""


@dataclasses.dataclass(frozen=True)
class AttentionCache:
    """Where an attention's keys and values come from.

    Attributes:
        roles: The attention's, to which names are added.
        keys: Tensors that new keys are made of.
        values: Tensors that new values are made of.
        past: Its cache inputs.
    """

    roles: dict[Role, str]
    keys: frozenset[str]
    values: frozenset[str]
    past: frozenset[str]


class RoleNames:
    """Finds names in one graph.

    Args:
        graph: The graph.
        known: What the walk knows of its tensors.
        past_inputs: Names of the cache inputs.
        tokens: T.
    """

    def __init__(
        self,
        graph: FoldedGraph,
        known: Mapping[str, Data],
        past_inputs: set[str],
        *,
        tokens: int,
    ) -> None:
        self.graph = graph
        self.known = known
        self.past_inputs = past_inputs
        self.tokens = tokens
        self.producers = graph.producers()
        self.consumers = graph.consumers()

    def flat_context(self, name: str) -> str:
        """The last name of a context before something computes with it."""
        while True:
            readers = self.consumers.get(name, [])
            if len(readers) != 1 or readers[0].op_type not in MOVEMENTS:
                return name
            following = readers[0].outputs[0]
            width = self.graph.shapes[following][-1]
            name = following
            if len(self.graph.shapes[following]) == 3 and width != self.tokens:
                return name

    def by_value(
        self,
        projections: dict[str, DraftNode],
        wanted: Wanted,
        tensors: Mapping[str, Array],
    ) -> dict[Role, str]:
        """The first tensor in each place that has the values of its role, in any arrangement."""
        found: dict[Role, str] = {
            "query": projections["query"].name,
            "key": projections["key"].name,
            "value": projections["value"].name,
        }
        for role, want in wanted.items():
            if want is None:
                continue
            values, nodes = want
            flat = np.sort(values.reshape(-1))
            for node in nodes:
                have = tensors.get(node.outputs[0])
                if have is None or have.size != flat.size or have.dtype != np.float32:
                    continue
                if np.allclose(np.sort(have.reshape(-1)), flat, atol=1e-4, rtol=1e-4):
                    found[role] = node.outputs[0]
                    break
        return found

    def cache_outputs(self, caches: Sequence[AttentionCache]) -> None:
        """Name the source's outputs that hold new (or all) keys and values; once all is known."""
        for output, held in self.graph.outputs.items():
            if held in self.graph.constants:
                continue
            data = self.known.get(held)
            if data is None:
                _, edge = region_of(self.producers, [held], lambda one: one in self.known)
                border = {one for one in edge if one in self.known}
                past = {one for one in edge if one in self.past_inputs}
            for cache in caches:
                for role, names in (("key_new", cache.keys), ("value_new", cache.values)):
                    if data is not None:
                        same = self._holds(data, names)
                    else:
                        same = bool(border) and border <= names and past <= cache.past
                    if same:
                        cache.roles.setdefault(role, output)  # type: ignore[arg-type]

    def _holds(self, data: Data, names: frozenset[str]) -> bool:
        """Whether a tensor has the channels of these and no others."""
        layouts = [self.known[one].layout for one in names if self.known[one].draft is data.draft]
        held = {channel for layout in layouts for channel in layout.channels().tolist()}
        return bool(held) and held == set(data.layout.channels().tolist())
