"""genie_config.json and htp_backend_ext_config.json: what the vendor's LLM runtime reads.

Pure: model facts in, JSON values out. Key names: the vendor's public Genie documentation and its
open examples. Each block was accepted by libGenie's own parser, and for plain, linear, llama3 and
longrope rotary tables Genie produced the same tokens as our executor
(`genai_runtime.htp.vendor.genie` runs both checks). Paths are relative: Genie resolves them against
its working folder.
"""

from __future__ import annotations

import posixpath
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from genai_core.chips import Chip
from genai_core.container.genie_adapters import lora_block
from genai_core.errors import BadModel, InvalidSpec
from genai_core.facts import RopeTable

EXTENSIONS_FILE = "htp_backend_ext_config.json"


@dataclass(frozen=True)
class GenieFacts:
    """What of a model and its container enters Genie's configuration.

    Attributes:
        context_length: The longest CL compiled.
        vocab_size: Columns of the logits.
        head_dim: Features of one attention head.
        rope: The rotary table; Genie knows one.
        bos_token: Genie puts it in front of every prompt.
        eos_tokens: Any of them ends an answer.
        binaries: Context binaries in split order, relative to the container.
        tokenizer: tokenizer.json, relative to the container.
        max_positions: config.json's max_position_embeddings; for longrope.
        original_max_positions: config.json's, where rope_scaling does not say it; for longrope.
        adapters: Names of adapters and use cases, whose files lie in the container.
        alpha_input: The graphs' input for the adapter's strength.
    """

    context_length: int
    vocab_size: int
    head_dim: int
    rope: RopeTable
    bos_token: int
    eos_tokens: Sequence[int]
    binaries: Sequence[str]
    tokenizer: str = "tokenizer.json"
    max_positions: int | None = None
    original_max_positions: int | None = None
    adapters: Sequence[str] = ()
    alpha_input: str = "lora_alpha"


def genie_config(
    facts: GenieFacts, *, generation: Mapping[str, Any] | None = None
) -> dict[str, Any]:
    """Contents of genie_config.json for a basic dialog.

    Args:
        facts: The model.
        generation: generation_config.json; gives the sampler's defaults.

    Raises:
        BadModel: Its rotary table cannot be expressed to Genie.
        InvalidSpec: A path is not relative, or a list is empty.
    """
    if not facts.binaries or not facts.eos_tokens:
        raise InvalidSpec("a dialog needs context binaries and an end token", where="genie_config")
    eos = [int(token) for token in facts.eos_tokens]
    binary: dict[str, Any] = {
        "version": 1,
        "ctx-bins": [_relative(path) for path in facts.binaries],
    }
    if facts.adapters:
        binary["lora"] = lora_block(facts.adapters, alpha=facts.alpha_input)
    engine = {
        "version": 1,
        "n-threads": 3,
        "backend": {
            "version": 1,
            "type": "QnnHtp",
            "extensions": EXTENSIONS_FILE,
            "QnnHtp": {
                "version": 1,
                "use-mmap": True,
                "spill-fill-bufsize": 0,
                "mmap-budget": 0,
                "poll": True,
                "cpu-mask": "0xe0",
                "kv-dim": facts.head_dim,
                "allow-async-init": False,
            },
        },
        "model": {
            "version": 1,
            "type": "binary",
            "binary": binary,
            "positional-encoding": positional_encoding(facts),
        },
    }
    return {
        "dialog": {
            "version": 1,
            "type": "basic",
            "context": {
                "version": 1,
                "size": facts.context_length,
                "n-vocab": facts.vocab_size,
                "bos-token": facts.bos_token,
                "eos-token": eos[0] if len(eos) == 1 else eos,
            },
            "sampler": sampler(generation or {}),
            "tokenizer": {"version": 1, "path": _relative(facts.tokenizer)},
            "engine": engine,
        }
    }


def htp_backend_ext_config(chip: Chip) -> dict[str, Any]:
    """Contents of htp_backend_ext_config.json: the device, its clock, shared memory."""
    core = {"core_id": 0, "perf_profile": "burst", "rpc_control_latency": 100}
    return {
        "devices": [
            {"soc_model": chip.soc_model, "dsp_arch": f"v{chip.dsp_arch}", "cores": [core]}
        ],
        "memory": {"mem_type": "shared_buffer"},
        "context": {"weight_sharing_enabled": True},
    }


def sampler(generation: Mapping[str, Any]) -> dict[str, Any]:
    """Genie's sampler from a generation_config.json; greedy unless that says do_sample."""
    made: dict[str, Any] = {"version": 1, "seed": 42, "temp": 1.0, "top-k": 1, "top-p": 1.0}
    if not generation.get("do_sample", False):
        return made
    for key, ours in (("temperature", "temp"), ("top_k", "top-k"), ("top_p", "top-p")):
        default = {"temp": 1.0, "top-k": 50, "top-p": 1.0}[ours]
        value = generation.get(key)
        made[ours] = default if value is None else value
    return made


def positional_encoding(facts: GenieFacts) -> dict[str, Any]:
    """The rotary block.

    Raises:
        BadModel: No base is known, or the scaling is one that Genie does not compute.
    """
    table = facts.rope
    if table.theta is None:
        raise BadModel(
            "Genie needs the base of the rotary frequencies, and these follow from none",
            where="rope",
        )
    theta = float(table.theta)
    made: dict[str, Any] = {
        "type": "rope",
        "rope-dim": table.rotary_dim // 2,
        "rope-theta": int(theta) if theta.is_integer() else theta,
    }
    scaling = _scaling(facts)
    if scaling:
        made["rope-scaling"] = scaling
    return made


def _scaling(facts: GenieFacts) -> dict[str, Any]:
    given = dict(facts.rope.scaling)
    kind = str(given.get("rope_type", given.get("type", "default")))

    def need(key: str, fallback: object = None) -> Any:
        value = given.get(key, fallback)
        if value is None:
            raise BadModel(f"rope_scaling of type {kind} lacks {key}", where="config.json")
        return value

    if kind == "default":
        return {}
    if kind == "linear":
        return {"rope-type": "linear", "factor": float(need("factor"))}
    if kind == "llama3":
        return {
            "rope-type": "llama3",
            "factor": float(need("factor")),
            "low-freq-factor": float(need("low_freq_factor")),
            "high-freq-factor": float(need("high_freq_factor")),
            "original-max-position-embeddings": int(need("original_max_position_embeddings")),
        }
    if kind in ("longrope", "su"):
        original = int(need("original_max_position_embeddings", facts.original_max_positions))
        longest = facts.max_positions
        factor = need("factor", longest / original if longest else None)
        return {
            "rope-type": "longrope",
            "factor": float(factor),
            "long-factor": [float(value) for value in need("long_factor")],
            "short-factor": [float(value) for value in need("short_factor")],
            "original-max-position-embeddings": original,
        }
    raise BadModel(
        f"Genie does not compute rotary scaling of type {kind}",
        where="config.json: rope_scaling",
        remedy="supported are linear, llama3 and longrope",
    )


def _relative(path: str) -> str:
    normal = posixpath.normpath(path)
    if posixpath.isabs(path) or normal.startswith(".."):
        raise InvalidSpec("paths in genie_config.json must be relative and inside", where=path)
    return normal
