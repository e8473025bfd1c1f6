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
        found = self._provenance.get(name)
        return found.source if found else name

    def stands_for_source(self, name: str) -> bool:
        """The source has this tensor, so the file should have an entry for it."""
        return self.source(name) in self._of_source

    def entry(self, name: str) -> Encoding | None:
        """The entry as the file has it, unused until asked for below."""
        found = self._encodings.get(self.source(name))
        if found is None and name in self._otherwise:
            found = self._encodings.get(self._otherwise[name])
        return found

    def activation(self, name: str, *, bits: int | None = None) -> Encoding | None:
        """One scale for all values of an activation.

        Args:
            name: The tensor.
            bits: Wanted; an entry of other bits gives its range on a grid of these. None = as the
                file has it.

        Raises:
            BadEncodings: The entry has several scales.
        """
        found = self.entry(name)
        if found is None or found.dtype == "float":
            return None
        self.used.add(found.name)
        if not found.per_tensor:
            raise BadEncodings(
                f"{found.scale.size} scales for an activation, which has one",
                where=f"{self.where}: {found.name}",
                remedy=_REMEDY,
            )
        return found if bits is None or found.bits == bits else rescaled(found, bits)

    def weight(self, name: str, *, inputs: int) -> Encoding | None:
        """The encoding of a weight's own rows.

        Args:
            name: The initializer.
            inputs: Its input channels, which per-block scales divide.

        Raises:
            BadEncodings: The entry has fewer channels than the source's weight.
        """
        found = self.entry(name)
        if found is None or found.dtype == "float":
            return None
        self.used.add(found.name)
        found = dataclasses.replace(found, name=f"{self.where}: {found.name}").blocked(inputs)
        source = self._provenance.get(name)
        if source is not None and source.index is not None:
            return found.picked(source.index)
        return found if source is None or source.rows is None else found.rows(*source.rows)

    def channels(self, name: str, count: int) -> npt.NDArray[np.int64]:
        """Which of its source's output channels the `count` rows of a weight are."""
        found = self._provenance.get(name)
        if found is not None and found.index is not None:
            return np.array(found.index)
        start = 0 if found is None or found.rows is None else found.rows[0]
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
