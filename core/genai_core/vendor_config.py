"""A record's settings under the names that the vendor's `builder_cache_info.json` has."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING

from genai_core import chips
from genai_core.errors import UnknownTarget

if TYPE_CHECKING:
    from pydantic import JsonValue

__all__ = ["vendor_config"]


def vendor_config(operation: str, config: Mapping[str, JsonValue]) -> dict[str, str]:
    """Settings of convert and compile for Snapdragon, as text; empty for other stages.

    The names are those that the vendor's overview of the cache shows (80-87189-2).
    """
    if config.get("backend") != "Htp":
        return {}
    if operation == "convert":
        return {
            "export_format": "DLC_DEFAULT",
            "act_precision": str(config.get("activation_bits", "")),
            "bias_precision": str(config.get("bias_bits", "")),
            "per_channel_quantization": "True",
        }
    chip = config.get("chip")
    if operation != "compile" or not isinstance(chip, Mapping):
        return {}
    return {"backend": "BackendType.HTP", "soc_details": _soc_details(chip)}


def _soc_details(chip: Mapping[str, JsonValue]) -> str:
    number, arch = chip.get("soc_model"), chip.get("dsp_arch")
    try:
        return f"chipset:{chips.by_number(int(str(number))).name}"
    except (UnknownTarget, ValueError):  # another version's
        return f"dsp_arch:v{arch};soc_model:{number}"
