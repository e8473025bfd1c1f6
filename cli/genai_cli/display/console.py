"""A rich console whose colours and cursor are its own alone.

Names, messages and logs of others may hold escapes of a terminal; they are shown as text.
"""

from __future__ import annotations

from collections.abc import Iterable

from rich.console import Console, ConsoleOptions, RenderableType
from rich.segment import Segment

from genai_core.redaction import plain

__all__ = ["PlainConsole"]


class PlainConsole(Console):
    """See the module's docstring."""

    def render(
        self, renderable: RenderableType, options: ConsoleOptions | None = None
    ) -> Iterable[Segment]:
        """Pieces of text with their styles; whatever is printed goes through here."""
        for segment in super().render(renderable, options):
            text = segment.text if segment.control else plain(segment.text)
            yield segment if text == segment.text else Segment(text, segment.style)
