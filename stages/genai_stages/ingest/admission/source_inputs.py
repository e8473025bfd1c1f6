"""What each input of a source graph is for, and its values at given sizes.

Two kinds of graphs come in. A dynamic export has token ids, perhaps an attention mask of ones and
positions, and a past of any length. The static form has fixed AR and CL, and takes the additive
mask, the rotary tables and (where new keys are scattered into the past) the cache index as inputs.
Everything but token ids and past is known once the sizes are.

A graph that was quantized together with adapters has their matrices as inputs too: they stand at
zero, which is the base model, and become weights of the core graph under their own names.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any, Literal

import numpy as np
import numpy.typing as npt
import onnx_ir as ir

from genai_core.errors import BadModel
from genai_core.facts import RopeTable
from genai_stages.ingest.admission.check_config import text_config
from genai_stages.ingest.folding.cache_sizes import are_open, cache_sizes, untold
from genai_stages.ingest.folding.classify_mask import reference
from genai_stages.ingest.folding.specialise import Folding
from genai_stages.ingest.recognition.attention.found_attention import Sizes
from genai_stages.ingest.source.source_model import Array, SourceModel

Purpose = Literal[
    "tokens",
    "past",
    "mask",
    "positions",
    "cache_index",
    "cos",
    "sin",
    "adapter",
    "window",
    "length",
    "states",
]  # fmt: skip

STATIC_HIDDEN = -100.0
"""What the static form adds to hidden scores."""
TOKENS, PAST = 31, 52
"""Sizes at which a dynamic graph is folded: 31 and 83 are primes that no model has as a width."""
_COUNTS = ("length", "seen", "cumulative")
"""In names of scalars that count the tokens before the new ones."""
_STATE_AXES = 3
_POSITION_ROWS = 3
"""Time, height and width, where position_ids has a row of each and does not say how many."""
Dims = tuple[int | str, ...]


@dataclasses.dataclass(frozen=True)
class SourceInput:
    """One input of the source.

    Attributes:
        name: Its name.
        purpose: What it is for.
        dims: Its dimensions, symbols as text.
        dtype: Floats are float32.
        number: The window that a scalar input of one stands for, config.json's.
    """

    name: str
    purpose: Purpose
    dims: Dims
    dtype: np.dtype[Any]
    number: int = 0


@dataclasses.dataclass(frozen=True)
class SourceInputs:
    """All inputs of the source, and the sizes of a static one.

    Attributes:
        inputs: In the graph's order.
        native: AR, CL of a static source; None for a dynamic one.
        scattered: Whether the past has CL slots into which new keys are scattered.
        windows: Sliding window of each mask input of the static form, none = full causal.
    """

    inputs: tuple[SourceInput, ...]
    native: tuple[int, int] | None
    scattered: bool
    windows: Mapping[str, int] = dataclasses.field(default_factory=dict)

    def layer_windows(self, layers: Sequence[int]) -> tuple[SourceInputs, str | None]:
        """Give the mask inputs the windows that config.json tells for the layers.

        Returns:
            The inputs, and a warning where one mask serves layers of different windows.
        """
        masks = self.named("mask")
        if len(masks) > 1:
            windows = {mask.name: max(layers, default=0) for mask in masks if is_local(mask.name)}
        elif len(set(layers)) == 1:
            windows = {mask.name: layers[0] for mask in masks}
        else:
            return self, (
                "layers have different windows in config.json, but the graph has one mask for all: "
                "it is taken as full causal"
            )
        kept = {name: window for name, window in windows.items() if window}
        return dataclasses.replace(self, windows=kept), None

    def settled(self, source: SourceModel, ropes: Mapping[str, RopeTable]) -> SourceInputs:
        """Caches of a dynamic source with the sizes that its arithmetic tells, where it names none.

        Raises:
            GenAIError: The source cannot be folded.
        """
        caches = {cache.name: cache.dims for cache in self.named("past") if are_open(cache.dims)}
        if not caches or self.native is not None:
            return self
        sizes = self.sizes
        others = dataclasses.replace(
            self,
            inputs=tuple(
                source_input for source_input in self.inputs if source_input.name not in caches
            ),
        )
        known, rest = self.feeds(sizes, ropes), others.open_shapes(sizes)
        shapes = cache_sizes(
            source, caches, sizes.length, lambda given: Folding(source, known, {**rest, **given})
        )
        inputs = (
            dataclasses.replace(source_input, dims=shapes.get(source_input.name, source_input.dims))
            for source_input in self.inputs
        )
        return dataclasses.replace(self, inputs=tuple(inputs))

    def named(self, purpose: Purpose) -> list[SourceInput]:
        """Inputs of one purpose."""
        return [source_input for source_input in self.inputs if source_input.purpose == purpose]

    @property
    def tokens(self) -> str:
        """The input of token ids."""
        return self.named("tokens")[0].name

    @property
    def sizes(self) -> Sizes:
        """Sizes at which the graph is folded."""
        if self.native is None:
            past = PAST if self.named("past") else 0
            return Sizes(TOKENS, past, past)
        tokens, total = self.native
        past = total - tokens if self.named("past") else 0
        return Sizes(tokens, past, total if self.scattered else past)

    def past_shape(self, cache: SourceInput, length: int) -> tuple[int, ...]:
        """The static shape of a cache input with `length` slots.

        Raises:
            BadModel: More of it is open than the batch and the length.
        """
        shape = [1 if isinstance(dim, str) else dim for dim in cache.dims]
        if self.native is not None:
            return tuple(shape)
        heads, *rest = cache.dims[1:]
        opened = [axis for axis, dim in enumerate(rest, 2) if isinstance(dim, str)]
        if isinstance(heads, str) or len(opened) != 1:
            raise untold(cache.name, cache.dims)
        shape[opened[0]] = length
        return tuple(shape)

    def open_shapes(self, sizes: Sizes) -> dict[str, tuple[int, ...]]:
        """Static shapes of token ids, hidden states and past."""
        shapes: dict[str, tuple[int, ...]] = {self.tokens: (1, sizes.tokens)}
        for state in self.named("states"):
            shapes[state.name] = (1, sizes.tokens, int(state.dims[-1]))
        for cache in self.named("past"):
            shapes[cache.name] = self.past_shape(cache, sizes.length)
        return shapes

    def feeds(
        self,
        sizes: Sizes,
        ropes: Mapping[str, RopeTable],
        *,
        at: npt.NDArray[np.int64] | None = None,
    ) -> dict[str, Array]:
        """Values of all inputs but tokens, hidden states and past.

        Args:
            sizes: T and P; positions are P ... P + T - 1.
            ropes: Tables for the static form, from config.json.
            at: Other values [T] for an input of positions.
        """
        positions = np.arange(sizes.past, sizes.total)
        placed = positions if at is None else at
        return {
            source_input.name: self._value(
                source_input,
                sizes,
                ropes,
                placed if source_input.purpose == "positions" else positions,
            )
            for source_input in self.inputs
            if source_input.purpose not in ("tokens", "past", "states")
        }

    def _value(
        self,
        source_input: SourceInput,
        sizes: Sizes,
        ropes: Mapping[str, RopeTable],
        positions: npt.NDArray[np.int64],
    ) -> Array:
        match source_input.purpose:
            case "adapter":
                return np.zeros([int(dim) for dim in source_input.dims], np.float32)
            case "mask" if len(source_input.dims) >= 3:
                window = self.windows.get(source_input.name, 0)
                visible = reference(sizes.tokens, sizes.past, window)
                if source_input.dtype == np.bool_:
                    return np.asarray(visible[None, None])
                lowest = np.float32(STATIC_HIDDEN if self.native else np.finfo(np.float32).min)
                mask = np.where(visible, np.float32(0), lowest)[None]
                return mask[None] if len(source_input.dims) == 4 else mask
            case "mask":
                return np.ones((1, sizes.total), source_input.dtype)
            case "positions":
                # A further axis in front is for places in an image; of text all rows are equal.
                front = [dim if isinstance(dim, int) else 1 for dim in source_input.dims[:-1]]
                if len(front) > 1 and isinstance(source_input.dims[0], str):
                    front[0] = _POSITION_ROWS
                return np.broadcast_to(positions, (*front, sizes.tokens)).astype(source_input.dtype)
            case "window":
                return np.array(source_input.number, source_input.dtype)
            case "length":
                return np.array(sizes.past, source_input.dtype)
            case "cache_index":
                if len(source_input.dims) and source_input.dims[-1] != 1:
                    return positions.astype(source_input.dtype).reshape(
                        (1,) * (len(source_input.dims) - 1) + (-1,)
                    )
                return np.full((1,) * len(source_input.dims), sizes.past, source_input.dtype)
            case _:
                return self._wave(source_input, ropes, positions)

    def _wave(
        self,
        source_input: SourceInput,
        ropes: Mapping[str, RopeTable],
        positions: npt.NDArray[np.int64],
    ) -> Array:
        local = is_local(source_input.name) and "local" in ropes
        table = ropes.get("local" if local else "default")
        width = source_input.dims[-1]
        if table is None or width not in (len(table.inv_freq), 2 * len(table.inv_freq)):
            known = "none" if table is None else str(len(table.inv_freq))
            raise BadModel(
                f"the rotary input has {width} values a token, config.json's table {known}",
                where=source_input.name,
                remedy="put rope_theta, head_dim and rope_scaling of the model into config.json",
            )
        angle = positions.astype(np.float32)[:, None] * np.array(table.inv_freq, np.float32)
        wave = np.cos(angle) if source_input.purpose == "cos" else np.sin(angle)
        wave = wave * np.float32(table.attention_factor)
        if width != wave.shape[-1]:
            wave = np.concatenate([wave, wave], axis=-1)
        return wave.astype(np.float32).reshape((1,) * (len(source_input.dims) - 2) + wave.shape)


def is_local(name: str) -> bool:
    """Whether an input's name says that it is for layers with a window."""
    return any(word in name.lower() for word in ("local", "sliding", "swa", "window"))


def read_inputs(source: SourceModel, *, head: bool = False) -> SourceInputs:
    """Tell what each input is for.

    Args:
        source: The source.
        head: It may read hidden states of another model, [1, T, width].

    Raises:
        BadModel: An input that no decoder-only language model has, or no token ids.
    """
    initializers = source.model.graph.initializers
    inputs = [
        _read(source, value, head=head)
        for value in source.model.graph.inputs
        if value.name not in initializers
    ]
    tokens = [source_input for source_input in inputs if source_input.purpose == "tokens"]
    if len(tokens) != 1:
        raise BadModel(
            f"it has {len(tokens)} inputs of token ids",
            where=source.path.name,
            remedy="export a decoder-only language model with the input input_ids",
        )
    width = tokens[0].dims[-1]
    if isinstance(width, str):
        return SourceInputs(tuple(inputs), None, scattered=False)
    return _static(source, inputs, width)


def _static(source: SourceModel, inputs: Sequence[SourceInput], width: int) -> SourceInputs:
    masks = [source_input.dims[-1] for source_input in inputs if source_input.purpose == "mask"]
    total = masks[0] if masks and isinstance(masks[0], int) else None
    past = [source_input for source_input in inputs if source_input.purpose == "past"]
    if total is None:
        raise BadModel(
            "its sizes are fixed, but no attention mask tells the context length",
            where=source.path.name,
            remedy="export it with an attention_mask input, or with dynamic axes",
        )
    lengths = {total, total - width}
    for cache in past:
        if not lengths.intersection(cache.dims):
            raise BadModel(
                f"a cache of shape {list(cache.dims)} fits neither the context length {total} nor "
                f"{total} less {width} new tokens",
                where=cache.name,
                remedy="export the model again",
            )
    scattered = bool(past) and any(source_input.purpose == "cache_index" for source_input in inputs)
    return SourceInputs(tuple(inputs), (width, total), scattered=scattered)


def _read(source: SourceModel, value: ir.Value, *, head: bool) -> SourceInput:
    name = str(value.name)
    shape = value.shape
    dims: Dims = tuple(
        dim if isinstance(dim, int) else str(dim) for dim in (shape.dims if shape else ())
    )
    dtype = value.dtype or ir.DataType.FLOAT
    kind = np.dtype(np.float32) if dtype.is_floating_point() else np.dtype(dtype.numpy())
    purpose = _purpose(name.lower(), len(dims), is_float=dtype.is_floating_point())
    fixed = all(isinstance(dim, int) for dim in dims)
    states = head and purpose is None and len(dims) == _STATE_AXES and isinstance(dims[-1], int)
    if states and dtype.is_floating_point():
        return SourceInput(name, "states", dims, kind)
    if purpose == "window":
        number = text_config(source.config).get("sliding_window")
        if not isinstance(number, int) and any(
            use.node.op_type != "Identity" for use in value.uses()
        ):
            raise BadModel(
                "it is the sliding window, which config.json does not tell",
                where=f"{source.path.name}: input {name}",
                remedy="put sliding_window of the model into config.json",
            )
        return SourceInput(name, purpose, dims, kind, number if isinstance(number, int) else 0)
    if purpose is None and dtype.is_floating_point() and len(dims) == 2 and fixed:
        purpose = "adapter" if "lora" in name.lower() else None
    cached = any(word in name.lower() for word in ("past", "cache"))
    if purpose is None and cached and dtype.is_floating_point():
        raise BadModel(
            f"the cache has the shape [{', '.join(map(str, dims))}]",
            where=f"{source.path.name}: input {name}",
            remedy="export one input [batch, heads, length, width] for the keys and one for the "
            "values of each layer",
        )
    if purpose is None:
        words = {
            "inputs_embeds": "pass token ids instead of embeddings",
            "pixel_values": "export the language model alone",
        }
        remedy = next((text for word, text in words.items() if word in name), "")
        raise BadModel(
            f"no decoder-only language model has an input {name} of rank {len(dims)}",
            where=f"{source.path.name}: input {name}",
            remedy=remedy or "export the model with input_ids, attention_mask, positions and past",
        )
    return SourceInput(name, purpose, dims, kind)


def _purpose(name: str, rank: int, *, is_float: bool) -> Purpose | None:
    if is_float:
        if "cos" in name:
            return "cos"
        if "sin" in name:
            return "sin"
        if "mask" in name:
            return "mask"
        return "past" if rank == 4 else None
    if not rank and "cache" not in name:
        # transformers 5 passes what its caches hold as tensors without an axis.
        if "window" in name:
            return "window"
        if any(word in name for word in _COUNTS):
            return "length"
    if "mask" in name:
        return "mask"
    if "cache" in name:
        return "cache_index"
    if "position" in name:
        return "positions"
    if rank == 2 and ("id" in name or "token" in name) and "type" not in name:
        return "tokens"
    return None
