"""Compile options in the spelling of the vendor's Gen AI Builder: `graphs.vtcm_size_in_mb` ...

Both are honoured graph by graph. Everything else that the vendor's tools know is refused by name
with the reason, and a misspelt option names the nearest right one, because an option that is
silently ignored looks like one that works. The planner asks before anything runs, the stage again.
"""

from __future__ import annotations

import difflib
from collections.abc import Mapping
from dataclasses import dataclass

from genai_core.errors import InvalidSpec

ALIASES = {
    "graphs.vtcm_mb": "graphs.vtcm_size_in_mb",
    "graphs.O": "graphs.optimization_type",
    "graphs.o": "graphs.optimization_type",
}
KNOWN = ("graphs.vtcm_size_in_mb", "graphs.optimization_type")

_REFUSED = {
    "graphs.hvx_threads": "this route to a binary cannot pass it on",
    "graphs.num_hvx_threads": "this route to a binary cannot pass it on",
    "graphs.dlbc": "this route to a binary cannot pass it on",
    "graphs.num_cores": "this route to a binary cannot pass it on",
    "graphs.fp16_relaxed_precision": "float graphs are always computed in float16",
    "graphs.graph_names": "graphs are named by their AR, CL and split",
    "context.weight_sharing_enabled": "write compilation.weightSharing",
    "context.lora_weight_sharing": "adapters are inputs of the graphs here",
    "context.extended_udma": "this route to a binary cannot pass it on",
    "devices.soc_model": "the chip is the target's",
    "devices.dsp_arch": "the chip is the target's",
    "memory.mem_type": "it belongs into htp_backend_ext_config.json on the device",
    "groupContext.share_resources": "it belongs into htp_backend_ext_config.json on the device",
}


@dataclass(frozen=True)
class GraphOptions:
    """Options of one graph; None = the library's default.

    Attributes:
        optimization: 1, 2 or 3: how long the compiler may look for a better graph.
        vtcm_mb: Tightly coupled memory that the graph may use, in MB.
    """

    optimization: int | None = None
    vtcm_mb: int | None = None


def parse(options: Mapping[str, str], *, where: str = "compilation.options") -> GraphOptions:
    """Read dotted options.

    Args:
        options: Name -> value, both as text.
        where: The field of the spec, for messages.

    Raises:
        InvalidSpec: An unknown option, one that cannot be honoured, or a value out of range.
    """
    values: dict[str, str] = {}
    for name, value in options.items():
        known = ALIASES.get(name, name)
        if known not in KNOWN:
            raise _refusal(name, where)
        if known in values and values[known] != value:
            raise InvalidSpec(
                f"{known} is given twice, as {values[known]} and {value}", where=where
            )
        values[known] = value
    return GraphOptions(
        _integer(values, "graphs.optimization_type", where, low=1, high=3),
        _integer(values, "graphs.vtcm_size_in_mb", where, low=1, high=64),
    )


def merged(defaults: Mapping[str, str], own: Mapping[str, str]) -> dict[str, str]:
    """A target's options with a build's over them, which win whatever name they have there."""
    given = {ALIASES.get(name, name) for name in own}
    kept = {name: text for name, text in defaults.items() if ALIASES.get(name, name) not in given}
    return {**kept, **own}


def canonical(options: Mapping[str, str]) -> dict[str, str]:
    """The same options as keys know them: one spelling for one meaning.

    Raises:
        InvalidSpec: As `parse`.
    """
    read = parse(options)
    values = dict(zip(KNOWN, (read.vtcm_mb, read.optimization), strict=True))
    return {name: str(value) for name, value in values.items() if value is not None}


def _refusal(name: str, where: str) -> InvalidSpec:
    if name in _REFUSED:
        return InvalidSpec(
            f"the option {name} is not supported: {_REFUSED[name]}",
            where=f"{where}.{name}",
            remedy=f"supported are {', '.join(KNOWN)}",
        )
    names = [*KNOWN, *ALIASES, *_REFUSED]
    near = difflib.get_close_matches(name, names, n=1, cutoff=0.0)
    return InvalidSpec(
        f"unknown compile option {name}",
        where=f"{where}.{name}",
        remedy=f"did you mean {ALIASES.get(near[0], near[0])}?",
    )


def _integer(
    values: Mapping[str, str], name: str, where: str, *, low: int, high: int
) -> int | None:
    text = values.get(name)
    if text is None:
        return None
    try:
        number = float(text)
    except ValueError:
        number = -1.0
    if not low <= number <= high or not number.is_integer():
        raise InvalidSpec(
            f"{name} must be a whole number from {low} to {high}, not {text!r}",
            where=f"{where}.{name}",
        )
    return int(number)
