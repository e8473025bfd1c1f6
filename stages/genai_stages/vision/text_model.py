"""Whether a model's graph can read pictures: what stands between its table and its first layer."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import onnx_ir as ir

from genai_core.errors import BadModel
from genai_core.facts import ModelFacts

__all__ = ["refuse_text_model"]

_WHERE = "spec.vision"
_BOTH_WAYS = ("gemma3", "paligemma", "gemma4")
"""Architectures whose pictures' tokens see one another, later ones too."""


def refuse_text_model(model: ir.Model, facts: ModelFacts, config: Mapping[str, Any]) -> None:
    """Refuse a model that reads pictures in another way than as embeddings of further tokens.

    Args:
        model: Its core graph.
        facts: Of the same.
        config: Its config.json; empty where there is none.

    Raises:
        BadModel: It scales what it reads, places pictures on two axes, or lets a picture's tokens
            see later ones.
    """
    said = str(config.get("model_type", facts.architecture))
    if said.startswith(_BOTH_WAYS):
        raise BadModel(
            f"{said} lets the tokens of a picture see later ones too, which is not supported",
            where=_WHERE,
            remedy="leave spec.vision out: the model answers text",
        )
    text = config.get("text_config")
    for one in (config, text if isinstance(text, Mapping) else {}):
        scaling = one.get("rope_scaling") or one.get("rope_parameters")
        if isinstance(scaling, Mapping) and "mrope_section" in scaling:
            raise BadModel(
                f"{said} gives a picture's tokens positions of three axes (mrope_section), which "
                "is not supported",
                where=_WHERE,
                remedy="leave spec.vision out: the model answers text",
            )
    for usage in model.graph.inputs[0].uses():
        if usage.node.op_type != "Gather":
            continue
        for reader in usage.node.outputs[0].uses():
            if reader.node.op_type == "Mul" and any(
                value is not None and value.const_value is not None for value in reader.node.inputs
            ):
                raise BadModel(
                    "the model multiplies its embeddings before its first layer, and whether a "
                    "picture's are multiplied too differs between models",
                    where=_WHERE,
                    remedy="leave spec.vision out: the model answers text",
                )
