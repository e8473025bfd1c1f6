"""Positions, rotations and masks, in the ways in which exporters write them."""

from __future__ import annotations

import numpy as np
from onnx import TensorProto

from genai_stages.testing_sources.graph_writer import GraphWriter


class PositionWriter(GraphWriter):
    """Writes what depends on positions."""

    def position(self) -> str:
        """[B, T] int64."""
        if self.style.positions == "input":
            return "position_ids"
        counted = self.op("CumSum", "attention_mask", self.constant(np.array(1, np.int64)))
        counted = self.op("Sub", counted, self.ints(1))
        return self.op("Slice", counted, self.behind, self.total, self.ints(1))

    def waves(self) -> None:
        """Cosines and sines of the positions."""
        style = self.style
        rotary = style.rotary_dim or style.head_dim
        exponent = np.arange(0, rotary, 2, dtype=np.float32) / np.float32(rotary)
        inv_freq = (1.0 / np.float32(style.theta) ** exponent).astype(np.float32)
        if style.waves == "ready":
            angles = np.arange(512)[:, None] * inv_freq.astype(np.float64)
            if style.late == "waves":
                later = angles[style.late_from :] / np.linspace(1, 3, len(inv_freq))
                angles = np.concatenate([angles[: style.late_from], later])
            tables = [self.constant(f(angles).astype(np.float32)) for f in (np.cos, np.sin)]
            rows = [self.op("Gather", table, self.position()) for table in tables]
            self.cos, self.sin = (self.op("Unsqueeze", row, self.ints(1)) for row in rows)
            return
        position = self.op("Cast", self.position(), to=TensorProto.FLOAT)
        position = self.op("Unsqueeze", position, self.ints(1, 3))
        angle = self.op("Mul", position, self.constant(inv_freq))
        self.cos, self.sin = self.op("Cos", angle), self.op("Sin", angle)
        if style.wave_factor != 1.0:
            factor = self.number(style.wave_factor)
            self.cos, self.sin = (self.op("Mul", wave, factor) for wave in (self.cos, self.sin))

    def later(self, kind: str, x: str, *axes: int) -> str:
        """A tensor times 1 + 1.5 log(1 + floor(position / late_from)), where the style says so.

        Llama 4 and Ministral 3 scale queries so. `axes` are added to [B, T].
        """
        if self.style.late != kind:
            return x
        every = kind == "values"
        place = self.op("Unsqueeze", self.every, self.ints(0)) if every else self.position()
        steps = self.op("Div", place, self.ints(self.style.late_from))
        steps = self.op("Cast", steps, to=TensorProto.FLOAT)
        grown = self.op("Log", self.op("Add", steps, self.number(1.0)))
        factor = self.op("Add", self.op("Mul", grown, self.number(1.5)), self.number(1.0))
        factor = self.op("Unsqueeze", factor, self.ints(*axes))
        if kind != "bias":
            return self.op("Mul", x, factor)
        far = self.op("Mul", self.op("Sub", factor, self.number(1.0)), self.number(0.01))
        key = self.op("Cast", self.every, to=TensorProto.FLOAT)
        return self.op("Add", x, self.op("Mul", far, key))

    def hidden_keys(self) -> None:
        """Bool [1, 1, T, K], true = visible."""
        one = self.constant(np.array(1, np.int64))
        zero = self.constant(np.array(0, np.int64))
        every = self.op("Range", zero, self.scalar(self.total), one)
        new = self.op("Range", self.scalar(self.behind), self.scalar(self.total), one)
        column = self.op("Unsqueeze", new, self.ints(1))
        self.every = every
        visible = self.op("LessOrEqual", every, column)
        if self.style.late == "chunks":
            chunk = self.ints(self.style.late_from)
            same = self.op("Equal", self.op("Div", every, chunk), self.op("Div", column, chunk))
            visible = self.op("And", visible, same)
        if self.style.window:
            oldest = self.op("Sub", column, self.ints(self.style.window))
            near = self.op("Greater", every, oldest)
            if self.style.late == "window":
                early = self.op("Less", column, self.ints(self.style.late_from))
                near = self.op("Or", early, near)
            visible = self.op("And", visible, near)
        given = self.op("Cast", "attention_mask", to=TensorProto.BOOL)
        given = self.op("Unsqueeze", given, self.ints(1, 2))
        self.visible = self.op("And", visible, given)
        lowest = -np.inf if self.style.mask == "infinite" else np.finfo(np.float32).min
        self.lowest = self.number(float(lowest))
        self.additive = self.op("Where", self.visible, self.number(0.0), self.lowest)
        if self.style.mask == "new tokens":
            self.additive = self.mask_of_new_tokens(given)

    def mask_of_new_tokens(self, given: str) -> str:
        """A triangle as wide as the new tokens, stretched over all: right without a past alone."""
        square = self.op("Concat", self.new, self.new, axis=0)
        full = self.op("Expand", self.lowest, square)
        new = self.op("Range", self.constant(np.array(0, np.int64)), self.scalar(self.new),
                      self.constant(np.array(1, np.int64)))  # fmt: skip
        rows = self.op("Reshape", self.op("Add", new, self.ints(1)), self.ints(-1, 1))
        triangle = self.op("Where", self.op("Less", new, rows), self.number(0.0), full)
        wide = self.op("Concat", self.ints(1, 1), self.new, self.total, axis=0)
        stretched = self.op("Expand", self.op("Unsqueeze", triangle, self.ints(0, 1)), wide)
        hidden = self.op("Where", given, self.number(0.0), self.lowest)
        return self.op("Tile", self.op("Add", hidden, stretched),
                       self.ints(1, self.style.heads, 1, 1))  # fmt: skip

    def rotate(self, x: str) -> str:
        """Heads, rotated."""
        style = self.style
        if style.rotary == "none":
            return x
        rotary = style.rotary_dim or style.head_dim
        half = rotary // 2
        bounds = (0, half, 1), (half, rotary, 1)
        if style.rotary == "neighbours":
            bounds = (0, rotary, 2), (1, rotary, 2)
        left, right = (
            self.op("Slice", x, self.ints(start), self.ints(stop), self.ints(3), self.ints(step))
            for start, stop, step in bounds
        )
        one = self.op("Sub", self.op("Mul", left, self.cos), self.op("Mul", right, self.sin))
        two = self.op("Add", self.op("Mul", right, self.cos), self.op("Mul", left, self.sin))
        if style.rotary == "neighbours":
            pair = [self.op("Unsqueeze", each, self.ints(-1)) for each in (one, two)]
            turned = self.op("Reshape", self.op("Concat", *pair, axis=-1), self.ints(0, 0, 0, -1))
        else:
            turned = self.op("Concat", one, two, axis=-1)
        if rotary == style.head_dim:
            return turned
        rest = self.op("Slice", x, self.ints(rotary), self.ints(style.head_dim), self.ints(3))
        return self.op("Concat", turned, rest, axis=-1)
