"""Transformation and conversion options in the spelling of the vendor's Gen AI Builder.

`split_model.num_splits` and the like stand for fields of a GenAIBuild; they become these fields
when a spec is read, so whatever knows the fields honours them, keys included. Every other option
that the vendor knows is refused by name with the reason. Values are text in YAML; the Python API
also gives numbers, lists and enums, and what a cache's sidecar shows: "True", "16".

Sources: the published pages of 80-87189-2 (configuration, advanced features).
"""

from __future__ import annotations

import difflib
import json
from collections.abc import Callable, Mapping, Sequence
from enum import Enum
from typing import Any

from pydantic import BaseModel
from pydantic.alias_generators import to_snake

from genai_core.errors import InvalidSpec

__all__ = [
    "CONVERSION",
    "TRANSFORMATION",
    "Fields",
    "boolean",
    "conversion",
    "number",
    "text",
    "transformation",
    "with_dotted_options",
]

Fields = dict[tuple[str, ...], Any]
"""Path below spec -> value."""

_LEAVE = "leave it out"


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
        value = [part for part in value.strip("[] ").split(",") if part.strip()]
    if not isinstance(value, Sequence):
        value = [value]
    return [number(part, where) for part in value]


def _start_points(value: Any, where: str) -> list[dict[str, str]]:
    if isinstance(value, str):
        value = _patterns(value)
    if not isinstance(value, Sequence):
        value = [value]
    return [{"tensor": _tensor(point, where)} for point in value]


def _patterns(value: str) -> list[Any]:
    """A list as JSON, or else one pattern, which may begin with a bracket too."""
    try:
        found = json.loads(value)
    except ValueError:
        return [value]
    return found if isinstance(found, list) else [value]


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

_CONVERSION_NOT_HERE: Mapping[str, str] = {
    "weights_precision": "weights have the bits that the encodings say",
    "weights_bitwidth": "weights have the bits that the encodings say",
}

TRANSFORMATION = (*_TRANSFORMATION, *_NOT_HERE)
"""All that are known, honoured or refused."""

CONVERSION = (_FLOAT_FALLBACK, *_CONVERSION, *_CONVERSION_NOT_HERE)
"""Likewise."""


def transformation(options: Mapping[str, Any], *, where: str) -> Fields:
    """What transformation options stand for.

    Args:
        options: Dotted name -> value.
        where: Before a name, for messages.

    Raises:
        InvalidSpec: An option that is unknown, or has no meaning here.
    """
    fields: Fields = {}
    for name, value in options.items():
        place = f"{where}{name}"
        if name in _TRANSFORMATION:
            path, read = _TRANSFORMATION[name]
            fields[path] = read(value, place)
        elif name in _NOT_HERE:
            _refuse(value, place, _NOT_HERE[name])
        else:
            raise _unknown(name, place, TRANSFORMATION)
    return fields


def conversion(options: Mapping[str, Any], *, where: str) -> Fields:
    """What conversion options stand for; of the rest what is done anyway can be said.

    Args:
        options: Name -> value.
        where: Before a name, for messages.

    Raises:
        InvalidSpec: An option that is unknown, or asks for something else.
    """
    fields: Fields = {}
    for name, value in options.items():
        place = f"{where}{name}"
        if name == _FLOAT_FALLBACK:
            fields["quantization", "gaps"] = "Float" if boolean(value, place) else "Error"
        elif name in _CONVERSION:
            only, why = _CONVERSION[name]
            if text(value).lower() != only:
                raise InvalidSpec(f"{value!r} is not supported: {why}", where=place, remedy=_LEAVE)
        elif name in _CONVERSION_NOT_HERE:
            _refuse(value, place, _CONVERSION_NOT_HERE[name])
        else:
            raise _unknown(name, place, CONVERSION)
    return fields


def with_dotted_options(spec: Any) -> Any:
    """A spec as it is written, with the fields that its dotted options stand for.

    Raises:
        ValueError: An option is refused, or a field says something else.
    """
    if not isinstance(spec, Mapping):
        return spec
    try:
        fields = transformation(_options(spec, "transformation"), where="transformation.options.")
        fields |= conversion(_options(spec, "conversion"), where="conversion.options.")
    except InvalidSpec as error:
        raise ValueError(str(error)) from error
    changed = dict(spec)
    for (section, field), value in fields.items():
        written = _written(changed.get(section))
        for name in (field, to_snake(field)):
            if name in written and not _same(written[name], value):
                raise ValueError(
                    f"{section}.{field} is given twice, as {written[name]} and, by an option, as "
                    f"{value}: keep one of them"
                )
        changed[section] = {field: value} | written
    return changed


def _options(spec: Mapping[str, Any], section: str) -> Mapping[str, Any]:
    """What is written there; another form is refused where the field is read."""
    options = _written(spec.get(section)).get("options")
    return options if isinstance(options, Mapping) else {}


def _written(section: Any) -> dict[str, Any]:
    if isinstance(section, BaseModel):
        return section.model_dump(by_alias=True, exclude_unset=True)
    return dict(section) if isinstance(section, Mapping) else {}


def _same(one: Any, other: Any) -> bool:
    """Enums' values come in any case."""
    return text(one).lower() == text(other).lower()


def _refuse(value: Any, where: str, why: str) -> None:
    if value is None or text(value).lower() in {"false", "none"}:
        return  # it asks for nothing
    raise InvalidSpec(f"not supported: {why}", where=where, remedy=_LEAVE)


def _unknown(name: str, where: str, known: Sequence[str]) -> InvalidSpec:
    near = difflib.get_close_matches(name, known, n=1)
    remedy = f"did you mean {near[0]}?" if near else f"known are {', '.join(known)}"
    return InvalidSpec("unknown", where=where, remedy=remedy)
