"""The settings of the vendor's builder -> fields of a GenAIBuild.

They come as sections or dotted names, and as enums; what they mean is genai_core's to say.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from genai_core import compile_options
from genai_core.errors import InvalidSpec
from genai_core.kinds import dotted_options
from genai_core.kinds.dotted_options import Fields, boolean, number, text

__all__ = ["Fields", "boolean", "compilation", "conversion", "number", "transformation"]


def transformation(options: Mapping[str, Any] | None) -> Fields:
    """`set_transformation_options`: dotted names, or sections with their fields.

    Raises:
        InvalidSpec: An option that is unknown, or has no meaning here.
    """
    return dotted_options.transformation(_given(options), where="transformation option ")


def conversion(options: Mapping[str, Any] | None) -> Fields:
    """`set_conversion_options`: `float_fallback`; of the rest what is done anyway can be said.

    Raises:
        InvalidSpec: An option that is unknown, or asks for something else.
    """
    return dotted_options.conversion(_given(options), where="conversion option ")


def compilation(options: Mapping[str, Any] | None) -> Fields:
    """`set_compilation_options`: `graphs.*`, and weight sharing in the vendor's spelling.

    Raises:
        InvalidSpec: An option that is unknown, or cannot be passed to the compiler.
    """
    fields: Fields = {}
    plain = {name: text(value) for name, value in _given(options).items()}
    sharing = "context.weight_sharing_enabled"
    if sharing in plain:
        fields["compilation", "weightSharing"] = boolean(plain.pop(sharing), sharing)
    if plain:
        compile_options.parse(plain, where="compilation option")
        fields["compilation", "options"] = plain
    return fields


def _given(options: Mapping[str, Any] | None) -> dict[str, Any]:
    return _flat({} if options is None else options)


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
