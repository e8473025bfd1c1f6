"""The vendor's settings -> fields of a GenAIBuild; what has no meaning here is refused by name.

Sources: the published pages of 80-87189-2 (configuration, advanced features). Values may be what a
cache's sidecar shows: "True", "16", enums.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from enum import Enum
from typing import Any

from genai_core import compile_options
from genai_core.errors import InvalidSpec

__all__ = ["Fields", "boolean", "compilation", "conversion", "number", "transformation"]

Fields = dict[tuple[str, ...], Any]
"""Path below spec -> value."""

_FLOAT_FALLBACK = "float_fallback"
"""Tensors without an encoding stay float."""

_CONVERSION: Mapping[str, tuple[str, str]] = {
    "act_precision": ("16", "activations have 16 bits"),
    "act_bitwidth": ("16", "activations have 16 bits"),
    "bias_precision": ("32", "biases have 32 bits"),
    "bias_bitwidth": ("32", "biases have 32 bits"),
    "per_channel_quantization": ("true", "weights are quantized as the encodings say"),
    "export_format": ("dlc_default", "a convert task writes a DLC"),
}
"""Option -> the only value that this product computes with, and why."""


def text(value: Any) -> str:
    """A value as the vendor's sidecars show it."""
    return str(value.value if isinstance(value, Enum) else value).strip()


def boolean(value: Any, where: str) -> bool:
    """True or False, also as text.

    Raises:
        InvalidSpec: It is neither.
    """
    read = {"true": True, "1": True, "false": False, "0": False}.get(text(value).lower())
    if read is None:
        raise InvalidSpec(f"expected True or False, not {value!r}", where=where)
    return read


def number(value: Any, where: str) -> int:
    """A whole number, also as text.

    Raises:
        InvalidSpec: It is none.
    """
    try:
        return int(text(value))
    except ValueError:
        raise InvalidSpec(f"expected a whole number, not {value!r}", where=where) from None


def _numbers(value: Any, where: str) -> list[int]:
    if isinstance(value, str):
        value = [part for part in value.strip("[]").split(",") if part.strip()]
    if not isinstance(value, Sequence):
        value = [value]
    return [number(part, where) for part in value]


def _start_points(value: Any, where: str) -> list[dict[str, str]]:
    if isinstance(value, str) or not isinstance(value, Sequence):
        value = [value]
    return [{"tensor": _tensor(point, where)} for point in value]


def _tensor(point: Any, where: str) -> str:
    """A pattern for names of tensors: a string, or what has a field `tensor`."""
    name = point.get("tensor") if isinstance(point, Mapping) else getattr(point, "tensor", point)
    if not isinstance(name, str) or not name:
        raise InvalidSpec(
            f"expected a pattern for tensors' names, not {point!r}",
            where=where,
            remedy='write e.g. [".*attn.*"]',
        )
    return name


def _placement(value: Any, where: str) -> str:
    return "Apart" if boolean(value, where) else "Joined"


_TRANSFORMATION: Mapping[str, tuple[tuple[str, ...], Callable[[Any, str], Any]]] = {
    "arn_cl_options.context_length": (("graphs", "contextLengths"), _numbers),
    "arn_cl_options.auto_regression_number": (("graphs", "autoRegression"), _numbers),
    "split_model.num_splits": (("splits", "count"), number),
    "split_model.split_embedding": (("splits", "embedding"), _placement),
    "split_model.split_lm_head": (("splits", "lmHead"), _placement),
    "mha2sha.m2s_additional_start_points": (
        ("transformation", "additionalStartPoints"),
        _start_points,
    ),
}

_NOT_HERE: Mapping[str, str] = {
    "arn_cl_options.skip_ar_cl_conversion": "static graphs are always made from the core graph",
    "arn_cl_options.axis_denotation_config": "axes are found in the graph",
    "split_model.lm_head_input_name": "the head's input is found in the graph",
    "split_model.skip_verification": "every stage checks its output",
    "split_model.log_level": "`genai logs` shows each task's log",
    "split_model.input_ids_name": "inputs are found in the graph",
    "split_model.input_embeds_name": "inputs are found in the graph",
    "mha_config": "heads are split from the graph's own shapes",
    "adapt_moe": "models of experts are not supported",
}


def transformation(options: Mapping[str, Any] | None) -> Fields:
    """`set_transformation_options`: dotted names, or sections with their fields.

    Raises:
        InvalidSpec: An option that is unknown, or has no meaning here.
    """
    fields: Fields = {}
    for name, value in _flat({} if options is None else options).items():
        where = f"transformation option {name}"
        if name in _TRANSFORMATION:
            path, read = _TRANSFORMATION[name]
            fields[path] = read(value, where)
        elif name in _NOT_HERE:
            if value is None or text(value).lower() in {"false", "none"}:
                continue  # it asks for nothing
            raise InvalidSpec(f"not supported: {_NOT_HERE[name]}", where=where, remedy=_LEAVE)
        else:
            raise _unknown(where, [*_TRANSFORMATION, *_NOT_HERE])
    return fields


def conversion(options: Mapping[str, Any] | None) -> Fields:
    """`set_conversion_options`: `float_fallback`; of the rest what is done anyway can be said.

    Raises:
        InvalidSpec: An option that is unknown, or asks for something else.
    """
    fields: Fields = {}
    for name, value in _flat({} if options is None else options).items():
        where = f"conversion option {name}"
        if name == _FLOAT_FALLBACK:
            fields["quantization", "gaps"] = "Float" if boolean(value, where) else "Error"
            continue
        if name not in _CONVERSION:
            raise _unknown(where, [_FLOAT_FALLBACK, *_CONVERSION])
        only, why = _CONVERSION[name]
        if text(value).lower() != only:
            raise InvalidSpec(f"{value!r} is not supported: {why}", where=where, remedy=_LEAVE)
    return fields


def compilation(options: Mapping[str, Any] | None) -> Fields:
    """`set_compilation_options`: `graphs.*`, and weight sharing in the vendor's spelling.

    Raises:
        InvalidSpec: An option that is unknown, or cannot be passed to the compiler.
    """
    fields: Fields = {}
    plain = {name: text(value) for name, value in _flat({} if options is None else options).items()}
    sharing = "context.weight_sharing_enabled"
    if sharing in plain:
        fields["compilation", "weightSharing"] = boolean(plain.pop(sharing), sharing)
    if plain:
        compile_options.parse(plain, where="compilation option")
        fields["compilation", "options"] = plain
    return fields


def _flat(options: Any, prefix: str = "") -> dict[str, Any]:
    """Sections as dotted names; objects of pydantic or plain classes count as sections."""
    flat: dict[str, Any] = {}
    if not isinstance(options, Mapping) or not all(isinstance(name, str) for name in options):
        raise InvalidSpec(
            f"expected a dict of names and values, not {options!r}"[:200],
            where=f"option {prefix.removesuffix('.')}" if prefix else "options",
            remedy='write e.g. {"graphs.vtcm_size_in_mb": 8}',
        )
    for name, value in options.items():
        section = value.model_dump(exclude_unset=True) if hasattr(value, "model_dump") else value
        if isinstance(section, Mapping) and not prefix:
            flat |= _flat(section, f"{name}.")
        else:
            flat[prefix + name] = value
    return flat


_LEAVE = "leave it out"


def _unknown(where: str, known: Sequence[str]) -> InvalidSpec:
    return InvalidSpec("unknown", where=where, remedy=f"known are {', '.join(known)}")
