"""Compute a mask once more behind a past that is longer than any window.

At the sizes at which a graph is folded, a window of 4096 looks like full causal attention. How far
a window may reach is told by config.json and by the numbers in the arithmetic that made the mask:
behind a past longer than all of them, it shows. A source without a cache has no past: there it is
looked for among as many new tokens.

Some exporters let each layer's mask depend on shapes of that layer, and so on everything before
it. One folding serves all layers therefore: each asks for what the ones before it did not need.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np

from genai_core.errors import BadInput, UnsupportedOperator
from genai_core.facts import RopeTable
from genai_stages.ingest.admission.source_inputs import SourceInputs
from genai_stages.ingest.folding import classify_mask
from genai_stages.ingest.folding.folded_graph import FoldedGraph, StaticNode
from genai_stages.ingest.folding.lower_fused import CAUSAL, MADE
from genai_stages.ingest.folding.specialise import Folding
from genai_stages.ingest.recognition.attention.found_attention import Sizes
from genai_stages.ingest.recognition.evaluate_region import run_region
from genai_stages.ingest.source.source_model import Constant, SourceModel

_LONGEST = 1 << 18
"""Positions; numbers above this in a mask's arithmetic are limits of integers, not windows."""
_MOST_TOKENS = 4200
"""Of a mask over new tokens alone, which takes their square; the widest windows in use are 4096."""


class MaskAtScale:
    """Asked for the window of one attention; see `attention_scores.MaskAtScale`.

    Args:
        source: The source.
        inputs: Its inputs.
        ropes: config.json's tables.
        config: config.json.
        graph: The source as it was folded.
    """

    def __init__(
        self,
        source: SourceModel,
        inputs: SourceInputs,
        ropes: Mapping[str, RopeTable],
        config: Mapping[str, object],
        graph: FoldedGraph,
    ) -> None:
        self.source = source
        self.inputs = inputs
        self.ropes = ropes
        self.config = config
        self.graph = graph
        self.foldings: dict[Sizes, Folding] = {}

    def __call__(self, nodes: Sequence[StaticNode]) -> int | None:
        """The window that nodes from the scores' product to before the softmax hide by.

        Raises:
            UnsupportedOperator: It may reach too far to be seen.
        """
        first, *chain = nodes
        inner = {name for node in nodes for name in node.outputs}
        wanted = list(
            dict.fromkeys(
                name for node in chain for name in node.inputs if name and name not in inner
            )
        )
        sizes = self.sizes(self.longest(wanted))
        if sizes is None:
            return 0
        if self.inputs.named("past") or not sizes.past:
            return self.window(sizes, first, chain, wanted)
        try:
            found = self.window(sizes, first, chain, wanted)
        except BadInput:
            found = None
        if found is None:
            raise UnsupportedOperator(
                f"without a cache its mask is seen for {_MOST_TOKENS} tokens, and numbers in its "
                "arithmetic lie further",
                where=nodes[-1].where(),
                remedy="export the model with a cache (past_key_values)",
            )
        return found

    def sizes(self, longest: int) -> Sizes | None:
        """Sizes at which a number in the mask's arithmetic shows; None = those that were folded."""
        if self.inputs.named("past"):
            return Sizes(2, longest, longest) if longest > self.inputs.sizes.past else None
        if longest <= self.inputs.sizes.tokens:
            return None
        if longest > _MOST_TOKENS:
            # The square of so many tokens is too large; a mask [1, K] may tell of more keys.
            return Sizes(2, longest, longest)
        return Sizes(longest, 0, 0)

    def window(
        self, sizes: Sizes, first: StaticNode, chain: Sequence[StaticNode], wanted: Sequence[str]
    ) -> int | None:
        """The window that nodes behind the scores' product hide by at some sizes; None = neither.

        Args:
            sizes: T and P.
            first: The product.
            chain: The nodes behind it.
            wanted: What they read besides one another's outputs.
        """
        if sizes not in self.foldings:
            feeds = self.inputs.feeds(sizes, self.ropes)
            self.foldings[sizes] = Folding(self.source, feeds, self.inputs.open_shapes(sizes))
        made = [name for name in wanted if name.startswith(MADE)]
        graph = self.foldings[sizes].upto(sorted(set(wanted).difference(made)))
        for name in made:
            graph.constants[name] = self.graph.constants[name]
            if name.startswith(CAUSAL):
                window = int(name.removeprefix(CAUSAL).partition(":")[0])
                visible = classify_mask.reference(sizes.tokens, sizes.past, window)
                graph.constants[name] = Constant.of(name, visible)
        heads = self.graph.shapes[first.outputs[0]][:-2]
        if not any(node.op_type in ("Reshape", "Expand") for node in chain):
            heads = (1,) * len(heads)
        shape = (*heads, sizes.tokens, sizes.total)
        tensors = run_region(graph, chain, {first.outputs[0]: np.zeros(shape, np.float32)})
        given = tensors[chain[-1].outputs[0]].reshape(-1, sizes.tokens, sizes.total)[0]
        return classify_mask.classify(given > classify_mask.HIDDEN, sizes.past)

    def longest(self, names: Sequence[str]) -> int:
        """A length beyond config.json's window and any number in the masks' arithmetic."""
        window = self.config.get("sliding_window")
        numbers = [window] if isinstance(window, int) else []
        for name in names:
            if name.startswith(CAUSAL):
                numbers.append(int(name.removeprefix(CAUSAL).partition(":")[0]))
            for constant in self.graph.known_ancestors(name):
                if constant.size == 1 and constant.shape in ((), (1,)):
                    value = constant.array().reshape(-1)[0]
                    if np.isfinite(value):
                        numbers.append(int(value))
        near = [abs(number) for number in numbers if abs(number) <= _LONGEST]
        return max(near, default=0) + 7
