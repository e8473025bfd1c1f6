"""Reads an adapter as PEFT saves it: `adapter_config.json` and `adapter_model.safetensors`.

Keys are `base_model.model.<module>.lora_A.weight` and `lora_B` (PEFT 0.5 to 0.21); A is [r, in], B
is [out, r], whatever `fan_in_fan_out` says, which concerns the base model's weight. The factor of a
module is lora_alpha / r, with `use_rslora` lora_alpha / sqrt(r) (Kalajdzievski 2023), each as
`rank_pattern` and `alpha_pattern` have it for that module. What changes more than a product of two
matrices added to a linear is refused by its name.
"""

from __future__ import annotations

import json
import math
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from genai_core.errors import BadAdapter
from genai_stages.lora.adapter import Adapter, Branch, branch_of
from genai_stages.lora.tensors import Tensors

__all__ = ["CONFIG_FILE", "WEIGHTS_FILE", "read_peft"]

CONFIG_FILE = "adapter_config.json"
WEIGHTS_FILE = "adapter_model.safetensors"

_KEY = re.compile(
    r"(?:base_model\.model\.)?(?P<module>.+)\.lora_(?P<part>[AB])(?:\.[^.]+)?\.weight"
)
_REFUSED = {
    "use_dora": "DoRA, which scales the base's weights by their magnitude",
    "modules_to_save": "modules_to_save, whole layers beside the branches",
    "lora_bias": "biases of its own (lora_bias)",
    "use_qalora": "QALoRA, which pools its inputs",
    "use_bdlora": "block-diagonal LoRA",
    "target_parameters": "LoRA of single parameters (target_parameters)",
    "trainable_token_indices": "trained tokens (trainable_token_indices)",
    "layer_replication": "layer_replication, which repeats layers of the base",
    "alora_invocation_tokens": "activated LoRA, which starts at a token",
    "arrow_config": "Arrow routing between adapters",
    "monteclora_config": "MonteCLoRA",
    "velora_config": "VeLoRA",
    "megatron_config": "Megatron's parallel layers",
}
_CHANGED_BASES = ("pissa", "olora", "corda", "loftq", "lora_ga")
_MOST_PATTERN = 1000
_SHOWN = 3


def read_peft(folder: Path, name: str) -> Adapter:
    """Read an adapter.

    Args:
        folder: With PEFT's two files.
        name: As users call it.

    Raises:
        BadAdapter: A file is missing or broken, ranks disagree, or the adapter is of a kind that
            cannot be had here, which the message names.
    """
    config = _read_config(folder)
    _refuse_kinds(config)
    tensors = Tensors(_weights_file(folder))
    parts = _parts(tensors)
    branches = {module: _branch(module, keys, tensors, config) for module, keys in parts.items()}
    base = config.get("base_model_name_or_path")
    return Adapter(name, branches, base if isinstance(base, str) else "")


def _read_config(folder: Path) -> Mapping[str, Any]:
    path = folder / CONFIG_FILE
    try:
        config = json.loads(path.read_text(encoding="utf-8-sig"))
    except OSError as error:
        raise BadAdapter(
            f"there is no {CONFIG_FILE}",
            where=folder.name,
            remedy="name the folder that PEFT's save_pretrained wrote",
        ) from error
    except (ValueError, RecursionError) as error:
        raise BadAdapter(
            "it is not JSON", where=CONFIG_FILE, remedy="save the adapter again with PEFT"
        ) from error
    if not isinstance(config, dict) or config.get("peft_type") != "LORA":
        kind = config.get("peft_type") if isinstance(config, dict) else None
        raise BadAdapter(
            f"peft_type is {kind!r}; LORA is what can be built",
            where=CONFIG_FILE,
            remedy="train a LoRA adapter",
        )
    return config


def _refuse_kinds(config: Mapping[str, Any]) -> None:
    """Refuse what is more than branches, by its name."""
    for field, what in _REFUSED.items():
        if config.get(field):
            raise BadAdapter(
                f"it uses {what}",
                where=f"{CONFIG_FILE}: {field}",
                remedy="train a plain LoRA adapter, or merge this one into its model",
            )
    if config.get("bias", "none") != "none":
        raise BadAdapter(
            f"it trains biases (bias: {config['bias']})",
            where=f"{CONFIG_FILE}: bias",
            remedy="train it with bias='none', or merge it into its model",
        )
    initial = config.get("init_lora_weights")
    if isinstance(initial, str) and initial.lower().startswith(_CHANGED_BASES):
        raise BadAdapter(
            f"it was initialized by {initial}, which changes the base's weights: on the plain base "
            "it would compute something else",
            where=f"{CONFIG_FILE}: init_lora_weights",
            remedy="save it with PEFT's path_initial_model_for_weight_conversion, which makes a "
            "plain LoRA of it",
        )


def _weights_file(folder: Path) -> Path:
    path = folder / WEIGHTS_FILE
    if path.is_file():
        return path
    pickled = (folder / "adapter_model.bin").is_file()
    raise BadAdapter(
        "its weights are a pickle, which is never opened" if pickled else f"no {WEIGHTS_FILE}",
        where=folder.name,
        remedy="save it with save_pretrained(..., safe_serialization=True)",
    )


def _parts(tensors: Tensors) -> dict[str, dict[str, str]]:
    """Module -> A or B -> key."""
    found: dict[str, dict[str, str]] = {}
    foreign = []
    for key in tensors.names:
        match = _KEY.fullmatch(key)
        if match is None:
            foreign.append(key)
        else:
            found.setdefault(match["module"], {})[match["part"]] = key
    if foreign:
        raise BadAdapter(
            f"{len(foreign)} of {len(tensors.names)} tensors are no LoRA of a linear layer: "
            + ", ".join(foreign[:_SHOWN]),
            where=WEIGHTS_FILE,
            remedy="train a plain LoRA adapter of linear layers",
        )
    halves = [module for module, keys in found.items() if len(keys) < 2]
    if halves or not found:
        raise BadAdapter(
            f"{halves[0]} has lora_{''.join(found[halves[0]])} alone" if halves else "it is empty",
            where=WEIGHTS_FILE,
            remedy="save the adapter again",
        )
    return found


def _branch(
    module: str, keys: Mapping[str, str], tensors: Tensors, config: Mapping[str, Any]
) -> Branch:
    rank = _stated(module, config, "rank_pattern", "r")
    alpha = _stated(module, config, "alpha_pattern", "lora_alpha")
    a, b = tensors.read(keys["A"]), tensors.read(keys["B"])
    if a.ndim == 2 and a.shape[0] != rank:
        raise BadAdapter(
            f"{CONFIG_FILE} says rank {rank:g}, lora_A has {a.shape[0]} rows",
            where=f"{WEIGHTS_FILE}: {module}",
            remedy="take both files from one save_pretrained",
        )
    scale = alpha / (math.sqrt(rank) if config.get("use_rslora") else rank)
    return branch_of(module, a, b, scale=scale, where=WEIGHTS_FILE)


def _stated(module: str, config: Mapping[str, Any], patterns: str, default: str) -> float:
    """A number of one module: the first pattern that fits it, else the adapter's own."""
    value: object = config.get(default)
    where = default
    given = config.get(patterns) or {}
    if not isinstance(given, dict):
        raise BadAdapter(
            "it is no object", where=f"{CONFIG_FILE}: {patterns}", remedy="save it again"
        )
    for pattern, number in given.items():
        if _fits(pattern, module, patterns):
            value, where = number, f"{patterns}.{pattern}"
            break
    if isinstance(value, bool) or not isinstance(value, int | float) or not value > 0:
        raise BadAdapter(
            f"{value!r} is no positive number", where=f"{CONFIG_FILE}: {where}", remedy="save the "
            "adapter again with PEFT",
        )  # fmt: skip
    return float(value)


def _fits(pattern: str, module: str, field: str) -> bool:
    """As PEFT matches: the end of a module's name from a dot on; `^` fits it from its beginning."""
    if len(pattern) > _MOST_PATTERN:
        raise _no_pattern(pattern, field, "it is too long")
    whole = pattern if pattern.startswith("^") else rf"(?:.*\.)?(?:{pattern})"
    try:
        return re.fullmatch(whole, module) is not None
    except re.error as error:
        raise _no_pattern(pattern, field, str(error)) from error


def _no_pattern(pattern: str, field: str, why: str) -> BadAdapter:
    return BadAdapter(
        f"{pattern[:80]!r} is no pattern: {why}",
        where=f"{CONFIG_FILE}: {field}",
        remedy="save the adapter again with PEFT",
    )
