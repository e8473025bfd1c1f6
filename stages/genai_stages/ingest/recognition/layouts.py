"""How a tensor of any shape holds the tokens x channels of a canonical tensor.

The core graph knows one form, [1, T, C]. A source turns it into heads, into the channels-first form
of a 1x1 convolution, cuts it and repeats it. A `TensorLayout` follows such movements exactly and
symbolically: each axis is a product of atoms, and an atom walks over tokens (T), over channels (C,
with a stride) or repeats (R). Movements that do not keep to this raise `LayoutError`, with the
reason.

Example: [1, T, 64] reshaped to [1, T, 4, 16] and transposed to [1, 4, T, 16] has the axes
(), (C 4 by 16), (T), (C 16 by 1).
"""

from __future__ import annotations

import dataclasses
import itertools
from collections.abc import Sequence
from typing import Any, Literal, NamedTuple

import numpy as np
import numpy.typing as npt

IndexArray = npt.NDArray[np.int64]


class LayoutError(Exception):
    """A movement that leaves the form tokens x channels."""


class Atom(NamedTuple):
    """A part of an axis: `size` steps of `stride` over tokens, channels or nothing."""

    kind: Literal["T", "C", "R"]
    size: int
    stride: int


Axis = tuple[Atom, ...]


@dataclasses.dataclass(frozen=True)
class TensorLayout:
    """Axes of a tensor in terms of tokens and channels; `offset` is its first channel."""

    axes: tuple[Axis, ...]
    offset: int = 0

    @property
    def shape(self) -> tuple[int, ...]:
        """Dimensions."""
        return tuple(_size(axis) for axis in self.axes)

    def channels(self) -> IndexArray:
        """Canonical channel of each position along the channel atoms, in order of appearance."""
        index = np.zeros(1, np.int64)
        for atom in itertools.chain.from_iterable(self.axes):
            if atom.kind == "C":
                index = (index[:, None] + np.arange(atom.size) * atom.stride).reshape(-1)
        return index + self.offset

    def is_whole(self, width: int) -> bool:
        """Whether it holds every channel once, in the canonical order of appearance."""
        found = self.channels()
        return len(found) == width and bool(np.all(found == np.arange(width))) and not self.repeats

    @property
    def repeats(self) -> bool:
        """Whether something is repeated."""
        return any(atom.kind == "R" for axis in self.axes for atom in axis)

    def gather(self, canonical: npt.NDArray[Any]) -> npt.NDArray[Any]:
        """Arrange a canonical [T, C] array in this layout."""
        token = np.zeros((1,) * len(self.axes), np.int64)
        channel = token + self.offset
        for position, axis in enumerate(self.axes):
            steps = {"T": np.zeros(1, np.int64), "C": np.zeros(1, np.int64)}
            for atom in axis:
                walk = np.arange(atom.size) * atom.stride
                for kind, past in steps.items():
                    step = walk if kind == atom.kind else np.zeros_like(walk)
                    steps[kind] = (past[:, None] + step).reshape(-1)
            spread = [1] * len(self.axes)
            spread[position] = _size(axis)
            token = token + steps["T"].reshape(spread)
            channel = channel + steps["C"].reshape(spread)
        token, channel = np.broadcast_arrays(token, channel)
        return canonical[token, channel]

    def transposed(self, perm: Sequence[int]) -> TensorLayout:
        """Axes in another order."""
        return dataclasses.replace(self, axes=tuple(self.axes[axis] for axis in perm))

    def squeezed(self, axes: Sequence[int]) -> TensorLayout:
        """Without these axes of size one; none named = all."""
        drop = {axis % len(self.axes) for axis in axes} or {
            axis for axis, size in enumerate(self.shape) if size == 1
        }
        kept = tuple(axis for index, axis in enumerate(self.axes) if index not in drop)
        return dataclasses.replace(self, axes=kept)

    def unsqueezed(self, axes: Sequence[int]) -> TensorLayout:
        """With new axes of size one."""
        rank = len(self.axes) + len(axes)
        new = {axis % rank for axis in axes}
        old = iter(self.axes)
        return dataclasses.replace(
            self, axes=tuple(() if axis in new else next(old) for axis in range(rank))
        )

    def reshaped(self, shape: Sequence[int]) -> TensorLayout:
        """The same elements in row-major order under another shape."""
        atoms = [atom for axis in self.axes for atom in axis if atom.size != 1]
        axes: list[Axis] = []
        for wanted in shape:
            taken: list[Atom] = []
            left = wanted
            while left > 1:
                if not atoms:
                    raise LayoutError(f"a reshape to {list(shape)} needs more elements")
                atom = atoms.pop(0)
                if left % atom.size == 0:
                    taken.append(atom)
                    left //= atom.size
                elif atom.size % left == 0 and atom.kind == "C":
                    rest = atom.size // left
                    taken.append(Atom(atom.kind, left, atom.stride * rest))
                    atoms.insert(0, Atom(atom.kind, rest, atom.stride))
                    left = 1
                else:
                    raise LayoutError(f"a reshape to {list(shape)} mixes tokens and channels")
            axes.append(_merged(taken))
        if atoms:
            raise LayoutError(f"a reshape to {list(shape)} loses elements")
        return dataclasses.replace(self, axes=tuple(axes))

    def sliced(self, axis: int, start: int, stop: int, *, step: int = 1) -> TensorLayout:
        """A range of one axis; of tokens only the whole."""
        size = self.shape[axis]
        first, last, step = slice(start, stop, step).indices(size)
        count = len(range(first, last, step))
        if count == size and step == 1:
            return self
        atoms = self.axes[axis]
        if len(atoms) != 1 or atoms[0].kind == "T" or step < 1 or count < 1:
            raise LayoutError("it keeps only a part of the tokens, or of several axes at once")
        (atom,) = atoms
        cut = Atom(atom.kind, count, atom.stride * step)
        offset = self.offset + (first * atom.stride if atom.kind == "C" else 0)
        new = (cut,) if count > 1 else ()
        return TensorLayout((*self.axes[:axis], new, *self.axes[axis + 1 :]), offset)

    def expanded(self, shape: Sequence[int]) -> TensorLayout:
        """Broadcast to `shape`."""
        rank = max(len(shape), len(self.axes))
        axes = ((),) * (rank - len(self.axes)) + self.axes
        sizes = (1,) * (rank - len(shape)) + tuple(shape)
        new: list[Axis] = []
        for axis, wanted in zip(axes, sizes, strict=True):
            have = _size(axis)
            if have == 1 and wanted > 1:
                new.append((Atom("R", wanted, 0),))
            elif wanted in (1, have):
                new.append(axis)
            else:
                raise LayoutError(f"an expansion of {have} to {wanted}")
        return dataclasses.replace(self, axes=tuple(new))

    def vector(self, array: npt.NDArray[Any], width: int) -> npt.NDArray[Any]:
        """A constant that is broadcast against this whole layout, as one value for each channel.

        Raises:
            LayoutError: It differs from token to token, or adds axes.
        """
        if array.ndim > len(self.axes):
            raise LayoutError("a constant with more axes than the tensor")
        array = array.reshape((1,) * (len(self.axes) - array.ndim) + array.shape)
        shape = []
        for position, axis in enumerate(self.axes):
            size = array.shape[position]
            if size not in (1, _size(axis)):
                raise LayoutError("a constant that does not fit")
            if any(atom.kind == "T" for atom in axis):
                first = np.take(array, [0], axis=position)
                if size > 1 and not np.array_equal(np.broadcast_to(first, array.shape), array):
                    raise LayoutError("a constant that differs from token to token")
                array = first
                shape.append(1)
            else:
                shape.append(_size(axis))
        return np.broadcast_to(array, shape).reshape(width)


def token_major(tokens: int, width: int) -> TensorLayout:
    """The canonical layout, [1, T, C]."""
    channels = (Atom("C", width, 1),) if width > 1 else ()
    return TensorLayout(((), (Atom("T", tokens, 1),), channels))


def _size(axis: Axis) -> int:
    size = 1
    for atom in axis:
        size *= atom.size
    return size


def _merged(atoms: Sequence[Atom]) -> Axis:
    merged: list[Atom] = []
    for atom in atoms:
        if (
            merged
            and merged[-1].kind == atom.kind
            and (merged[-1].stride == atom.stride * atom.size)
        ):
            last = merged.pop()
            merged.append(Atom(atom.kind, last.size * atom.size, atom.stride))
        else:
            merged.append(atom)
    return tuple(merged)
