"""Reads an adapter as PEFT saves it: `adapter_config.json` and `adapter_model.safetensors`.

Keys are `base_model.model.<module>.lora_A.weight` and `lora_B` (PEFT 0.5 to 0.21); A is [r, in], B
is [out, r], whatever `fan_in_fan_out` says, which concerns the base model's weight. The factor of a
module is lora_alpha / r, with `use_rslora` lora_alpha / sqrt(r) (Kalajdzievski 2023), each as
`rank_pattern` and `alpha_pattern` state it for that module. An adapter that does more than add a
product of two matrices to a linear is refused by its name.
"""

from __future__ import annotations

import math
import re
from collections.abc import Collection, Mapping, Sequence
from pathlib import Path
from typing import Any

from genai_core.errors import BadAdapter, BadInput
from genai_core.files.foreign import read_json_object
from genai_stages.bounded_match import full_matches_of_all
from genai_stages.lora.adapter import Adapter, AdapterBranch, branch_of
from genai_stages.lora.readers.tensors import Tensors

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
_NAME = re.compile(r"[\w.-]+")
"""A pattern that is a name: it has one way to match."""
_MOST_PATTERN = 1000
_MOST_PATTERNS = 10_000
_MOST_NUMBER = 1e6
"""Of ranks and alphas."""
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
    ranks = _stated(parts, config, "rank_pattern", "r")
    alphas = _stated(parts, config, "alpha_pattern", "lora_alpha")
    root = bool(config.get("use_rslora"))
    branches = {
        module: _branch(module, keys, tensors, ranks[module], alphas[module], root=root)
        for module, keys in parts.items()
    }
    base = config.get("base_model_name_or_path")
    return Adapter(name, branches, base if isinstance(base, str) else "")


def _read_config(folder: Path) -> Mapping[str, Any]:
    path = folder / CONFIG_FILE
    if not path.is_file():
        raise BadAdapter(
            f"there is no {CONFIG_FILE}",
            where=folder.name,
            remedy="name the folder that PEFT's save_pretrained wrote",
        )
    config = read_json_object(path, kind=BadAdapter, remedy="save the adapter again with PEFT")
    if config.get("peft_type") != "LORA":
        raise BadAdapter(
            f"peft_type is {str(config.get('peft_type'))[:80]!r}; LORA is what can be built",
            where=CONFIG_FILE,
            remedy="train a LoRA adapter",
        )
    rslora = config.get("use_rslora")
    if not (rslora is None or isinstance(rslora, bool)):
        raise BadAdapter(
            "it is neither true nor false",
            where=f"{CONFIG_FILE}: use_rslora",
            remedy="save the adapter again with PEFT",
        )
    return dict(config)


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
            f"it trains biases (bias: {str(config['bias'])[:80]})",
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
    parts: dict[str, dict[str, str]] = {}
    foreign = []
    for key in tensors.names:
        match = _KEY.fullmatch(key)
        if match is None:
            foreign.append(key)
            continue
        halves = parts.setdefault(match["module"], {})
        if match["part"] in halves:
            raise BadAdapter(
                f"{halves[match['part']]} and {key} are one half of the same branch",
                where=WEIGHTS_FILE,
                remedy="save each adapter into a folder of its own",
            )
        halves[match["part"]] = key
    if foreign:
        raise BadAdapter(
            f"{len(foreign)} of {len(tensors.names)} tensors are no LoRA of a linear layer: "
            + ", ".join(foreign[:_SHOWN]),
            where=WEIGHTS_FILE,
            remedy="train a plain LoRA adapter of linear layers",
        )
    alone = [module for module, keys in parts.items() if len(keys) < 2]
    if alone or not parts:
        raise BadAdapter(
            f"{alone[0]} has lora_{''.join(parts[alone[0]])} alone" if alone else "it is empty",
            where=WEIGHTS_FILE,
            remedy="save the adapter again",
        )
    return parts


def _branch(
    module: str,
    keys: Mapping[str, str],
    tensors: Tensors,
    rank: float,
    alpha: float,
    *,
    root: bool,
) -> AdapterBranch:
    a, b = tensors.read(keys["A"]), tensors.read(keys["B"])
    if a.ndim == 2 and a.shape[0] != rank:
        raise BadAdapter(
            f"{CONFIG_FILE} says rank {rank:g}, lora_A has {a.shape[0]} rows",
            where=f"{WEIGHTS_FILE}: {module}",
            remedy="take both files from one save_pretrained",
        )
    scale = alpha / (math.sqrt(rank) if root else rank)
    return branch_of(module, a, b, scale=scale, where=WEIGHTS_FILE)


def _stated(
    modules: Collection[str], config: Mapping[str, Any], patterns: str, default: str
) -> dict[str, float]:
    """A number of each module: of the first pattern that fits it, else the adapter's own."""
    given = config.get(patterns) or {}
    if not isinstance(given, dict):
        raise BadAdapter(
            "it is no object",
            where=f"{CONFIG_FILE}: {patterns}",
            remedy="save the adapter again with PEFT",
        )
    fits = _fitting(list(given), modules, patterns)
    numbers = {}
    for module in modules:
        pattern = next((text for text in given if module in fits[text]), None)
        value: Any = config.get(default) if pattern is None else given[pattern]
        where = default if pattern is None else f"{patterns}.{pattern[:80]}"
        number = isinstance(value, int | float) and not isinstance(value, bool)
        if not number or not 0 < value <= _MOST_NUMBER:
            raise BadAdapter(
                f"{str(value)[:80]} is no positive number up to {_MOST_NUMBER:g}",
                where=f"{CONFIG_FILE}: {where}",
                remedy="save the adapter again with PEFT",
            )
        numbers[module] = float(value)
    return numbers


def _fitting(
    patterns: Sequence[str], modules: Collection[str], field: str
) -> dict[str, frozenset[str]]:
    r"""The modules that each pattern fits, as PEFT matches: `(.*\.)?(pattern)$`.

    PEFT's own tools write whole names, hundreds of them. What may backtrack is matched elsewhere,
    all of it within one time limit.
    """
    if len(patterns) > _MOST_PATTERNS:
        raise _no_pattern(f"{len(patterns)} patterns", field, f"{_MOST_PATTERNS} are read")
    for pattern in patterns:
        if len(pattern) > _MOST_PATTERN:
            raise _no_pattern(repr(pattern[:80]), field, "it is too long")
    plain = {
        pattern: frozenset(m for m in modules if re.fullmatch(_whole(pattern), m))
        for pattern in patterns
        if _NAME.fullmatch(pattern)
    }
    rest = [pattern for pattern in patterns if pattern not in plain]
    for pattern in rest:
        try:
            re.compile(pattern)
        except (re.error, OverflowError, RecursionError) as error:
            raise _no_pattern(repr(pattern[:80]), field, str(error)) from error
    try:
        matched = full_matches_of_all(
            [_whole(pattern) for pattern in rest], modules, where=f"{CONFIG_FILE}: {field}"
        )
    except BadInput as error:
        raise BadAdapter(error.message, where=error.where, remedy=error.remedy) from error
    return plain | dict(zip(rest, matched, strict=True))


def _whole(pattern: str) -> str:
    return rf"(?:.*\.)?(?:{pattern})"


def _no_pattern(what: str, field: str, why: str) -> BadAdapter:
    return BadAdapter(
        f"{what} is no pattern: {why}" if what.startswith(("'", '"')) else f"{what}, and {why}",
        where=f"{CONFIG_FILE}: {field}",
        remedy="save the adapter again with PEFT",
    )
