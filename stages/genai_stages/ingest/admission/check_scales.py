"""Holds the scales of an encodings file against the tensors of the source that they are for."""

from __future__ import annotations

import math
from collections.abc import Collection, Mapping

from genai_core.errors import BadEncodings
from genai_stages.aimet.model import EncodingSet, Outline
from genai_stages.ingest.admission.weight_axes import WeightAxes

_QUANTIZE = (
    "quantize weights per tensor, per output channel or in blocks of input channels, and export "
    "model and encodings from the same simulation"
)


def refuse_misfits(
    encodings: EncodingSet, weights: Mapping[str, WeightAxes], activations: Collection[str]
) -> None:
    """Refuse scales that do not fit the tensor that they are for.

    Args:
        encodings: The file.
        weights: The source's weights by name.
        activations: Its tensors that depend on the tokens.

    Raises:
        BadEncodings: Several scales for an activation; scales along another axis than that of the
            output channels, or blocks along another than that of the input channels; more or fewer
            than there are channels.
    """
    for name, outline in encodings.outlines.items():
        if not outline.shape:
            continue
        problem = None
        if name in activations:
            count = math.prod(outline.shape)
            problem = f"{count} scales for an activation, which has one"
        elif name in weights and weights[name].shape:
            problem = _misfit(outline, weights[name])
        if problem is not None:
            raise BadEncodings(problem, where=f"{encodings.where}: {name}", remedy=_QUANTIZE)


def _misfit(outline: Outline, weight: WeightAxes) -> str | None:
    """What is wrong with the scales of a weight; None where they fit, or nothing tells."""
    shape, rank = list(weight.shape), len(weight.shape)
    axis = outline.axis
    if axis is not None and not -rank <= axis < rank:
        return f"axis {axis} for a weight of shape {shape}"
    blocks = outline.block_size is not None
    wanted, others = (weight.outputs, weight.inputs)[:: -1 if blocks else 1]
    if axis is not None and wanted and axis % rank not in wanted:
        right = " or ".join(str(one) for one in sorted(wanted))
        side = "output" if blocks else "input"
        counts = f"counts the {side} channels of" if axis % rank in others else "is no side of"
        what = "blocks divide input" if blocks else "scales of a channel count output"
        return (
            f"axis {axis} {counts} {weight.reader} (shape {shape}), and {what} channels: axis "
            f"{right}"
        )
    if outline.block_size is not None:
        return _misfit_of_blocks(outline, weight)
    axes = sorted(weight.outputs) or ([] if axis is None else [axis % rank])
    channels = outline.shape[0]
    if axes and channels not in {weight.shape[one] for one in axes}:
        have = " or ".join(str(weight.shape[one]) for one in axes)
        read = f" of {weight.reader}" if weight.reader else ""
        inputs = {weight.shape[one] for one in weight.inputs}
        hint = ", as many as it has input channels" if channels in inputs else ""
        return f"{channels} scales{hint}, for {have} output channels{read} (shape {shape})"
    return None


def _misfit_of_blocks(outline: Outline, weight: WeightAxes) -> str | None:
    block = outline.block_size or 1
    if len(weight.inputs) != 1 or len(weight.outputs) != 1:
        return None
    inputs = weight.shape[next(iter(weight.inputs))]
    outputs = weight.shape[next(iter(weight.outputs))]
    blocks, rest = divmod(inputs, block)
    needed = outputs * blocks
    have = math.prod(outline.shape)
    fits = outline.shape in ((outputs, blocks), (needed,))
    if rest == 0 and fits:
        return None
    return (
        f"{have} scales of blocks of {block}, for {outputs} output channels of {inputs} input "
        f"channels of {weight.reader}, which take {needed if rest == 0 else 'no such blocks'}"
    )
