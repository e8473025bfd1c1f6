"""Where one layer ends and the next begins: tensors through which everything passes.

A draft is a cut if no edge of the live graph leads past it. Between two attentions the last cut is
the residual stream that enters the later layer.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence

from genai_core.errors import UnsupportedOperator
from genai_stages.ingest.recognition.drafts import DraftNode


@dataclasses.dataclass(frozen=True)
class Cuts:
    """Live drafts in execution order, and the boundaries among them.

    Attributes:
        order: Drafts that the logits need.
        boundaries: The one entering layer 0, 1, ..., and the one leaving the last.
        groups: For each of `order`: -1 = embedding, l = layer, number of layers = head.
    """

    order: list[DraftNode]
    boundaries: list[DraftNode]
    groups: list[int]


def live_drafts(final: DraftNode) -> list[DraftNode]:
    """The drafts that the final one needs, in execution order."""
    order: list[DraftNode] = []
    done: set[int] = set()
    stack: list[tuple[DraftNode, int]] = [(final, 0)]
    opened = {id(final)}
    while stack:
        draft, index = stack.pop()
        if index < len(draft.inputs):
            stack.append((draft, index + 1))
            following = draft.inputs[index]
            if id(following) not in opened:
                opened.add(id(following))
                stack.append((following, 0))
        elif id(draft) not in done:
            done.add(id(draft))
            order.append(draft)
    return order


def find_boundaries(final: DraftNode, attentions: Sequence[DraftNode]) -> Cuts:
    """Find the boundaries between layers.

    Raises:
        UnsupportedOperator: Layers are not in sequence.
    """
    order = live_drafts(final)
    position = {id(draft): index for index, draft in enumerate(order)}
    last_use = list(range(len(order)))
    for index, draft in enumerate(order):
        for used in draft.inputs:
            last_use[position[id(used)]] = index
    cuts = _cut_positions(order, last_use)
    places = [position[id(draft)] for draft in attentions if id(draft) in position]
    if len(places) != len(attentions) or places != sorted(places):
        raise UnsupportedOperator(
            "its attentions do not follow one another",
            where="layers",
            remedy="export a decoder-only language model",
        )
    borders: list[int] = []
    for layer, place in enumerate(places):
        before = [cut for cut in cuts if cut < place]
        if not before or (layer and before[-1] < places[layer - 1]):
            raise UnsupportedOperator(
                f"nothing that all paths pass separates layer {layer} from the one before",
                where=attentions[layer].made_by,
                remedy="export a decoder-only language model",
            )
        borders.append(before[-1])
    after = [cut for cut in cuts if cut > places[-1]]
    sums = [cut for cut in after if order[cut].op_type == "Add" and len(order[cut].inputs) == 2]
    borders.append(sums[-1] if sums else after[0])
    groups = []
    for index in range(len(order)):
        group = -1
        for layer, border in enumerate(borders):
            if index > border:
                group = layer
        groups.append(group)
    return Cuts(order, [order[border] for border in borders], groups)


def _cut_positions(order: Sequence[DraftNode], last_use: Sequence[int]) -> list[int]:
    """Positions whose draft alone carries what later ones need."""
    cuts = []
    reach = -1
    """The last reader of anything before the current position."""
    for index in range(len(order)):
        if reach <= index:
            cuts.append(index)
        reach = max(reach, last_use[index])
    return cuts
