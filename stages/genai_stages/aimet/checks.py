"""Refuses encodings that can only ruin the model that they are put on.

Two mistakes are common and expensive, since everything builds and only the text is nonsense: the
model was calibrated with an infinite attention mask, or the file belongs to another model.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable

from genai_core.errors import BadEncodings, BadInput
from genai_stages.aimet.model import EncodingSet

MASK_HIDDEN = -100.0
"""What a hidden position adds to a score: far below any score, yet on a usable grid."""

_INFINITE = 1e30
_COARSEST_SCORE_STEP = 0.05
_LOWEST_SCORE = -5000.0
"""No score of a real model lies there: masks of -10000 and -65504 do."""


def refuse_infinite_masks(encodings: EncodingSet, masked: Collection[str] = ()) -> None:
    """Refuse ranges that an infinite mask stretched.

    Args:
        encodings: The file.
        masked: Names of tensors known to be masks or masked scores. One that reaches below -5000
            at a step above 0.05 blurs neighbouring scores (a factor exp(0.05) in the
            probabilities), as a mask of -10000 or -65504 does it at 16 bits.

    Raises:
        BadEncodings: Naming the first such entry and how many there are.
    """
    remedy = f"replace -inf by {MASK_HIDDEN:g} in the model's attention mask and calibrate again"
    infinite = [
        name
        for name, entry in encodings.items()
        if entry.dtype == "int"
        and (float(entry.low.min()) < -_INFINITE or float(entry.high.max()) > _INFINITE)
    ]
    if infinite:
        entry = encodings[infinite[0]]
        raise BadEncodings(
            f"the range {float(entry.low.min()):.3g} .. {float(entry.high.max()):.3g} comes from "
            f"an infinite attention mask and leaves no step for real scores "
            f"({len(infinite)} entries like this)",
            where=f"{encodings.where}: {infinite[0]}",
            remedy=remedy,
        )
    for name in masked:
        found = encodings.get(name)
        if found is None or not found.per_tensor or float(found.low) > _LOWEST_SCORE:
            continue
        if float(found.scale) <= _COARSEST_SCORE_STEP:
            continue
        raise BadEncodings(
            f"a step of {float(found.scale):.3g} for attention scores, from a mask value near "
            f"{float(found.low):.4g}",
            where=f"{encodings.where}: {name}",
            remedy=remedy,
        )


def refuse_foreign(encodings: EncodingSet, names: Iterable[str], *, model: str) -> None:
    """Refuse the encodings of another model.

    Args:
        encodings: The file.
        names: Every tensor of the source model.
        model: What to call the model in the message.

    Raises:
        BadInput: Most entries name tensors that the model does not have.
    """
    known = set(names)
    listed = encodings.listed
    foreign = [name for name in listed if name not in known]
    if len(foreign) * 2 <= len(listed):
        return
    shown = ", ".join(foreign[:3])
    raise BadInput(
        f"{len(foreign)} of {len(listed)} encodings name tensors that {model} does not have, "
        f"for example {shown}",
        where=encodings.where,
        remedy="give the encodings that AIMET exported together with this ONNX file",
    )
