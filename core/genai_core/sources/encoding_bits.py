"""How many bits most quantized weights have, without reading encodings into objects.

The planner wants one number to predict how large a binary becomes; an encodings file of a large
model has hundreds of megabytes. So its text is searched, not parsed: every version spells widths in
its own way. What the encodings really say is read by the stages.
"""

from __future__ import annotations

import mmap
import re
from collections import Counter
from pathlib import Path

__all__ = ["weight_bits"]

_PARAMETERS = re.compile(rb'"param_encodings"\s*:')
_ACTIVATIONS = re.compile(rb'"activation_encodings"\s*:')
_WIDTH = re.compile(rb'"(?:bw|bitwidth)"\s*:\s*(\d{1,9})')
_DTYPE = re.compile(rb'"output_dtype"\s*:\s*"u?int(\d{1,9})"')
_WIDEST = 8


def weight_bits(path: Path) -> int | None:
    """The most common width of weights, in bits; None where no entry has at most 8.

    Norms and activations have 16 and are left out. Version 0.6.1 has an entry for each channel,
    1.0.0 and later one for each tensor.

    Raises:
        OSError: It cannot be read.
    """
    if path.stat().st_size == 0:
        return None
    with path.open("rb") as stream, mmap.mmap(stream.fileno(), 0, access=mmap.ACCESS_READ) as text:
        parameters = _PARAMETERS.search(text)
        if parameters is None:
            found = _DTYPE.finditer(text)
        else:
            end = _ACTIVATIONS.search(text, parameters.end())
            found = _WIDTH.finditer(text, parameters.end(), end.start() if end else len(text))
        counts = Counter(int(match[1]) for match in found)
    widths = {bits: count for bits, count in counts.items() if bits <= _WIDEST}
    return max(widths, key=lambda bits: (widths[bits], bits)) if widths else None
