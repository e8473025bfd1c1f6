"""Which EAGLE head a build has, and which hidden states of the model it reads.

Public heads say it in config.json: EAGLE-3's `eagle_aux_hidden_state_layer_ids` counts layers that
were passed, the one inside `eagle_config` counts from the layer before. EAGLE-1 reads what the
output layer reads.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Literal

from genai_core.errors import BadModel
from genai_core.kinds.build import BuildSpec
from genai_core.kinds.speculation import SpeculationPartMethod
from genai_core.names import DRAFT, MODEL, SourceName
from genai_core.operations import HeadConfig
from genai_planner.shape import ModelShape
from genai_planner.sources import Sources

__all__ = ["head_config", "is_draft", "is_head", "said_of_head"]

_LAYERS = "eagle_aux_hidden_state_layer_ids"
_WHERE = "spec.speculation[0]"
_LAST = -1


def is_draft(spec: BuildSpec) -> bool:
    """Whether what guesses is a model of its own, an EAGLE head included."""
    return any(part.method is not SpeculationPartMethod.SSD for part in spec.speculation)


def is_head(spec: BuildSpec) -> bool:
    """Whether what guesses is an EAGLE head."""
    return any(part.method is SpeculationPartMethod.EAGLE for part in spec.speculation)


def head_config(
    spec: BuildSpec, sources: Sources, shapes: Mapping[SourceName, ModelShape]
) -> HeadConfig | None:
    """The head of a build; None where it has none.

    Raises:
        BadModel: Its config.json does not say what it is, or it is of another model.
    """
    if not is_head(spec):
        return None
    config, model, own = sources[DRAFT].config, shapes[MODEL], shapes[DRAFT]
    if own.hidden_size != model.hidden_size:
        raise BadModel(
            f"the head's hidden size is {own.hidden_size}, the model's {model.hidden_size}",
            where=f"{_WHERE}.source",
            remedy="take a head that was made for this model",
        )
    version = _version(spec, config)
    layers = (_LAST,) if version == 1 else _layers(config, len(model.layers))
    outside = [layer for layer in layers if layer > len(model.layers)]
    if outside:
        raise BadModel(
            f"it reads what layer {outside[0]} leaves, the model has {len(model.layers)} layers",
            where=f"{_WHERE}.source: config.json: {_LAYERS}",
            remedy="take a head that was made for this model",
        )
    if own.features_size:  # ingest has read it
        _check(own, model, layers)
    return HeadConfig(version=version, hidden_states=layers)


def _check(own: ModelShape, model: ModelShape, layers: tuple[int, ...]) -> None:
    given = len(layers) * model.hidden_size
    told = ""
    if own.features_size != given:
        widths = " + ".join([str(model.hidden_size)] * len(layers))
        told = (
            f"the head reads hidden states of {own.features_size} values, the model gives {given} "
            f"({widths})"
        )
    elif own.tokens != model.vocab_size:
        told = f"the head's embedding table has {own.tokens} tokens, the model {model.vocab_size}"
    if told:
        raise BadModel(
            told,
            where=f"{_WHERE}.source",
            remedy="take a head that was made for this model",
        )


def said_of_head(head: HeadConfig) -> str:
    """The head and what it reads, in a word."""
    read = (
        "what the output layer reads"
        if head.hidden_states == (_LAST,)
        else f"hidden states after layers {', '.join(map(str, head.hidden_states))}"
    )
    return f"EAGLE-{head.version} head on {read}"


def _version(spec: BuildSpec, config: Mapping[str, Any]) -> Literal[1, 3]:
    stated = spec.speculation[0].version
    if stated is not None:
        return stated
    if any(key in config for key in (_LAYERS, "eagle_config", "draft_vocab_size")):
        return 3
    names = f"{config.get('architectures')} {config.get('model_type')}".lower()
    if "eagle3" in names:
        return 3
    if "eagle" in names:
        return 1
    raise BadModel(
        "its config.json does not say which EAGLE it is",
        where=f"{_WHERE}.source",
        remedy=f"set {_WHERE}.version to 1 or 3",
    )


def _layers(config: Mapping[str, Any], layers: int) -> tuple[int, ...]:
    nested = config.get("eagle_config")
    passed = _numbers(config.get(_LAYERS), f"config.json: {_LAYERS}")
    if passed is None and isinstance(nested, Mapping):
        before = _numbers(nested.get(_LAYERS), f"config.json: eagle_config.{_LAYERS}")
        passed = None if before is None else tuple(layer + 1 for layer in before)
    # What public engines take where a head says nothing.
    return passed or (2, layers // 2, layers - 3)


def _numbers(value: object, where: str) -> tuple[int, ...] | None:
    if value is None:
        return None
    if (
        not isinstance(value, list)
        or not value
        or not all(type(n) is int and n >= 0 for n in value)
    ):
        raise BadModel(
            "it is no list of layers",
            where=f"{_WHERE}.source: {where}",
            remedy="write e.g. [1, 3, 5]",
        )
    return tuple(value)
