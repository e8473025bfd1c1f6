"""Typed access to the fields of one entry; every complaint names file, entry and remedy."""

from __future__ import annotations

from collections.abc import Mapping
from typing import NoReturn

import numpy as np
import numpy.typing as npt

from genai_core.errors import BadEncodings
from genai_stages.aimet.model import Encoding, Floats

REMEDY = "export the encodings again from the simulation that belongs to this model"


class EncodingEntry:
    """One entry of an encodings file.

    Args:
        data: The JSON object.
        where: The file.
        name: The tensor's name.
    """

    def __init__(self, data: object, where: str, name: str) -> None:
        self.where = f"{where}: {name}"
        self.name = name
        if not isinstance(data, Mapping):
            self.fail(f"an object was expected, not {kind(data)}")
        self.data: Mapping[str, object] = data

    def error(self, message: str) -> BadEncodings:
        """What to raise to refuse the entry."""
        return BadEncodings(message, where=self.where, remedy=REMEDY)

    def fail(self, message: str) -> NoReturn:
        """Refuse the entry."""
        raise self.error(message)

    def has(self, field: str) -> bool:
        """The field is there and not null."""
        return self.data.get(field) is not None

    def text(self, field: str) -> str:
        """A string."""
        value = self.data.get(field)
        if not isinstance(value, str):
            self.fail(f"{field} must be a string, not {kind(value)}")
        return value

    def whole(self, field: str, *, low: int, high: int) -> int:
        """An integer in [low, high]."""
        value = self.data.get(field)
        if isinstance(value, bool) or not isinstance(value, int | float) or value % 1 != 0:
            self.fail(f"{field} must be a whole number, not {kind(value)}")
        if not low <= value <= high:
            self.fail(f"{field} is {value}, not between {low} and {high}")
        return int(value)

    def array(self, field: str) -> Floats:
        """A number or a nested list of numbers, all finite."""
        return self.numbers(self.data.get(field), field)

    def numbers(self, value: object, field: str) -> Floats:
        """The same for a value that was taken from elsewhere in the entry."""
        if value is None:
            self.fail(f"{field} is missing")
        try:
            found = np.asarray(value)
        except ValueError:
            self.fail(f"{field} is a list whose rows differ in length")
        if found.dtype.kind not in "iuf" or found.size == 0:
            self.fail(f"{field} must hold numbers")
        result = found.astype(np.float64)
        if not np.all(np.isfinite(result)):
            self.fail(f"{field} holds {_first(result, ~np.isfinite(result))}")
        return result

    def scales(self, field: str) -> Floats:
        """An array of positive numbers."""
        return self.positive(self.array(field), field)

    def positive(self, values: Floats, field: str) -> Floats:
        """The values, refused where one is not above zero."""
        if np.any(values <= 0):
            self.fail(f"{field} holds {_first(values, values <= 0)}; a scale is above 0")
        # What the hardware reads is float32: a scale must survive that, too.
        single = values.astype(np.float32)
        if not np.all(np.isfinite(single)) or np.any(single == 0):
            self.fail(f"{field} holds {_first(values, ~np.isfinite(single) | (single == 0))}")
        return values

    def float_encoding(self, bits: int) -> Encoding:
        """The entry of a tensor that stays floating point."""
        if bits not in (8, 16, 32):
            self.fail(f"floating point of {bits} bits")
        empty = np.zeros((0,))
        return Encoding(self.name, bits, symmetric=True, scale=empty, offset=empty, dtype="float")

    def encoding(
        self,
        bits: int,
        scale: Floats,
        offset: Floats,
        *,
        symmetric: bool,
        axis: int | None = None,
        block_size: int | None = None,
        block_int_scale: npt.NDArray[np.int64] | None = None,
        channel_scale: Floats | None = None,
    ) -> Encoding:
        """An integer encoding, checked: offsets on the grid, shapes alike."""
        if offset.shape != scale.shape:
            if offset.size != 1:
                self.fail(f"{scale.size} scales but {offset.size} offsets")
            offset = np.full(scale.shape, offset.reshape(()))
        if bits != 2 and np.any(offset != np.rint(offset)):
            self.fail(f"offset holds {_first(offset, offset != np.rint(offset))}, a fraction")
        # A zero point beside the grid would wrap around in the integers that hold it.
        beyond = (offset > 0) | (offset < 1 - 2.0**bits)
        if np.any(beyond):
            self.fail(f"offset {_first(offset, beyond)} is not on a grid of {bits} bits")
        return Encoding(
            self.name,
            bits,
            symmetric,
            scale,
            offset,
            axis=axis,
            block_size=block_size,
            block_int_scale=block_int_scale,
            channel_scale=channel_scale,
        )


def kind(value: object) -> str:
    """What a JSON value is, in words."""
    if value is None:
        return "nothing"
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, Mapping):
        return "an object"
    if isinstance(value, list | np.ndarray):
        return "a list"
    return repr(value) if len(repr(value)) < 40 else f"a {type(value).__name__}"


def _first(values: Floats, wrong: npt.NDArray[np.bool_]) -> str:
    position = int(np.flatnonzero(np.asarray(wrong).reshape(-1))[0])
    value = values.reshape(-1)[position]
    return f"{value:g}" if values.size == 1 else f"{value:g} (element {position})"
