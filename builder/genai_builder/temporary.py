"""A folder that lives as long as whoever holds it."""

from __future__ import annotations

import shutil
import tempfile
import weakref
from pathlib import Path

__all__ = ["HeldFolder"]


class HeldFolder:
    """Removed when the last reference goes, or the program ends.

    `tempfile.TemporaryDirectory` warns of that; here it is what is wanted: a container is used for
    as long as the user keeps it.
    """

    def __init__(self) -> None:
        self.path = Path(tempfile.mkdtemp(prefix="genai-builder-"))
        self._end = weakref.finalize(self, shutil.rmtree, self.path, ignore_errors=True)

    def remove(self) -> None:
        """Remove it now."""
        self._end()
