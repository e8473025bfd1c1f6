"""The adapters of a session, from a command's options."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from genai_core.container.adapters import AdapterIndex
from genai_core.errors import BadInput
from genai_runtime.executor.rows import AdapterUse

__all__ = ["Wearing"]


@dataclass(frozen=True)
class Wearing:
    """`--adapter NAME[=ALPHA]`, as often as it was given, or `--use-case NAME`."""

    adapters: Sequence[str] = ()
    use_case: str | None = None

    def of(self, index: AdapterIndex) -> tuple[AdapterUse, ...]:
        """What a session of a container wears.

        Args:
            index: Of the container.

        Raises:
            BadInput: Both options are given, an adapter twice, a name that the container does not
                have, or an alpha that is no number.
        """
        if self.use_case is None:
            return tuple(self._adapter(text, index) for text in self._each_once())
        if self.adapters:
            raise BadInput(
                "a use case has its adapters", where="--adapter", remedy="leave one of them out"
            )
        if self.use_case not in index.use_cases:
            raise _unknown("--use-case", "use case", self.use_case, list(index.use_cases))
        worn = index.use_cases[self.use_case].adapters
        return tuple(AdapterUse(entry.name, entry.alpha) for entry in worn)

    def _each_once(self) -> Sequence[str]:
        names = [text.partition("=")[0] for text in self.adapters]
        twice = next((name for i, name in enumerate(names) if name in names[:i]), None)
        if twice is not None:
            raise BadInput(f"{twice} is given twice", where="--adapter", remedy="keep one")
        return self.adapters

    def _adapter(self, text: str, index: AdapterIndex) -> AdapterUse:
        name, given, alpha = text.partition("=")
        if name not in index.adapters:
            raise _unknown("--adapter", "adapter", name, list(index.adapters))
        try:
            value = float(alpha) if given else 1.0
        except ValueError:
            value = float("nan")
        if not abs(value) < float("inf"):
            raise BadInput(
                f"{alpha!r} is no number", where="--adapter", remedy=f"write {name}=0.8, say"
            )
        return AdapterUse(name, value)


def _unknown(option: str, what: str, name: str, known: Sequence[str]) -> BadInput:
    return BadInput(
        f"the container has no {what} {name}",
        where=option,
        remedy=f"use {', '.join(known)}" if known else "build it with spec.lora, or leave this out",
    )
