"""From a tensor of ours to its entry in the encodings file.

The file names tensors of the source model. A tensor of ours bears such a name or has a source in
the provenance map: rows of a fused weight, one head of a parent. What was asked for is remembered,
so that the record can list the entries that nothing used.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Collection, Mapping

import numpy as np
import numpy.typing as npt

from genai_core.errors import BadEncodings
from genai_core.facts import ModelFacts, TensorSource
from genai_stages.aimet.model import Encoding, EncodingSet, per_tensor

_REMEDY = "export model and encodings from the same simulation"


class MissingEncoding(BadEncodings):
    """A gap: calibration can fill it."""


class EncodingLookup:
    """Finds encodings and remembers which entries were used.

    Args:
        encodings: The file.
        provenance: Tensor -> the source tensor that it stands for; absent = its own name.
        of_source: Names known to be the source's tensors; others may be of our own making.
        otherwise: Tensor -> the source tensor to try where its own has no entry.
    """

    def __init__(
        self,
        encodings: EncodingSet,
        provenance: Mapping[str, TensorSource],
        of_source: Collection[str] = (),
        *,
        otherwise: Mapping[str, str] | None = None,
    ) -> None:
        self._encodings = encodings
        self._provenance = provenance
        self._of_source = frozenset(of_source)
        self._otherwise = otherwise or {}
        self.used: set[str] = set()

    @property
    def where(self) -> str:
        """The file, for messages."""
        return self._encodings.where

    def source(self, name: str) -> str:
        """Name of the source tensor."""
        origin = self._provenance.get(name)
        return origin.source if origin else name

    def stands_for_source(self, name: str) -> bool:
        """The source has this tensor, so the file should have an entry for it."""
        return self.source(name) in self._of_source

    def entry(self, name: str) -> Encoding | None:
        """The entry as the file has it, unused until asked for below."""
        encoding = self._encodings.get(self.source(name))
        if encoding is None and name in self._otherwise:
            encoding = self._encodings.get(self._otherwise[name])
        return encoding

    def activation(self, name: str, *, bits: int | None = None) -> Encoding | None:
        """One scale for all values of an activation.

        Args:
            name: The tensor.
            bits: Wanted; an entry of other bits gives its range on a grid of these. None = as the
                file has it.

        Raises:
            BadEncodings: The entry has several scales.
        """
        encoding = self.entry(name)
        if encoding is None or encoding.dtype == "float":
            return None
        self.used.add(encoding.name)
        if not encoding.per_tensor:
            raise BadEncodings(
                f"{encoding.scale.size} scales for an activation, which has one",
                where=f"{self.where}: {encoding.name}",
                remedy=_REMEDY,
            )
        return encoding if bits is None or encoding.bits == bits else rescaled(encoding, bits)

    def weight(self, name: str, *, inputs: int) -> Encoding | None:
        """The encoding of a weight's own rows.

        Args:
            name: The initializer.
            inputs: Its input channels, which per-block scales divide.

        Raises:
            BadEncodings: The entry has fewer channels than the source's weight.
        """
        encoding = self.entry(name)
        if encoding is None or encoding.dtype == "float":
            return None
        self.used.add(encoding.name)
        encoding = dataclasses.replace(encoding, name=f"{self.where}: {encoding.name}").blocked(
            inputs
        )
        source = self._provenance.get(name)
        if source is not None and source.index is not None:
            return encoding.picked(source.index)
        return encoding if source is None or source.rows is None else encoding.rows(*source.rows)

    def channels(self, name: str, count: int) -> npt.NDArray[np.int64]:
        """Which of its source's output channels the `count` rows of a weight are."""
        origin = self._provenance.get(name)
        if origin is not None and origin.index is not None:
            return np.array(origin.index)
        start = 0 if origin is None or origin.rows is None else origin.rows[0]
        return np.arange(start, start + count)

    def unused(self) -> list[str]:
        """Entries that nothing used so far, in the file's order."""
        return [name for name in self._encodings if name not in self.used]


def rescaled(encoding: Encoding, bits: int) -> Encoding:
    """The same range on a grid of other bits.

    A symmetric grid reaches one step further down than up; its range is what both sides have.
    """
    high = float(encoding.high)
    return per_tensor(
        encoding.name,
        -high if encoding.symmetric else float(encoding.low),
        high,
        bits=bits,
        symmetric=encoding.symmetric,
    )


def core_lookup(encodings: EncodingSet, facts: ModelFacts) -> EncodingLookup:
    """The lookup for a core graph, whose provenance its facts hold."""
    return EncodingLookup(encodings, facts.provenance)
